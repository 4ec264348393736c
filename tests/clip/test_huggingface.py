"""HuggingFace folders with torch's weights against HuggingFace's torch model; the hub's cache."""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import CLIPConfig, CLIPModel

from pomp_jax import world
from pomp_jax.clip import ClipError, image_tower, load_clip
from pomp_jax.clip.architecture import config_from_huggingface, parameter_shapes
from pomp_jax.clip.weights import HUGGINGFACE, check_weights
from tests.support.checks import assert_close
from tests.support.clips import encode_texts, error_of, pooled, write_random_clip

TEXTS = ["the cat.", "a dog of the star", "naïve"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A folder without weights, and torch's model."""
  folder = tmp_path_factory.mktemp("hf") / "clip"
  model = write_random_clip(folder, hidden_act="gelu", seed=3)
  (folder / "flax_model.msgpack").unlink()
  return folder, model


@pytest.fixture
def folder(written, tmp_path):
  shutil.copytree(written[0], tmp_path / "clip")
  return tmp_path / "clip"


def _assert_equal(clip, model):
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  pixels = (images / 255 - np.array(clip.mean)) / np.array(clip.std)
  padded = clip.tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
  with torch.no_grad():
    image = pooled(model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2)).float()))
    text = pooled(model.get_text_features(**padded))
  assert_close(jax.jit(image_tower(clip))(clip.vision_params, images), image.numpy())
  assert_close(encode_texts(clip, TEXTS), text.numpy())


def test_one_file(written, folder):
  written[1].save_pretrained(folder)
  assert (folder / "model.safetensors").is_file()
  _assert_equal(load_clip(str(folder)), written[1])
  # The file alone is enough where its configuration and tokenizer stand beside it.
  _assert_equal(load_clip(str(folder / "model.safetensors")), written[1])


def test_shards(written, folder):
  written[1].save_pretrained(folder, max_shard_size="200KB")
  assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
  _assert_equal(load_clip(str(folder)), written[1])


def test_torchs_own_file(written, folder):
  torch.save(written[1].state_dict(), folder / "pytorch_model.bin")
  _assert_equal(load_clip(str(folder)), written[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_become_float32_and_old_buffers_are_no_weights(written, folder, dtype):
  state = {name: tensor.to(dtype) for name, tensor in written[1].state_dict().items()}
  model = CLIPModel(written[1].config).eval()
  model.load_state_dict(state)
  # transformers before 4.31 saved these.
  state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
  state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
  safetensors.torch.save_file(state, folder / "model.safetensors")
  clip = load_clip(str(folder))
  assert {leaf.dtype for leaf in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}
  _assert_equal(clip, model)


def test_flax_and_torch_files_make_the_same_tree(written, folder, tmp_path):
  written[1].save_pretrained(folder)
  write_random_clip(tmp_path / "flax", hidden_act="gelu", seed=3)
  found, expected = (load_clip(str(path)).params for path in (folder, tmp_path / "flax"))
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_hub_id_from_the_cache(written, tmp_path, monkeypatch):
  """A cache as the hub's client leaves it, read without a network."""
  repository = tmp_path / "models--someone--some-clip"
  snapshot = repository / "snapshots" / "abc123"
  shutil.copytree(written[0], snapshot)
  written[1].save_pretrained(snapshot)
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text("abc123")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  clip = load_clip("someone/some-clip")
  assert clip.name == "someone/some-clip"
  _assert_equal(clip, written[1])
  with pytest.raises(ClipError, match=r"^some/other: no CLIP's weights there \(the hub can't be"):
    load_clip("some/other")


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path):
  """The hub's own client would ask for each of eight files six times, for 92 s."""
  asked = []

  class Hub(http.server.BaseHTTPRequestHandler):
    def _unavailable(self):
      asked.append(self.path)
      self.send_error(503)

    do_GET = do_HEAD = _unavailable

    def log_message(self, *arguments):
      del arguments

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    # Where the client looks for the hub is fixed when it is imported.
    process = subprocess.run(
      [sys.executable, "-c", "from pomp_jax.clip import load_clip; load_clip('wrold')"],
      cwd=pathlib.Path(world.__file__).parent.parent.parent,
      env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)},
      capture_output=True,
      text=True,
    )
    server.shutdown()
  last = process.stderr.splitlines()[-1]
  assert "ClipError: wrold: no CLIP's weights there (the hub can't be asked: " in last
  # Version 2 of the client also asks, once, for a list of programs that may have started it.
  assert [path for path in asked if path.startswith("/api/models")] == ["/api/models/wrold"]


