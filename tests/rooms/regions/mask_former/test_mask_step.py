"""The training step of masks, and its optimizer against torch's with detectron2's
groups."""

import dataclasses
from types import SimpleNamespace

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
import torch

from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.step import create_state
from pomp_jax.rooms.regions.mask_former.losses import (
  LossWeights,
  Predictions,
  mask_losses,
  match,
)
from pomp_jax.rooms.regions.mask_former.mask_step import (
  adamw,
  make_mask_step,
  poly_schedule,
  targets_of,
)
from pomp_jax.rooms.regions.mask_former.model import (
  MaskFormer,
  class_logits,
  normalized_pixels,
)
from tests.rooms.regions.region_jobs import TINY, random_params
from tests.support.checks import assert_close

pytestmark = pytest.mark.mesh

SIZE, TARGETS, CLASSES, IMAGES = 40, 3, 5, 8
SIZES = dataclasses.replace(TINY, embedding=16, dropout=0.2)
# So far from the defaults that a matching by those is another one.
WEIGHTS = LossWeights(classes=50.0, focal=0.5, dice=0.5, no_object=0.4)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  owners = np.kron(rng.integers(-1, TARGETS, (IMAGES, 5, 5)), np.ones((8, 8))).astype(
    np.int16
  )
  labels = rng.integers(CLASSES, size=(IMAGES, TARGETS)).astype(np.int32)
  labels[0], owners[0] = -1, -1  # no target at all
  labels[1, 2], owners[1][owners[1] == 2] = -1, -1
  return {
    "image": rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8),
    "sides": np.tile(np.array([SIZE, SIZE - 5], np.int32), (IMAGES, 1)),
    "owners": owners,
    "labels": labels,
  }


CLASS_MATRIX = jnp.asarray(
  np.random.default_rng(1).standard_normal((CLASSES, 16), np.float32)
)


def first_state(optimizer):
  return create_state(
    SimpleNamespace(init=lambda key: random_params(SIZES)), optimizer, seed=3
  )


def taken(batch, n_devices, optimizer):
  """State and metrics after two steps."""
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  step = make_mask_step(
    mesh=mesh, model=MaskFormer(SIZES), optimizer=optimizer, weights=WEIGHTS
  )
  state = replicate(first_state(optimizer), mesh)
  rows = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
  found = []
  for _ in range(2):
    state, metrics = step(state, replicate(CLASS_MATRIX, mesh), rows)
    found.append(jax.device_get(metrics))
  return jax.device_get(state), found


def test_eight_devices_equal_one(batch):
  optimizer = optax.sgd(lambda step: 0.01 * step)
  one, metrics = taken(batch, 1, optimizer)
  eight, others = taken(batch, 8, optimizer)
  assert one.step == eight.step == 2
  for ours, theirs in zip(metrics, others, strict=True):
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)
  # Biases of keys have no gradient but for rounding.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4 * np.abs(a).max() + 1e-7),
    one.params,
    eight.params,
  )
  # The first update is 0, and yet the second step has another loss, by another dropout.
  assert metrics[0]["param_norm"] == metrics[1]["param_norm"]
  assert abs(metrics[0]["loss"] - metrics[1]["loss"]) > 1e-3


def test_the_update_is_the_gradient_of_the_losses(batch):
  """Without dropout; it reaches every parameter."""
  sizes = dataclasses.replace(SIZES, dropout=0.0)
  mesh, model = make_mesh(devices=jax.devices()[:1]), MaskFormer(sizes)
  optimizer = optax.sgd(1.0)
  state = first_state(optimizer)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    output = model.apply(
      {"params": params},
      normalized_pixels(batch["image"], batch["sides"]),
      all_layers=True,
    )
    logits = class_logits(output.embeddings_JxBxQxE, CLASS_MATRIX, output.non_object_E)
    predictions = Predictions(logits, output.masks_JxBxQxhxw)
    targets = targets_of(jnp.asarray(batch["owners"]), jnp.asarray(batch["labels"]))
    return mask_losses(
      predictions, targets, match(predictions, targets, WEIGHTS), WEIGHTS
    ).loss

  value, expected = loss(state.params)
  step = make_mask_step(mesh=mesh, model=model, optimizer=optimizer, weights=WEIGHTS)
  copy = jax.tree.map(jnp.copy, state)
  after, metrics = step(replicate(copy, mesh), CLASS_MATRIX, batch)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-4)
  moved = jax.tree.map(lambda new, old: old - new, after.params, state.params)
  scale = optax.tree.norm(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), moved, expected
  )
  # A key's bias moves all scores of a query, which softmax ignores. In the first
  # self-attention all values are the same, the bias: queries begin as zeros.
  without = {("0", "self_attn", f"{name}_proj") for name in "qkv"}
  for path, leaf in flatten_dict(expected).items():
    if path[-2:] != ("k_proj", "bias") and path[2:5] not in without:
      assert np.abs(leaf).max() > 1e-7 * scale, path


