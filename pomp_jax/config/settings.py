"""The fields of a job as typed, frozen `Settings`, with their defaults; the rows of all jobs."""

from collections.abc import Collection, Mapping
import dataclasses
import functools
import re
from typing import Any

from flax.traverse_util import flatten_dict

from pomp_jax.config import fields
from pomp_jax.config.declare import (
  MAX_SEED,
  ConfigError,
  UnknownFieldError,
  at_least,
  between,
  check_name,
  check_value,
  name_of_type,
  one_of,
  row,
  typed,
)
from pomp_jax.config.fields import Contrast, Loop
from pomp_jax.registry import FIELD_GROUPS, JOBS, groups_of, load

# Value of `config.dry_run` for these devices; others name a machine to compile for.
HERE = "here"

# Nested dicts -> dotted name -> value.
flatten = functools.partial(flatten_dict, sep=".")


def _part(group: type) -> property:
  """The fields of a group alone, whose names have no prefix."""
  names = [field.name for field in dataclasses.fields(group)]
  return property(lambda self: group(**{name: getattr(self, name) for name in names}))


@dataclasses.dataclass(frozen=True)
class Settings:
  """The fields of every job.

  Typed and frozen. `defaults` makes the subclass of a job, with the groups that it reads.
  """

  job: str = row("pretrain", "job to run", one_of(*JOBS))
  dry_run: str = row(
    "",
    "the run's cost instead of the run: here, measured; or of v5e:4x4, h100:8, .., compiled for",
    spellings={"true": HERE, "1": HERE, "false": "", "0": ""},
  )
  dry_run_rate: float = row(0.0, "rate an hour of that machine, for a price", at_least(0.0))
  seed: int = row(0, "random seed of context, draws and shuffling", between(0, MAX_SEED))
  compilation_cache: str = row("auto", "folder of compiled programs; auto: the user's; empty: none")
  clip: fields.Clip = fields.Clip()
  mesh: fields.Mesh = fields.Mesh()

  contrast, loop = _part(Contrast), _part(Loop)

  def __getattr__(self, name: str) -> Any:
    """Raises AttributeError for a group or field that the job does not read."""
    raise AttributeError(f"job {self.job!r} reads no config.{name}")

  def __reduce__(self):
    """Pickles the values: the class is made anew, and is no module's."""
    return Settings._restored, (self.job, self.flat())

  @staticmethod
  def _restored(job: str, values: Mapping[str, Any]) -> "Settings":
    return defaults(job).replace(values)

  def to_dict(self) -> dict[str, Any]:
    """Nested dict of plain values, for config.json, checkpoints and prompt files."""
    return dataclasses.asdict(self)

  def flat(self) -> dict[str, Any]:
    """Dotted name -> value: {"optim.lr": 0.002, ..}."""
    return flatten(self.to_dict())

  def replace(self, changes: Mapping[str, Any]) -> "Settings":
    """A copy with other values, by dotted names; another `job` keeps the fields that it reads too.

    ConfigError: a field that does not exist or that the job does not read, or another type.
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
      value = known[field].metadata["spellings"].get(str(value).lower(), value)
      groups.setdefault(group, {})[leaf] = typed(field, known[field].type, value)
    own = groups.pop("", {})
    nested = {name: dataclasses.replace(getattr(self, name), **of) for name, of in groups.items()}
    return dataclasses.replace(self, **own, **nested)


@functools.cache
def defaults(job: str = "pretrain") -> Settings:
  """The fields that a job reads, with their defaults; ConfigError if there is no such job."""
  check_value("job", one_of(*JOBS), job)
  groups = groups_with_fields(job)
  unnamed = [group for group in groups.values() if group in _UNNAMED]
  named = [(name, group, group()) for name, group in groups.items() if group not in unnamed]
  bases = tuple(reversed(unnamed))  # a dataclass has the fields of its last base first
  return dataclasses.make_dataclass("Settings", named, bases=bases, frozen=True)(job=job)


# Groups whose fields have no prefix: config.k is one of `Contrast`.
_UNNAMED = (Settings, Contrast, Loop)


def groups_with_fields(job: str) -> dict[str, type]:
  """Class of each group of fields that a job reads; of `train_masks` it is `TrainMasks`."""
  found: dict[str, type] = {"every job": Settings, "clip": fields.Clip, "mesh": fields.Mesh}
  for name in groups_of(job):
    class_name = name.title().replace("_", "")
    room = FIELD_GROUPS.get(name)
    found[name] = getattr(load(room), class_name) if room else getattr(fields, class_name)
  return found


def rows_of(name: str, group: type) -> dict[str, dataclasses.Field]:
  """Dotted name -> row of the fields of a group."""
  prefix = "" if group in _UNNAMED else f"{name}."
  rows = (field for field in dataclasses.fields(group) if "help" in field.metadata)
  return {f"{prefix}{field.name}": field for field in rows}


@functools.cache
def fields_of(*jobs: str) -> Mapping[str, dataclasses.Field]:
  """Dotted name -> row of the fields that these jobs read; without one, that any job reads."""
  found: dict[str, dataclasses.Field] = {}
  for job in jobs or JOBS:
    for name, group in groups_with_fields(job).items():
      found |= rows_of(name, group)
  return found


def check_read(field: str, job: str, known: Collection[str]) -> None:
  """Raises UnknownFieldError for a field that does not exist, or that only other jobs read."""
  check_name(field, fields_of())
  if field not in known:
    readers = ", ".join(name for name in JOBS if field in fields_of(name))
    raise UnknownFieldError(field, f" of job {job!r}: it is a field of {readers}")


def value_of_text(field: str, text: str) -> Any:
  """The value of a field that a text stands for, on the command line or behind a file's colon.

  Integers of a tuple are separated by "+" or "/", other items by ";". ConfigError: another text.
  """
  check_name(field, fields_of())
  kind = fields_of()[field].type
  try:
    if kind is bool:
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float, str):
      return kind(text)
    if kind == tuple[int, ...]:
      return tuple(int(part) for part in re.split(r"[+/]", text) if text)
    if re.match(r"""[(\[]\s*['"]""", text):
      raise ConfigError(field, text, "items separated by ';', without brackets and quotes")
    parse = fields_of()[field].metadata["parse"]
    return tuple(parse(part) for part in map(str.strip, text.split(";")) if part)
  except (ValueError, KeyError) as error:
    raise ConfigError(field, text, f"a value of type {name_of_type(kind)}") from error
