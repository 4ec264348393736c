"""How a CLIP that can't be used is refused."""

import pytest

from pomp_jax.clip import ClipError, load_clip
from pomp_jax.clip.load import read_clip_config


def refusal(source, readers=(load_clip, read_clip_config)) -> str:
  """The line, which is the same for all of it and for the sizes alone, read before a run starts."""
  for read in readers:
    with pytest.raises(ClipError) as error:
      read(str(source))
    message = str(error.value)
    assert "\n" not in message
    assert str(source) in message
  return message
