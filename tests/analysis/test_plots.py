"""The plots: files that are pictures, with what they must say, for all inputs a run can give."""

import matplotlib
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from pomp_jax.analysis import plots

STEPS = list(range(10, 2010, 10))
SCORES = {
  split: {
    prompt: {"top1": top1 / (number + 1), "top5": 0.9}
    for prompt, top1 in [("class_name", 0.2), ("hand_written", 0.3), ("prompt", 0.4)]
  }
  for number, split in enumerate(["base", "novel", "shifted"])
}


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, to look into."""
  figures, save = [], plots._save
  monkeypatch.setattr(
    plots, "_save", lambda path, figure: (figures.append(figure), save(path, figure))
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
  assert {"base", "novel", "shifted", "40.0", "6.7", "learned prompt"} <= set(texts(drawn[0]))


def test_accuracy_bars_with_spread(tmp_path, drawn):
  spread = {
    split: {prompt: {"top1": 0.01} for prompt in prompts} for split, prompts in SCORES.items()
  }
  plots.accuracy_bars(tmp_path / "accuracy.png", SCORES, spread=spread)
  assert_picture(tmp_path / "accuracy.png")
  bars = drawn[0].axes[0].containers
  assert sum(getattr(container, "has_yerr", False) for container in bars) == 3


@pytest.mark.parametrize(
  "scores",
  [
    {"base": {"prompt": {"top1": 0.0}}},
    {"base": {"prompt": {"top1": 1.0}, "best_of_seven": {"top1": 0.5}}, "novel": SCORES["novel"]},
  ],
)
def test_accuracy_bars_of_other_prompts(tmp_path, scores, drawn):
  plots.accuracy_bars(tmp_path / "accuracy.png", scores)
  assert_picture(tmp_path / "accuracy.png")
  n_bars = sum(len(split) for split in scores.values())
  assert len(drawn[0].axes[0].patches) == n_bars


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


def test_no_state_is_left(tmp_path):
  plots.training_curves(tmp_path / "training.png", {"loss": ([1, 2], [1.0, 2.0])})
  assert isinstance(Figure(), Figure)
  pyplot = pytest.importorskip("matplotlib.pyplot")
  assert pyplot.get_fignums() == []
