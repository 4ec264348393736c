"""The grid of an ablation, such as `k=16|64|all;correction=log|none;seed=0|1|2`, and its cells.

Fields are separated by ";", values by "|". Every combination is a cell: the pretrain job's config
with these fields. `k=all` stands for `negatives=all`. Cells that would be the same run are one.
Several grids are joined by "&": `k=all;seed=0|1 & k=16|64;steps=50|100;seed=0|1`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any

from pomp_jax.config import (
  FIELDS,
  METHODS,
  ConfigError,
  Settings,
  fields_of,
  validate,
  value_of_text,
)
from pomp_jax.config.settings import check_read
from pomp_jax.files.pieces import fingerprint
from pomp_jax.prompt.sampling.samplers import EXCLUSIONS, SAMPLERS
from pomp_jax.rooms.ablation.plots import text_of
from pomp_jax.train.resume import leaves_result_as_it_is

_GRIDS_BY, _FIELDS_BY, VALUES = "&", ";", "|"
ALL = "all"
_FIELD = "ablate.grid"
_TAKES = (
  f"fields separated by {_FIELDS_BY!r}, each with its values separated by {VALUES!r}, such as"
  f" k=16{VALUES}64{VALUES}{ALL}{_FIELDS_BY}correction=log{VALUES}none{_FIELDS_BY}seed=0{VALUES}1"
)
# Fields that only runs with a bank read, and those that only a sampled contrast reads.
_BANK = ("sampling.renew", "sampling.bank_dtype")
_DRAW = ("k", "correction", "sampling.name")
_METHOD_GROUPS = {method.group for method in METHODS.values() if method.group}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of an ablation."""

  values: Mapping[str, Any]  # swept field -> its value here; None where the field is not read
  config: Settings  # of the cell's pretrain job
  key: str  # fingerprint of all that the cell's result depends on
  curve_every: int = 0  # steps between its validations; 0: none
  lanes: int = 0  # cells in one program, at most; 0: chosen by memory

  @property
  def name(self) -> str:
    """The swept fields and their values, for tables and messages."""
    return ", ".join(f"{field}={text_of(value)}" for field, value in self.values.items())

  @property
  def stem(self) -> str:
    """Name of the files with its result and its prompt, without suffix."""
    words = "_".join(f"{field}-{text_of(value)}" for field, value in self.values.items())
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:100]}_{self.key[:10]}"


def read_grid(text: str) -> dict[str, list[str]]:
  """The swept fields and the texts of their values, in order; ConfigError if it is no grid."""
  grid: dict[str, list[str]] = {}
  for item in filter(None, map(str.strip, text.split(_FIELDS_BY))):
    field, equals, values = item.partition("=")
    field, found = field.strip(), [value.strip() for value in values.split(VALUES)]
    if not equals or not all(found) or len(set(found)) < len(found):
      raise ConfigError(_FIELD, item, _TAKES + "; no value twice")
    check_read(field, "pretrain", fields_of("pretrain"))
    if field in ("job", "dry_run") or leaves_result_as_it_is(field):
      raise ConfigError(_FIELD, field, "a field that a training depends on")
    if field in grid:
      raise ConfigError(_FIELD, field, "each field once")
    grid[field] = found
  if ALL in grid.get("k", ()) and "negatives" in grid:
    raise ConfigError(_FIELD, "negatives", "no negatives beside k=all, which sets them")
  if not grid:
    raise ConfigError(_FIELD, text, _TAKES)
  return grid


def make_cells(config: Settings) -> list[Cell]:
  """The cells of `config.ablate.grid`, the first field varying slowest; ConfigError."""
  grids = [read_grid(text) for text in config.ablate.grid.split(_GRIDS_BY)]
  fields = list(dict.fromkeys(field for grid in grids for field in grid))
  cells: dict[str, Cell] = {}
  for grid in grids:
    for texts in itertools.product(*grid.values()):
      cell = _cell(config, dict(zip(grid, texts, strict=True)), fields)
      cells.setdefault(cell.key, cell)
  return list(cells.values())


def _cell(config: Settings, texts: Mapping[str, str], fields: Sequence[str]) -> Cell:
  """The cell of some values; `fields` are those of all grids."""
  changes: dict[str, Any] = {"job": "pretrain"}
  for field, text in texts.items():
    is_all = (field, text) == ("k", ALL)
    changes |= {"negatives": ALL} if is_all else {field: value_of_text(field, text)}
  one = config.replace(changes)
  validate(one)
  moot = _moot(one)
  values = {field: None if field in moot else one.flat()[field] for field in fields}
  if one.negatives == ALL and "k" in values:
    values["k"] = ALL
  # Equal runs get equal configs: fields without effect have their defaults.
  one = one.replace({field: FIELDS[field].default for field in moot})
  kept = [item for item in sorted(one.flat().items()) if not leaves_result_as_it_is(item[0])]
  own = config.ablate
  return Cell(values, one, fingerprint([repr(kept)]), own.curve_every, own.lanes)


def _moot(config: Settings) -> tuple[str, ...]:
  """Fields that a run does not read."""
  sampling, exact = config.sampling, config.negatives == ALL
  row = SAMPLERS["uniform" if exact else sampling.name]
  needs = row.needs + EXCLUSIONS[sampling.exclude]
  read = [name for sampler in SAMPLERS.values() for name in sampler.reads]
  return (
    *(f"sampling.{name}" for name in dict.fromkeys(read) if name not in row.reads),
    *(() if "bank" in needs else _BANK),
    *(() if sampling.exclude == "similar" else ("sampling.exclude_threshold",)),
    *(_DRAW if exact else ()),
    *(("epochs",) if config.steps else ()),
    *(() if config.optim.warmup else ("optim.warmup_lr",)),
    # Of other methods than POMP.
    *(field for field in config.flat() if field.partition(".")[0] in _METHOD_GROUPS),
    "prompt.visual_tokens",
  )
