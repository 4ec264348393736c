"""The estimate of bias and variance where both are known, and the exact gradient by autodiff."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pomp_jax.clip.text import text_tower
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen, TextFeatures, class_sequences
from pomp_jax.prompt.loss import ContrastSettings, normalize
from pomp_jax.prompt.sampling.samplers import SamplingSettings
from pomp_jax.rooms.analysis import gradient_bias as job
from pomp_jax.rooms.analysis.bias import draws_of, gradient_function, summarise
from tests.rooms.analysis.test_gradient_bias import asked
from tests.support.checks import assert_close
from tests.support.clips import PLAIN_TOWER
from tests.support.small_run import small_config


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
  assert found["relative_bias"] == pytest.approx(bias, rel=0.15, abs=0 if bias else 0.05)
  assert bias or found["bias_high"] < 0.05
  assert found["relative_deviation"] == pytest.approx(deviation, rel=0.05)
  assert found["draws"] == 400


def test_cosines():
  exact = np.array([1.0, 0.0])
  found = summarise(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), exact)
  assert found["cosine"] == pytest.approx(3 / math.sqrt(13))
  single = [1, 0, 1 / math.sqrt(2)]
  assert found["draw_cosine"] == pytest.approx(np.mean(single))
  assert found["draw_cosine_error"] == pytest.approx(np.std(single, ddof=1) / math.sqrt(3))


def test_all_classes_give_the_gradient_of_the_full_softmax(tmp_path, monkeypatch):
  """Of sixteen images and 300 classes of the embedded world, whose CLIP has a scale of 7."""
  config = small_config(job="gradient_bias", **{"gradient_bias.images": 16, "data.n_classes": 300})
  clip = inputs.open_encoder(config.clip).clip
  params = clip.params | {"logit_scale": np.array(np.log(7), np.float32)}
  encoder = Encoder(dataclasses.replace(clip, params=params))
  monkeypatch.setattr(inputs, "open_encoder", lambda *_: encoder)
  gradients, *_ = asked(config, tmp_path, job.Gradients, "of_draws")
  source = inputs.open_source(config.data, "train", n_images=16)
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


class _Free:
  """A learner whose class features are its parameters, which are given."""

  def init(self, key): ...

  def text_features(self, params, frozen, class_ids_R, image_features_BxE):
    return TextFeatures(params[class_ids_R])


def _gradients_of_all_draws(scale, correction, k, params, images, labels):
  """Returns the gradients of all equally likely draws of K-1 of N classes, PyTorch float64."""
  n_classes, found = len(params), []
  unit = torch.nn.functional.normalize
  for drawn in itertools.combinations(range(n_classes), k if k == n_classes else k - 1):
    classes = torch.tensor(params, dtype=torch.float64, requires_grad=True)
    logits = scale * unit(torch.tensor(images, dtype=torch.float64)) @ unit(classes).T
    losses = []
    for row, label in zip(logits, labels, strict=True):
      kept = [c for c in drawn if c != label]
      weight = (n_classes - 1) / len(kept) if correction == "log" else 1.0
      negatives = torch.logsumexp(row[kept], 0) + math.log(weight)
      losses.append(torch.logaddexp(row[label], negatives) - row[label])
    torch.stack(losses).mean().backward()
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
  draws = draws_of(gradient_function(_Free(), settings, (correction,)), arguments, 800, 0)[:, 0]
  error = everything.std() / math.sqrt(800)
  assert np.abs(draws.mean(0) - everything.mean(0)).max() < 6 * error
  found, size = summarise(draws, exact), np.linalg.norm(exact)
  bias = np.linalg.norm(everything.mean(0) - exact) / size
  assert found["bias_low"] <= bias <= found["bias_high"]
  deviation = math.sqrt(everything.var(0).sum()) / size
  assert found["relative_deviation"] == pytest.approx(deviation, rel=0.1)