def test_the_embedded_worlds_clip_by_its_name():
  """At once: from the package, whatever the hub says."""
  found, expected = load_clip("world"), load_clip(str(world.CLIP_PATH))
  assert found.name == "world"
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize(
  "width, layers, vision_width, vision_layers, heads, patch, size, embedding",
  [
    (512, 12, 768, 12, 12, 32, 224, 512),
    (768, 12, 1024, 24, 16, 14, 336, 768),
    (1024, 24, 1280, 32, 16, 14, 224, 1024),
  ],
  ids=["B/32", "L/14@336", "H/14"],
)
def test_names_and_shapes_of_the_true_sizes(
  width, layers, vision_width, vision_layers, heads, patch, size, embedding
):
  config = CLIPConfig(
    text_config={
      "hidden_size": width,
      "intermediate_size": 4 * width,
      "num_hidden_layers": layers,
      "num_attention_heads": width // 64,
    },
    vision_config={
      "hidden_size": vision_width,
      "intermediate_size": 4 * vision_width,
      "num_hidden_layers": vision_layers,
      "num_attention_heads": heads,
      "patch_size": patch,
      "image_size": size,
    },
    projection_dim=embedding,
  )
  with torch.device("meta"):
    model = CLIPModel(config)
  shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
  expected = parameter_shapes(config_from_huggingface(config, "auto"))
  check_weights(shapes, expected, HUGGINGFACE, "here")


def test_a_missing_shard(written, folder):
  written[1].save_pretrained(folder, max_shard_size="200KB")
  shard = sorted(folder.glob("model-*"))[1]
  shard.unlink()
  assert f"the shard {shard.name} is missing" in error_of(folder)


def test_shards_of_another_checkpoint(written, folder):
  written[1].save_pretrained(folder, max_shard_size="200KB")
  first, second = sorted(folder.glob("model-*"))[:2]
  shutil.copy(first, second)
  assert f"is not in {second.name}" in error_of(folder)


def test_weights_that_do_not_fit_the_configuration(written, folder):
  state = written[1].state_dict()
  file = folder / "model.safetensors"

  def refusal_with(**changes):
    changed = {key: tensor for key, tensor in (state | changes).items() if tensor is not None}
    safetensors.torch.save_file(changed, file)
    return error_of(folder)

  key = "vision_model.encoder.layers.1.mlp.fc1.weight"
  assert f"{key}: got shape [48, 96], expected [96, 48]" in refusal_with(
    **{key: state[key].T.contiguous()}
  )
  assert "logit_scale is missing" in refusal_with(logit_scale=None)
  assert "logit_bias is unexpected" in refusal_with(logit_bias=torch.zeros(1))


def test_no_configuration_beside_huggingfaces_weights(written, tmp_path):
  safetensors.torch.save_file(written[1].state_dict(), tmp_path / "model.safetensors")
  assert "no config.json" in error_of(tmp_path / "model.safetensors")
  message = error_of(tmp_path)
  for name in ("model.safetensors.index.json", "open_clip_pytorch_model.bin", ".pt"):
    assert name in message


def test_the_configurations_activation_can_be_overruled(written, folder, caplog):
  written[1].save_pretrained(folder)
  with caplog.at_level("INFO"):
    clip = load_clip(str(folder), activation="quick_gelu")
  assert "quick_gelu by config.clip.activation, instead of its own gelu" in caplog.text
  assert clip.config.vision_config.hidden_act == "quick_gelu"
  config = json.loads((folder / "config.json").read_text())
  assert config["text_config"]["hidden_act"] == "gelu"
