"""Counted operations against arithmetic on the layers."""

import pytest

from pomp_jax.analysis.segmentation_cost import H100, Cost, cost_of


def test_parts_are_those_of_the_layers():
  """ViT-B/16 by its dense layers, crops by two products, names by the text tower's."""
  cost = cost_of(64, 64, 64, n_classes=20, n_regions=2, m=4)
  # 196 patches and a class token; the last layer's queries and MLP are of one token.
  dense, attention = 12 * 768**2, 2 * 197 * 768
  image = 2 * (11 * 197 * (dense + attention) + 197 * 2 * 768**2 + 196 * 768 * 3 * 16**2)
  assert cost.images == pytest.approx(2 * image, rel=0.02)
  crop = 2 * 3 * (224 * 128 * 128 + 224 * 224 * 128)
  assert cost.crops == pytest.approx(2 * crop, rel=0.2)
  assert cost.maps == 2 * 64 * 64 * 2 * 20
  text = 2 * 12 * 12 * 512**2 * (20 * 5 + 5)
  assert cost.text == pytest.approx(text, rel=0.1)


def test_a_larger_image_costs_the_network_its_area():
  """R101c at the published size: about four times a quarter of it."""
  small, large = (cost_of(side, side, side, 20) for side in (320, 640))
  assert large.network == pytest.approx(4 * small.network, rel=0.05)
  assert large.images == small.images


def test_time_is_arithmetic():
  cost = Cost(network=3e12, crops=1e12, images=2e12, maps=1e11, text=5e12)
  assert cost.total(10, 2) == pytest.approx(72e12)
  assert cost.seconds(10, 2, "float32", 0.5) == pytest.approx(72e12 / 67e12 / 0.5)
  fast = 60e12 / H100["bfloat16"] + 12e12 / H100["float32"]
  assert cost.seconds(10, 2, "bfloat16", 0.5) == pytest.approx(fast / 0.5)
