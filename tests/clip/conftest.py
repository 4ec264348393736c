"""Two random CLIPs that between them have both activations and both rules for EOT."""

import pathlib
from typing import NamedTuple

import pytest
import torch
from transformers import CLIPModel

from pomp_jax.clip.load import Clip, load_clip
from tests.support.clips import pooled, write_random_clip

# A word with an id above EOT's: the two rules read it at different positions.
WORD_ABOVE_EOT = "zebra"


class Stored(NamedTuple):
  """One CLIP twice: HuggingFace's in torch, and ours."""

  folder: pathlib.Path
  torch_model: CLIPModel
  clip: Clip

  def padded(self, texts):
    """Ids and mask as HuggingFace's processor hands them to a model, all positions
    filled."""
    return self.clip.tokenizer(
      texts, padding="max_length", max_length=self.clip.positions, return_tensors="pt"
    )

  def torch_image_features(self, pixels):
    with torch.no_grad():
      return pooled(
        self.torch_model.get_image_features(torch.as_tensor(pixels))
      ).numpy()


def _stored(folder, **settings):
  model = write_random_clip(folder, extra_tokens=(WORD_ABOVE_EOT,), **settings)
  return Stored(folder, model, load_clip(str(folder)))


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
  """A CLIP with quick_gelu and the true id of EOT."""
  return _stored(tmp_path_factory.mktemp("quick"), hidden_act="quick_gelu")


@pytest.fixture(scope="session")
def legacy(tmp_path_factory):
  """A CLIP with gelu and eos_token_id=2."""
  return _stored(
    tmp_path_factory.mktemp("legacy"), hidden_act="gelu", legacy_eos=True, seed=1
  )


@pytest.fixture(scope="session", params=["quick", "legacy"])
def stored(request):
  """Both CLIPs in turn."""
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
  """One CLIP with few positions, for errors."""
  return _stored(tmp_path_factory.mktemp("small"), positions=16)
