"""Makes the cells of a grid, such as `k=16|64|all;correction=log|none;seed=0|1|2`.

Fields are separated by ";", values by "|". Every combination is a cell: the pretrain
job's config with these fields. `k=all` stands for `negatives=all`. Cells that would be
the same run are merged. Several grids are joined by "&":
`k=all;seed=0|1 & k=16|64;steps=50|100;seed=0|1`.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import re
from typing import Any, NamedTuple

from pomp_jax.config import fields_of, validate, value_of_text
from pomp_jax.config.errors import require
from pomp_jax.config.every_job import check_read
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.files.pieces import fingerprint
from pomp_jax.prompt.sampling.samplers import EXCLUSIONS, SAMPLERS
from pomp_jax.registry import EXTENSIONS
from pomp_jax.rooms.ablation.plots import text_of
from pomp_jax.train.resume import FREE_FIELDS

ALL = "all"  # value of `k` and of `negatives`
_FIELD = "ablate.grid"
_ACCEPTED = (
  "fields separated by ';', each with its values separated by '|', such as"
  " k=16|64|all;correction=log|none;seed=0|1"
)
# Field that only runs with a bank read, and fields that only a sampled contrast reads.
_BANK = ("sampling.renew",)
_DRAW = ("k", "correction", "sampling.name")
# Config groups of methods other than POMP.
_METHOD_GROUPS = {row.prefix for row in EXTENSIONS.values() if row.prefix}

# Maps values, by field, to the config with these values.
Replace = Callable[[Mapping[str, Any]], TrainingConfig]


class Cell(NamedTuple):
  """One training of an ablation."""

  values: Mapping[str, Any]  # by swept field; None if the cell does not read the field
  # Values that replace those of the ablation's config, by field. All cells have the
  # same fields here: the job, and each field that differs in any cell.
  overrides: Mapping[str, Any]
  key: str  # fingerprint of all that the cell's result depends on

  @property
  def name(self) -> str:
    """The swept fields and their values, for tables and messages."""
    words = [f"{field}={text_of(value)}" for field, value in self.values.items()]
    return ", ".join(words)

  @property
  def stem(self) -> str:
    """Name of the files of the cell's result and prompt, without suffix."""
    words = [f"{field}-{text_of(value)}" for field, value in self.values.items()]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words))
    return f"{safe[:100]}_{self.key[:10]}"


def read_grid(text: str) -> dict[str, list[str]]:
  """Reads the swept fields and the texts of their values, in order.

  Raises:
    ConfigError: a text that is no grid, or a field that can't be swept.
  """
  grid: dict[str, list[str]] = {}
  for item in filter(None, map(str.strip, text.split(";"))):
    name, equals, values_text = item.partition("=")
    field = name.strip()
    values = [value.strip() for value in values_text.split("|")]
    fits = equals and all(values) and len(set(values)) == len(values)
    require(fits, _FIELD, item, _ACCEPTED + "; no value twice")
    check_read(field, "pretrain", fields_of("pretrain"))
    is_free = field == "job" or field in FREE_FIELDS
    require(not is_free, _FIELD, field, "a field that a training depends on")
    require(field not in grid, _FIELD, field, "each field once")
    grid[field] = values
  if ALL in grid.get("k", ()):
    accepted = "no negatives beside k=all, which sets them"
    require("negatives" not in grid, _FIELD, "negatives", accepted)
  require(grid, _FIELD, text, _ACCEPTED)
  return grid


def make_cells(text: str, replace: Replace) -> list[Cell]:
  """Makes the cells of `config.ablate.grid`; the first field varies slowest.

  Args:
    text: grids, as the module describes.
    replace: method of the ablation's config, from which the trainings take all fields
      that are not swept.

  Raises:
    ConfigError: a text that is no grid, or values that no training can have.
  """
  grids = [read_grid(part) for part in text.split("&")]
  swept = list(dict.fromkeys(field for grid in grids for field in grid))
  # Equal trainings have the same key: the first of them becomes the cell.
  trainings: dict[str, _Training] = {}
  for grid in grids:
    for texts in itertools.product(*grid.values()):
      training = _training(dict(zip(grid, texts, strict=True)), swept, replace)
      trainings.setdefault(_key(training.config), training)
  # No training has the job "", so the job is among the changed fields.
  base = replace({"job": "pretrain"}).flat() | {"job": ""}
  changed = set()
  for training in trainings.values():
    for field, value in training.config.items():
      if value != base[field]:
        changed.add(field)
  cells = []
  for key, training in trainings.items():
    overrides = {
      field: value for field, value in training.config.items() if field in changed
    }
    cells.append(Cell(training.values, overrides=overrides, key=key))
  return cells


class _Training(NamedTuple):
  """One combination of a grid's values."""

  values: dict[str, Any]  # by swept field; None if the training does not read the field
  config: dict[str, Any]  # values of all fields


def _training(
  texts: Mapping[str, str], swept: Sequence[str], replace: Replace
) -> _Training:
  """Reads one combination of the grid's values, which are still texts."""
  changes: dict[str, Any] = {"job": "pretrain"}
  for field, text in texts.items():
    if (field, text) == ("k", ALL):
      changes["negatives"] = ALL
    else:
      changes[field] = value_of_text(field, text)
  training = replace(changes)
  validate(training)
  config = training.flat()
  unread = _unread(config)
  for extension in training.all_extensions():
    unread += extension.unread()
  values = {field: None if field in unread else config[field] for field in swept}
  if training.negatives == ALL and "k" in values:
    values["k"] = ALL
  # Set fields without effect to their defaults, so that equal trainings have equal
  # configs.
  for field in unread:
    config[field] = fields_of()[field].default
  return _Training(values, config)


def _key(config: Mapping[str, Any]) -> str:
  """Fingerprint of the fields that a training's result depends on."""
  items = [item for item in sorted(config.items()) if item[0] not in FREE_FIELDS]
  return fingerprint([repr(items)])


def _unread(values: Mapping[str, Any]) -> list[str]:
  """Lists the fields that a training with these values does not read."""
  is_exact = values["negatives"] == ALL
  sampler = SAMPLERS["uniform" if is_exact else values["sampling.name"]]
  unread = []
  for row in SAMPLERS.values():
    unread += [f"sampling.{name}" for name in row.reads if name not in sampler.reads]
  exclude = values["sampling.exclude"]
  if "bank" not in sampler.needs + EXCLUSIONS[exclude]:
    unread += _BANK
  if exclude != "similar":
    unread.append("sampling.exclude_threshold")
  if is_exact:
    unread += _DRAW
  if values["steps"]:
    unread.append("epochs")
  if not values["optim.warmup"]:
    unread.append("optim.warmup_lr")
  if values["optim.name"] != "adamw":
    unread += ["optim.beta2", "optim.epsilon"]
  unread += [field for field in values if field.partition(".")[0] in _METHOD_GROUPS]
  return unread
