"""The gradient's bias: the estimate where it is known, the exact gradient, and the
job."""

import dataclasses
import itertools
import math
import pathlib
import statistics
from unittest import mock

import jax
import jax.numpy as jnp
from matplotlib.image import imread
import numpy as np
import optax
import pytest
import torch

from pomp_jax.clip.text import text_tower
from pomp_jax.config import ConfigError, validate
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen, Learner, TextFeatures, class_sequences
from pomp_jax.prompt.loss import ContrastSettings, normalize
from pomp_jax.prompt.sampling.samplers import SamplingSettings
from pomp_jax.rooms.analysis import bias, gradient_bias
from pomp_jax.rooms.analysis.bias import draws_of, gradient_function, summarise
from pomp_jax.train import setup
from pomp_jax.train.resume import first_state
from tests.support.checks import assert_close
from tests.support.clips import PLAIN_TOWER, with_logit_scale, write_fewer_layers
from tests.support.data_files import write_folder
from tests.support.oracles import torch_losses
from tests.support.report_page import Page
from tests.support.small_run import run_job, small_config, trained

_N = 60


def _config(**changes):
  settings = {
    "job": "gradient_bias",
    "data.n_classes": _N,
    "gradient_bias.k": (8, 50, _N),
  }
  settings |= {"gradient_bias.images": 12, "gradient_bias.rows": 800}
  settings |= {
    "gradient_bias.samplers": "uniform;hard",
    "gradient_bias.corrections": "log;none",
  }
  return small_config(**(settings | changes))


def asked(config, folder, owner, name):
  """Runs the job until it calls `name` of `owner`; returns the arguments of the
  call."""
  stopped = mock.patch.object(owner, name, autospec=True, side_effect=KeyboardInterrupt)
  with stopped as call, pytest.raises(KeyboardInterrupt):
    gradient_bias.run(config, str(folder))
  return call.call_args.args


@pytest.fixture(scope="module")
def finished(shared, one_layer):
  """The folder of a finished run, and its config."""
  config = _config(**{"clip.model": one_layer})
  return shared("gradient_bias", lambda folder: run_job(config, folder)), config


def test_it_leaves_figures_and_a_plot(finished):
  folder, _ = finished
  results = RunFolder(folder).read_results()
  assert (results["n_classes"], results["images"], results["prompt"]) == (
    _N,
    12,
    "initial",
  )
  cells = {
    (cell["sampler"], cell["correction"], cell["k"]): cell for cell in results["cells"]
  }
  assert len(cells) == 2 * 2 * 3
  for sampler in ("uniform", "hard"):
    # All classes: no draw, no bias.
    assert cells[sampler, "log", _N]["relative_deviation"] < 1e-5
    assert cells[sampler, "log", _N]["relative_bias"] < 1e-4
    assert cells[sampler, "log", 50]["bias_high"] < cells[sampler, "log", 8]["bias_low"]
  assert imread(folder / "plots" / "gradient_bias.png").std() > 0.05
  page = Page((folder / "report.html").read_text())
  expected = [
    [cell["sampler"], cell["correction"], str(cell["k"])] for cell in results["cells"]
  ]
  assert [row[:3] for row in page.table("sampler", "correction", "K")] == expected
  assert len(page.images) == 1


def test_it_goes_on_with_the_cells_that_are_missing(finished, copy_of, monkeypatch):
  folder, config = copy_of(finished[0]), finished[1]
  results = RunFolder(folder).read_results()
  (folder / "cells" / "uniform_50.json").unlink()
  (folder / "results.json").unlink()
  summarised = mock.Mock(wraps=bias.summarise)
  monkeypatch.setattr(bias, "summarise", summarised)
  again = gradient_bias.run(config, str(folder))
  assert again["cells"] == results["cells"]
  # Of one K, for both corrections: 800 rows of 50 classes and 12 images.
  assert [len(call.args[0]) for call in summarised.mock_calls] == [12, 12]


