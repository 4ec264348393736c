"""The plots: files that are pictures, with what they must say, for all inputs a run can give."""

import matplotlib
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from pomp_jax.analysis import drawing, features, plots

STEPS = list(range(10, 2010, 10))


def score(top1, images=1000):
  return {"top1": top1, "top5": 0.9, "images": images, "top1_interval": [0.9 * top1, top1 + 0.05]}


SCORES = {
  split: {
    prompt: score(top1 / (number + 1), 1000 + number)
    for prompt, top1 in [("class_name", 0.2), ("hand_written", 0.3), ("prompt", 0.4)]
  }
  for number, split in enumerate(["base", "novel", "shifted"])
}


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, to look into."""
  figures, save = [], drawing.save
  monkeypatch.setattr(
    drawing, "save", lambda path, figure: (figures.append(figure), save(path, figure))
  )
  return figures


def texts(figure):
  return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def assert_picture(path):
  with Image.open(path) as image:
    assert image.format == "PNG"
    assert min(image.size) > 300
    assert len(np.unique(image.convert("L"))) > 10


def test_training_curves(tmp_path, drawn):
  values = np.exp(-np.array(STEPS) / 500).tolist()
  series = {
    "loss": (STEPS, values),
    "accuracy": (STEPS, [1 - value for value in values]),
    "validation_top1": ([1000, 2000], [0.2, 0.3]),
    "grad_norm": (STEPS, values),
  }
  plots.training_curves(tmp_path / "training.png", series)
  assert_picture(tmp_path / "training.png")
  loss_axes, accuracy_axes = drawn[0].axes
  raw, smooth = loss_axes.lines
  np.testing.assert_array_equal(raw.get_ydata(), values)
  assert len(smooth.get_ydata()) == len(values)
  assert len(accuracy_axes.lines) == 3
  np.testing.assert_array_equal(accuracy_axes.lines[2].get_ydata(), [0.2, 0.3])


@pytest.mark.parametrize(
  "series", [{}, {"loss": ([], [])}, {"loss": ([1], [2.0])}, {"loss": (STEPS, [np.nan] * 200)}]
)
def test_training_curves_of_little(tmp_path, series):
  plots.training_curves(tmp_path / "training.png", series)
  assert_picture(tmp_path / "training.png")


@pytest.mark.parametrize("window", [1, 2, 7, 50])
def test_the_moving_mean(window):
  values = np.random.default_rng(0).normal(size=20)
  expected = [values[max(i - window, 0) : i + window + 1].mean() for i in range(20)]
  np.testing.assert_allclose(plots._moving_mean(values, window), expected, atol=1e-12)


def test_accuracy_bars(tmp_path, drawn):
  plots.accuracy_bars(tmp_path / "accuracy.png", SCORES)
  assert_picture(tmp_path / "accuracy.png")
  heights = [bar.get_height() for bar in drawn[0].axes[0].patches]
  order = ("prompt", "hand_written", "class_name")
  assert heights == [SCORES[split][prompt]["top1"] for prompt in order for split in SCORES]
  ticks = {"base\n1,000 images", "novel\n1,001 images", "shifted\n1,002 images"}
  assert ticks | {"40.0", "6.7", "learned prompt"} <= set(texts(drawn[0]))
  # Error bars from 90% of each figure to 0.05 above it.
  for container in (c for c in drawn[0].axes[0].containers if getattr(c, "has_yerr", False)):
    for segment in container.lines[2][0].get_segments():
      low, high = segment[:, 1]
      assert high - 0.05 == pytest.approx(low / 0.9)
  assert "error bars: 95% interval over the images" in texts(drawn[0])


def test_accuracy_bars_with_spread(tmp_path, drawn):
  spread = {
    split: {prompt: {"top1": 0.01} for prompt in prompts} for split, prompts in SCORES.items()
  }
  plots.accuracy_bars(tmp_path / "accuracy.png", SCORES, spread=spread)
  assert_picture(tmp_path / "accuracy.png")
  bars = [c for c in drawn[0].axes[0].containers if getattr(c, "has_yerr", False)]
  assert len(bars) == 3
  assert {
    round(float(np.ptp(segment[:, 1])), 9)
    for bar in bars
    for segment in bar.lines[2][0].get_segments()
  } == {0.02}
  assert "error bars: standard deviation over the seeds" in texts(drawn[0])


@pytest.mark.parametrize(
  "scores",
  [
    {"base": {"prompt": score(0.0)}},
    {"base": {"prompt": score(1.0), "best_of_seven": score(0.5)}, "novel": SCORES["novel"]},
  ],
)
def test_accuracy_bars_of_other_prompts(tmp_path, scores, drawn):
  plots.accuracy_bars(tmp_path / "accuracy.png", scores)
  assert_picture(tmp_path / "accuracy.png")
  n_bars = sum(len(split) for split in scores.values())
  assert len(drawn[0].axes[0].patches) == n_bars


def test_method_dots_have_the_spread_of_several_runs_or_the_interval_of_one(tmp_path, drawn):
  found = {"images": 1000, "interval": [0.35, 0.5]}
  one = found | {"mean": 0.4, "std": 0.0, "values": [0.4]}
  two = found | {"mean": 0.4, "std": 0.01, "values": [0.39, 0.41]}
  top1 = {
    "probe": {"base": one | {"classes": 50}},
    "pomp": {"base": two | {"classes": 50}, "novel": two},
  }
  plots.method_dots(tmp_path / "dots.png", top1)
  [figure] = drawn
  ends = [
    segment[:, 0].round(6).tolist()
    for container in figure.axes[0].containers
    for segment in container.lines[2][0].get_segments()
  ]
  assert ends == [[35, 50], [39, 41]]
  assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes[:2]] == [
    "base, 1,000 images, 50 classes",
    "novel, 1,000 images",
  ]


def test_panels_name_prompts_and_count_images_and_classes(tmp_path, drawn):
  """Paths by the part that differs; a mean has no number of images."""
  prompts = ["/a/long/way/to/runs/one/prompt.npz", "/a/long/way/to/runs/two/prompt.npz", "{}."]
  labels = ["learned, one", "learned, two", "{}."]
  plots.accuracy_panels(
    tmp_path / "bars.png",
    {prompt: {"dtd": 0.5, "mean": 0.5} for prompt in prompts},
    {"CoOp": {"dtd": 60.0}},
    "Top-1",
    {"dtd": 1692},
    {prompt: {"dtd": [0.4, 0.6]} for prompt in prompts},
    {"dtd": 47},
  )
  dtd, mean = drawn[0].axes
  assert (dtd.get_title(), mean.get_title()) == ("dtd, 1,692 images, 47 classes", "mean")
  assert [label.get_text() for label in dtd.get_yticklabels()] == labels
  reliability = {"images": [1.0], "confidence": [0.5], "accuracy": [0.5]}
  figures = {"ece": 0.05, "reliability": reliability, "images": 1692, "classes": 47}
  plots.calibration_panels(tmp_path / "calibration.png", {"dtd": dict.fromkeys(prompts, figures)})
  assert drawn[1].axes[0].get_title() == "dtd, 1,692 images, 47 classes"
  assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == labels


@pytest.mark.parametrize(("n_images", "size"), [(1, 32), (5, 8), (18, 32), (2, 500)])
def test_prediction_sheet(tmp_path, drawn, n_images, size):
  images = np.random.default_rng(0).integers(0, 256, (n_images, size, size, 3), dtype=np.uint8)
  true_names = [f"thing {index}" for index in range(n_images)]
  top3_names = [["a", name, "c"] if int(name[6:]) % 2 else [name, "b", "c"] for name in true_names]
  plots.prediction_sheet(
    tmp_path / "sheet.png", images, true_names, top3_names, np.full((n_images, 3), [0.7, 0.2, 0.1])
  )
  assert_picture(tmp_path / "sheet.png")
  assert texts(drawn[0]).count("\u2713") == n_images
  assert texts(drawn[0]).count("70%") == n_images


def test_prediction_sheet_with_awkward_names(tmp_path, drawn):
  """Long ones are cut, dollars are no formulas, two names of three are enough."""
  names = ["a $x_{ thing", "very " * 30 + "long"]
  images = np.zeros((2, 16, 16, 3), np.uint8)
  plots.prediction_sheet(
    tmp_path / "sheet.png", images, names, [names, names[::-1]], [[0.9, 0.1]] * 2
  )
  assert_picture(tmp_path / "sheet.png")
  assert max(len(text) for text in texts(drawn[0])) < 70


def test_a_set_of_one_class_has_no_uniformity_and_no_point(tmp_path, drawn):
  sets = {
    "pets/novel": {
      "images": 1,
      "classes": 1,
      "prompts": {"a {}": {"alignment": 1.0, "uniformity": None}},
    },
    "pets/base": {
      "images": 2000,
      "classes": 2,
      "prompts": {"a {}": {"alignment": 1.2, "uniformity": -0.5}},
    },
  }
  features.alignment_uniformity(tmp_path / "plot.png", sets)
  assert_picture(tmp_path / "plot.png")
  points = [axes.get_lines()[0].get_xdata() for axes in drawn[0].axes[:2]]
  assert np.isnan(points[0]).all() and points[1].tolist() == [-0.5]
  titles = [axes.get_title() for axes in drawn[0].axes[:2]]
  assert titles == ["pets/novel, 1 image, 1 class", "pets/base, 2,000 images, 2 classes"]


def test_no_state_is_left(tmp_path):
  plots.training_curves(tmp_path / "training.png", {"loss": ([1, 2], [1.0, 2.0])})
  assert isinstance(Figure(), Figure)
  pyplot = pytest.importorskip("matplotlib.pyplot")
  assert pyplot.get_fignums() == []
