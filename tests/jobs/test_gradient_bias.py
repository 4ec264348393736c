"""The job of the gradient's bias on a small world: its figures, its plot, its refusals."""

import json

from matplotlib.image import imread
import numpy as np
from PIL import Image
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.jobs import gradient_bias
from tests.support.report_page import Page
from tests.support.small_run import small_config, trained


def _config(**changes):
  settings = {
    "job": "gradient_bias",
    "gradient_bias.k": (8, 250, 300),
    "gradient_bias.images": 12,
    "gradient_bias.rows": 1200,
    "gradient_bias.samplers": "uniform;hard",
    "gradient_bias.corrections": "log;none",
  }
  return small_config(**(settings | changes))


def test_it_leaves_figures_and_a_plot(tmp_path):
  config = _config()
  gradient_bias.check(config, str(tmp_path))
  gradient_bias.run(config, str(tmp_path))
  results = json.loads((tmp_path / "results.json").read_text())
  assert (results["n_classes"], results["images"], results["prompt"]) == (300, 12, "initial")
  cells = {(cell["sampler"], cell["correction"], cell["k"]): cell for cell in results["cells"]}
  assert len(cells) == 2 * 2 * 3
  for sampler in ("uniform", "hard"):
    # All classes: no draw, no bias.
    assert cells[sampler, "log", 300]["relative_deviation"] < 1e-5
    assert cells[sampler, "log", 300]["relative_bias"] < 1e-4
    assert cells[sampler, "log", 250]["bias_high"] < cells[sampler, "log", 8]["bias_low"]
  assert imread(tmp_path / "plots" / "gradient_bias.png").std() > 0.05
  page = Page((tmp_path / "report.html").read_text())
  assert [row[:3] for row in page.table("sampler", "correction", "K")] == [
    [cell["sampler"], cell["correction"], str(cell["k"])] for cell in results["cells"]
  ]
  assert len(page.images) == 1


def test_it_goes_on_with_the_cells_that_are_missing(tmp_path, monkeypatch):
  config = _config(
    **{"gradient_bias.k": (8, 16), "gradient_bias.samplers": "uniform", "gradient_bias.rows": 200}
  )
  results = gradient_bias.run(config, str(tmp_path))
  file = tmp_path / "cells" / "uniform_16.json"
  file.unlink()
  (tmp_path / "results.json").unlink()
  computed, summarise = [], gradient_bias.summarise

  def told(gradients, exact):
    computed.append(len(gradients))
    return summarise(gradients, exact)

  monkeypatch.setattr(gradient_bias, "summarise", told)
  again = gradient_bias.run(config, str(tmp_path))
  assert again["cells"] == results["cells"]
  # Of one K, for both corrections.
  assert computed == [8, 8]


def test_the_bank_of_a_checkpoint_is_the_one_that_training_has(tmp_path):
  """Two steps from the start, after which three rows in turn and the drawn ones are current."""
  run, changes = tmp_path / "run", {"sampling.name": "posterior", "sampling.renew": 3, "steps": 2}
  trained(small_config(**changes), run)
  stored = gradient_bias.read_checkpoint(run / "checkpoints" / "2").state
  config = _config(**{"gradient_bias.prompt": str(run / "checkpoints" / "2")})
  gradient_bias.check(config, str(tmp_path / "bias"))
  setting = gradient_bias._open(config, ("posterior",))
  np.testing.assert_array_equal(setting.params["context"], stored["params"]["context"])
  np.testing.assert_array_equal(setting.frozen.sampling.bank.rows, stored["bank"])
  current_NxE = setting.encoder.features_of_tokens(setting.params, setting.frozen.tokens, "end")
  stale_N = np.abs(stored["bank"] - current_NxE).max(axis=1) > 1e-4
  assert stale_N.any()
  other = _config(**{"data.n_classes": 200, "gradient_bias.prompt": str(run / "checkpoints" / "2")})
  with pytest.raises(ConfigError, match=r"gradient_bias\.prompt: .* bank of 300 .* 200 classes"):
    gradient_bias.check(other.replace({"gradient_bias.k": (8,)}), str(tmp_path / "bias"))


def test_a_cell_is_found_by_all_that_it_depends_on():
  def key(**changes):
    return gradient_bias._open(_config(**changes), ("uniform",)).key

  first = key()
  assert key(**{"gradient_bias.k": (8, 16), "data.threads": 1, "clip.memory_gib": 0.5}) == first
  assert key(seed=1) != first


def test_the_training_is_opened_for_counts_alone(monkeypatch):
  opened, open_source = [], gradient_bias.inputs.open_training_source

  def told(*arguments):
    opened.append(True)
    return open_source(*arguments)

  monkeypatch.setattr(gradient_bias.inputs, "open_training_source", told)
  config = _config()
  names = gradient_bias.inputs.open_source(config.data, "train", n_images=1).names
  arrays = gradient_bias._arrays(config, ("uniform", "hierarchical"), names, 32)
  assert not opened and arrays.frequency is None and arrays.groups is not None
  arrays = gradient_bias._arrays(config, ("uniform", "frequency"), names, 32)
  assert opened == [True] and arrays.frequency.sum() == pytest.approx(1)


@pytest.mark.parametrize(
  ("memory_gib", "images", "most"), [(4.0, 10**6, 32618), (0.001, 12, None), (0.001, 400, 389)]
)
def test_the_images_have_room(tmp_path, memory_gib, images, most):
  config = _config(**{"clip.memory_gib": memory_gib, "gradient_bias.images": images})
  if most is None:
    gradient_bias.check(config, str(tmp_path))
    return
  # The logits of so many images over themselves and the classes, but of no more.
  room = memory_gib * 2**28
  assert most * (most + 300) <= room < (most + 1) * (most + 301)
  with pytest.raises(
    ConfigError, match=rf"gradient_bias\.images: got {images}, expected at most {most},"
  ):
    validate(config)
    gradient_bias.check(config, str(tmp_path))


def test_no_more_images_than_there_are(tmp_path):
  save_folders(tmp_path / "data")
  data = {"data.source": "folder", "data.root": str(tmp_path / "data"), "data.n_classes": 0}
  config = _config(**data | {"gradient_bias.k": (2,), "gradient_bias.images": 7})
  with pytest.raises(
    ConfigError, match=r"images: got 7, expected at most 4, the training's images"
  ):
    gradient_bias.check(config, str(tmp_path / "run"))
  config = config.replace({"gradient_bias.images": 4})
  gradient_bias.check(config, str(tmp_path / "run"))


def save_folders(root):
  """Two classes of three images, of which a training without other splits holds one out."""
  for name in ("cat", "dog"):
    (root / "train" / name).mkdir(parents=True)
    for number in range(3):
      Image.new("RGB", (8, 8)).save(root / "train" / name / f"{number}.png")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("k", (1, 8)),
    ("k", (16, 16)),
    ("k", ()),
    ("samplers", "uniform;harder"),
    ("samplers", "uniform;uniform"),
    ("corrections", "ln"),
  ],
)
def test_bad_input_is_one_line(tmp_path, field, value):
  config = _config(**{f"gradient_bias.{field}": value})
  with pytest.raises(ConfigError, match=rf"config\.gradient_bias\.{field}: got"):
    validate(config)
    gradient_bias.check(config, str(tmp_path))
