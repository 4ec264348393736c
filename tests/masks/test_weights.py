"""ZSSeg's checkpoints: read, written back, compared with a CLIP; bad files by their names."""

import json

import flax
import jax
import numpy as np
import pytest
import torch

from pomp_jax.clip import load_clip
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.masks.model import VARIANTS, parameter_shapes
from pomp_jax.masks.weights import (
  ZSSEG,
  MaskFormerError,
  MaskFormerFile,
  check_clip,
  read_mask_former,
  write_mask_former,
)
from tests.support.fuzzing import Malicious
from tests.support.mask_params import random_params
from tests.support.openai_clip import VIT, small_open_clip, write_merges
from tests.support.torch_mask_former import (
  PUBLISHED,
  detectron2_state,
  torch_mask_former,
  zsseg_state,
)

NULL = "clip_adapter.non_object_embedding"


def _error(path, read=read_mask_former) -> str:
  with pytest.raises(MaskFormerError) as error:
    read(path)
  message = str(error.value)
  assert "\n" not in message
  assert message.startswith(f"{path}: ")
  return message


def _written(content, path, **more):
  with open(path, "wb") as file:
    write_mask_former(file, content, **more)
  return path


def test_written_back_for_torch(checkpoint, torch_model, tmp_path):
  content = read_mask_former(checkpoint)
  context = load_prompt(checkpoint).context
  path = _written(content, tmp_path / "a.pth", context=context)
  found = torch.load(path, weights_only=True)["model"]
  whole = zsseg_state(torch_model)
  names = [*detectron2_state(torch_model), NULL, "clip_adapter.prompt_learner.ctx"]
  assert {*found} == {*names}
  for name in names:
    np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
  again = read_mask_former(path)
  assert again.config == content.config
  jax.tree.map(np.testing.assert_array_equal, again.params, content.params)
  np.testing.assert_array_equal(load_prompt(path).context, context)
  assert _written(content, tmp_path / "b.pth", context=context).read_bytes() == path.read_bytes()


def test_a_small_network_and_its_classes(tmp_path):
  config = VARIANTS["small"]
  content = MaskFormerFile(config, random_params(config), ("a cat", "größer, \u2028"))
  found = read_mask_former(_written(content, tmp_path / "a.pth"))
  assert (found.config, found.trained_classes) == (content.config, content.trained_classes)
  jax.tree.map(np.testing.assert_array_equal, found.params, content.params)


def test_names_and_shapes_of_the_published_sizes():
  """No weight is allocated."""
  with torch.device("meta"):
    state = detectron2_state(torch_mask_former(PUBLISHED))
  shapes = flax.traverse_util.flatten_dict(parameter_shapes(VARIANTS["r101c"]))
  found = {}
  for path, shape in shapes.items():
    source = ZSSEG.source(path)
    found.setdefault(source.key, 0)
    found[source.key] += int(np.prod(shape))
  assert found == {name: tensor.numel() for name, tensor in state.items()} | {NULL: 512}


class TestClip:
  @pytest.fixture(scope="class")
  def clip(self, tmp_path_factory):
    """A CLIP's file, and its tensors as ZSSeg keeps them: the values of float16 in float32."""
    folder = tmp_path_factory.mktemp("clip")
    model = small_open_clip(VIT)
    write_merges(folder)
    torch.save(model.half().state_dict(), folder / "clip.pt")
    return load_clip(str(folder / "clip.pt")), model.float().state_dict()

  def _checkpoint(self, torch_model, clip, path, **changes):
    torch.save({"model": zsseg_state(torch_model, clip | changes)}, path)
    return path

  def test_the_same(self, torch_model, clip, tmp_path):
    path = self._checkpoint(torch_model, clip[1], tmp_path / "a.pth")
    assert check_clip(path, clip[0])
    assert read_mask_former(path).config.embedding == 24

  def test_none_inside(self, checkpoint, clip):
    assert not check_clip(checkpoint, clip[0])

  @pytest.mark.parametrize(
    "name", ["logit_scale", "visual.transformer.resblocks.1.attn.in_proj_weight"]
  )
  @pytest.mark.parametrize("value", [0.05, torch.nan])
  def test_other_numbers(self, torch_model, clip, tmp_path, name, value):
    changed = clip[1][name].clone()
    changed.view(-1)[-1] += value
    path = self._checkpoint(torch_model, clip[1], tmp_path / "a.pth", **{name: changed})
    message = _error(path, lambda path: check_clip(path, clip[0]))
    assert f"clip_adapter.clip_model.{name} is other by up to" in message
    assert "config.clip.model" in message

  def test_other_sizes(self, torch_model, clip, tmp_path):
    tensors = {"ln_final.weight": torch.ones(65)}
    path = self._checkpoint(torch_model, clip[1], tmp_path / "a.pth", **tensors)
    message = _error(path, lambda path: check_clip(path, clip[0]))
    assert "clip_adapter.clip_model.ln_final.weight is of shape (65,)" in message

  def test_embeddings_of_another_width(self, clip, tmp_path):
    torch.save({"model": {NULL: torch.zeros(1, 32)}}, tmp_path / "a.pth")
    message = _error(tmp_path / "a.pth", lambda path: check_clip(path, clip[0]))
    assert f"{NULL} is of shape (1, 32)" in message
    assert "(1, 24)" in message


