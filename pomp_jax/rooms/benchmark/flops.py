"""Counts a step's floating-point operations, and compares their rate with the peak."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pomp_jax.config import METHODS
from pomp_jax.prompt.mesh import CLASS
from pomp_jax.rooms.benchmark.chips import chip_of
from pomp_jax.train.training import PromptRun, Run


def share_of_peak(run: Run) -> Callable[[float], dict[str, float]]:
  """Makes the function that computes a step's model FLOP/s utilisation (MFU).

  MFU is `step_flops` per second over the peak of the run's devices (Chowdhery et al.,
  2022, appendix B). A step that computes more than the mathematics needs has a lower
  MFU.

  Args:
    run: prepared training.

  Returns:
    Function from the seconds of a step to {"mfu": utilisation}. It returns {} if the
    peak of the device is unknown (a CPU, another GPU), and for a training that learns
    no prompt, because its FLOP are not counted.
  """
  device = run.encoder.mesh.devices.flat[0]
  chip = chip_of(device.device_kind)
  if chip is None or not isinstance(run, PromptRun):
    return lambda seconds: {}
  # `step_flops` counts one device's share, and the peak is one device's.
  flops = sum(step_flops(run).values())
  seconds_at_peak = flops / chip.peak[run.clip.dtype]
  return lambda seconds: {"mfu": seconds_at_peak / seconds}


def step_flops(run: PromptRun) -> dict[str, float]:
  """Counts a step's FLOP in matrix products on one device, by "classes" and "images".

  The counts are the least that the mathematics needs. Each class of a draw counts once,
  with the mean length of a name, forward and backward to the tokens. Each image counts
  forward. Weights have no gradient. "images" is missing if features are stored.
  """
  flops = {"classes": _class_flops(run)}
  if run.data.features == "online":
    n_images = run.loop.batch_size / run.encoder.mesh.size
    # A method that learns tokens in the image tower also needs the backward pass, which
    # costs twice the forward pass.
    passes = 3 if METHODS[run.contrast.method].pixels else 1
    flops["images"] = passes * n_images * image_flops(run)
  return flops


def _class_flops(run: PromptRun) -> float:
  """FLOP of the text tower for the classes of a step on one device."""
  text = run.encoder.clip.config.text_config
  lengths_N = np.asarray(run.frozen.tokens.lengths) + run.module.n_own
  mean_length = float(lengths_N.mean())
  n_devices = run.encoder.mesh.shape[CLASS]
  # A draw holds the class of each image and k - 1 negatives.
  n_classes = (run.group_size + run.k - 1) / n_devices * run.loop.accumulate
  n_tokens = n_classes * mean_length
  # Class features that depend on the image are computed for each image.
  if run.method.per_image_text:
    n_tokens *= run.group_size
  layers = jax.tree.leaves(run.frozen.text["text_model"]["encoder"])
  n_weights = sum(leaf.size for leaf in layers if len(leaf.shape) > 1)
  # Forward, and backward to the tokens, at two FLOP per weight and token each.
  dense = 2 * 2.0 * n_weights * (n_tokens + run.n_prefix)
  # Attention scores and weighted sums: four FLOP forward for each pair of tokens and
  # each channel, twice as many backward.
  span = run.n_prefix + mean_length
  attention = 3 * 4 * n_tokens * span * text.hidden_size * text.num_hidden_layers
  return dense + attention


def image_flops(run: PromptRun) -> float:
  """Counts the FLOP of the image tower's products for one image."""
  encoder = run.images
  size = encoder.clip.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), encoder.vision_params
  )
  traced = jax.make_jaxpr(encoder.image_tower)(params, image)
  return product_flops(traced.jaxpr)


def product_flops(jaxpr: Any) -> float:
  """Counts the FLOP of all matrix products and convolutions of a jaxpr.

  A scan counts all of its trips, a `while` loop one trip, a conditional all branches.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    total += _own_flops(eqn)
    times = 1
    if eqn.primitive.name == "scan":
      times = eqn.params.get("length", 1)
    for inner in _inner_jaxprs(eqn.params):
      total += times * product_flops(inner)
  return float(total)


def _own_flops(eqn: Any) -> float:
  """FLOP of one equation, without those of the jaxprs that it calls."""
  if eqn.primitive.name == "dot_general":
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    depth = np.prod([left[axis] for axis in contracted])
  elif eqn.primitive.name == "conv_general_dilated":
    # Each output value sums over the kernel's window and its input channels.
    kernel = eqn.invars[1].aval.shape
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    depth = np.prod(kernel) / kernel[out_axis]
  else:
    return 0.0
  return float(2.0 * np.prod(eqn.outvars[0].aval.shape) * depth)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs among the parameters of an equation."""
  for value in params.values():
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
      jaxpr = getattr(item, "jaxpr", item)  # a closed jaxpr holds the plain one
      if hasattr(jaxpr, "eqns"):
        yield jaxpr
