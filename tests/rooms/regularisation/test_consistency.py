"""Textual consistency against KgCoOp's and PromptSRC's terms in torch, and its mean
over draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from docs.studies.other_samplers import OTHER_SAMPLERS
from pomp_jax.prompt.bank import Bank
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ClassFeatures, Frozen, Seen
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.sampling import samplers
from pomp_jax.prompt.sampling.samplers import SAMPLERS, SamplingArrays, SamplingSettings
from pomp_jax.rooms.regularisation.consistency import consistency, consistency_term
from tests.support.checks import assert_close
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

N, E, SCALE = 12, 6, 10.0
_RNG = np.random.default_rng(0)
IMAGES, CLASSES, ANCHORS = (
  _RNG.normal(size=(n, E)).astype(np.float32) for n in (4, N, N)
)
ANCHORS = unit(ANCHORS).astype(np.float32)
# One class twice.
Y = np.array([3, 3, 7, 0], np.int32)


def published(loss, logits, text, anchors, zero_shot_logits):
  """The term over all classes, of unit features [N,E] and logits [B,N].

  KgCoOp/trainers/kgcoop.py of htyao89/KgCoOp: `CustomCLIP.forward` (`score`).
  trainers/promptsrc.py of muzairkhattak/PromptSRC: `PromptSRC.forward_backward`
  (`loss_scl_text`, `L_SCL_logits`).
  """
  if loss == "squared":
    return 1 - F.cosine_similarity(text, anchors, dim=1, eps=1e-7).mean()
  if loss == "l1":
    return F.l1_loss(text, anchors)
  log_p, log_p0 = logits.log_softmax(1), zero_shot_logits.log_softmax(1)
  return F.kl_div(log_p, log_p0, reduction="sum", log_target=True) / logits.numel()


def torch_term(loss, images, classes, anchors, scale):
  """The same, of a float64 tensor of class features of any length."""
  text, images = (
    F.normalize(classes),
    F.normalize(torch.tensor(images, dtype=torch.float64)),
  )
  anchors = torch.tensor(anchors, dtype=torch.float64)
  return published(
    loss, scale * images @ text.T, text, anchors, scale * images @ anchors.T
  )


def term_of_draw(weights, settings, arrays, key, classes_NxE, k, available=None):
  """The term of one draw of K-1 classes, and its gradient by all class features."""
  images_BxE = jnp.asarray(unit(IMAGES))
  drawing = settings.sampling
  drawn = samplers.draw_negatives(
    key,
    drawing,
    k=k,
    n_classes=N,
    labels_B=jnp.asarray(Y),
    images_BxE=images_BxE,
    arrays=arrays,
  )
  negatives = samplers.complete_negatives(
    drawing, arrays, drawn, jnp.asarray(Y), available
  )

  def term(rows_NxE):
    given = (
      jnp.asarray(IMAGES),
      rows_NxE[Y],
      rows_NxE[negatives.ids],
      jnp.asarray(Y),
      negatives,
    )
    return consistency(weights, settings, *given, jnp.asarray(ANCHORS))

  return jax.value_and_grad(term)(classes_NxE)


@pytest.mark.parametrize("loss", ["squared", "l1", "kl"])
def test_of_all_classes_it_is_the_published_term(loss):
  """Value and gradient; class features that depend on the image give the same."""
  settings = ContrastSettings(N, N, "log10", SCALE)
  found, gradient = term_of_draw(
    {loss: 1.0}, settings, SamplingArrays(), jax.random.key(0), CLASSES, N
  )
  leaf = torch.tensor(CLASSES, dtype=torch.float64, requires_grad=True)
  expected = torch_term(loss, IMAGES, leaf, ANCHORS, SCALE)
  expected.backward()
  assert_close(found, expected.item())
  assert_close(gradient, leaf.grad)
  negatives = samplers.Negatives(jnp.arange(N))
  per_image = jnp.repeat(jnp.asarray(CLASSES)[:, None], len(Y), axis=1)
  given = map(jnp.asarray, (IMAGES, CLASSES[Y], per_image, Y))
  found = consistency({loss: 1.0}, settings, *given, negatives, jnp.asarray(ANCHORS))
  assert_close(found, expected.item())


ARRAYS = SamplingArrays(
  bank=Bank(jnp.asarray(unit(_RNG.normal(size=(N, E))).astype(np.float32)), N),
  frequency=jnp.asarray(_RNG.dirichlet(np.ones(N)).astype(np.float32)),
  # 0 and 1 are kin, as are 3 and 7.
  kin=jnp.asarray([[{0: 1, 1: 0, 3: 7, 7: 3}.get(c, -1)] for c in range(N)]),
)


@pytest.mark.parametrize("loss", ["squared", "l1"])
@pytest.mark.parametrize(
  ("sampling", "n_available"),
  [
    (SamplingSettings(), None),
    (SamplingSettings(), 3),  # the last ones of a draw are beyond the token budget
    (SamplingSettings("frequency", mix=0.3), None),
    (SamplingSettings("posterior", mix=0.3, batch_positives=True), None),
    (SamplingSettings("hard", mix=0.3, exclude="kin"), None),
    (SamplingSettings("independent", mix=0.3, logit_scale=5.0), None),
    (
      SamplingSettings("independent", mix=0.3, logit_scale=5.0, batch_positives=True),
      None,
    ),
  ],
)
def test_its_mean_over_draws_is_the_term_over_all_classes(
  loss, sampling, n_available, monkeypatch
):
  """Value and gradient, by NumPy in float64 over many draws, within five standard
  errors."""
  monkeypatch.setitem(SAMPLERS, "independent", OTHER_SAMPLERS["independent"])
  settings = ContrastSettings(6, N, "none", SCALE, sampling)
  size = 5 * (len(Y) if sampling.name == "independent" else 1)
  available = None if n_available is None else jnp.arange(size) < n_available
  draw = functools.partial(
    term_of_draw,
    {loss: 1.0},
    settings,
    ARRAYS,
    classes_NxE=CLASSES,
    k=6,
    available=available,
  )
  n_draws = 4000
  keys = jax.random.split(jax.random.key(1), n_draws)
  found, gradients = (
    np.asarray(rows, np.float64) for rows in jax.jit(jax.vmap(draw))(keys)
  )
  leaf = torch.tensor(CLASSES, dtype=torch.float64, requires_grad=True)
  expected = torch_term(loss, IMAGES, leaf, ANCHORS, SCALE)
  expected.backward()
  for rows, whole in ((found, expected.detach()), (gradients, leaf.grad)):
    error = rows.std(axis=0) / n_draws**0.5
    assert np.all(np.abs(rows.mean(axis=0) - whole.numpy()) <= 5 * error + 1e-6)
    assert error.max() > 0


@pytest.mark.parametrize(("k", "class_size"), [(K, 1), (K, 2), (N_CLASSES, 1)])
def test_the_step_adds_the_term_of_its_own_draw(world, image_features, k, class_size):
  """Loss and gradient norm, on one device and on two; at K = N those of the
  published term."""
  module, labels = PromptContext(3, world.clip.text_width), LABELS[:4]
  mesh = make_mesh(class_size, jax.devices()[:class_size])
  anchors = unit(
    np.random.default_rng(1).normal(size=(N_CLASSES, image_features.shape[1]))
  )
  weight, images = 8.0, image_features[:4]
  parts = {
    "settings": settings_of(world, k),
    "terms": {"near": consistency_term({"squared": weight})},
  }
  step, state, frozen = make_step(world, mesh=mesh, module=module, **parts)
  frozen = frozen._replace(anchors=replicate(anchors.astype(np.float32), mesh))
  leaf = torch.nn.Parameter(
    torch.tensor(np.asarray(state.params["context"], np.float64))
  )
  drawn = draw_of(0, 0) if k == K else list(range(N_CLASSES))
  loss, _ = world.loss(leaf, "end", images, labels, drawn)
  text = F.normalize(world.class_features(leaf))
  distance = 1 - (text * torch.tensor(anchors)).sum(1)
  # An image's own class is certain; each of the n others that were drawn stands for (N
  # - 1) / n.
  others = [[c for c in drawn if c != label] for label in labels]
  terms = [
    distance[label] + (N_CLASSES - 1) * distance[rest].mean()
    for label, rest in zip(labels, others, strict=True)
  ]
  term = torch.stack(terms).mean() / N_CLASSES
  if k == N_CLASSES:
    assert_close(
      term.item(),
      torch_term("squared", images, world.class_features(leaf), anchors, 1).item(),
    )
  (loss + weight * term).backward()
  state, metrics = step(
    state, frozen, batch_of(mesh, images.astype(np.float32), labels)
  )
  assert_close(metrics["near"], weight * term.item())
  assert_close(metrics["loss"], (loss + weight * term).item())
  assert_close(metrics["grad_norm"], leaf.grad.norm().item())


@pytest.mark.parametrize("name", ["squared", "l1", "kl", "images"])
def test_a_term_says_whether_it_reads_features_of_the_frozen_tower(name):
  """It does where other such features change its value; without them a run would keep
  none, and the term would compare the learned ones with themselves."""
  settings = ContrastSettings(N, N, "log10", SCALE)
  classes = ClassFeatures(jnp.asarray(CLASSES[Y]), jnp.asarray(CLASSES))
  negatives = samplers.Negatives(jnp.arange(N))
  frozen = Frozen(None, None, None, None, anchors=jnp.asarray(ANCHORS))
  images = jnp.asarray(unit(IMAGES))
  seen = Seen(images, jnp.asarray(Y), for_sampler=images)
  term = consistency_term({name: 1.0})
  without = term.share(settings, frozen, seen, classes, negatives)
  others = jnp.asarray(unit(IMAGES[::-1]))
  beside = seen._replace(frozen=others)
  changes = (
    abs(term.share(settings, frozen, beside, classes, negatives) - without) > 1e-3
  )
  assert term.reads_frozen == bool(changes) == (name in ("kl", "images"))
