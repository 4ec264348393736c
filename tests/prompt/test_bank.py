"""The bank: whole and sharded over eight devices, beside NumPy in float64."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import scipy.special

from pomp_jax.prompt.bank import SHARDED, Bank, bank_sharding, place_rows, write_rows
from pomp_jax.prompt.mesh import make_mesh
from tests.support.oracles import unit

pytestmark = pytest.mark.mesh

# 29 classes do not divide by 8 devices: three rows are padding.
N, E, D, B = 29, 5, 4, 3
RNG = np.random.default_rng(0)
BANK = unit(RNG.normal(size=(N, E))).astype(np.float32)
IMAGES = unit(RNG.normal(size=(D, B, E))).astype(np.float32)
LABELS = RNG.integers(0, N, (D, B)).astype(np.int32)


def _over_mesh(function, *per_data_index):
  """Calls a function (Bank, rows of a data index) on a mesh of 4 x 2 devices; stacks
  by index."""
  mesh = make_mesh(2)
  rows = place_rows(BANK, mesh)

  def local(rows, *mine):
    found = function(Bank(rows, N, sharded=True), *(leaf[0] for leaf in mine))
    return found[None, None]

  shares = (P("data"),) * len(per_data_index)
  found = jax.jit(
    jax.shard_map(
      local, mesh=mesh, in_specs=(SHARDED, *shares), out_specs=P("data", "class")
    )
  )(rows, *per_data_index)
  # The devices of a class axis agree.
  np.testing.assert_array_equal(found[:, 0], found[:, 1])
  return np.asarray(found[:, 0])


@pytest.mark.parametrize("own_class", [True, False])
@pytest.mark.parametrize("temperature", [0.1, -0.3])
def test_mean_softmax_of_each_data_index(own_class, temperature):
  expected = np.zeros((D, N))
  for d in range(D):
    for image, label in zip(IMAGES[d].astype(np.float64), LABELS[d], strict=True):
      logits = image @ BANK.T.astype(np.float64) / temperature
      if not own_class:
        logits[label] = -np.inf
      shares = scipy.special.softmax(logits)
      shares[label] = 0.0
      expected[d] += shares / B
  found = _over_mesh(
    lambda bank, images, labels: bank.mean_softmax(
      images, labels, temperature, own_class=own_class
    ),
    *(IMAGES, LABELS),
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
  whole = Bank(jnp.asarray(BANK), N)
  for d in range(D):
    q_N = whole.mean_softmax(
      jnp.asarray(IMAGES[d]), jnp.asarray(LABELS[d]), temperature, own_class=own_class
    )
    np.testing.assert_allclose(q_N, expected[d], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("class_size", "devices"), [(1, 1), (1, 8), (4, 8)])
def test_written_rows(class_size, devices):
  """Of equal ids the first counts; an id beyond the classes writes nothing."""
  mesh = make_mesh(class_size, jax.devices()[:devices])
  rows = place_rows(BANK, mesh)
  ids = np.array([4, 28, 4, 1000, 0, 11, 28, 4], np.int32)
  features = RNG.normal(size=(len(ids), E)).astype(np.float32)
  expected = BANK.copy()
  for i in reversed(range(len(ids))):
    if ids[i] < N:
      expected[ids[i]] = unit(features[i])
  found = jax.jit(lambda *args: write_rows(args[0], mesh, *args[1:]))(
    rows, ids, features
  )
  np.testing.assert_allclose(found[:N], expected, atol=1e-6)
  np.testing.assert_array_equal(found[N:], 0)
  assert rows.sharding == bank_sharding(mesh)
