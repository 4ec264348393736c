"""What loading accepts, what it turns the weights into, and what it says of anything else."""

import copy
import dataclasses
import json
import math
import shutil

from flax import serialization
import jax
import numpy as np
import pytest

from pomp_jax.clip import ClipError, load_clip
from pomp_jax.clip.load import read_clip_config
from tests.support.clips import error_of


@pytest.fixture
def folder(small, tmp_path):
  """A copy of a good CLIP, to be damaged."""
  shutil.copytree(small.folder, tmp_path / "clip")
  return tmp_path / "clip"


def _refusal(source) -> str:
  return error_of(source, [load_clip])


def _change_config(folder, **settings):
  config = json.loads((folder / "config.json").read_text())
  for key, value in settings.items():
    part, _, field = key.partition("__")
    config[part] = {**config[part], field: value} if field else value
  (folder / "config.json").write_text(json.dumps(config))


def _change_weights(folder, change):
  file = folder / "flax_model.msgpack"
  weights = serialization.msgpack_restore(file.read_bytes())
  file.write_bytes(serialization.msgpack_serialize(change(weights)))


def test_weights_are_huggingfaces_tree_in_float32_on_the_host(small):
  file = small.folder / "flax_model.msgpack"
  expected = serialization.msgpack_restore(file.read_bytes())
  assert jax.tree.structure(small.clip.params) == jax.tree.structure(expected)
  for found, leaf in zip(
    jax.tree.leaves(small.clip.params), jax.tree.leaves(expected), strict=True
  ):
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, leaf)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize(
  ("field", "value", "matters"),
  [
    ("transformers_version", "9.0", False),
    ("id2label", {0: "a"}, False),
    ("layer_norm_eps", 0.25, True),
    ("num_attention_heads", 1, True),
    ("hidden_act", "gelu", True),
  ],
)
def test_settings_hold_what_the_towers_read_and_no_version(small, part, field, value, matters):
  """An update of transformers would otherwise invalidate cached features."""
  config = small.clip.config
  changed = copy.deepcopy(getattr(config, part))
  setattr(changed, field, value)
  other = dataclasses.replace(config, **{part: changed})
  assert (other.settings() != config.settings()) == matters
  assert (other.text_settings() != config.text_settings()) == (matters and part == "text_config")


def test_facts_about_the_checkpoint(small):
  assert small.clip.text_width == 32
  assert small.clip.positions == 16
  assert small.clip.image_size == 32
  assert math.isclose(small.clip.logit_scale, math.exp(2.0), rel_tol=1e-6)
  assert small.clip.name == str(small.folder)
  assert load_clip(str(small.folder), name="mine").name == "mine"
  assert set(small.clip.text_params) | set(small.clip.vision_params) == set(small.clip.params) - {
    "logit_scale"
  }


def test_weights_stored_in_float16_become_float32(small, folder):
  _change_weights(folder, lambda tree: jax.tree.map(lambda leaf: leaf.astype(np.float16), tree))
  _change_config(folder, dtype="float16")
  loaded = load_clip(str(folder))
  for found, exact in zip(
    jax.tree.leaves(loaded.params), jax.tree.leaves(small.clip.params), strict=True
  ):
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, exact.astype(np.float16).astype(np.float32))


def test_a_missing_folder(tmp_path):
  _refusal(tmp_path / "nowhere")


def test_a_hub_id_that_is_not_there():
  _refusal("no-such-owner/no-such-clip")


def test_an_empty_folder(tmp_path):
  _refusal(tmp_path)


def test_a_model_that_is_not_a_clip(folder):
  _change_config(folder, model_type="bert")
  assert "'bert'" in _refusal(folder)
  with pytest.raises(ClipError, match="'bert'"):
    read_clip_config(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_config_that_is_not_one(folder, text):
  (folder / "config.json").write_text(text)
  _refusal(folder)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_truncated_weights(folder, share):
  file = folder / "flax_model.msgpack"
  content = file.read_bytes()
  file.write_bytes(content[: int(share * len(content))])
  _refusal(folder)


def test_weights_that_are_not_msgpack(folder):
  (folder / "flax_model.msgpack").write_bytes(b"\xc1 not msgpack" * 50)
  _refusal(folder)


def test_no_weights(folder):
  (folder / "flax_model.msgpack").unlink()
  _refusal(folder)


def test_weights_of_another_shape(folder):
  _change_config(folder, text_config__hidden_size=64)
  assert "shape" in _refusal(folder)


def test_weights_of_another_shape_in_the_file(folder):
  def cut(weights):
    weights["visual_projection"]["kernel"] = weights["visual_projection"]["kernel"][:, :-1]
    return weights

  _change_weights(folder, cut)
  assert "shape" in _refusal(folder)


def test_weights_with_a_part_missing(folder):
  _change_weights(folder, lambda weights: {k: v for k, v in weights.items() if k != "logit_scale"})
  _refusal(folder)


def test_no_tokenizer(folder):
  for file in folder.iterdir():
    if file.name not in ("config.json", "flax_model.msgpack"):
      file.unlink()
  _refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"image_mean": [0.5]}', '{"image_std": "wide"}'])
def test_channel_statistics_that_are_none(folder, text):
  (folder / "preprocessor_config.json").write_text(text)
  assert "preprocessor_config.json" in _refusal(folder)
