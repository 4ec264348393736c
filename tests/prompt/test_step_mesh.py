"""The step on several devices: against torch at two data indices, and against one
device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pomp_jax.clip.text import text_tower
from pomp_jax.clip.vision import image_tower
from pomp_jax.errors import InputError
from pomp_jax.prompt.bank import place_rows, renewal_token_budget
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.sampling.samplers import SamplingArrays, SamplingSettings
from pomp_jax.prompt.step import Renewal, step_token_budget
from tests.support.checks import assert_close, equations
from tests.support.clips import PLAIN_TOWER
from tests.support.oracles import unit
from tests.support.small_step import (
  LABELS,
  N_CLASSES,
  K,
  batch_of,
  draw_of,
  make_step,
  settings_of,
)

pytestmark = pytest.mark.mesh

SAMPLERS = {
  "uniform": SamplingSettings(),
  "all classes": SamplingSettings(),  # K = N
  "posterior": SamplingSettings("posterior", mix=0.1, logit_scale=20.0),
  "hard": SamplingSettings(
    "hard", temperature=0.2, exclude="similar", exclude_threshold=0.6
  ),
  "hierarchical": SamplingSettings("hierarchical", exclude="kin", batch_positives=True),
  "independent": SamplingSettings("independent", logit_scale=20.0),
}


@pytest.mark.parametrize(
  ("position", "n_classes", "class_size", "n_images", "together", "clip_norm"),
  [
    ("end", None, 1, 8, 2, 0.0),
    ("middle", N_CLASSES, 2, 8, 2, 0.0),
    ("front", None, 4, 6, 1, 0.01),
  ],
)
def test_steps_equal_torch(
  world,
  images,
  image_features,
  position,
  n_classes,
  class_size,
  n_images,
  together,
  clip_norm,
):
  """Two steps of two data indices; every image is computed once, however classes are
  split.

  The last case clips gradients, which all are longer than 0.01.
  """
  module = PromptContext(3, world.clip.text_width, position, n_classes)
  mesh = make_mesh(class_size, jax.devices()[: 2 * class_size])
  vision = image_tower(world.clip, chunk=3)
  parts = {
    "mesh": mesh,
    "module": module,
    "settings": settings_of(world),
    "vision": vision,
  }
  step, state, frozen = make_step(world, **parts, clip_norm=clip_norm)
  leaf = torch.nn.Parameter(
    torch.tensor(np.asarray(state.params["context"], np.float64))
  )
  optimizer = torch.optim.SGD([leaf], lr=1.0, momentum=0.9, weight_decay=0.01)
  batch = batch_of(mesh, images[:n_images], LABELS[:n_images])
  program = step.trace(state, frozen, batch).jaxpr.jaxpr
  patches = [
    e for e in equations(program) if e.primitive.name == "conv_general_dilated"
  ]
  assert {e.invars[0].aval.shape[0] for e in patches} == {together}
  assert draw_of(0, 0) != draw_of(0, 1) != draw_of(1, 1)
  for number in range(2):
    groups = [
      world.loss(
        leaf, position, image_features[rows], LABELS[rows], draw_of(number, group)
      )
      for group, rows in enumerate(
        (slice(n_images // 2), slice(n_images // 2, n_images))
      )
    ]
    loss, accuracy = ((one + other) / 2 for one, other in zip(*groups, strict=True))
    param_norm = leaf.norm().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.5 / (1 + number)
    gradient_norm = torch.nn.utils.clip_grad_norm_([leaf], clip_norm or np.inf).item()
    optimizer.step()

    state, metrics = step(state, frozen, batch)
    assert_close(metrics["loss"], loss.item())
    assert float(metrics["accuracy"]) == pytest.approx(accuracy)
    assert_close(metrics["grad_norm"], gradient_norm)
    assert_close(metrics["param_norm"], param_norm)
    assert_close(state.params["context"], leaf.detach())
    assert int(state.step) == number + 1


class Steps:
  """Three steps from the same seed, and the program that computed them."""

  def __init__(self, world, image_features, sampler, devices, class_size, kind):
    self.world, self.kind = world, kind
    sampling = SAMPLERS[sampler]
    plain = sampling.is_plain
    module = PromptContext(3, world.clip.text_width, "middle")
    mesh = make_mesh(class_size, jax.devices()[:devices])
    k = N_CLASSES if sampler == "all classes" else K
    settings = settings_of(world, k, sampling, 0.0 if plain else 0.3)
    lengths = np.asarray(world.tokens.lengths)
    budget = step_token_budget(
      module, lengths, settings=settings, group_size=2, class_size=class_size
    )
    self.step, self.state, frozen = make_step(
      world,
      mesh=mesh,
      module=module,
      settings=settings,
      accumulate=8 * class_size // devices,
      kind=kind,
      budget=budget if kind == "shared" else None,
    )
    if not plain:
      frozen = frozen._replace(sampling=replicate(_arrays(), mesh))
    if "bank" in sampling.needs:
      rows = np.random.default_rng(1).normal(size=(N_CLASSES, image_features.shape[1]))
      self.state = self.state.replace(bank=place_rows(unit(rows), mesh))
    self.before, self.start = self.state, np.array(self.state.params["context"])
    features = image_features.astype(np.float32)
    batches = [
      batch_of(mesh, np.roll(features, shift, axis=0), LABELS) for shift in range(3)
    ]
    self.read, self.metrics = (frozen, batches[0]), []
    for batch in batches:
      # From the second step on.
      with jax.transfer_guard("disallow" if self.metrics else "allow"):
        self.state, metrics = self.step(self.state, frozen, batch)
      self.metrics.append(metrics)
    self.context = np.asarray(self.state.params["context"])


def _arrays():
  every = np.arange(N_CLASSES, dtype=np.int32)
  return SamplingArrays(
    groups=every[:, None] // 4,
    group_sizes=np.full(3, 4, np.int32),
    kin=np.where(every % 2, every - 1, -1)[:, None].astype(np.int32),
    levels=every[:, None] // 3,
  )


@pytest.fixture(scope="module")
def steps_of(world, image_features):
  """A function: sampler, devices, class axis, text tower -> `Steps`, computed once."""
  return functools.cache(functools.partial(Steps, world, image_features))


OTHER_LAYOUT = pytest.mark.slow(
  "another layout of the devices; both axes are in the first tier"
)


# A draw has 2 + 5 classes, which divide by no class axis above 1.
@pytest.mark.parametrize(
  ("sampler", "kind", "class_size"),
  [
    ("uniform", PLAIN_TOWER, 2),
    ("uniform", "shared", 4),
    ("all classes", "shared", 4),
    ("posterior", "shared", 4),
    ("hard", "shared", 4),
    ("hierarchical", "shared", 4),
    pytest.param("uniform", PLAIN_TOWER, 8, marks=OTHER_LAYOUT),
    pytest.param("posterior", "shared", 1, marks=OTHER_LAYOUT),
    pytest.param("independent", "shared", 4, marks=OTHER_LAYOUT),
  ],
)
@pytest.mark.usefixtures("rows_of_studies")
def test_every_mesh_computes_the_same(steps_of, sampler, kind, class_size):
  """As one device, which accumulates eight groups."""
  expected = steps_of(
    sampler, 1, 1, PLAIN_TOWER if SAMPLERS[sampler].is_plain else "shared"
  )
  found = steps_of(sampler, 8, class_size, kind)
  # Sums in another order: float32's rounding over three steps, and momentum.
  assert_close(
    found.context, expected.context, 3e-6 if kind == expected.kind != "shared" else 1e-5
  )
  for metrics, other in zip(found.metrics, expected.metrics, strict=True):
    assert jax.tree.map(float, metrics) == pytest.approx(
      jax.tree.map(float, other), rel=1e-5
    )
  assert found.step._cache_size() == expected.step._cache_size() == 1


def test_a_turn_of_renewals_computes_every_row_of_the_bank(world, image_features):
  """Draws hold classes 0 and 11 alone, and 11 is beyond their token budget: it is
  not written."""
  module = PromptContext(3, world.clip.text_width)
  mesh = make_mesh(2, jax.devices()[:4])
  lengths = np.asarray(world.tokens.lengths)
  assert lengths[11] > lengths[0]
  # Two micro-steps of four devices: two steps renew 16 rows, the first four twice.
  budget = renewal_token_budget(lengths, module.n_own, n_parts=8, rows=1)
  tower = text_tower("shared", world.clip.config.text_config, token_budget=budget)
  step, state, frozen = make_step(
    world,
    mesh=mesh,
    module=module,
    settings=settings_of(world, 2, SamplingSettings("frequency", mix=1e-6)),
    accumulate=2,
    kind="shared",
    budget=int(lengths[0]),
    renewal=Renewal(ContextLearner(module, tower, budget), rows=1),
    rate=0.0,
  )
  rows = np.random.default_rng(1).normal(size=(N_CLASSES, image_features.shape[1]))
  state = state.replace(bank=place_rows(unit(rows), mesh))
  only_11 = SamplingArrays(frequency=np.eye(N_CLASSES, dtype=np.float32)[11])
  frozen = frozen._replace(sampling=replicate(only_11, mesh))
  batch = batch_of(mesh, image_features[:4].astype(np.float32), np.zeros(4, np.int32))
  for _ in range(2):
    state, _ = step(state, frozen, batch)
  leaf = torch.tensor(np.asarray(state.params["context"], np.float64))
  assert_close(state.bank[:N_CLASSES], unit(world.class_features(leaf).numpy()))


@pytest.fixture(scope="module")
def compiled(steps_of):
  """The step on four devices by two, for questions about the program."""
  return steps_of("uniform", 8, 2, PLAIN_TOWER)


def test_the_state_is_small_and_donated_and_metrics_stay_on_the_devices(compiled):
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(compiled.before))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(compiled.read))
  (state, *read), _ = compiled.step.lower(compiled.state, *compiled.read).args_info
  assert all(leaf.donated for leaf in jax.tree.leaves(state))
  assert not any(leaf.donated for leaf in jax.tree.leaves(read))
  # The step, the schedule's count and the key besides; nothing as large as any frozen
  # weight.
  leaves, width = jax.tree.leaves(compiled.state), compiled.world.clip.text_width
  assert [leaf.shape for leaf in leaves if leaf.size > 2] == [(3, width)] * 2
  assert sum(leaf.size for leaf in leaves) <= 2 * 3 * width + 4
  for metrics in compiled.metrics:
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "param_norm"}
    for value in metrics.values():
      assert isinstance(value, jax.Array) and value.shape == ()
      assert value.sharding.is_fully_replicated


def _weight_gradients(jaxpr, frozen) -> list:
  """Products with the shape of a frozen weight: what a gradient of that weight would
  be."""
  shapes = {leaf.shape for leaf in jax.tree.leaves(frozen.text) if leaf.ndim == 2}
  shapes |= {shape[::-1] for shape in shapes}
  return [
    variable.aval.shape
    for equation in equations(jaxpr)
    if equation.primitive.name == "dot_general"
    for variable in equation.outvars
    if variable.aval.shape in shapes
  ]


def test_the_program_has_no_gradient_of_a_frozen_weight_and_calls_nothing_outside(
  compiled,
):
  traced = compiled.step.trace(compiled.state, *compiled.read)
  assert _weight_gradients(traced.jaxpr.jaxpr, compiled.world.frozen) == []
  names = {equation.primitive.name for equation in equations(traced.jaxpr.jaxpr)}
  assert not [name for name in names if "callback" in name or "device_put" in name]
  program = traced.lower().compile().as_text()
  for word in (
    "callback",
    "infeed",
    "outfeed",
    "send-done",
    "recv-done",
    "host_compute",
  ):
    assert word not in program

  # The measurement sees such gradients where they are asked for.
  tower = text_tower(PLAIN_TOWER, compiled.world.clip.config.text_config)
  width = compiled.world.clip.text_width

  def total(text):
    return tower(
      text, jnp.ones((2, width)), jnp.ones((3, 4, width)), jnp.full(3, 4)
    ).sum()

  text = compiled.world.frozen.text
  asked = jax.make_jaxpr(jax.grad(total))(text).jaxpr
  assert len(_weight_gradients(asked, compiled.world.frozen)) >= 3 * 6


def test_devices_that_do_not_divide_are_refused():
  with pytest.raises(InputError, match="mesh.class_size: got 3"):
    make_mesh(3)
  assert dict(make_mesh(2).shape) == {"data": 4, "class": 2}
