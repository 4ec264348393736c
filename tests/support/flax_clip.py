"""HuggingFace's Flax models and the reference tower made of them, oracles until transformers 5."""

import importlib
import types
from typing import Any

import jax.numpy as jnp
import pytest
import transformers

from pomp_jax.clip import TextTower, text_tower

HAS_FLAX_CLIP = int(transformers.__version__.split(".")[0]) < 5
needs_flax_clip = pytest.mark.skipif(not HAS_FLAX_CLIP, reason="transformers 5 has no Flax models")
# The text towers, to run a test with each.
TOWERS: tuple = ("shared", pytest.param("reference", marks=needs_flax_clip))
# The text tower of tests of other parts: all positions of all classes, where it exists.
PLAIN_TOWER = "reference" if HAS_FLAX_CLIP else "shared"


def flax_clip() -> types.ModuleType:
  """Returns the module of FlaxCLIP; skips the test under transformers 5."""
  if not HAS_FLAX_CLIP:
    pytest.skip("transformers 5 has no Flax models")
  return importlib.import_module("transformers.models.clip.modeling_flax_clip")


def reference_tower(config: Any, dtype: Any = jnp.float32) -> TextTower:
  """Builds the reference text tower; skips the test under transformers 5."""
  flax_clip()
  return text_tower("reference", config, dtype)
