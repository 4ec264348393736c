"""Fuzzing of an ablation's grid."""

import math
import pathlib

from hypothesis import example, given
from hypothesis import strategies as st

from pomp_jax.config import ConfigError, defaults
from pomp_jax.rooms.ablation.grid import make_cells
from tests.config.test_fuzz import names, values, well_typed
from tests.support.fuzzing import allowed_errors, awkward_text
from tests.support.processes import ROOT

_texts = st.lists(values, min_size=1, max_size=3).map("|".join)


@given(
  st.lists(st.tuples(names, _texts).map("=".join) | awkward_text, max_size=3).map(
    ";".join
  )
)
@example("k=16|64|all;correction=log|none;seed=0|1")
def test_an_ablations_grid(grid):
  config = defaults("ablate").replace({"ablate.grid": grid})
  with allowed_errors(ConfigError, within=[ROOT]):
    cells = make_cells(config.ablate.grid, config.replace)
    assert len({cell.key for cell in cells}) == len(cells) > 0
    assert len(cells) <= math.prod(item.count("|") + 1 for item in grid.split(";"))
    for cell in cells:
      assert pathlib.PurePath(cell.stem).name == cell.stem
      assert well_typed(config.replace(cell.overrides))
