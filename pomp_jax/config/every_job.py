"""The fields that every job reads, and the table of all fields of one or all jobs."""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import functools
import inspect
import re
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from pomp_jax import registry
from pomp_jax.config.errors import ConfigError, UnknownFieldError, check_name, require
from pomp_jax.config.fields import Clip, Contrast, Loop, Mesh, check_cache
from pomp_jax.config.group import Extension, Group, own_rows
from pomp_jax.config.rows import (
  MAX_SEED,
  between,
  check_value,
  name_of_type,
  one_of,
  row,
)
from pomp_jax.files.compilation import AUTO
from pomp_jax.registry import JOBS, load

# Value of `config.dry_run` for this machine; others name a machine to compile for.
HERE = "here"

_BOOLS = {"true": True, "1": True, "false": False, "0": False}

# Turns nested dicts into one dict of values by dotted name.
flatten = functools.partial(flatten_dict, sep=".")


@dataclasses.dataclass(frozen=True)
class Config(Group):
  """The fields of every job."""

  job: str = row("pretrain", "job to run", one_of(*JOBS))
  dry_run: str = row(
    "",
    "the run's cost instead of the run: here, measured; or of v5e:4x4, h100:8, .., compiled for",
    spellings={"true": HERE, "1": HERE, "false": "", "0": ""},
  )
  seed: int = row(
    0, "random seed of context, draws and shuffling", between(0, MAX_SEED)
  )
  compilation_cache: str = row(
    "auto", "folder of compiled programs; auto: the user's; empty: none"
  )
  clip: Clip = Clip()
  mesh: Mesh = Mesh()

  @property
  def encodes_images(self) -> bool:
    """Whether the job needs the image tower."""
    return True

  @property
  def by_steps(self) -> bool:
    """Whether the job learns by gradient steps, so that it can stop after each step."""
    return True

  @property
  def stops_together(self) -> bool:
    """Whether all processes of the job stop after the same step."""
    return JOBS[self.job].trains and self.by_steps and not self.dry_run

  def check(self) -> None:
    """Raises ConfigError for fields that don't fit together; opens no data."""
    self.clip.check_model(self.dry_run)
    fits = self.clip.image_tower or not self.encodes_images
    require(fits, "clip.image_tower", False, "True where images are to be encoded")
    for group in self.groups().values():
      group.check()
    if self.compilation_cache != AUTO:
      check_cache("compilation_cache", self.compilation_cache)

  def replace(self, changes: Mapping[str, Any]) -> Any:
    """Returns a copy with other values.

    If `changes` names another `job`, the fields that both jobs read keep their values.

    Args:
      changes: value by dotted name.

    Returns:
      A config of the job's class.

    Raises:
      UnknownFieldError: a field does not exist, or the job does not read it.
      ConfigError: there is no such job, or a value has another type.
    """
    job = changes.get("job", self.job)
    check_value("job", one_of(*JOBS), job)
    fields = fields_of(job)
    for field in changes:
      check_read(field, job, fields)
    if job == self.job:
      return self.changed(changes)

    values = {field: value for field, value in self.flat().items() if field in fields}
    values |= changes
    return defaults(job).changed(values)


# Classes whose fields have no prefix, and their titles.
_TITLES = {Config: "every job", Contrast: "contrast", Loop: "loop"}


class Part(NamedTuple):
  """A class of fields in the config of a job."""

  title: str
  prefix: str  # start of the fields' dotted names, such as "optim."
  kind: type[Group]

  @property
  def rows(self) -> dict[str, dataclasses.Field]:
    """Dotted name -> row of the fields that the class itself declares."""
    declared = inspect.get_annotations(self.kind)
    rows = own_rows(self.kind).items()
    return {self.prefix + name: field for name, field in rows if name in declared}


