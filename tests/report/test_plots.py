"""The plots: what they must say, for all inputs a run can give."""

import re

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from pomp_jax.report import drawing, plots

STEPS = list(range(10, 2010, 10))
VALUES = np.exp(-np.array(STEPS) / 500).tolist()


def score(top1):
  return {"top1": top1, "top1_interval": [0.9 * top1, top1 + 0.05]}


SCORES = {
  "base": {"class_name": score(0.2), "hand_written": score(0.3), "prompt": score(0.4)},
  "novel": {
    "class_name": score(0.1),
    "hand_written": score(0.15),
    "prompt": score(0.2),
  },
}


def ends(axes, axis):
  """Both ends of each error bar."""
  return [
    segment[:, axis].round(6).tolist()
    for container in axes.containers
    if getattr(container, "has_yerr", False) or getattr(container, "has_xerr", False)
    for segment in container.lines[2][0].get_segments()
    if len(segment)  # a bar that there is
  ]


def test_training_curves(tmp_path, drawn):
  """The average starts where the values do; each accuracy has a panel, which ends at
  100%."""
  accuracies = [1 - value / 100 for value in VALUES]
  series = {"loss": (STEPS, VALUES), "accuracy": (STEPS, accuracies)}
  series["validation_top1"] = [1000, 2000], [0.2, 0.3]
  plots.training_curves(tmp_path / "training.png", series)
  loss, accuracy, validation = drawn[0].axes
  raw, smooth = loss.lines
  np.testing.assert_array_equal(raw.get_ydata(), VALUES)
  # 200 values: the mean of eight on either side, of as many where fewer are before.
  expected = [np.mean(VALUES[i - min(i, 8) : i + min(i, 8) + 1]) for i in range(200)]
  np.testing.assert_allclose(smooth.get_ydata(), expected, atol=1e-12)
  assert smooth.get_ydata()[0] == pytest.approx(VALUES[0])
  widths = [line.get_linewidth() for line in loss.get_legend().get_lines()]
  assert (
    widths == [raw.get_linewidth(), smooth.get_linewidth()]
    and widths[0] < 1 < widths[1]
  )
  np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 100 * np.array(accuracies))
  np.testing.assert_allclose(validation.lines[0].get_ydata(), [20, 30])
  assert accuracy.get_ylim()[1] == 100 and accuracy.get_ylim()[0] > 90


def test_panels_of_trainings_without_validation_or_with_few_values(tmp_path, drawn):
  plots.training_curves(tmp_path / "training.png", {"loss": (STEPS[:9], VALUES[:9])})
  loss, _ = drawn[0].axes
  assert [line.get_ydata().tolist() for line in loss.lines] == [VALUES[:9]]


def test_accuracy_of_prompts_on_splits(tmp_path, drawn):
  """Error bars from 90% of each figure to 0.05 above it; a prompt that lacks a split
  has no bar."""
  scores = {
    "base": SCORES["base"] | {"linear_probe": score(0.6)},
    "novel": SCORES["novel"],
  }
  prompts = list(scores["base"])
  top1, intervals = (
    {
      name: {split: of[name][key] for split, of in scores.items() if name in of}
      for name in prompts
    }
    for key in ("top1", "top1_interval")
  )
  images = dict.fromkeys(scores, 1000)
  path = tmp_path / "accuracy.png"
  plots.accuracy_panels(path, top1, prompts, "t", images, {"base": 50}, intervals, {})
  base, novel = drawn[0].axes
  for axes, split in ((base, "base"), (novel, "novel")):
    top1 = [own["top1"] for own in scores[split].values()]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[: len(top1)] == pytest.approx([100 * own for own in top1])
    expected = [pytest.approx([90 * own, 100 * own + 5], abs=1e-4) for own in top1]
    assert ends(axes, 0)[: len(top1)] == expected
  shown = {text.get_text() for text in novel.texts}
  assert {"10.0", "15.0", "20.0"} <= shown and "nan" not in shown


@pytest.mark.parametrize("highest", [0.999, 1.0])
def test_an_axis_of_accuracies_ends_at_all(tmp_path, drawn, highest):
  columns = {"a": {"dtd": highest}}
  ends_of = {"a": {"dtd": [0.9, 1.0]}}
  plots.accuracy_panels(tmp_path / "bars.png", columns, ["a"], "t", {}, {}, ends_of, {})
  assert drawn[0].axes[0].get_xlim() == (0, 100)