def test_the_bank_of_a_checkpoint_is_the_one_that_training_has(one_layer, tmp_path):
  """After two steps the rows of the second step's classes, and three more, are not
  the first."""
  checkpoint = tmp_path / "run" / "checkpoints" / "2"
  shared = {"clip.model": one_layer, "data.n_classes": _N}
  bank = {"sampling.name": "posterior", "sampling.renew": 3}
  training = small_config(steps=2, batch_size=8, k=8, **bank, **shared)
  trained(training, tmp_path / "run")
  stored = gradient_bias.read_checkpoint(checkpoint).state
  first_NxE = first_state(setup.prepare(training, RunFolder(tmp_path / "run"))).bank
  written_N = np.abs(stored["bank"] - first_NxE).max(axis=1) > 1e-4
  assert 3 < written_N.sum() <= 8 + 7 + 3
  own = {"gradient_bias.prompt": str(checkpoint), "gradient_bias.samplers": "posterior"}
  config = _config(**shared, **own)
  gradient_bias.check(config, str(tmp_path / "bias"))
  gradients, *_ = asked(config, tmp_path / "bias", gradient_bias.Gradients, "of_draws")
  np.testing.assert_array_equal(
    gradients.params["context"], stored["params"]["context"]
  )
  np.testing.assert_array_equal(gradients.frozen.sampling.bank.rows, stored["bank"])
  other = config.replace({"data.n_classes": 50, "gradient_bias.k": (8,)})
  with pytest.raises(
    ConfigError, match=r"gradient_bias\.prompt: .* bank of 60 .* 50 classes"
  ):
    gradient_bias.check(other, str(tmp_path / "bias"))


def test_loss_and_sampler_have_the_scale_of_the_clip(tmp_path, monkeypatch):
  """One that is not the world's, SamplingSettings' default. The exact contrast has
  all classes."""
  clip = with_logit_scale(pathlib.Path(write_fewer_layers(tmp_path / "clip", 1)), 20.0)
  asked = []
  monkeypatch.setattr(bias, "gradient_function", lambda *given: asked.append(given[1]))
  monkeypatch.setattr(
    bias, "draws_of", lambda _, arguments, n, seed: np.ones((n, 1, 3))
  )
  changes = {"gradient_bias.samplers": "posterior", "gradient_bias.k": (8,)}
  changes |= {"sampling.exclude": "similar"}
  changes["gradient_bias.corrections"] = ("log",)
  config = _config(**changes, **{"clip.model": str(clip)})
  results = gradient_bias.run(config, str(tmp_path / "run"))
  # Of the exact gradient (1, 1, 1).
  assert results["exact_norm"] == pytest.approx(math.sqrt(3))
  exact, drawn = asked
  assert (exact.k, drawn.k, drawn.sampling.name) == (_N, 8, "posterior")
  assert (exact.sampling.exclude, drawn.sampling.exclude) == ("none", "similar")
  scales = exact.logit_scale, drawn.logit_scale, drawn.sampling.logit_scale
  assert scales == pytest.approx((20, 20, 20))


def test_a_cell_is_found_by_all_that_it_depends_on(one_layer, tmp_path):
  def key(**more):
    config = _config(**{"clip.model": one_layer} | more)
    return fingerprint(*asked(config, tmp_path, gradient_bias, "fingerprint"))

  first = key()
  assert (
    key(**{"gradient_bias.k": (8, 16), "data.threads": 1, "clip.memory_gib": 0.5})
    == first
  )
  assert key(seed=1) != first


def test_no_more_images_than_there_are(tmp_path):
  """Two classes of three images, of which a training without other splits holds one
  out."""
  write_folder(tmp_path / "data", ("cat", "dog"), 3)
  fields = {
    "data.source": "folder",
    "data.root": str(tmp_path / "data"),
    "data.n_classes": 0,
  }
  config = _config(**fields, **{"gradient_bias.k": (2,), "gradient_bias.images": 7})
  with pytest.raises(
    ConfigError, match=r"images: got 7, expected at most 4, the training's"
  ):
    gradient_bias.check(config, str(tmp_path / "run"))


