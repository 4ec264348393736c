"""Updates of a network's parameters against torch's AdamW with detectron2's groups and clipping."""

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import optax
import torch

from pomp_jax.rooms.regions.mask_former.optimizer import adamw, poly_schedule
from tests.support.checks import assert_close

RNG = np.random.default_rng(0)
STEPS, RATE, DECAY, FACTOR, NORM = 12, 0.01, 0.3, 0.1, 1.5


def _array(*shape):
  return RNG.standard_normal(shape, np.float32)


PARAMS = {
  "backbone": {
    "stem": {"conv": {"kernel": _array(3, 4)}, "norm": {"scale": _array(4), "bias": _array(4)}},
    "res2": {"norm": {"scale": _array(4), "bias": _array(4), "mean": _array(4), "var": _array(4)}},
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
  rate = poly_schedule(RATE, 0.9, STEPS, warmup=2)
  gradients = [
    jax.tree.map(lambda leaf, s=scale: s * _array(*leaf.shape), PARAMS)
    for scale in (1.0, 0.1, 3.0, 0.05)
  ]
  optimizer = adamw(rate, weight_decay=DECAY, backbone=FACTOR, clip_norm=NORM)
  params, state = PARAMS, optimizer.init(PARAMS)
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)

  theirs = {name: torch.nn.Parameter(torch.tensor(_flat(PARAMS)[name])) for name in GROUPS}
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
    lr = RATE * (1 - step / STEPS) ** 0.9 * min((step + 1) / 3, 1)
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