LAYER = "sem_seg_head.predictor.transformer.decoder.layers.1"


@pytest.mark.parametrize(
  ("changes", "part"),
  [
    ({"backbone.res4.0.conv2.norm.running_var": None}, "running_var is missing"),
    ({f"{LAYER}.norm3.bias": torch.zeros(3)}, "norm3.bias: got shape [3], expected [64]"),
    (
      {"sem_seg_head.pixel_decoder.input_proj.weight": torch.zeros(3)},
      "input_proj.weight is unexp",
    ),
    ({NULL: None}, f"{NULL} is of shape None"),
    ({"backbone.stem.conv3.weight": None}, "backbone.stem.conv3.weight is of shape None"),
    (
      {"backbone.stem.conv1.weight": torch.zeros(8, 3, 3, 3).long()},
      "conv1.weight is of type int64",
    ),
    ({"sem_seg_head.predictor.query_embed.weight": 3}, "query_embed.weight is of shape None"),
  ],
)
def test_another_network(checkpoint, tmp_path, changes, part):
  stored = torch.load(checkpoint, weights_only=True)
  for name, value in changes.items():
    if value is None:
      del stored["model"][name]
    else:
      stored["model"][name] = value
  torch.save(stored, tmp_path / "a.pth")
  assert part in _error(tmp_path / "a.pth")


@pytest.mark.parametrize(
  ("facts", "part"),
  [
    ("{", "mask_former is unreadable"),
    (3, "mask_former is unreadable"),
    ("[]", "mask_former is unreadable"),
    ({"n_heads": 0}, "mask_former is unreadable"),
    ({"n_heads": 7}, "the network is of no such sizes"),
    ({"groups": 5}, "the network is of no such sizes"),
    ({"dilations": [1]}, "the network is of no such sizes"),
    ({"dilations": 1}, "mask_former is unreadable"),
    ({"dropout": 2}, "mask_former is unreadable"),
    ({"dropout": "0.1"}, "mask_former is unreadable"),
    ({"trained_classes": [1]}, "mask_former is unreadable"),
    ({"more": 1}, "mask_former is unreadable"),
  ],
)
def test_bad_facts(checkpoint, tmp_path, facts, part):
  stored = torch.load(checkpoint, weights_only=True)
  good = {"n_heads": 8, "groups": 32, "dilations": [1, 2, 4], "trained_classes": []}
  stored["mask_former"] = json.dumps(good | facts) if isinstance(facts, dict) else facts
  torch.save(stored, tmp_path / "a.pth")
  assert part in _error(tmp_path / "a.pth")


def test_files_that_are_none(tmp_path):
  for name, data in {"a": b"", "b": b"PK\x03\x04", "c": b"{}"}.items():
    (tmp_path / name).write_bytes(data)
    _error(tmp_path / name)
  assert "missing" in _error(tmp_path / "absent.pth")
  torch.save([1], tmp_path / "list.pth")
  assert "without tensors" in _error(tmp_path / "list.pth")


def test_nothing_is_run(tmp_path):
  trace = tmp_path / "trace"
  torch.save({"model": {}, "hook": Malicious(trace)}, tmp_path / "a.pth")
  assert "refused for the name" in _error(tmp_path / "a.pth")
  assert not trace.exists()
