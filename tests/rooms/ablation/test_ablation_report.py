"""The report of an ablation: every figure is on its page."""

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.ablation.ablation_report import write_cells
from tests.rooms.ablation.test_plots import synthetic_cells
from tests.support.report_page import Case, check_page


def ablation_results():
  by_hand = {split: {"hand_written": 0.25, "class_name": 0.22} for split in ("base", "novel")}
  cells = synthetic_cells()
  for cell in cells:
    cell |= {"name": f"k={cell['values']['k']}", "by_hand": by_hand}
  return {"cells": cells, "missing": []}


EXPECTED = """Ablation over k, correction, seed

k | correction | base top-1 (%)
16 | log | 24.2 ± 3.5 | 56.0 ± 2.9
16 | none | 25.6 ± 5.4 (1 failed) | 58.4 ± 0.3 (1 failed)
.. 3

k | correction | seed
16 | log | 0 | 26.4 | 52.7 | 1.0 | 10.0
.. 14

prompt | base | novel
hand-written prompt | 25.0 | 25.0
class name alone | 22.0 | 22.0

cell | error
k=16 | TrainingError: loss is nan at step 7"""


def test_every_figure_is_on_the_page(tmp_path):
  (tmp_path / "plots").mkdir()
  write_cells(RunFolder(tmp_path), ablation_results())
  check_page(Case("ablate", ablation_results(), ("sweep.png",), EXPECTED), tmp_path)
