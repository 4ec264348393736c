"""Eight devices against one: features, figures, accuracies and regions."""

import jax
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from pomp_jax import hosts
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import ranking
from pomp_jax.evaluate.image_batches import image_batches
from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.prompt.mesh import make_mesh
from tests.evaluate.test_classifier import NAMES
from tests.evaluate.test_ranking import Pictures
from tests.support.oracles import unit

pytestmark = pytest.mark.mesh

RNG = np.random.default_rng(0)
# Rows are padded on eight devices; in threes on one, the last chunk is ragged.
IMAGES = RNG.integers(0, 256, (21, 32, 32, 3), np.uint8)


def test_features(clip_and_torch):
  clip, _ = clip_and_torch
  assert len(hosts.devices()) == 8
  one, eight = (
    Encoder(clip, mesh=make_mesh(1, jax.devices()[:1]), chunk=3),
    Encoder(clip, chunk=64),
  )
  context = RNG.normal(0, 0.02, (4, one.clip.text_width)).astype(np.float32)
  for prompt in ("{}.", Prompt(context, "random", position="middle")):
    expected = one.class_features(NAMES, prompt)
    np.testing.assert_allclose(eight.class_features(NAMES, prompt), expected, atol=1e-6)
  expected = one.image_features(IMAGES)
  np.testing.assert_allclose(eight.image_features(IMAGES), expected, atol=1e-6)


@pytest.mark.parametrize(
  ("batch_size", "indices", "sizes", "padded"),
  [
    (512, None, [21], 24),  # no more rows than the images need
    (9, None, [16, 5], 16),
    (8, None, [8, 8, 5], 8),
    # A part of the images has batches as large as those of all.
    (512, [20, 3, 3, 0, 7], [5], 24),
    (9, list(range(20, 2, -1)), [16, 2], 16),
  ],
)
def test_batches_that_the_devices_do_not_divide(
  clip_and_torch, batch_size, indices, sizes, padded
):
  """Each device has a part of the rows, also those that share a part of a training
  batch."""
  encoder, labels = Encoder(clip_and_torch[0], mesh=make_mesh(2)), np.arange(21) % 4
  source = Pictures("abcd", labels, IMAGES)
  given = [encoder, source, SkippedImages(source, 0.0), batch_size, 2, "images"]
  shown = np.arange(21) if indices is None else np.array(indices)
  batches = list(image_batches(*given, indices=None if indices is None else shown))
  assert [batch.n_images for batch in batches] == sizes
  start = 0
  for batch, n_images in zip(batches, sizes, strict=True):
    rows = np.pad(shown[start : start + n_images], (0, padded - n_images), "edge")
    np.testing.assert_array_equal(batch.images, IMAGES[rows])
    np.testing.assert_array_equal(batch.labels, labels[rows])
    assert len(batch.images.sharding.device_set) == 8
    assert {shard.data.shape[0] for shard in batch.images.addressable_shards} == {
      padded // 8
    }
    start += n_images


@pytest.mark.parametrize("at_a_time", [None, 9])
@pytest.mark.parametrize("n_devices", [1, 8])
def test_topk_equals_scikit_learn(n_devices, at_a_time, monkeypatch):
  if at_a_time:
    monkeypatch.setattr(ranking, "_SCORES", 30 * at_a_time)
  images, classes = unit(RNG.normal(size=(200, 8))), unit(RNG.normal(size=(30, 8)))
  labels = RNG.integers(0, 30, 200)
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  found = topk_accuracy(images, classes, labels, ks=(1, 2, 5), mesh=mesh)
  for k in (1, 2, 5):
    expected = top_k_accuracy_score(
      labels, images @ classes.T, k=k, labels=np.arange(30)
    )
    assert found[f"top{k}"] == pytest.approx(expected)
  expected = balanced_accuracy_score(labels, np.argmax(images @ classes.T, axis=-1))
  assert found["macro_top1"] == pytest.approx(expected)
  assert found["images"] == 200 and found["top1_interval"] == wilson_interval(
    found["top1"], 200
  )
