"""ZSSeg's checkpoints: read, written back, compared with a CLIP; bad files by their
names."""

import json

import flax
import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import load_clip
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.rooms.regions.mask_former.model import parameter_shapes
from pomp_jax.rooms.regions.mask_former.published_weights import (
  ZSSEG,
  MaskFormerFile,
  check_clip,
  read_mask_former,
  write_mask_former,
)
from pomp_jax.rooms.regions.mask_former.sizes import VARIANTS
from pomp_jax.rooms.regions.region_errors import RegionError
from tests.rooms.regions.region_jobs import random_params
from tests.support.openai_clip import VIT, small_open_clip, write_merges
from tests.support.prompt_files import refusal
from tests.support.torch_mask_former import (
  PUBLISHED,
  detectron2_state,
  torch_mask_former,
  zsseg_state,
)

NULL = "clip_adapter.non_object_embedding"


def _error(path, read=read_mask_former) -> str:
  return refusal(path, read, (ClipError, RegionError))


def _written(content, path, **more):
  with open(path, "wb") as file:
    write_mask_former(file, content, **more)
  return path


def test_written_back_for_torch(checkpoint, torch_model, tmp_path):
  content = read_mask_former(checkpoint)
  context = load_prompt(checkpoint).context
  path = _written(content, tmp_path / "a.safetensors", context=context)
  found = safetensors.torch.load_file(path)
  whole = zsseg_state(torch_model)
  names = [*detectron2_state(torch_model), NULL, "clip_adapter.prompt_learner.ctx"]
  assert {*found} == {*names}
  for name in names:
    np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
  again = read_mask_former(path)
  assert again.config == content.config
  jax.tree.map(np.testing.assert_array_equal, again.params, content.params)
  np.testing.assert_array_equal(load_prompt(path).context, context)
  assert (
    _written(content, tmp_path / "b", context=context).read_bytes() == path.read_bytes()
  )


def test_a_small_network_and_its_classes(tmp_path):
  config = VARIANTS["small"]
  content = MaskFormerFile(config, random_params(config), ("a cat", "größer, \u2028"))
  path = _written(content, tmp_path / "a.safetensors")
  found = read_mask_former(path)
  assert (found.config, found.trained_classes) == (
    content.config,
    content.trained_classes,
  )
  jax.tree.map(np.testing.assert_array_equal, found.params, content.params)
  whole = path.read_bytes()
  # In the metadata's name, in the facts, in a tensor's name, and in a tensor.
  for place in (b"mask_former", b"n_heads", b"res3.weight", whole[-3:]):
    flipped = bytearray(whole)
    flipped[whole.rindex(place)] ^= 1
    path.write_bytes(flipped)
    _error(path)


def test_names_and_shapes_of_the_published_sizes():
  with torch.device("meta"):
    state = detectron2_state(torch_mask_former(PUBLISHED))
  shapes = flax.traverse_util.flatten_dict(parameter_shapes(VARIANTS["r101c"]))
  found = {}
  for path, shape in shapes.items():
    source = ZSSEG.source(path)
    found.setdefault(source.key, 0)
    found[source.key] += int(np.prod(shape))
  assert found == {name: tensor.numel() for name, tensor in state.items()} | {NULL: 512}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """A CLIP's file, and its tensors as ZSSeg keeps them: the values of float16 in
  float32."""
  folder = tmp_path_factory.mktemp("clip")
  model = small_open_clip(VIT)
  write_merges(folder)
  torch.save(model.half().state_dict(), folder / "clip.pt")
  return load_clip(str(folder / "clip.pt")), model.float().state_dict()


def test_the_clip_inside(checkpoint, torch_model, clip, tmp_path):
  check_clip(checkpoint, clip[0])  # none
  torch.save({"model": zsseg_state(torch_model, clip[1])}, tmp_path / "a.pth")
  check_clip(tmp_path / "a.pth", clip[0])
  assert read_mask_former(tmp_path / "a.pth").config.embedding == 24
  # Embeddings of another width.
  torch.save({"model": {NULL: torch.zeros(1, 32)}}, tmp_path / "a.pth")
  message = _error(tmp_path / "a.pth", lambda path: check_clip(path, clip[0]))
  assert f"{NULL} is of shape (1, 32)" in message and "(1, 24)" in message


@pytest.mark.parametrize(
  ("name", "change", "part"),
  [
    ("logit_scale", 0.05, "other by up to 0.05"),
    ("logit_scale", torch.nan, "other by up to nan"),
    ("visual.transformer.resblocks.1.attn.in_proj_weight", 0.05, "other by up to 0.05"),
    ("ln_final.weight", torch.ones(65), "of shape (65,)"),
  ],
)
def test_another_clip(torch_model, clip, tmp_path, name, change, part):
  changed = change
  if isinstance(change, float):
    changed = clip[1][name].clone()
    changed.view(-1)[-1] += change
  state = zsseg_state(torch_model, clip[1] | {name: changed})
  torch.save({"model": state}, tmp_path / "a.pth")
  message = _error(tmp_path / "a.pth", lambda path: check_clip(path, clip[0]))
  assert f"clip_adapter.clip_model.{name} is {part}" in message
  assert "config.clip.model" in message


LAYER = "sem_seg_head.predictor.transformer.decoder.layers.1"
UNREADABLE = "mask_former is unreadable"


@pytest.mark.parametrize(
  ("name", "value", "part"),
  [
    ("backbone.res4.0.conv2.norm.running_var", None, "running_var is missing"),
    (f"{LAYER}.norm3.bias", torch.zeros(3), "norm3.bias: got shape [3], expected [64]"),
    (
      "sem_seg_head.pixel_decoder.input_proj.weight",
      torch.zeros(3),
      "input_proj.weight is unexp",
    ),
    (NULL, None, f"{NULL} is of shape None"),
    (
      "backbone.stem.conv1.weight",
      torch.zeros(8, 3, 3, 3).long(),
      "conv1.weight is of type int64",
    ),
    (
      "sem_seg_head.predictor.query_embed.weight",
      3,
      "query_embed.weight is of shape None",
    ),
    ("mask_former", "{", UNREADABLE),
    ("mask_former", {"n_heads": 7}, "the network is of no such sizes"),
    ("mask_former", {"dilations": [1]}, "the network is of no such sizes"),
    ("mask_former", {"trained_classes": [1]}, UNREADABLE),
  ],
)
def test_another_network(checkpoint, tmp_path, name, value, part):
  """Tensors of other shapes or types, and sizes beside them that make no network."""
  stored = torch.load(checkpoint, weights_only=True)
  if name == "mask_former":
    good = {"n_heads": 8, "groups": 32, "dilations": [1, 2, 4], "trained_classes": []}
    stored[name] = json.dumps(good | value) if isinstance(value, dict) else value
  elif value is None:
    del stored["model"][name]
  else:
    stored["model"][name] = value
  torch.save(stored, tmp_path / "a.pth")
  assert part in _error(tmp_path / "a.pth")


def test_files_that_are_none(tmp_path):
  for name, data in {"a": b"", "b": b"PK\x03\x04", "c": b"{}"}.items():
    (tmp_path / name).write_bytes(data)
    _error(tmp_path / name)
  assert "No such file" in _error(tmp_path / "absent.pth")
  torch.save([1], tmp_path / "list.pth")
  assert "without tensors" in _error(tmp_path / "list.pth")
