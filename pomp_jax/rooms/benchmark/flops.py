"""Floating-point operations of a step by the model's sizes, and their share of the
peak."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pomp_jax.config import METHODS
from pomp_jax.prompt.mesh import CLASS
from pomp_jax.rooms.benchmark.chips import chip_of
from pomp_jax.train import setup


def share_of_peak(run: setup.Run) -> Callable[[float], dict[str, float]]:
  """A function: seconds of a step -> "mfu", the model's FLOP/s over the peak of the
  run's devices.

  It counts `step_flops`, so that a step which computes more than the mathematics needs
  has less. Where the peak of the device is unknown (a CPU, another GPU), and of a
  training of another kind than a prompt's, the result is empty.
  """
  chip = chip_of(run.encoder.mesh.devices.flat[0].device_kind)
  if chip is None or not isinstance(run, setup.PromptRun):
    return lambda seconds: {}
  least_seconds = sum(step_flops(run).values()) / chip.peak[run.clip.dtype]
  return lambda seconds: {"mfu": least_seconds / seconds}


def step_flops(run: setup.PromptRun) -> dict[str, float]:
  """Floating-point operations of a step's matrix products on one device, from the
  model's sizes.

  The least that the mathematics needs: each class of a draw once, with the mean length
  of a name, forward and backward to its tokens, and each image forward. Weights have no
  gradient.
  """
  mesh, text = run.encoder.mesh, run.encoder.clip.config.text_config
  lengths_N = np.asarray(run.frozen.tokens.lengths) + run.module.n_own
  n_classes = (run.group_size + run.k - 1) / mesh.shape[CLASS] * run.loop.accumulate
  n_tokens = n_classes * float(lengths_N.mean())
  if run.method.per_image_text:
    n_tokens *= run.group_size
  layers = jax.tree.leaves(run.frozen.text["text_model"]["encoder"])
  n_weights = sum(leaf.size for leaf in layers if len(leaf.shape) > 1)
  # Forward, and backward to the tokens; two FLOP a weight and token each.
  dense = 2 * 2.0 * n_weights * (n_tokens + run.n_prefix)
  # Scores and their use, forward; in the backward pass twice as many.
  span = run.n_prefix + float(lengths_N.mean())
  attention = 3 * 4 * n_tokens * span * text.hidden_size * text.num_hidden_layers
  found = {"classes": dense + attention}
  if run.data.features == "online":
    n_images = run.loop.batch_size / mesh.size
    # forward, and backward to tokens
    passes = 3 if METHODS[run.contrast.method].pixels else 1
    found["images"] = passes * n_images * image_flops(run)
  return found


def image_flops(run: setup.PromptRun) -> float:
  """Floating-point operations of the image tower's products for one image."""
  encoder = run.images
  size = encoder.clip.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), encoder.vision_params
  )
  return product_flops(jax.make_jaxpr(encoder.image_tower)(params, image).jaxpr)


def product_flops(jaxpr: Any) -> float:
  """Floating-point operations of all matrix products and convolutions of a jaxpr.

  A scan counts each of its trips, a `while` loop one, a conditional all branches.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      depth = np.prod([left[axis] for axis in contracted])
      total += 2.0 * np.prod(eqn.outvars[0].aval.shape) * depth
    elif eqn.primitive.name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
      depth = np.prod(kernel) / kernel[out_axis]
      total += 2.0 * np.prod(eqn.outvars[0].aval.shape) * depth
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    total += times * sum(map(product_flops, _inner(eqn.params)))
  return float(total)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among the parameters of an equation."""
  for value in params.values():
    for one in value if isinstance(value, list | tuple) else [value]:
      jaxpr = getattr(one, "jaxpr", one)
      if hasattr(jaxpr, "eqns"):
        yield jaxpr
