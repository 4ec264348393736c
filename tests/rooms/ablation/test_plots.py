"""An ablation's summary, plots, time to accuracy and report, from synthetic cells."""

import math

import numpy as np
import pytest
import scipy.stats

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.ablation.ablation_report import write_cells
from pomp_jax.rooms.ablation.plots import groups, sweep
from pomp_jax.rooms.ablation.seed_pairs import paired_differences
from pomp_jax.rooms.ablation.time_to_accuracy import (
  arrivals,
  courses,
  plot,
  threshold_of,
)
from tests.support.report_page import Case, check_page, page_of


def synthetic_cells():
  """K of 16, 64 and all, two corrections (moot for all), three seeds; one cell
  failed."""
  rng = np.random.default_rng(0)
  cells = []
  for k in (16, 64, "all"):
    for correction in (None,) if k == "all" else ("log", "none"):
      for seed in range(3):
        cell = {
          "values": {"k": k, "correction": correction, "seed": seed},
          "error": None,
        }
        cell["top1"] = {"base": rng.uniform(0.2, 0.3), "novel": rng.uniform(0.5, 0.6)}
        cell |= {
          "seconds": rng.uniform(1, 2) * (100 if k == "all" else 1),
          "memory_mib": 10.0,
        }
        cells.append(cell)
  cells[4] = {
    "values": cells[4]["values"],
    "error": "TrainingError: loss is nan at step 7",
  }
  return cells


def test_seeds_of_equal_accuracy_count_each_and_lanes_of_one_program_once():
  cells = synthetic_cells()[:3]
  for cell, top1, seconds in zip(cells, (0.5, 0.5, 0.8), (7.0, 7.0, 4.0), strict=True):
    cell |= {"top1": {"novel": top1}, "seconds": seconds}
  (group,) = groups(cells)
  novel, seconds = group.figures["novel_top1"], group.figures["seconds"]
  assert novel.mean == pytest.approx(0.6) and novel.values == (0.5, 0.5, 0.8)
  assert novel.std == pytest.approx(np.std([0.5, 0.5, 0.8], ddof=1))
  assert seconds.mean == 5.5 and seconds.values == (7.0, 4.0)


def test_the_plot_shows_every_mean_and_spread(tmp_path, drawn):
  found = groups(synthetic_cells())
  references = {"novel_top1": {"a photo of a {}.": 0.5}}
  sweep(tmp_path / "sweep.png", found, references, {})
  base, novel, seconds, _ = drawn[0].axes
  # Two lines; at "all", where no correction is read, they meet.
  lines = [container for container in novel.containers if container.has_yerr]
  assert len(lines) == 2
  for line, correction in zip(lines, ("log", "none"), strict=True):
    own = [group for group in found if group.values["correction"] in (correction, None)]
    means = [100 * group.figures["novel_top1"].mean for group in own]
    np.testing.assert_allclose(line.lines[0].get_ydata(), means)
    assert len(means) == 3
  assert [label.get_text() for label in base.get_xticklabels()] == ["16", "64", "all"]
  assert seconds.get_yscale() == "log"
  legend = {text.get_text() for text in drawn[0].legends[0].get_texts()}
  assert legend == {"correction=log", "correction=none", "a photo of a {}."}


def test_names_are_not_joined_and_costs_start_at_0(tmp_path, drawn):
  cells = synthetic_cells()
  for cell in cells:
    cell["values"] = cell["values"] | {
      "k": {16: "uniform", 64: "hard", "all": "top"}[cell["values"]["k"]]
    }
    cell |= {} if cell["error"] else {"seconds": 50.0 + cell["values"]["seed"]}
  sweep(tmp_path / "names.png", groups(cells), {}, {})
  sweep(tmp_path / "numbers.png", groups(synthetic_cells()), {}, {})
  styles = [
    {container.lines[0].get_linestyle() for container in figure.axes[0].containers}
    for figure in drawn
  ]
  assert styles == [{"None"}, {"-"}]
  _, _, seconds, memory = drawn[0].axes
  for axes, highest in ((seconds, 52), (memory, 10)):
    low, high = axes.get_ylim()
    assert low == 0 and highest < high


