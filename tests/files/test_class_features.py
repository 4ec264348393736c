"""Class features, read back as the other projects read them."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.files.class_features import (
  ClassFeatureError,
  read_class_features,
  write_detic,
  write_open_clip,
)
from pomp_jax.files.prompt_file import PromptFileError

FEATURES = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
FEATURES /= np.linalg.norm(FEATURES, axis=-1, keepdims=True)


def test_detic_gets_rows(tmp_path):
  """Detic: np.load, transpose, a column of zeros, normalise the columns."""
  write_detic(tmp_path / "a.npy", np.asfortranarray(7 * FEATURES))
  found = np.load(tmp_path / "a.npy", allow_pickle=False)
  assert found.dtype == np.float16 and found.flags.c_contiguous
  np.testing.assert_allclose(found, 7 * FEATURES, rtol=2**-11, atol=1e-7)
  weight = torch.tensor(found, dtype=torch.float32).permute(1, 0).contiguous()
  weight = torch.cat([weight, weight.new_zeros((8, 1))], dim=1)
  weight = torch.nn.functional.normalize(weight, p=2, dim=0).numpy()
  np.testing.assert_allclose(weight[:, :5], FEATURES.T, atol=1e-3)
  assert not weight[:, 5].any()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_open_clip_gets_columns(tmp_path, suffix):
  """open_clip: 100 * image_features @ classifier, with torch."""
  path = tmp_path / f"a{suffix}"
  write_open_clip(path, FEATURES, ["a", "b", "ç", "d", "e"], "org/clip\udcff")
  if suffix == ".npy":
    classifier = torch.tensor(np.load(path, allow_pickle=False))
  else:
    classifier = safetensors.torch.load_file(path)["classifier"]
    with safetensors.safe_open(str(path), framework="numpy") as file:
      assert json.loads(file.metadata()["names"]) == ["a", "b", "ç", "d", "e"]
      assert file.metadata()["clip_model"] == "org/clip?"
  assert classifier.dtype == torch.float32 and tuple(classifier.shape) == (8, 5)
  logits = 100 * torch.tensor(FEATURES) @ classifier
  assert logits.argmax(dim=-1).tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_allclose(logits.diag(), 100, rtol=1e-6)


@pytest.mark.parametrize("write", [write_detic, write_open_clip])
def test_bad_features_are_not_written(tmp_path, write):
  for bad, part in [(np.nan, "not finite"), (0, "class 2 are all zero")]:
    features = FEATURES.copy()
    features[2] = bad
    with pytest.raises(ClassFeatureError, match=part):
      write(tmp_path / "a.npy", features)
  assert not list(tmp_path.iterdir())


def test_what_float16_can_not_hold_is_not_written(tmp_path):
  with pytest.raises(ClassFeatureError, match="not finite"):
    write_detic(tmp_path / "a.npy", 1e6 * FEATURES)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_rows_of_any_length_are_read_as_unit_rows(tmp_path, dtype):
  """As the published files are: float16, of the length that the tower gives."""
  lengths = np.array([[7.0], [0.3], [1.0], [11.0], [90.0]])
  np.save(tmp_path / "a.npy", (lengths * FEATURES).astype(dtype))
  found = read_class_features(tmp_path / "a.npy").features
  assert found.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(found, FEATURES, atol=1e-3)


def _claims_much(path):
  """A header of 4 TiB, and nothing behind it."""
  with open(path, "wb") as file:
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**30, 2**10)}
    np.lib.format.write_array_header_1_0(file, header)


@pytest.mark.parametrize(
  ("write", "part"),
  [
    (lambda path: np.save(path, np.where(np.eye(5, 8) > 0, np.nan, FEATURES)), "not finite"),
    (lambda path: np.save(path, FEATURES * np.inf), "not finite"),
    (lambda path: np.save(path, FEATURES * np.eye(5)[:, :1]), "class 1 are all zero"),
    (lambda path: np.save(path, FEATURES[0]), "float32 [8]; accepted: floats [C,E]"),
    (lambda path: np.save(path, np.ones((5, 8), int)), "int64 [5, 8]; accepted: floats [C,E]"),
    (lambda path: np.save(path, np.array([[{}]]), allow_pickle=True), "not a NumPy array"),
    (lambda path: path.write_bytes(b""), "not a NumPy array"),
    (lambda path: path.write_bytes(b"PK\x03\x04 a part of an npz"), "not a NumPy array"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v"), "not a NumPy array"),
    (_claims_much, "not a NumPy array"),
    (lambda path: None, "not a NumPy array"),
  ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, write, part):
  write(tmp_path / "a.npy")
  with pytest.raises(PromptFileError, match=r"^[^\n]*a\.npy: [^\n]*$") as error:
    read_class_features(tmp_path / "a.npy")
  assert part in str(error.value)


def test_another_kind_of_file(tmp_path):
  with pytest.raises(ClassFeatureError, match=r"no known kind; accepted: \.npy, \.safetensors"):
    write_open_clip(tmp_path / "a.pt", FEATURES)
  assert not list(tmp_path.iterdir())
