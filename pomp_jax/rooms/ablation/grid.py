"""The grid of an ablation, such as `k=16|64|all;correction=log|none;seed=0|1|2`, and its cells.

Fields are separated by ";", values by "|". Every combination is a cell: the pretrain job's config
with these fields. `k=all` stands for `negatives=all`. Cells that would be the same run are one.
Several grids are joined by "&": `k=all;seed=0|1 & k=16|64;steps=50|100;seed=0|1`.
"""

from collections.abc import Callable, Mapping
import itertools
import re
from typing import Any, NamedTuple

from pomp_jax.config import fields_of, validate, value_of_text
from pomp_jax.config.declare import require
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.config.settings import check_read
from pomp_jax.files.pieces import fingerprint
from pomp_jax.prompt.sampling.samplers import EXCLUSIONS, SAMPLERS
from pomp_jax.registry import EXTENSIONS
from pomp_jax.rooms.ablation.plots import text_of
from pomp_jax.train.resume import FREE_FIELDS

ALL, _FIELD = "all", "ablate.grid"
_TAKES = (
  "fields separated by ';', each with its values separated by '|', such as"
  " k=16|64|all;correction=log|none;seed=0|1"
)
# Fields that only runs with a bank read, and a sampled contrast.
_BANK = ("sampling.renew", "sampling.bank_dtype")
_DRAW = ("k", "correction", "sampling.name")
_METHOD_GROUPS = {row.prefix for row in EXTENSIONS.values() if row.prefix}

# From field -> value to the config with these values.
Replace = Callable[[Mapping[str, Any]], TrainingConfig]


class Cell(NamedTuple):
  """One training of an ablation."""

  # swept field -> its value here; None where the field is not read
  values: Mapping[str, Any]
  # Field -> value, over the ablation's config: the job pretrain, and the same fields in
  # all cells.
  overrides: Mapping[str, Any]
  key: str  # fingerprint of all that the cell's result depends on

  @property
  def name(self) -> str:
    """The swept fields and their values, for tables and messages."""
    return ", ".join(
      f"{field}={text_of(value)}" for field, value in self.values.items()
    )

  @property
  def stem(self) -> str:
    """Name of the files with its result and its prompt, without suffix."""
    words = "_".join(
      f"{field}-{text_of(value)}" for field, value in self.values.items()
    )
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', words)[:100]}_{self.key[:10]}"


def read_grid(text: str) -> dict[str, list[str]]:
  """The swept fields and the texts of their values, in order; ConfigError if it is
  no grid."""
  grid: dict[str, list[str]] = {}
  for item in filter(None, map(str.strip, text.split(";"))):
    field, equals, values = item.partition("=")
    field, found = field.strip(), [value.strip() for value in values.split("|")]
    fits = equals and all(found) and len(set(found)) == len(found)
    require(fits, _FIELD, item, _TAKES + "; no value twice")
    check_read(field, "pretrain", fields_of("pretrain"))
    is_free = field == "job" or field in FREE_FIELDS
    require(not is_free, _FIELD, field, "a field that a training depends on")
    require(field not in grid, _FIELD, field, "each field once")
    grid[field] = found
  is_twice = ALL in grid.get("k", ()) and "negatives" in grid
  require(
    not is_twice, _FIELD, "negatives", "no negatives beside k=all, which sets them"
  )
  require(grid, _FIELD, text, _TAKES)
  return grid


def make_cells(text: str, replace: Replace) -> list[Cell]:
  """The cells of `config.ablate.grid`, the first field varying slowest; ConfigError.

  `replace` is that of the ablation's config, which has all other fields of the
  trainings.
  """
  grids = [read_grid(own) for own in text.split("&")]
  fields = dict.fromkeys(field for grid in grids for field in grid)
  # key -> swept values, all values
  found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
  for grid in grids:
    for texts in itertools.product(*grid.values()):
      changes: dict[str, Any] = {"job": "pretrain"}
      for field, own in zip(grid, texts, strict=True):
        is_all = (field, own) == ("k", ALL)
        changes |= {"negatives": ALL} if is_all else {field: value_of_text(field, own)}
      training = replace(changes)
      validate(training)
      of_training = training.flat()
      moot = _moot(of_training)
      for added in training.all_extensions():
        moot += added.unread()
      values = {
        field: None if field in moot else of_training[field] for field in fields
      }
      if training.negatives == ALL and "k" in values:
        values["k"] = ALL
      # Equal trainings get equal configs: fields without effect have their defaults.
      of_training |= {field: fields_of()[field].default for field in moot}
      kept = [
        item for item in sorted(of_training.items()) if item[0] not in FREE_FIELDS
      ]
      found.setdefault(fingerprint([repr(kept)]), (values, of_training))
  base = replace({"job": "pretrain"}).flat() | {"job": ""}
  changed = {
    f for _, own in found.values() for f, value in own.items() if value != base[f]
  }
  return [
    Cell(values, {f: value for f, value in own.items() if f in changed}, key)
    for key, (values, own) in found.items()
  ]


def _moot(values: Mapping[str, Any]) -> tuple[str, ...]:
  """Fields that a training with these values of its fields does not read."""
  exact, exclude = values["negatives"] == ALL, values["sampling.exclude"]
  row = SAMPLERS["uniform" if exact else values["sampling.name"]]
  needs = row.needs + EXCLUSIONS[exclude]
  read = [name for sampler in SAMPLERS.values() for name in sampler.reads]
  return (
    *(f"sampling.{name}" for name in dict.fromkeys(read) if name not in row.reads),
    *(() if "bank" in needs else _BANK),
    *(() if exclude == "similar" else ("sampling.exclude_threshold",)),
    *(_DRAW if exact else ()),
    *(("epochs",) if values["steps"] else ()),
    *(() if values["optim.warmup"] else ("optim.warmup_lr",)),
    *(() if values["optim.name"] == "adamw" else ("optim.beta2", "optim.epsilon")),
    # Of other methods than POMP.
    *(field for field in values if field.partition(".")[0] in _METHOD_GROUPS),
  )
