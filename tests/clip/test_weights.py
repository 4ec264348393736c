"""Weights by name against what torch and safetensors saved; damaged files."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.clip.weights import ClipError, open_weights

STATE = {
  "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
  "a.bias": torch.tensor([1e-7, -1e4, 0.3]),
  "scale": torch.tensor(4.6),
  "empty": torch.zeros(0, 3),
}


def _refusal(path, read=None) -> str:
  with pytest.raises(ClipError) as error, open_weights(path) as weights:
    weights.read(read)
  message = str(error.value)
  assert "\n" not in message
  assert message.startswith(f"{path}: ")
  return message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_values_are_torchs_as_float32(tmp_path, suffix, dtype):
  path = tmp_path / f"a{suffix}"
  state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
  (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
  with open_weights(path) as weights:
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    for name, tensor in state.items():
      found = weights.read(name)
      assert found.dtype == np.float32
      np.testing.assert_array_equal(found, tensor.float().numpy())


class Nested(torch.nn.Module):
  """A module within a list of a module, with a buffer and plain values that are no tensors."""

  def __init__(self, depth):
    super().__init__()
    self.layer = torch.nn.Linear(3, 2)
    self.register_buffer("size", torch.tensor(7))
    self.scale = torch.nn.Parameter(torch.tensor(2.0))
    self.names, self.factor = ["x", "y"], 0.5
    self.several = torch.nn.ModuleList(Nested(depth - 1) for _ in range(depth))

  def forward(self, x):
    return self.layer(x) * self.factor * len(self.names) * self.scale


@pytest.mark.parametrize("traced", [False, True])
def test_a_torchscript_modules_tensors_are_its_state_dict(tmp_path, traced):
  module = Nested(1)
  path = tmp_path / "a.pt"
  script = torch.jit.trace(module, torch.ones(1, 3)) if traced else torch.jit.script(module)
  torch.jit.save(script, path)
  with open_weights(path) as weights:
    expected = script.state_dict()
    assert weights.shapes.keys() == expected.keys()
    for name, tensor in expected.items():
      if tensor.is_floating_point():
        np.testing.assert_array_equal(weights.read(name), tensor.detach().numpy())
  assert "several.0.size is of type int64" in _refusal(path, "several.0.size")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files(tmp_path, suffix, share):
  path = tmp_path / f"a{suffix}"
  (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(STATE, path)
  content = path.read_bytes()
  path.write_bytes(content[: int(share * len(content))])
  assert "whole" in _refusal(path)


def test_files_that_are_something_else(tmp_path):
  assert "No such file" in _refusal(tmp_path / "none.pt")
  path = tmp_path / "a.safetensors"
  path.write_text("<html>you need to log in</html>")
  assert "neither a whole safetensors file nor a torch archive" in _refusal(path)
  torch.save(STATE, path, _use_new_zipfile_serialization=False)
  assert "old format" in _refusal(path)
  torch.save([1, 2], path)
  assert "a list without tensors" in _refusal(path)
  safetensors.torch.save_file({"a": torch.arange(3)}, path)
  assert "a is of type I64; accepted: F64, F32, F16, BF16" in _refusal(path, "a")


@pytest.mark.parametrize(
  "text, found",
  [
    ("{", "no index"),
    ("[]", "no index"),
    ("{}", "no index"),
    ('{"weight_map": 3}', "no index"),
    ('{"weight_map": {"a": 3}}', "no index"),
    ('{"weight_map": {"a": ""}}', "no file name"),
    ('{"weight_map": {"a": "../a.safetensors"}}', "no file name"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "no file name"),
    ('{"weight_map": {"a": "b.safetensors"}}', "the shard b.safetensors is missing"),
  ],
)
def test_indices_that_are_none(tmp_path, text, found):
  (tmp_path / "model.safetensors.index.json").write_text(text)
  assert found in _refusal(tmp_path / "model.safetensors.index.json")


def test_a_truncated_shard_and_one_of_something_else(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "b.safetensors")}))
  shard = tmp_path / "b.safetensors"
  safetensors.torch.save_file({"a.weight": STATE["a.weight"]}, shard)
  assert "a.bias is not in b.safetensors" in _refusal(index)
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ClipError, match="b.safetensors: the file is not a whole safetensors"):
    open_weights(index).__enter__()
