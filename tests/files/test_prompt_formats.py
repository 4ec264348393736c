"""Prompts in safetensors files: the library alone reads them; bad ones are refused by field."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from tests.support.prompt_files import CONTEXT, refusal

METADATA = {
  "clip_model": "a/clip",
  "position": "end",
  "template": "{}.",
  "format_version": "1",
  "config": '{"seed": 1}',
}


def write_safetensors(path, tensors=None, **changes):
  """A file with some strings changed; None leaves one out."""
  metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
  tensors = {"context": CONTEXT} if tensors is None else tensors
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
  return path


def test_the_contract_of_the_file(tmp_path):
  """The library must be enough to read it, by these names."""
  path = tmp_path / "prompt.safetensors"
  save_prompt(path, Prompt(CONTEXT.T, "a/clip", config={"seed": 1}))
  with safetensors.safe_open(str(path), framework="numpy") as file:
    assert file.metadata().items() >= METADATA.items()
    assert set(file.metadata()) == {*METADATA, "crc32"}
    assert list(file.keys()) == ["context"]
    np.testing.assert_array_equal(file.get_tensor("context"), CONTEXT.T)
  # Files of others have no checksum.
  np.testing.assert_array_equal(load_prompt(write_safetensors(path)).context, CONTEXT)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"config": None}, ["config is missing", "clip_model, context, format_version, position"]),
    ({"format_version": "2"}, ["format_version is '2'", "accepted: 1"]),
    ({"format_version": "9" * 5000}, ["format_version is '999"]),
    ({"tensors": {"weight": CONTEXT}}, ["context is missing", "clip_model"]),
    ({"tensors": {"context": CONTEXT.astype(np.float16)}}, ["context is F16 [4, 8]"]),
    ({"tensors": {"context": CONTEXT[0]}}, ["context is float32 [8]"]),
  ],
)
def test_a_bad_safetensors_file_is_refused_by_field(tmp_path, changes, parts):
  message = refusal(write_safetensors(tmp_path / "p.safetensors", **changes))
  assert all(part in message for part in parts), message
