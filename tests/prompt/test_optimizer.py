"""Both optimizers over several steps against those of torch, in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pomp_jax.prompt.optimizer import adamw, sgd
from tests.support.checks import assert_close

# Of two leaves, so that a norm over all parameters is not that of each; their lengths
# differ from step to step, so that some are clipped and some are not.
SHAPES = {"context": (3, 4), "bias": (5,)}
LENGTHS = (0.1, 4.0, 0.5, 20.0, 1.0, 0.2)


def rate(step):
  return 0.05 / (1 + step)


def torch_adamw(leaves):
  return torch.optim.AdamW(
    leaves, lr=rate(0), betas=(0.8, 0.98), eps=1e-6, weight_decay=0.1
  )


def torch_sgd(leaves):
  return torch.optim.SGD(leaves, lr=rate(0), momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("clip_norm", [0.0, 0.7], ids=["any norm", "clipped"])
@pytest.mark.parametrize(
  ("optimizer_of", "torch_optimizer_of"),
  [
    pytest.param(
      lambda clip_norm: adamw(rate, 0.8, 0.98, 1e-6, 0.1, clip_norm),
      torch_adamw,
      id="adamw",
    ),
    pytest.param(lambda clip_norm: sgd(rate, 0.9, 0.1, clip_norm), torch_sgd, id="sgd"),
  ],
)
def test_steps_equal_torchs(optimizer_of, torch_optimizer_of, clip_norm):
  """The gradient is clipped before it enters the moments, and decay is not clipped."""
  rng = np.random.default_rng(3)
  start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in start.items()}
  leaves = {
    name: torch.tensor(leaf, requires_grad=True) for name, leaf in start.items()
  }
  optimizer = optimizer_of(clip_norm)
  state = optimizer.init(params)
  torch_optimizer = torch_optimizer_of(list(leaves.values()))
  for step, length in enumerate(LENGTHS):
    gradients = {
      name: length * rng.normal(size=shape) for name, shape in SHAPES.items()
    }
    for name, leaf in leaves.items():
      leaf.grad = torch.tensor(gradients[name])
    if clip_norm:
      torch.nn.utils.clip_grad_norm_(leaves.values(), clip_norm)
    torch_optimizer.param_groups[0]["lr"] = rate(step)
    torch_optimizer.step()
    gradients = {name: jnp.float32(gradient) for name, gradient in gradients.items()}
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  for name, leaf in leaves.items():
    assert_close(params[name], leaf.detach())
    assert np.abs(leaf.detach().numpy() - start[name]).max() > 0.01
