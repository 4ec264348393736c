"""An ablation's CSV, summary and plot, from synthetic cells."""

import csv
import io

import numpy as np
import pytest

from pomp_jax.rooms.ablation.plots import cells_csv, groups, sweep, swept


def synthetic_cells():
  """K of 16, 64 and all, two corrections (moot for all), three seeds; one cell failed."""
  rng = np.random.default_rng(0)
  cells = []
  for k in (16, 64, "all"):
    for correction in (None,) if k == "all" else ("log", "none"):
      for seed in range(3):
        cell = {"values": {"k": k, "correction": correction, "seed": seed}, "error": None}
        cell["top1"] = {"base": rng.uniform(0.2, 0.3), "novel": rng.uniform(0.5, 0.6)}
        cell |= {"seconds": rng.uniform(1, 2) * (100 if k == "all" else 1), "memory_mib": 10.0}
        cells.append(cell)
  cells[4] = {"values": cells[4]["values"], "error": "TrainingError: loss is nan at step 7"}
  return cells


def test_groups_are_over_the_seeds():
  cells = synthetic_cells()
  found = groups(cells)
  assert [tuple(group.values.values()) for group in found] == [
    (16, "log"),
    (16, "none"),
    (64, "log"),
    (64, "none"),
    ("all", None),
  ]
  novel = [cell["top1"]["novel"] for cell in cells[:3]]
  assert found[0].figures["novel_top1"].mean == pytest.approx(np.mean(novel))
  assert found[0].figures["novel_top1"].std == pytest.approx(np.std(novel, ddof=1))
  assert [group.failed for group in found] == [0, 1, 0, 0, 0]
  assert len(found[1].figures["novel_top1"].values) == 2
  assert swept(found) == ["k", "correction"]
  assert swept(found[:2]) == ["correction"]


def test_the_table_is_tidy():
  cells = synthetic_cells()
  rows = list(csv.DictReader(io.StringIO(cells_csv(cells))))
  assert len(rows) == len(cells)
  for row, cell in zip(rows, cells, strict=True):
    assert row["k"] == str(cell["values"]["k"])
    assert row["correction"] == (cell["values"]["correction"] or "")
    if cell["error"]:
      assert (row["error"], row["novel_top1"]) == (cell["error"], "")
    else:
      assert float(row["novel_top1"]) == cell["top1"]["novel"]
      assert float(row["seconds"]) == cell["seconds"]


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
  assert legend == {"correction=log", "correction=none"}
