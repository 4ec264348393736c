"""`clip.dtype` in the jaxpr: each product and convolution of a step has the
precision asked for."""

import dataclasses

import jax
import numpy as np
import pytest

from pomp_jax.clip.packed import MemoryPlan
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import setup
from pomp_jax.train.resume import first_state
from tests.support.checks import equations
from tests.support.clips import needs_flax_clip
from tests.support.small_run import small_config

HIGH, HIGHEST = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST


def step_products(one_layer, tmp_path, plan=None, **changes):
  """(type of the inputs, precision) of each product and convolution of floats in a
  step."""
  small = {"data.n_classes": 30, "k": 10, "clip.model": one_layer, "prompt.depth": 1}
  config = small_config(**small | changes)
  run = dataclasses.replace(setup.prepare(config, RunFolder(tmp_path)), plan=plan)
  n, size = config.batch_size, run.encoder.clip.image_size
  batch = {
    "image": np.zeros((n, size, size, 3), np.uint8),
    "label": np.zeros(n, np.int32),
  }
  step = jax.make_jaxpr(run.build_step())(first_state(run), run.frozen, batch)
  found = []
  for equation in equations(step.jaxpr):
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      precision = equation.params["precision"]
      pair = precision if isinstance(precision, tuple) else (precision, precision)
      found += [(str(equation.invars[0].aval.dtype), one) for one in pair]
  return found


@pytest.mark.parametrize(
  "changes",
  [
    {},
    pytest.param({"clip.text_tower": "reference"}, marks=needs_flax_clip),
    {"plan": MemoryPlan(2, "chunks")},
    {"plan": MemoryPlan(1, "layers")},
    {"method": "cocoop"},
    {"method": "maple"},
    {"method": "vpt_deep"},
  ],
)
def test_float32_is_float32(changes, one_layer, tmp_path):
  found = step_products(one_layer, tmp_path, **changes)
  assert len(found) > 30
  assert {precision for _, precision in found} == {HIGHEST}


def test_cheaper_types_are_cheaper_in_the_towers_alone(one_layer, tmp_path):
  found = step_products(one_layer, tmp_path, **{"clip.dtype": "tensorfloat32"})
  assert {kind for kind, _ in found} == {"float32"}
  assert {precision for _, precision in found} == {HIGH, HIGHEST}
  # Of the logits: forward, and back to the classes' features.
  assert [precision for _, precision in found].count(HIGHEST) <= 6
  found = step_products(one_layer, tmp_path, **{"clip.dtype": "bfloat16"})
  assert {precision for kind, precision in found if kind == "float32"} == {HIGHEST}
  assert sum(kind == "bfloat16" for kind, _ in found) > 30
