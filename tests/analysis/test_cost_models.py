"""Models of cost: a step's time as measured and in its limits, operations of a segmentation."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import pytest

from pomp_jax.analysis.segmentation_cost import H100, Cost, cost_of
from pomp_jax.analysis.step_time_model import (
  CHIPS,
  Chip,
  Layout,
  Work,
  efficiency_of,
  step_time,
)

# The machine of docs/performance.md, two cores: a large product ran at 125 to 199 GFLOP/s, and the
# tower reached 76% of it.
CORES = Chip(185e9, 1e12, 1e12, 1e12, 0.0, 1, 2)
MEASURED = {"efficiency": 0.76, "overhead": 0.0}
FEATURES = Work(views=32, m=16, image_flops=0.0)


@pytest.mark.parametrize(("k", "seconds"), [(128, 0.78), (1000, 4.8)])
def test_the_measured_steps_of_one_device(k, seconds):
  """The whole steps of docs/performance.md: within the wandering of that machine's rate."""
  found = step_time(dataclasses.replace(FEATURES, k=k), CORES, Layout(1), **MEASURED)
  assert found.total == pytest.approx(seconds, rel=0.1)


def test_flops_of_a_text_tower_are_those_that_the_compiler_counts():
  """Dense layers of one transformer layer, forward and back to the input, weights frozen."""
  work = Work(text_width=64, text_layers=1, m=1, n_tokens=5.0)
  d, tokens = 64, 20 * 5 + 1 + 1
  shapes = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
  weights = [jnp.ones(shape) for shape in shapes]

  def layer(x, weights):
    q, k, v, o, up, down = weights
    x = (x @ q + x @ k + x @ v) @ o
    return jnp.sum(x @ up @ down)

  program = jax.jit(jax.value_and_grad(layer)).lower(jnp.ones((tokens, d)), weights).compile()
  cost = program.cost_analysis()
  assert work.draw_flops(20) == pytest.approx(cost["flops"], rel=0.1)


chips = st.sampled_from(list(CHIPS.values()))
layouts = st.builds(
  Layout,
  *(st.sampled_from([1, 2, 8, 64]), st.sampled_from([1, 2, 8, 512]), st.sampled_from([1, 2])),
)
works = st.builds(
  Work, views=st.sampled_from([128, 1024]), k=st.integers(2, 21_841), m=st.sampled_from([1, 16])
)


@given(works, chips, layouts)
def test_a_step_is_the_slower_of_devices_and_loader(work, chip, layout):
  """No layout beats the arithmetic; better links, faster hosts or shared draws are never slower."""
  time = step_time(work, chip, layout)
  parts = time._asdict()
  assert all(seconds >= 0 for seconds in parts.values())
  data = parts.pop("data")
  assert time.total == pytest.approx(max(data, sum(parts.values())))
  flops = work.views * work.image_flops + layout.data * layout.accumulate * work.draw_flops(0)
  assert time.total >= flops / (0.4 * chip.flops * layout.chips)
  faster = chip._replace(link=2 * chip.link, network=2 * chip.network)
  assert step_time(work, faster, layout).total <= time.total
  assert step_time(work, chip, layout, thread_views=1e9).total <= time.total
  shared = layout._replace(class_size=2 * layout.class_size)
  assert step_time(work, chip, shared).text <= time.text


def test_one_device_exchanges_nothing_and_reading_is_divided_among_hosts():
  chip = CHIPS["h100"]
  time = step_time(Work(), chip, Layout(1))
  assert (time.gather, time.reduce) == (0, 0)
  one, two = (step_time(Work(), chip, Layout(n)).data for n in (8, 16))
  assert one == pytest.approx(1024 / (chip.host_threads * 658))
  assert two == pytest.approx(one / 2)
  # One data index over two hosts: both read all of its images, as in `batches.own_part`.
  shared = step_time(Work(), chip, Layout(1, class_size=16)).data
  assert shared == pytest.approx(one)
  assert step_time(Work(image_flops=0.0), chip, Layout(8)).data == 0


def test_efficiency_is_what_the_model_takes_back():
  work = Work(views=128)
  for efficiency in (0.1, 0.55):
    time = step_time(work, CHIPS["a100"], Layout(1), efficiency=efficiency)
    assert efficiency_of(work, CHIPS["a100"], time.device) == pytest.approx(efficiency)
  for seconds in (0.0, 1e-3, 2e-3):
    with pytest.raises(ValueError, match="less than"):
      efficiency_of(work, CHIPS["a100"], seconds)
  with pytest.raises(ValueError, match="1024 views .* 3 draws"):
    step_time(Work(), CHIPS["a100"], Layout(3))


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


def test_time_is_arithmetic():
  cost = Cost(network=3e12, crops=1e12, images=2e12, maps=1e11, text=5e12)
  assert cost.total(10, 2) == pytest.approx(72e12)
  assert cost.seconds(10, 2, "float32", 0.5) == pytest.approx(72e12 / 67e12 / 0.5)
  fast = 60e12 / H100["bfloat16"] + 12e12 / H100["float32"]
  assert cost.seconds(10, 2, "bfloat16", 0.5) == pytest.approx(fast / 0.5)
