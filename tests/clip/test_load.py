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

WEIGHTS = "flax_model.msgpack"


@pytest.fixture
def folder(small, tmp_path):
  """A copy of a good CLIP, to be damaged."""
  shutil.copytree(small.folder, tmp_path / "clip")
  return tmp_path / "clip"


# Each damages the CLIP in a folder.


def _config(**settings):
  def damage(folder):
    config = json.loads((folder / "config.json").read_text())
    for key, value in settings.items():
      part, _, field = key.partition("__")
      config[part] = {**config[part], field: value} if field else value
    (folder / "config.json").write_text(json.dumps(config))

  return damage


def _weights(change):
  def damage(folder):
    file = folder / WEIGHTS
    weights = serialization.msgpack_restore(file.read_bytes())
    file.write_bytes(serialization.msgpack_serialize(change(weights)))

  return damage


def _narrow_projection(weights):
  weights["visual_projection"]["kernel"] = weights["visual_projection"]["kernel"][:, :-1]
  return weights


def _text(name, text):
  return lambda folder: (folder / name).write_text(text)


def _truncated(share):
  def damage(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])

  return damage


def _only(*names):
  def damage(folder):
    for file in folder.iterdir():
      if file.name not in names:
        file.unlink()

  return damage


def test_weights_are_huggingfaces_tree_in_float32_on_the_host(small):
  file = small.folder / WEIGHTS
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
  _weights(lambda tree: jax.tree.map(lambda leaf: leaf.astype(np.float16), tree))(folder)
  _config(dtype="float16")(folder)
  loaded = load_clip(str(folder))
  for found, exact in zip(
    jax.tree.leaves(loaded.params), jax.tree.leaves(small.clip.params), strict=True
  ):
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, exact.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
  "damage, found",
  [
    (shutil.rmtree, "no such file or folder"),
    (_only(), "no CLIP's weights there"),
    (_config(model_type="bert"), "'bert'"),
    *((_text("config.json", text), "config.json") for text in ("", "{", "[]", "null")),
    *((_truncated(share), WEIGHTS) for share in (0, 0.001, 0.3, 0.999)),
    (lambda folder: (folder / WEIGHTS).write_bytes(b"\xc1 not msgpack" * 50), WEIGHTS),
    (lambda folder: (folder / WEIGHTS).unlink(), "no CLIP's weights there"),
    (_config(text_config__hidden_size=64), "shape"),
    (_weights(_narrow_projection), "shape"),
    (_weights(lambda tree: {k: v for k, v in tree.items() if k != "logit_scale"}), "logit_scale"),
    (_only("config.json", WEIGHTS), "tokenizer"),
    *(
      (_text("preprocessor_config.json", text), "preprocessor_config.json")
      for text in ("{", "[]", '{"image_mean": [0.5]}', '{"image_std": "wide"}')
    ),
  ],
)
def test_damaged_folders(folder, damage, found):
  damage(folder)
  assert found in error_of(folder, [load_clip])


def test_a_model_that_is_not_a_clip_is_known_by_its_config(folder):
  _config(model_type="bert")(folder)
  with pytest.raises(ClipError, match="'bert'"):
    read_clip_config(str(folder))
