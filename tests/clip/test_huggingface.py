"""HuggingFace folders with torch's weights in each kind of file; the hub's cache."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import load_clip
from tests.support.clips import error_of, write_random_clip
from tests.support.hub import local_hub


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A folder without weights, torch's model, and its weights as Flax's file has
  them."""
  folder = tmp_path_factory.mktemp("hf") / "clip"
  model = write_random_clip(folder, hidden_act="gelu", seed=3)
  params = load_clip(str(folder)).params
  (folder / "flax_model.msgpack").unlink()
  return folder, model, params


@pytest.fixture
def folder(written, tmp_path):
  shutil.copytree(written[0], tmp_path / "clip")
  return tmp_path / "clip"


def _assert_params(source, expected):
  found = load_clip(str(source)).params
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_one_file_shards_and_torchs_own_file(written, folder):
  _, model, params = written
  model.save_pretrained(folder)
  _assert_params(folder, params)
  # The file alone is enough where its configuration and tokenizer stand beside it.
  _assert_params(folder / "model.safetensors", params)
  assert "its own gelu" in load_clip(str(folder), "quick_gelu").config.notes[0]
  (folder / "model.safetensors").unlink()
  torch.save(model.state_dict(), folder / "pytorch_model.bin")
  _assert_params(folder, params)
  (folder / "pytorch_model.bin").unlink()
  model.save_pretrained(folder, max_shard_size="200KB")
  assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
  _assert_params(folder, params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32_and_old_buffers_are_no_weights(
  written, folder, dtype
):
  state = {name: tensor.to(dtype) for name, tensor in written[1].state_dict().items()}
  # transformers before 4.31 saved these.
  state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
  state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
  safetensors.torch.save_file(state, folder / "model.safetensors")
  rounded = lambda leaf: torch.tensor(leaf).to(dtype).float().numpy()
  _assert_params(folder, jax.tree.map(rounded, written[2]))


def test_a_hub_id_from_the_cache(written, tmp_path, monkeypatch):
  """A cache as the hub's client leaves it, read without a network."""
  repository = tmp_path / "models--someone--some-clip"
  snapshot = repository / "snapshots" / "abc123"
  shutil.copytree(written[0], snapshot)
  written[1].save_pretrained(snapshot)
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text("abc123")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  assert load_clip("someone/some-clip").name == "someone/some-clip"
  _assert_params("someone/some-clip", written[2])
  with pytest.raises(
    ClipError, match=r"^some/other: no CLIP's weights there \(the hub can't be"
  ):
    load_clip("some/other")


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
  """The hub's own client would ask for each of eight files six times, for 92 s."""
  with local_hub(monkeypatch, tmp_path) as hub:
    hub.down = True
    with pytest.raises(
      ClipError, match=r"^wrold: no CLIP's weights there \(the hub can't be"
    ):
      load_clip("wrold")
  assert hub.requests == [("GET", "/api/models/wrold")]


def test_no_configuration_beside_huggingfaces_weights(written, tmp_path):
  safetensors.torch.save_file(written[1].state_dict(), tmp_path / "model.safetensors")
  assert "no config.json" in error_of(tmp_path / "model.safetensors")
  message = error_of(tmp_path)
  for name in ("model.safetensors.index.json", "open_clip_pytorch_model.bin", ".pt"):
    assert name in message
