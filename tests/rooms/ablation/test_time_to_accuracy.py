"""Time to accuracy, from synthetic cells."""

import numpy as np
import pytest

from pomp_jax.rooms.ablation.time_to_accuracy import arrivals, courses, threshold_of

STEPS = [10, 20, 30]
# Validation accuracy of two seeds, by cell.
CURVES = {
  ("uniform", 16): [(0.50, 0.55, 0.60), (0.50, 0.55, 0.60)],
  ("uniform", 64): [(0.60, 0.64, 0.67), (0.60, 0.66, 0.71)],
  (None, "all"): [(0.60, 0.66, 0.69), (0.62, 0.68, 0.71)],
  ("posterior", 64): [(0.64, 0.69, 0.70), (0.66, 0.69, 0.70)],
}
SECONDS = {("uniform", 16): 0.1, ("uniform", 64): 0.2, (None, "all"): 2.0, ("posterior", 64): 0.25}
FIRST_BANK = {("posterior", 64): 0.5}


def synthetic():
  """Cells and the times of their kinds; one cell has failed."""
  cells, times = [], []
  for (name, k), curves in CURVES.items():
    kind = {"sampling.name": name, "k": k}
    times.append(
      {
        "values": kind,
        "step_seconds": SECONDS[name, k],
        "first_bank_seconds": FIRST_BANK.get((name, k), 0.0),
      }
    )
    for seed, curve in enumerate(curves):
      top1 = {"validation": list(curve), "novel": [value - 0.1 for value in curve]}
      figures = {"top1": {"novel": curve[-1] - 0.1}, "curve": {"steps": STEPS, "top1": top1}}
      cells.append({"values": {**kind, "seed": seed}, "error": None, **figures})
  cells.append({"values": cells[0]["values"] | {"seed": 2}, "error": "MemoryError: no room"})
  return cells, times


def test_the_threshold_is_the_exact_contrast_less_its_deviation():
  found = courses(*synthetic())
  # (0.69, 0.71): mean 0.70, sample deviation 0.0141.
  assert threshold_of(found) == pytest.approx(0.7 - 0.02 / np.sqrt(2))
  assert threshold_of([course for course in found if not course.is_exact]) is None


def test_when_each_kind_arrives():
  found = {one.course.label: one for one in arrivals(courses(*synthetic()))}
  assert list(found) == ["uniform, k=16", "uniform, k=64", "exact", "posterior, k=64"]
  assert found["uniform, k=16"][1:] == (None, None, None, None)
  assert found["uniform, k=64"].step == found["exact"].step == 30
  assert found["uniform, k=64"][2:] == pytest.approx((6.0, 10.0, 1.0))
  assert found["exact"][2:] == pytest.approx((60.0, 1.0, 0.1))
  # Twenty steps and the first bank.
  assert found["posterior, k=64"].step == 20
  assert found["posterior, k=64"][2:] == pytest.approx((5.5, 60 / 5.5, 6 / 5.5))