_BAD = [
  ("k", (1, 8)),
  ("k", (16, 16)),
  ("samplers", "uniform;harder"),
  ("corrections", "ln"),
]


@pytest.mark.parametrize(("field", "value"), _BAD)
def test_bad_input_is_one_line(tmp_path, field, value):
  config = _config(**{f"gradient_bias.{field}": value})
  with pytest.raises(ConfigError, match=rf"config\.gradient_bias\.{field}: got"):
    validate(config)
    gradient_bias.check(config, str(tmp_path))


@pytest.mark.parametrize("bias", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("deviation", [0.2, 1.0])
def test_bias_and_deviation_are_found(bias, deviation):
  rng = np.random.default_rng(0)
  exact, direction = rng.normal(size=(2, 50))
  length = np.linalg.norm(exact)
  shift = bias * length * direction / np.linalg.norm(direction)
  noise = rng.normal(size=(400, 50)) * deviation * length / math.sqrt(50)
  found = summarise(exact + shift + noise, exact)
  assert found["bias_low"] <= bias <= found["bias_high"]
  # The mean of the draws is 1 / sqrt(400) of the deviation away.
  assert found["relative_bias"] == pytest.approx(
    bias, rel=0.15, abs=0 if bias else 0.05
  )
  assert bias or found["bias_high"] < 0.05
  assert found["relative_deviation"] == pytest.approx(deviation, rel=0.05)
  assert found["draws"] == 400


def test_cosines():
  exact = np.array([1.0, 0.0])
  found = summarise(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), exact)
  assert found["cosine"] == pytest.approx(3 / math.sqrt(13))
  single = [1, 0, 1 / math.sqrt(2)]
  assert found["draw_cosine"] == pytest.approx(np.mean(single))
  assert found["draw_cosine_error"] == pytest.approx(
    np.std(single, ddof=1) / math.sqrt(3)
  )


@pytest.mark.parametrize("n_draws", [3, 4, 9])
def test_the_figures_of_few_draws(n_draws):
  """By Python's statistics, whose variance is that of a sample; a jackknife by hand."""
  rng = np.random.default_rng(n_draws)
  exact = rng.normal(size=5)
  # A bias that is larger than its error, so that no figure is cut off at 0.
  draws = (2 * exact + 0.3 * rng.normal(size=(n_draws, 5))).tolist()
  size = math.fsum(g * g for g in exact)

  def of(rows):
    """Squared bias and variance, both relative to the squared length of the exact
    gradient."""
    entries = list(zip(*rows, strict=True))
    variance = math.fsum(map(statistics.variance, entries))
    gaps = (statistics.mean(entry) - g for entry, g in zip(entries, exact, strict=True))
    squared = math.fsum(gap**2 for gap in gaps)
    return (squared - variance / len(rows)) / size, variance / size

  biases = [of(draws[:r] + draws[r + 1 :])[0] for r in range(n_draws)]
  error = math.sqrt((n_draws - 1) * statistics.pvariance(biases))
  bias, variance = of(draws)
  found = summarise(np.array(draws), exact)
  assert found["relative_bias"] == pytest.approx(math.sqrt(bias))
  assert found["bias_low"] == pytest.approx(math.sqrt(bias - 2 * error))
  assert found["bias_high"] == pytest.approx(math.sqrt(bias + 2 * error))
  assert found["relative_deviation"] == pytest.approx(math.sqrt(variance))


