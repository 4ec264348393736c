"""The fields of a job as typed, frozen `Settings`, with their defaults; the rows of all jobs."""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import functools
from typing import Any, TypeVar

from pomp_jax.config import fields
from pomp_jax.config.declare import (
  MAX_SEED,
  UnknownFieldError,
  between,
  check_name,
  check_value,
  one_of,
  row,
  typed,
)
from pomp_jax.config.fields import Contrast, Loop
from pomp_jax.registry import FIELD_GROUPS, JOBS, groups_of, load

_Group = TypeVar("_Group", Contrast, Loop)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The fields of every job.

  Typed and frozen. `defaults` makes the subclass of a job, with the groups that it reads.
  """

  job: str = row("pretrain", "job to run", one_of(*JOBS))
  dry_run: bool = row(False, "measurement of the run on synthetic data, with its cost as a result")
  seed: int = row(0, "random seed of context, draws and shuffling", between(0, MAX_SEED))
  compilation_cache: str = row(
    "auto", "folder of compiled programs; auto: the user's cache folder; empty: none"
  )
  clip: fields.Clip = fields.Clip()
  mesh: fields.Mesh = fields.Mesh()

  @property
  def contrast(self) -> Contrast:
    """The fields of `Contrast` alone."""
    return self._part(Contrast)

  @property
  def loop(self) -> Loop:
    """The fields of `Loop` alone."""
    return self._part(Loop)

  def _part(self, group: type[_Group]) -> _Group:
    return group(**{field.name: getattr(self, field.name) for field in dataclasses.fields(group)})

  def __getattr__(self, name: str) -> Any:
    """Raises AttributeError for a group or field that the job does not read."""
    raise AttributeError(f"job {self.job!r} reads no config.{name}")

  def __reduce__(self):
    """Pickles the values: the class is made anew, and is no module's."""
    return _restored, (self.job, self.flat())

  def to_dict(self) -> dict[str, Any]:
    """Nested dict of plain values, for config.json, checkpoints and prompt files."""
    return dataclasses.asdict(self)

  def flat(self) -> dict[str, Any]:
    """Dotted name -> value: {"optim.lr": 0.002, ..}."""
    return flatten(self.to_dict())

  def replace(self, changes: Mapping[str, Any]) -> "Settings":
    """A copy with other values, by dotted names; another `job` keeps the fields that it reads too.

    Raises:
      ConfigError: a field that does not exist or that the job does not read, or a value of another
        type.
    """
    job = changes.get("job", self.job)
    known = fields_of(job)
    if job != self.job:
      kept = {field: value for field, value in self.flat().items() if field in known}
      return defaults(job).replace({**kept, **changes})
    groups: dict[str, dict[str, Any]] = {}
    for field, value in changes.items():
      check_read(field, job, known)
      group, _, leaf = field.rpartition(".")
      groups.setdefault(group, {})[leaf] = typed(field, known[field].type, value)
    own = groups.pop("", {})
    nested = {name: dataclasses.replace(getattr(self, name), **of) for name, of in groups.items()}
    return dataclasses.replace(self, **own, **nested)


@functools.cache
def defaults(job: str = "pretrain") -> Settings:
  """The fields that a job reads, with their defaults; ConfigError if there is no such job."""
  check_value("job", one_of(*JOBS), job)
  groups = groups_with_fields(job)
  unnamed = [group for group in fields.UNNAMED if group in groups.values()]
  named = [(name, group, group()) for name, group in groups.items() if group not in unnamed]
  bases = (*reversed(unnamed), Settings)  # a dataclass has the fields of its last base first
  return dataclasses.make_dataclass("Settings", named, bases=bases, frozen=True)(job=job)


def groups_with_fields(job: str) -> dict[str, type]:
  """Class of each group of fields that a job reads; of `train_masks` it is `TrainMasks`."""
  found = {}
  for name in groups_of(job):
    class_name = name.title().replace("_", "")
    room = FIELD_GROUPS.get(name)
    found[name] = getattr(load(room), class_name) if room else getattr(fields, class_name)
  return found


def _restored(job: str, values: Mapping[str, Any]) -> Settings:
  return defaults(job).replace(values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value, of nested dicts."""
  found: dict[str, Any] = {}
  for name, value in values.items():
    inside = isinstance(value, Mapping)
    found |= flatten(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
  return found


@functools.cache
def fields_of(job: str) -> Mapping[str, dataclasses.Field]:
  """Dotted name -> row of the fields that a job reads."""
  found: dict[str, dataclasses.Field] = {}
  for field in dataclasses.fields(defaults(job)):
    if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
      found |= {f"{field.name}.{own.name}": own for own in dataclasses.fields(field.type)}
    else:
      found[field.name] = field
  return found


def check_read(field: str, job: str, known: Collection[str]) -> None:
  """Raises UnknownFieldError for a field that does not exist, or that only other jobs read."""
  check_name(field, FIELDS)
  if field not in known:
    readers = ", ".join(name for name in JOBS if field in fields_of(name))
    raise UnknownFieldError(field, f" of job {job!r}: it is a field of {readers}")


class _Fields(Mapping[str, dataclasses.Field]):
  """Rows of all jobs, read when first asked for: a room's `fields.py` imports this package."""

  @functools.cached_property
  def _rows(self) -> dict[str, dataclasses.Field]:
    return {field: row for job in JOBS for field, row in fields_of(job).items()}

  def __getitem__(self, field: str) -> dataclasses.Field:
    return self._rows[field]

  def __iter__(self) -> Iterator[str]:
    return iter(self._rows)

  def __len__(self) -> int:
    return len(self._rows)


# Dotted name -> row, of all jobs.
FIELDS = _Fields()
