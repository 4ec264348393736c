"""Features of evaluation images from files equal those computed at once, after any
fault."""

import dataclasses
import json
import shutil
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import images_key as images_key_module
from pomp_jax.evaluate import split_features as module
from pomp_jax.evaluate.images_key import images_key
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files import features
from pomp_jax.files.features import Features
from pomp_jax.files.run_folder import RunFolderWriteError
from tests.support.clips import with_kernel

IMAGES, BLOCK, BATCH = 21, 8, 8
BAD = [9, 20]
GOOD = np.setdiff1d(np.arange(IMAGES), BAD)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
  """Three blocks, and a batch for each."""
  monkeypatch.setattr(features, "_BLOCK", BLOCK)
  monkeypatch.setattr(module, "_BATCH", BATCH)


def pictures(folder, seed=0, bad=()):
  """Random images of four classes; some are no images."""
  rng = np.random.default_rng(seed)
  folder.mkdir()
  keys = [f"{index}.png" for index in range(IMAGES)]
  for index, key in enumerate(keys):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / key)
    if index in bad:
      (folder / key).write_bytes(b"no image")
  return StoredImages(
    list("abcd"), rng.integers(0, 4, IMAGES), keys, Files(folder), image_size=32
  )


def reads(encoder, monkeypatch):
  """Counts the batches that reach the encoder."""
  counted = mock.Mock(wraps=encoder.features_of_images)
  monkeypatch.setattr(encoder, "features_of_images", counted)
  return counted


def blocks(store):
  """Files with features, of all sets of images."""
  return sorted(store.glob("*/c.*"))


def assert_equal(found, expected):
  assert found.names == expected.names
  for one, other in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_array_equal(one, other)


def test_what_an_interrupted_start_left_is_used(encoder, tmp_path, monkeypatch):
  source, folder = pictures(tmp_path / "images"), tmp_path / "features"
  expected = split_features(encoder, source)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    reads(encoder, patch).side_effect = [mock.DEFAULT, mock.DEFAULT, KeyboardInterrupt]
    split_features(encoder, source, store=folder)
  # Of two batches the second was still with the devices.
  assert len(blocks(folder)) == 1
  counted = reads(encoder, monkeypatch)
  for n_batches in (2, 3):  # the third for a block that is damaged then
    assert_equal(split_features(encoder, source, store=folder), expected)
    assert counted.call_count == n_batches
    blocks(folder)[0].write_bytes(b"damaged")


def test_unreadable_images_are_tried_again_at_each_start(
  encoder, tmp_path, monkeypatch, caplog
):
  source, folder = pictures(tmp_path / "images", bad=BAD), tmp_path / "features"
  expected = split_features(encoder, source, max_corrupt=0.2)
  np.testing.assert_array_equal(expected.indices, GOOD)
  for n_batches in (3, 1):
    caplog.clear()
    with monkeypatch.context() as patch:
      counted = reads(encoder, patch)
      assert_equal(
        split_features(encoder, source, store=folder, max_corrupt=0.2), expected
      )
    assert counted.call_count == n_batches
    assert "2 of 21" in caplog.text and "/9.png" in caplog.text
  with pytest.raises(CorruptDataError, match=r"1 of 21 .*|2 of 21 .*"):
    split_features(encoder, source, store=folder)
  # Once they can be read, their features are stored as well.
  for index in BAD:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / f"{index}.png")
  whole = split_features(encoder, source, store=folder)
  assert_equal(whole, split_features(encoder, source))
  counted = reads(encoder, monkeypatch)
  caplog.set_level("INFO")
  assert_equal(split_features(encoder, source, store=folder), whole)
  assert counted.call_count == 0 and ": features of 21 of 21 images" in caplog.text


def test_what_the_features_depend_on_has_its_own_files(encoder, tmp_path):
  source, folder = pictures(tmp_path / "images"), tmp_path / "features"
  first = split_features(encoder, source, store=folder)
  kernel = -encoder.clip.params["visual_projection"]["kernel"]
  negative = with_kernel(encoder.clip, "visual_projection", kernel)
  others = {
    "another CLIP": (Encoder(negative, chunk=8), source),
    "another type": (Encoder(encoder.clip, chunk=8, dtype="bfloat16"), source),
    "other images of the same names": (encoder, pictures(tmp_path / "others", seed=1)),
    "a part": (encoder, source.subset(np.arange(3, IMAGES))),
    "another order": (encoder, source.subset(np.arange(IMAGES)[::-1])),
  }
  for n_before, (what, (other_encoder, other)) in enumerate(others.items()):
    found = split_features(other_encoder, other, store=folder)
    assert_equal(found, split_features(other_encoder, other))
    assert len(blocks(folder)) == 3 * (n_before + 2), what
  assert_equal(split_features(encoder, source, store=folder), first)


def test_each_part_of_the_images_has_its_own_key(encoder, tmp_path, monkeypatch):
  """Alone: few-shot subsets of other seeds begin with the same image, and have the
  same labels."""
  folder, rng = tmp_path / "images", np.random.default_rng(0)
  folder.mkdir()
  for name in ("a.png", "b.png", "c.png"):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name)
  keys = ["a.png", "b.png"]
  source = StoredImages(["x", "y"], [0, 1], keys, Files(folder), image_size=32)
  of_clip = lambda **changes: Encoder(
    dataclasses.replace(encoder.clip, **changes), chunk=8
  )
  other_vision = with_kernel(
    encoder.clip, "visual_projection", np.ones((48, 24), np.float32)
  )
  others = [
    (
      encoder,
      source.replace(keys=np.array(["a.png", "c.png"], np.dtypes.StringDType())),
    ),
    (encoder, source.replace(labels=np.array([0, 0], np.int32))),
    (encoder, source.replace(names=("x", "z"))),
    (encoder, source.replace(upright=True)),
    (Encoder(other_vision, chunk=8), source),
    (Encoder(encoder.clip, chunk=8, dtype="bfloat16"), source),
    (of_clip(squash=True), source),
    (of_clip(bilinear=True), source),
    (of_clip(mean=(0.5, 0.5, 0.5)), source),
    (of_clip(std=(0.5, 0.5, 0.5)), source),
  ]
  found = [
    images_key(source, encoder),
    *(images_key(of, one) for one, of in others),
  ]
  shutil.copytree(folder, tmp_path / "moved")
  moved = source.replace(storage=Files(tmp_path / "moved"))
  assert images_key(moved, encoder) == found[0]
  (tmp_path / "moved" / "a.png").write_bytes((folder / "b.png").read_bytes())
  found.append(images_key(moved, encoder))
  another_version = PREPROCESSING_VERSION + 1
  monkeypatch.setattr(images_key_module, "PREPROCESSING_VERSION", another_version)
  found.append(images_key(source, encoder))
  texts = [json.dumps(key, sort_keys=True) for key in found]
  assert len({*texts}) == len(texts), [texts.index(text) for text in texts]


@pytest.mark.parametrize(
  "fault", ["features of images are not stored", "No space left"]
)
def test_a_failed_write_of_features_costs_a_warning(
  encoder, tmp_path, monkeypatch, caplog, fault
):
  source = pictures(tmp_path / "images")
  full = RunFolderWriteError("file: can't be written (No space left on device)")
  if fault == "No space left":
    monkeypatch.setattr(Features, "write", mock.Mock(side_effect=full))
  else:
    (tmp_path / "file").write_text("")
  found = split_features(encoder, source, store=tmp_path / "file" / "features")
  assert_equal(found, split_features(encoder, source))
  assert len([r for r in caplog.records if fault in r.getMessage()]) == 1
