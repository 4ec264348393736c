"""Class features, read back as the other projects read them."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.files.class_features import ClassFeatureError, write_detic, write_open_clip

FEATURES = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
FEATURES /= np.linalg.norm(FEATURES, axis=-1, keepdims=True)


def test_detic_gets_rows(tmp_path):
  """Detic: np.load, transpose, a column of zeros, normalise the columns."""
  write_detic(tmp_path / "a.npy", np.asfortranarray(FEATURES))
  found = np.load(tmp_path / "a.npy", allow_pickle=False)
  assert found.dtype == np.float32 and found.flags.c_contiguous
  weight = torch.tensor(found, dtype=torch.float32).permute(1, 0).contiguous()
  weight = torch.cat([weight, weight.new_zeros((8, 1))], dim=1)
  weight = torch.nn.functional.normalize(weight, p=2, dim=0).numpy()
  np.testing.assert_allclose(weight[:, :5], FEATURES.T, atol=1e-7)
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


def test_another_kind_of_file(tmp_path):
  with pytest.raises(ClassFeatureError, match=r"no known kind; accepted: \.npy, \.safetensors"):
    write_open_clip(tmp_path / "a.pt", FEATURES)
  assert not list(tmp_path.iterdir())
