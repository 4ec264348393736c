"""What tests import beside the package: the process of a mutant is forked from one that
has it.

These imports take longer than most of the tests that see a mutant. JAX starts its
backends, and with them its threads, only when a test asks for devices.
"""

import os

from tests.support.processes import share_compilation_cache

# As in tests/conftest.py, before JAX and the hub's client are imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
share_compilation_cache()

# ruff: noqa: E402, F401
import flax.linen
import hypothesis
import jax
import matplotlib.pyplot
import optax
import orbax.checkpoint
import PIL.Image
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers.models.clip.modeling_clip