@functools.cache
def defaults(job: str = "pretrain") -> Any:
  """Returns the config of a job with all defaults, also of the fields that rooms add.

  Args:
    job: name of the job, a key of `JOBS`.

  Returns:
    An instance of the class that the job's row of `JOBS` names.

  Raises:
    ConfigError: there is no such job.
  """
  check_value("job", one_of(*JOBS), job)
  kind = load(JOBS[job].config)
  groups = {}
  for name, group in _groups_of(kind).items():
    groups[name] = _extended(group, group)
  # A room may extend a base class of the config, such as `Contrast`.
  config = _extended(kind, *kind.__mro__)
  return dataclasses.replace(config, job=job, **groups)


def parts_of(job: str) -> Iterator[Part]:
  """Yields the classes of fields that a job reads.

  After each class come the fields that rooms add to it.
  """
  kind = load(JOBS[job].config)
  bases = [
    Part(_TITLES[base], "", base) for base in reversed(kind.__mro__) if base in _TITLES
  ]
  groups = [Part(name, f"{name}.", group) for name, group in _groups_of(kind).items()]
  for part in bases + groups:
    yield part
    for title, (prefix, fields) in _extensions_of(part.kind).items():
      yield Part(title, f"{prefix}." if prefix else part.prefix, fields)


def _groups_of(kind: type[Group]) -> dict[str, type[Group]]:
  """Class of each group in a class of fields, by the name of the group."""
  types = {field.name: field.type for field in dataclasses.fields(kind)}
  return {
    name: group
    for name, group in types.items()
    if isinstance(group, type) and issubclass(group, Group)
  }


def _extensions_of(*kinds: type) -> dict[str, tuple[str, type[Group]]]:
  """Prefix and class of the fields that rooms add to any of `kinds`, by title."""
  names = {kind.__name__ for kind in kinds}
  return {
    title: (row.prefix, load(row.fields))
    for title, row in registry.EXTENSIONS.items()
    if names & {*row.extends}
  }


def _extended(kind: type[Group], *kinds: type) -> Any:
  """Builds a `kind` with its defaults and the fields that rooms add to `kinds`."""
  added = _extensions_of(*kinds).values()
  return kind(extensions=tuple(Extension(prefix, fields()) for prefix, fields in added))


@functools.cache
def fields_of(*jobs: str) -> Mapping[str, dataclasses.Field]:
  """Returns the rows of all fields that at least one of `jobs` reads, by dotted name.

  Args:
    *jobs: names of jobs; all jobs if none is given.
  """
  rows: dict[str, dataclasses.Field] = {}
  for job in jobs or JOBS:
    for part in parts_of(job):
      rows |= part.rows
  return rows


def check_read(field: str, job: str, known: Collection[str]) -> None:
  """Checks that a job reads a field.

  Args:
    field: dotted name.
    job: name of the job, for the message.
    known: fields that the job reads.

  Raises:
    UnknownFieldError: the field does not exist, or only other jobs read it.
  """
  check_name(field, fields_of())
  if field in known:
    return
  readers = [name for name in JOBS if field in fields_of(name)]
  hint = f" of job {job!r}: it is a field of {', '.join(readers)}"
  raise UnknownFieldError(field, hint)


def value_of_text(field: str, text: str) -> Any:
  """Parses the value of a field, from the command line or behind a config file's colon.

  Integers of a tuple are separated by "+" or "/", other items by ";".

  Args:
    field: dotted name.
    text: text that stands for the value.

  Raises:
    UnknownFieldError: there is no such field.
    ConfigError: the text stands for no value of the field's type.
  """
  check_name(field, fields_of())
  row = fields_of()[field]
  kind = row.type
  try:
    if kind is bool:
      return _BOOLS[text.lower()]
    if kind in (int, float, str):
      return kind(text)
    if kind == tuple[int, ...]:
      parts = re.split(r"[+/]", text) if text else []
      return tuple(int(part) for part in parts)
    # A tuple in Python's notation would be read as a single item.
    is_python = re.match(r"""[(\[]\s*['"]""", text)
    expected = "items separated by ';', without brackets and quotes"
    require(not is_python, field, text, expected)
    parts = [part.strip() for part in text.split(";")]
    parse = row.metadata["parse"]
    return tuple(parse(part) for part in parts if part)
  except (ValueError, KeyError) as error:
    raise ConfigError(field, text, f"a value of type {name_of_type(kind)}") from error