def test_bins_of_a_calibration_with_few_images_are_joined(tmp_path, drawn):
  """None has fewer than 20 images; the counts below are those of all bins."""
  images = [0, 1, 0, 3, 25, 30, 10]
  bins = {
    "images": images,
    "confidence": [0.0, 0.2, 0.0, 0.5, 0.6, 0.8, 0.95],
    "accuracy": [0.0, 1.0, 0.0, 0.0, 0.4, 0.9, 1.0],
  }
  confidence, accuracy, counts = plots.merged_bins(bins)
  assert counts.tolist() == [29, 40]
  assert confidence == pytest.approx([(0.2 + 1.5 + 15) / 29, (24 + 9.5) / 40])
  assert accuracy == pytest.approx([(1 + 10) / 29, (27 + 10) / 40])
  assert plots.merged_bins({key: values[:4] for key, values in bins.items()})[
    2
  ].tolist() == [4]
  figures = {"ece": 0.05, "reliability": bins, "images": 69, "classes": 5}
  plots.calibration_panels(tmp_path / "calibration.png", {"dtd": {"a {}.": figures}})
  points, histogram = drawn[0].axes
  assert points.lines[1].get_ydata() == pytest.approx(accuracy)
  assert histogram.patches[0].get_data().values.tolist() == images


def test_panels_name_prompts_and_count_images_and_classes(tmp_path, drawn):
  """Paths by the part that differs; a mean has no number of images."""
  prompts = [
    "/a/long/way/to/runs/one/prompt.npz",
    "/a/long/way/to/runs/two/prompt.npz",
    "{}.",
  ]
  labels = ["learned (one)", "learned (two)", "{}."]
  plots.accuracy_panels(
    tmp_path / "bars.png",
    {prompt: {"dtd": 0.5, "mean": 0.5} for prompt in prompts},
    labels,
    "Top-1",
    {"dtd": 1692},
    {"dtd": 47},
    {prompt: {"dtd": [0.4, 0.6]} for prompt in prompts},
    {"CoOp": {"dtd": 60.0}},
  )
  dtd, mean = drawn[0].axes
  assert (dtd.get_title(), mean.get_title()) == (
    "dtd, 1,692 images, 47 classes",
    "mean",
  )
  assert [label.get_text() for label in dtd.get_yticklabels()] == labels
  assert [bar.get_width() for bar in dtd.patches] == [50, 50, 50, 60]
  reliability = {"images": [1.0], "confidence": [0.5], "accuracy": [0.25]}
  figures = {"ece": 0.05, "reliability": reliability, "images": 1692, "classes": 47}
  plots.calibration_panels(
    tmp_path / "calibration.png", {"dtd": dict.fromkeys(prompts, figures)}
  )
  axes = drawn[1].axes[0]
  assert axes.get_title() == "dtd, 1,692 images, 47 classes"
  assert [line.get_xydata().tolist() for line in axes.lines[1:]] == [[[0.5, 0.25]]] * 3
  assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == labels


def test_the_first_panel_of_each_row_has_the_labels(tmp_path, drawn):
  """Five panels stand in rows of three and two, though four fit into a row."""
  sets = ("a", "b", "c", "d", "e")
  accuracy = {"{}.": dict.fromkeys(sets, 0.5)}
  plots.accuracy_panels(
    tmp_path / "bars.png", accuracy, ["{}."], "Top-1", {}, {}, {}, {}
  )
  labelled = [len(axes.get_yticks()) for axes in drawn[0].axes]
  assert labelled == [1, 0, 0, 1, 0]
  reliability = {"images": [1.0], "confidence": [0.5], "accuracy": [0.25]}
  figures = {"ece": 0.05, "reliability": reliability, "images": 1, "classes": 1}
  of_sets = dict.fromkeys(sets, {"{}.": figures})
  plots.calibration_panels(tmp_path / "calibration.png", of_sets)
  diagrams, histograms = drawn[1].axes[::2], drawn[1].axes[1::2]
  assert [axes.get_ylabel() for axes in diagrams] == [
    "accuracy",
    "",
    "",
    "accuracy",
    "",
  ]
  assert [axes.get_ylabel() for axes in histograms] == ["images", "", "", "images", ""]


@given(
  st.floats(-6, 6), st.floats(0.001, 9, exclude_min=True), st.sampled_from(["x", "y"])
)
def test_ticks_of_a_log_axis_are_plain_numbers_at_their_place(power, decades, which):
  figure, (axes,) = drawing.panels(1, 3.0, 3.0)
  axes.plot(*[[10**power, 10 ** (power + decades)]] * 2, "o")
  drawing.log_axis(axes, which)
  FigureCanvasAgg(figure).draw()
  axis = axes.xaxis if which == "x" else axes.yaxis
  low, high = sorted(axis.get_view_interval())
  drawn = [(tick.get_loc(), tick.label1.get_text()) for tick in axis.get_major_ticks()]
  found = [(at, text) for at, text in drawn if low <= at <= high]
  assert 2 <= len(found) <= 10
  for at, text in found:
    assert re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?|\d+(\.\d+)?", text), text
    assert float(text.replace(",", "")) == pytest.approx(at, rel=1e-5)
  assert len({text for _, text in found}) == len(found)


def test_a_dollar_is_no_formula():
  """As Matplotlib reads it: an even number of unescaped dollars would start one."""
  figure, (axes,) = drawing.panels(1, 3.0, 3.0, "$x_{ and $y")
  drawing.label_panel(axes, drawing.name("a $b_{ and $c"))
  FigureCanvasAgg(figure).draw()
