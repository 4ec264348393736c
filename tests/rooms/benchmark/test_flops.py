"""Floating-point operations by the model's sizes, and their share of a device's
peak."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import flops
from pomp_jax.rooms.benchmark.chips import CHIPS, chip_of
from pomp_jax.train import setup
from pomp_jax.train.training import Run
from tests.support.small_run import small_config


def test_a_device_has_the_chip_of_its_name():
  """The names that libtpu 0.0.42 and NVIDIA's driver give."""
  kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
  kinds |= {
    "tpu7x": "TPU7x",
    "h100": "NVIDIA H100 80GB HBM3",
    "a100": "NVIDIA A100-SXM4-40GB",
  }
  assert {kind: chip_of(name) for kind, name in kinds.items()} == {
    k: CHIPS[k] for k in kinds
  }
  assert chip_of("cpu") is None and chip_of("") is None


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 6), ("bfloat16", 1)])
def test_the_share_of_the_peak(tmp_path, monkeypatch, dtype, passes):
  run = setup.prepare(small_config(**{"clip.dtype": dtype}), RunFolder(tmp_path))
  assert flops.share_of_peak(run)(1.0) == {}
  monkeypatch.setattr(
    flops, "chip_of", lambda kind: CHIPS["v5e"] if kind == "cpu" else None
  )
  least = sum(flops.step_flops(run).values()) * passes / 197e12
  assert flops.share_of_peak(run)(4 * least)["mfu"] == pytest.approx(0.25)
  # A training of masks is no `PromptRun`, and has no such count.
  masks = mock.Mock(spec=Run, encoder=run.encoder, clip=run.clip)
  assert flops.share_of_peak(masks)(4 * least) == {}


def test_products_are_counted():
  def f(x, w):
    y = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=5)[0]
    kernel = jnp.ones((3, 3, 2, 4))
    image = y.reshape(1, 8, 8, 2)
    return jax.lax.conv_general_dilated(
      image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  jaxpr = jax.make_jaxpr(jax.jit(f))(np.ones((8, 16)), np.ones((16, 16))).jaxpr
  assert flops.product_flops(jaxpr) == 5 * 2 * 8 * 16 * 16 + 2 * 8 * 8 * 4 * 3 * 3 * 2
