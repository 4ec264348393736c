"""Prompts in safetensors files."""

import json
import struct

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 8)).astype(np.float32)
METADATA = {
  "clip_model": "a/clip",
  "position": "end",
  "template": "{}.",
  "format_version": "1",
  "config": '{"seed": 1}',
}


def write(path, tensors=None, **changes):
  """A file with some strings changed; None leaves one out."""
  metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
  tensors = {"context": CONTEXT} if tensors is None else tensors
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
  return path


def refusal(path):
  with pytest.raises(PromptFileError) as caught:
    load_prompt(path)
  message = str(caught.value)
  assert "\n" not in message
  assert message.startswith(f"{path}: ")
  return message


def test_the_contract_of_the_file(tmp_path):
  """The library must be enough to read it, by these names."""
  path = tmp_path / "prompt.safetensors"
  save_prompt(path, Prompt(CONTEXT.T, "a/clip", config={"seed": 1}))
  with safetensors.safe_open(str(path), framework="numpy") as file:
    assert file.metadata().items() >= METADATA.items()
    assert set(file.metadata()) == {*METADATA, "crc32"}
    assert list(file.keys()) == ["context"]
    np.testing.assert_array_equal(file.get_tensor("context"), CONTEXT.T)


def test_told_by_its_content(tmp_path):
  path = write(tmp_path / "prompt.npz", {"context": CONTEXT, "another": np.zeros(3)}, more="x")
  np.testing.assert_array_equal(load_prompt(path).context, CONTEXT)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"config": None}, ["config is missing", "clip_model, context, format_version, position"]),
    ({"format_version": None}, ["format_version is missing"]),
    ({"format_version": "2"}, ["format_version is 2", "accepted: 1"]),
    ({"format_version": "one"}, ["format_version is 'one'"]),
    ({"format_version": "9" * 5000}, ["format_version is '999"]),
    ({"position": "left"}, ["position is 'left'", "end, middle, front"]),
    ({"clip_model": ""}, ["clip_model is empty"]),
    ({"config": "[1]"}, ["config is a list"]),
    ({"tensors": {}}, ["context is missing", "clip_model"]),
    ({"tensors": {"ctx": CONTEXT}}, ["context is missing"]),
    ({"tensors": {"context": CONTEXT.astype(np.float16)}}, ["context is F16 [4, 8]"]),
    ({"tensors": {"context": CONTEXT[0]}}, ["context is float32 [8]"]),
    ({"tensors": {"context": CONTEXT[:0]}}, ["context is float32 [0, 8]"]),
    ({"tensors": {"context": np.full_like(CONTEXT, np.inf)}}, ["not finite"]),
  ],
)
def test_a_bad_file_is_refused_by_field(tmp_path, changes, parts):
  message = refusal(write(tmp_path / "p.safetensors", **changes))
  for part in parts:
    assert part in message


def test_huge_claims_take_no_memory(tmp_path):
  path = tmp_path / "p.safetensors"
  tensor = {"dtype": "F32", "shape": [2**40, 8], "data_offsets": [0, 2**45]}
  header = json.dumps({"__metadata__": METADATA, "context": tensor}).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
  assert "not a whole safetensors file" in refusal(path)
  path.write_bytes(struct.pack("<Q", 2**62) + header)
  assert "not a whole safetensors file" in refusal(path)


@given(st.binary(max_size=300), st.sampled_from(["a.npz", "a.safetensors", "a.pth", "a"]))
def test_any_bytes_are_refused(tmp_path_factory, data, name):
  path = tmp_path_factory.getbasetemp() / name
  path.write_bytes(data)
  with pytest.raises(PromptFileError) as caught:
    load_prompt(path)
  assert "\n" not in str(caught.value)


def test_a_name_of_no_kind_and_text_that_is_none(tmp_path):
  with pytest.raises(PromptFileError, match=r"name is of no known kind.*\.safetensors"):
    save_prompt(tmp_path / "prompt.bin", Prompt(CONTEXT, "a/clip"))
  for name in ("p.safetensors", "p.pth"):
    with pytest.raises(PromptFileError, match="not Unicode"):
      save_prompt(tmp_path / name, Prompt(CONTEXT, "a/\udcff"))
  assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_no_other_context(tmp_path):
  """The format has no checksum; ours stands in the metadata. Files without one are read."""
  path = tmp_path / "prompt.safetensors"
  save_prompt(path, Prompt(CONTEXT, "a/clip"))
  content = path.read_bytes()
  for where in (-1, -17, content.index(b"a/clip"), content.index(b'"crc32":"') + len('"crc32":"')):
    flipped = bytearray(content)
    flipped[where] ^= 1
    path.write_bytes(flipped)
    assert "crc32 is " in refusal(path)
  np.testing.assert_array_equal(load_prompt(write(path)).context, CONTEXT)
