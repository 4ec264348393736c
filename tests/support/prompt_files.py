"""Prompt files for the tests of each format."""

import numpy as np
import pytest

from pomp_jax.files.prompt_file import PromptFileError, load_prompt

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 8)).astype(np.float32)


def refusal(path, load=load_prompt, kind=PromptFileError) -> str:
  """Returns the error with which a reader refuses a file: one line that begins with
  its path."""
  with pytest.raises(kind) as caught:
    load(path)
  message = str(caught.value)
  assert "\n" not in message
  # A folder stands for the prompt in it.
  assert message.startswith((f"{path}: ", f"{path}/prompt.npz: "))
  return message