def test_all_classes_give_the_gradient_of_the_full_softmax(tmp_path, monkeypatch):
  """Of sixteen images and 300 classes of the embedded world, whose CLIP has a scale
  of 7."""
  config = small_config(
    job="gradient_bias", **{"gradient_bias.images": 16, "data.n_classes": 300}
  )
  clip = opening.open_encoder(config.clip).clip
  params = clip.params | {"logit_scale": np.array(np.log(7), np.float32)}
  encoder = Encoder(dataclasses.replace(clip, params=params))
  monkeypatch.setattr(opening, "open_encoder", lambda *_: encoder)
  gradients, *_ = asked(config, tmp_path, gradient_bias.Gradients, "of_draws")
  source = opening.open_source(config.data, "train", n_images=16)
  module = PromptContext(config.prompt.m, clip.text_width, config.prompt.position)
  drawn = np.random.default_rng(config.seed).permutation(len(source))
  chosen = np.sort(drawn[:16])  # the job's images
  labels, images = source.labels[chosen], source.images(chosen)
  features = jnp.asarray(encoder.image_features(images))
  frozen = gradients.frozen
  tower = text_tower(PLAIN_TOWER, encoder.clip.config.text_config)

  def loss(params):
    sequences = class_sequences(module, params, frozen, jnp.arange(300))
    logits = 7 * normalize(features) @ normalize(tower(frozen.text, *sequences)).T
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  expected = jax.jit(jax.grad(loss))(gradients.params)["context"].ravel()
  found = gradients.of_draws(300, SamplingSettings(), ("log", "none"), 1)[0]
  assert_close(found[0], expected, 1e-4)
  assert_close(found[1], expected, 1e-4)


class _Free(Learner):
  """A learner whose class features are its parameters, which are given."""

  def init(self, key): ...

  def text_features(self, params, frozen, class_ids_R, image_features_BxE):
    return TextFeatures(params[class_ids_R])


def _gradients_of_all_draws(scale, correction, k, params, images, labels):
  """Returns the gradients of all equally likely draws of K-1 of N classes, PyTorch
  float64."""
  n_classes, found, images = len(params), [], torch.tensor(images)
  settings = {"scale": scale, "n_classes": n_classes, "correction": correction}
  for drawn in itertools.combinations(range(n_classes), k if k == n_classes else k - 1):
    classes = torch.tensor(params, requires_grad=True)
    rows = images, classes[labels], classes[list(drawn)]
    losses, _ = torch_losses(*rows, labels, drawn, **settings)
    losses.mean().backward()
    found.append(classes.grad.numpy().ravel())
  return np.array(found)


@pytest.mark.parametrize("scale", [3.0, 100.0])
@pytest.mark.parametrize("correction", ["log", "none"])
def test_sampled_draws_have_the_mean_and_bias_of_all_draws(scale, correction):
  rng = np.random.default_rng(3)
  free = rng.normal(size=(8, 4)), rng.normal(size=(3, 4)), np.array([1, 1, 6], np.int32)
  everything = _gradients_of_all_draws(scale, correction, 4, *free)
  exact = _gradients_of_all_draws(scale, correction, 8, *free)[0]
  settings = ContrastSettings(4, 8, "log", scale)
  params, images, labels = map(jnp.asarray, free)
  arguments = (params, Frozen({}, {}, None, None), images, labels)
  draws = draws_of(
    gradient_function(_Free(), settings, (correction,)), arguments, 800, 0
  )[:, 0]
  error = everything.std() / math.sqrt(800)
  assert np.abs(draws.mean(0) - everything.mean(0)).max() < 6 * error
  found, size = summarise(draws, exact), np.linalg.norm(exact)
  bias = np.linalg.norm(everything.mean(0) - exact) / size
  assert found["bias_low"] <= bias <= found["bias_high"]
  deviation = math.sqrt(everything.var(0).sum()) / size
  assert found["relative_deviation"] == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_prompt_of_a_folder_or_of_the_hub(hub, tmp_path, place):
  save_prompt(tmp_path / "prompt.npz", Prompt(np.ones((4, 8), np.float32), "world"))
  hub.files["me/a"] = {"prompt.npz": (tmp_path / "prompt.npz").read_bytes()}
  found, bank = gradient_bias._load("hf:me/a" if place == "hub" else str(tmp_path))
  assert bank is None
  np.testing.assert_array_equal(found.context, np.ones((4, 8)))