def test_targets_are_padded_as_the_network_pads_its_input(batch):
  targets = targets_of(jnp.asarray(batch["owners"]), jnp.asarray(batch["labels"]))
  assert targets.masks.shape == (IMAGES, TARGETS, 64, 64)
  assert (
    not targets.masks[:, :, SIZE:].any() and not targets.masks[:, :, :, SIZE:].any()
  )
  for image, target in np.ndindex(IMAGES, TARGETS):
    expected = batch["owners"][image] == target
    np.testing.assert_array_equal(targets.masks[image, target, :SIZE, :SIZE], expected)
  assert not targets.valid[0].any() and targets.valid[1].tolist() == [True, True, False]


RNG = np.random.default_rng(0)
STEPS, RATE, DECAY, FACTOR, NORM = 12, 0.01, 0.3, 0.1, 1.5


def _array(*shape):
  return RNG.standard_normal(shape, np.float32)


PARAMS = {
  "backbone": {
    "stem": {
      "conv": {"kernel": _array(3, 4)},
      "norm": {"scale": _array(4), "bias": _array(4)},
    },
    "res2": {
      "norm": {
        "scale": _array(4),
        "bias": _array(4),
        "mean": _array(4),
        "var": _array(4),
      }
    },
  },
  "transformer_decoder": {
    "query_embed": _array(5, 4),
    "layers": {"0": {"norm1": {"scale": _array(4)}, "linear1": {"bias": _array(6)}}},
  },
  "non_object": _array(1, 4),
}
# By hand: the groups in torch, (backbone, decayed).
GROUPS = {
  "backbone.stem.conv.kernel": (True, True),
  "backbone.stem.norm.scale": (True, False),
  "backbone.stem.norm.bias": (True, False),
  "transformer_decoder.query_embed": (False, False),
  "transformer_decoder.layers.0.norm1.scale": (False, False),
  "transformer_decoder.layers.0.linear1.bias": (False, True),
  "non_object": (False, False),
}


def test_updates_equal_torchs():
  """Gradients above and below the largest norm; the frozen ones do not count for it."""
  rate = poly_schedule(RATE, 0.9, STEPS)
  gradients = [
    jax.tree.map(lambda leaf, s=scale: s * _array(*leaf.shape), PARAMS)
    for scale in (1.0, 0.1, 3.0, 0.05)
  ]
  optimizer = adamw(rate, weight_decay=DECAY, backbone=FACTOR, clip_norm=NORM)
  params, state = PARAMS, optimizer.init(PARAMS)
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)

  theirs = {
    name: torch.nn.Parameter(torch.tensor(_flat(PARAMS)[name])) for name in GROUPS
  }
  groups = [
    {
      "params": [theirs[name]],
      "lr": FACTOR if backbone else 1.0,
      "weight_decay": DECAY if decay else 0.0,
    }
    for name, (backbone, decay) in GROUPS.items()
  ]
  adam = torch.optim.AdamW(groups)
  for step, gradient in enumerate(gradients):
    lr = RATE * (1 - step / STEPS) ** 0.9
    for group, (backbone, _) in zip(adam.param_groups, GROUPS.values(), strict=True):
      group["lr"] = lr * (FACTOR if backbone else 1.0)
    for name, parameter in theirs.items():
      parameter.grad = torch.tensor(_flat(gradient)[name])
    torch.nn.utils.clip_grad_norm_(theirs.values(), NORM)
    adam.step()
  found = _flat(params)
  for name, parameter in theirs.items():
    assert_close(found[name], parameter.detach(), 1e-5)
  for name in found.keys() - GROUPS.keys():
    np.testing.assert_array_equal(found[name], _flat(PARAMS)[name])


def _flat(tree):
  return {".".join(path): leaf for path, leaf in flatten_dict(tree).items()}
