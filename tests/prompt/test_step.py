"""The step: against torch at two data indices, and against itself on other meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pomp_jax.clip import image_tower, text_tower
from pomp_jax.clip.packed import kept_rows
from pomp_jax.prompt import sampling
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.step import create_state
from tests.support.checks import assert_close, equations
from tests.support.flax_clip import PLAIN_TOWER
from tests.support.oracles import torch_class_feature, torch_group
from tests.support.small_step import (
  LABELS,
  N_CLASSES,
  SEED,
  K,
  batch_of,
  budget_of,
  make_step,
  settings_of,
)


def _step(world, *, k=K, **parts):
  return make_step(world, settings=settings_of(world, k), **parts)


def _draw(step: int, group: int) -> list[int]:
  key = sampling.draw_key(jax.random.key(SEED), jnp.int32(step), jnp.int32(group))
  return jax.jit(sampling.sample_uniform, static_argnums=(1, 2))(key, K, N_CLASSES).tolist()


def _torch_loss(world, module, leaf, images, labels, drawn):
  """Mean loss and accuracy of one group, from the context on."""
  features = {
    c: torch_class_feature(
      world.model,
      leaf if module.n_classes is None else leaf[c],
      *world.class_ids_and_name_length(c),
      module.position,
    )
    for c in {*labels.tolist(), *drawn}
  }
  return torch_group(
    torch.tensor(images),
    features,
    labels.tolist(),
    drawn,
    scale=world.model.logit_scale.exp().detach(),
    n_classes=N_CLASSES,
    correction="log",
  )


@pytest.mark.parametrize(
  ("position", "n_classes", "class_size"), [("end", None, 1), ("middle", N_CLASSES, 2)]
)
def test_steps_equal_torch(world, images, image_features, position, n_classes, class_size):
  """Two steps of two data indices of four images: images to the moved context, and all metrics."""
  module = PromptContext(3, world.clip.text_width, position, n_classes)
  mesh = make_mesh(class_size, jax.devices()[: 2 * class_size])
  vision = image_tower(world.clip, chunk=3)
  step, state, frozen = _step(world, mesh=mesh, module=module, vision=vision)
  leaf = torch.nn.Parameter(torch.tensor(np.asarray(state.params["context"], np.float64)))
  optimizer = torch.optim.SGD([leaf], lr=1.0, momentum=0.9, weight_decay=0.01)
  batch = batch_of(mesh, images[:8], LABELS[:8])
  for number in range(2):
    draws = [_draw(number, group) for group in range(2)]
    assert draws[0] != draws[1]
    parts = [
      _torch_loss(
        world,
        module,
        leaf,
        image_features[4 * group : 4 * group + 4],
        LABELS[4 * group : 4 * group + 4],
        draws[group],
      )
      for group in range(2)
    ]
    loss = (parts[0][0] + parts[1][0]) / 2
    param_norm = leaf.norm().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.5 / (1 + number)
    gradient_norm = leaf.grad.norm().item()
    optimizer.step()

    state, metrics = step(state, frozen, batch)
    assert_close(metrics["loss"], loss.item())
    assert float(metrics["accuracy"]) == pytest.approx((parts[0][1] + parts[1][1]) / 2)
    assert_close(metrics["grad_norm"], gradient_norm)
    assert_close(metrics["param_norm"], param_norm)
    assert_close(state.params["context"], leaf.detach())
    assert int(state.step) == number + 1


def test_every_image_is_computed_once_however_classes_are_split(world, images, image_features):
  # Three images of each of two data indices over four devices of the class axis.
  mesh = make_mesh(4)
  tower = image_tower(world.clip)
  module = PromptContext(3, world.clip.text_width)
  step, state, frozen = _step(world, mesh=mesh, module=module, vision=tower)
  batch = batch_of(mesh, images[:6], LABELS[:6])
  program = step.trace(state, frozen, batch)
  (patches,) = [
    e for e in equations(program.jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"
  ]
  assert patches.invars[0].aval.shape[0] == 1
  _, metrics = step(state, frozen, batch)
  step, state, frozen = _step(world, mesh=mesh, module=module)
  features = image_features[:6].astype(np.float32)
  _, expected = step(state, frozen, batch_of(mesh, features, LABELS[:6]))
  for name, value in metrics.items():
    assert_close(value, expected[name])


def test_negatives_beyond_the_token_budget_are_left_out_and_not_counted(world, image_features):
  module = PromptContext(3, world.clip.text_width)
  mesh = make_mesh(devices=jax.devices()[:1])
  labels, drawn = LABELS[:4], _draw(0, 0)
  lengths = np.array([world.tokens.lengths[c] for c in [*labels, *drawn]])
  budget = int(lengths[:7].sum())
  kept = np.asarray(kept_rows(jnp.asarray(lengths), budget))
  assert kept.tolist() == [True] * 7 + [False] * 2
  step, state, frozen = _step(world, mesh=mesh, module=module, kind="shared", budget=budget)
  leaf = torch.nn.Parameter(torch.tensor(np.asarray(state.params["context"], np.float64)))
  loss, _ = _torch_loss(world, module, leaf, image_features[:4], labels, drawn[:3])
  loss.backward()
  _, metrics = step(state, frozen, batch_of(mesh, image_features[:4].astype(np.float32), labels))
  assert_close(metrics["loss"], loss.item())
  assert_close(metrics["grad_norm"], leaf.grad.norm().item())


def test_k_of_all_classes_is_the_full_softmax(world, image_features):
  """K = N, the shared tower under its own budget, classes split over two devices."""
  module = PromptContext(3, world.clip.text_width, "front")
  mesh = make_mesh(2, jax.devices()[:2])
  budget = budget_of(world, module, settings_of(world, N_CLASSES), group_size=4, class_size=2)
  step, state, frozen = _step(
    world, mesh=mesh, module=module, k=N_CLASSES, kind="shared", budget=budget
  )
  leaf = torch.nn.Parameter(torch.tensor(np.asarray(state.params["context"], np.float64)))
  features = torch.stack(
    [
      torch_class_feature(world.model, leaf, *world.class_ids_and_name_length(c), "front")
      for c in range(N_CLASSES)
    ]
  )
  unit_images, unit_classes = (
    torch.nn.functional.normalize(rows, dim=1)
    for rows in (torch.tensor(image_features[:4]), features)
  )
  logits = world.model.logit_scale.exp().detach() * unit_images @ unit_classes.T
  labels = torch.tensor(LABELS[:4]).long()
  loss = torch.nn.functional.cross_entropy(logits, labels)
  loss.backward()
  _, metrics = step(
    state, frozen, batch_of(mesh, image_features[:4].astype(np.float32), LABELS[:4])
  )
  assert_close(metrics["loss"], loss.item())
  assert_close(metrics["grad_norm"], leaf.grad.norm().item())
  assert float(metrics["accuracy"]) == (logits.argmax(dim=1) == labels).double().mean().item()


@pytest.fixture(scope="module")
def on_one_device(world, image_features):
  """Three steps on one device that accumulates eight groups."""
  return _three_steps(world, image_features, devices=1, class_size=1)


def _three_steps(world, image_features, *, devices, class_size, **settings):
  module = PromptContext(3, world.clip.text_width, "middle")
  mesh = make_mesh(class_size, jax.devices()[:devices])
  accumulate = 8 * class_size // devices
  step, state, frozen = _step(world, mesh=mesh, module=module, accumulate=accumulate, **settings)
  start = np.array(state.params["context"])
  history = []
  for shift in range(3):
    features = np.roll(image_features, shift, axis=0).astype(np.float32)
    state, metrics = step(state, frozen, batch_of(mesh, features, LABELS))
    history.append({name: float(value) for name, value in metrics.items()})
  return start, np.asarray(state.params["context"]), history


@pytest.mark.parametrize(
  ("devices", "class_size"), [(8, 1), (8, 2), (8, 8)], ids=["8x1", "4x2", "1x8"]
)
def test_every_mesh_computes_the_same(world, image_features, on_one_device, devices, class_size):
  # 2 + 5 classes of a draw: they divide by no class axis above 1.
  start, context, history = _three_steps(
    world, image_features, devices=devices, class_size=class_size
  )
  _, expected, expected_history = on_one_device
  assert np.abs(expected - start).max() > 0.1
  # Sums in another order: float32's rounding over three steps, and momentum.
  assert_close(context, expected, 3e-6)
  for metrics, expected_metrics in zip(history, expected_history, strict=True):
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)


def test_the_shared_tower_under_its_budget_computes_the_same(world, image_features, on_one_device):
  module = PromptContext(3, world.clip.text_width, "middle")
  budget = budget_of(world, module, settings_of(world), group_size=2, class_size=4)
  _, context, _ = _three_steps(
    world, image_features, devices=8, class_size=4, kind="shared", budget=budget
  )
  assert_close(context, on_one_device[1], 1e-5)


class Compiled:
  """One step on four devices by two, run once, for questions about the program."""

  def __init__(self, world, image_features):
    self.world = world
    self.module = PromptContext(3, world.clip.text_width)
    self.mesh = make_mesh(2)
    self.step, self.state, self.frozen = _step(world, mesh=self.mesh, module=self.module)
    self.batch = batch_of(self.mesh, image_features.astype(np.float32), LABELS)
    self.before = self.state
    self.traced = self.step.trace(self.state, self.frozen, self.batch)
    self.lowered = self.traced.lower()
    self.state, self.metrics = self.step(self.state, self.frozen, self.batch)


@pytest.fixture(scope="module")
def compiled(world, image_features):
  return Compiled(world, image_features)


def test_the_state_is_donated_and_nothing_else(compiled):
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(compiled.before))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((compiled.frozen, compiled.batch)))
  (state, frozen, batch), _ = compiled.lowered.args_info
  assert all(leaf.donated for leaf in jax.tree.leaves(state))
  assert not any(leaf.donated for leaf in jax.tree.leaves((frozen, batch)))


def test_later_steps_compile_nothing_and_move_nothing_to_the_host(compiled):
  state = compiled.state
  with jax.transfer_guard("disallow"):
    for _ in range(2):
      state, metrics = compiled.step(state, compiled.frozen, compiled.batch)
  jax.block_until_ready(metrics)
  compiled.state = state
  assert compiled.step._cache_size() == 1


def test_metrics_stay_on_the_devices_as_scalars(compiled):
  assert set(compiled.metrics) == {"loss", "accuracy", "grad_norm", "param_norm"}
  for value in compiled.metrics.values():
    assert isinstance(value, jax.Array)
    assert value.shape == ()
    assert value.sharding.is_fully_replicated


def test_the_state_holds_the_context_and_one_slot_of_it(compiled):
  # The step, the schedule's count and the key besides; nothing as large as any frozen weight.
  leaves = jax.tree.leaves(compiled.state)
  large = [leaf.shape for leaf in leaves if leaf.size > 2]
  assert large == [(3, compiled.world.clip.text_width)] * 2
  assert sum(leaf.size for leaf in leaves) <= 2 * 3 * compiled.world.clip.text_width + 4


def _weight_gradients(jaxpr, frozen) -> list:
  """Products with the shape of a frozen weight: what a gradient of that weight would be."""
  shapes = {leaf.shape for leaf in jax.tree.leaves(frozen.text) if leaf.ndim == 2}
  shapes |= {shape[::-1] for shape in shapes}
  return [
    variable.aval.shape
    for equation in equations(jaxpr)
    if equation.primitive.name == "dot_general"
    for variable in equation.outvars
    if variable.aval.shape in shapes
  ]


def test_no_gradient_of_a_frozen_weight_is_computed(compiled):
  assert _weight_gradients(compiled.traced.jaxpr.jaxpr, compiled.frozen) == []
  # The measurement sees such gradients where they are asked for.
  tower = text_tower(PLAIN_TOWER, compiled.world.clip.config.text_config)
  width = compiled.world.clip.text_width

  def total(text):
    return tower(text, jnp.ones((2, width)), jnp.ones((3, 4, width)), jnp.full(3, 4)).sum()

  text = compiled.world.frozen.text
  asked = jax.make_jaxpr(jax.grad(total))(text).jaxpr
  assert len(_weight_gradients(asked, compiled.frozen)) >= 3 * 6


def test_the_program_calls_nothing_outside_it(compiled):
  program = compiled.lowered.compile().as_text()
  for word in ("callback", "infeed", "outfeed", "send-done", "recv-done", "host_compute"):
    assert word not in program
  names = {equation.primitive.name for equation in equations(compiled.traced.jaxpr.jaxpr)}
  assert not [name for name in names if "callback" in name or "device_put" in name]


def test_the_first_context_is_a_function_of_the_seed_and_no_draw_shares_its_key():
  learner = ContextLearner(PromptContext(4, 8), lambda *inputs: inputs)
  make = functools.partial(create_state, learner, sgd(lambda step: 1.0, 0.9, 0.0))
  first, again, other = (np.asarray(make(seed).params["context"]) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert not np.any(first == other)
  assert make(1).step == 0


def test_devices_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="mesh.class_size: got 3"):
    make_mesh(3)
  assert dict(make_mesh(2).shape) == {"data": 4, "class": 2}