def test_one_hand_written_prompt_is_the_reference_of_all_panels(tmp_path, drawn):
  results = ablation_results()
  # Better on novel classes alone.
  by_hand = {"base": {"a": 0.4, "b": 0.25}, "novel": {"a": 0.25, "b": 0.3}}
  results["cells"] = [cell | {"by_hand": by_hand} for cell in results["cells"]]
  write_cells(RunFolder(tmp_path), results)
  dashed = [
    [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    for axes in drawn[0].axes
  ]
  assert dashed == [[40], [25], [], []]
  assert [text.get_text() for text in drawn[0].legends[0].get_texts()][-1] == "a"


def test_what_was_measured_once_has_no_spread():
  """Lanes of one program have the same share; of two programs the spread is theirs."""
  cells = synthetic_cells()[:3]
  for cell, seconds in zip(cells, (4.0, 4.0, 4.0), strict=True):
    cell["seconds"] = seconds
  [group] = groups(cells)
  assert (
    group.figures["seconds"] == (4.0, 0.0, (4.0,))
    and len(group.figures["base_top1"][2]) == 3
  )
  cells[2]["seconds"] = 6.0
  [group] = groups(cells)
  assert group.figures["seconds"].values == (4.0, 6.0)


def test_differences_are_paired_by_seed():
  cells = synthetic_cells()
  found = paired_differences(cells)
  assert [values for values, _ in found] == [
    group.values for group in groups(cells)[1:]
  ]
  of = lambda k, correction, seeds: np.array(
    [
      cell["top1"]["novel"]
      for cell in cells
      if cell["values"]
      in [{"k": k, "correction": correction, "seed": seed} for seed in seeds]
    ]
  )
  # The cell of seed 1 has failed.
  for row, seeds in ((0, [0, 2]), (1, [0, 1, 2])):
    values, differences = found[row]
    own, first = of(values["k"], values["correction"], seeds), of(16, "log", seeds)
    expected = scipy.stats.ttest_rel(own, first)
    assert differences["novel_top1"].mean == pytest.approx(np.mean(own - first))
    interval = expected.confidence_interval(0.95)
    assert differences["novel_top1"].interval == pytest.approx(tuple(interval))
  assert set(found[0][1]) == {"base_top1", "novel_top1"}
  alone = [cell for cell in cells if cell["values"]["seed"] == 0]
  assert paired_differences(alone)[0][1]["novel_top1"].interval is None


def test_bold_is_what_is_above_the_first_by_its_interval(tmp_path):
  cells = [cell for cell in ablation_results()["cells"] if not cell["error"]]
  for cell in cells:
    better = (
      0.1 + 0.001 * cell["values"]["seed"] if cell["values"]["k"] == "all" else 0.0
    )
    cell["top1"] = {"novel": 0.5 + better + 0.01 * cell["values"]["seed"]}
  page_of("ablate", tmp_path, {"cells": cells, "missing": []})
  bold = [
    line
    for line in (tmp_path / "results.tex").read_text().splitlines()
    if "textbf" in line
  ]
  assert len(bold) == 1 and bold[0].startswith("all &")
  assert "training (s)" in (tmp_path / "results.md").read_text()


STEPS = [10, 20, 30]
# Sampler, K, seconds of a step and of the first bank, validation accuracy of two seeds.
KINDS = (
  ("uniform", 16, 0.1, 0.0, [(0.50, 0.55, 0.60), (0.50, 0.55, 0.60)]),
  ("uniform", 64, 0.2, 0.0, [(0.60, 0.64, 0.67), (0.60, 0.66, 0.71)]),
  (None, "all", 2.0, 0.0, [(0.60, 0.66, 0.69), (0.62, 0.68, 0.71)]),
  ("posterior", 64, 0.25, 0.5, [(0.64, 0.69, 0.70), (0.66, 0.69, 0.70)]),
)


def synthetic():
  """Cells and the times of their kinds; one cell has failed."""
  cells, times = [], []
  for name, k, seconds, bank, curves in KINDS:
    kind = {"sampling.name": name, "k": k}
    times.append({"values": kind, "step_seconds": seconds, "first_bank_seconds": bank})
    for seed, curve in enumerate(curves):
      top1 = {"validation": list(curve), "novel": [value - 0.1 for value in curve]}
      figures = {
        "top1": {"novel": curve[-1] - 0.1},
        "curve": {"steps": STEPS, "top1": top1},
      }
      cells.append({"values": {**kind, "seed": seed}, "error": None, **figures})
  cells.append(
    {"values": cells[0]["values"] | {"seed": 2}, "error": "MemoryError: no room"}
  )
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


def test_kinds_that_know_no_novel_class_are_in_the_other_panels(tmp_path, drawn):
  cells, times = synthetic()
  for cell in cells[:2]:
    cell |= {
      "top1": {},
      "curve": {"steps": STEPS, "top1": {"validation": [0.5, 0.6, 0.7]}},
    }
  found = courses(cells, times)
  plot(tmp_path / "plot.png", found, {})
  assert [len(axes.containers) for axes in drawn[0].axes] == [4, 3]
  # One standard deviation of a sample of two seeds: 0.67 and 0.71, after 30 steps of
  # 0.2 s.
  [ends] = drawn[0].axes[0].containers[1][2][0].get_segments()
  spread = 4 / math.sqrt(2)
  np.testing.assert_allclose(ends, [(6, 69 - spread), (6, 69 + spread)])
  legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
  assert legend == [course.label for course in found]


def ablation_results():
  by_hand = {
    split: {"hand_written": 0.25, "class_name": 0.22} for split in ("base", "novel")
  }
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
