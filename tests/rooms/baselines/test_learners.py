"""CoCoOp, VPT, MaPLe, IVLP against torch, on HuggingFace's CLIPModel; what their towers
keep.

KgCoOp and PromptSRC, which are learners with terms of consistency, for 25 steps.
"""

import contextlib
import copy
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional

from pomp_jax.clip.text import text_tower, token_table
from pomp_jax.clip.vision import image_tower
from pomp_jax.config import ConfigError, unpack
from pomp_jax.config.fields import Data, Prompt
from pomp_jax.configs import promptsrc
from pomp_jax.data.class_lists import load_class_list, load_templates
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import describe
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.optimizer import result_of, sgd
from pomp_jax.prompt.step import (
  ContrastSettings,
  StepParts,
  create_state,
  make_train_step,
)
from pomp_jax.rooms.baselines.cocoop import CoCoOpLearner
from pomp_jax.rooms.baselines.fields import Tokens
from pomp_jax.rooms.baselines.learner_accuracy import learner_accuracy
from pomp_jax.rooms.baselines.visual_tokens import (
  IVLPLearner,
  MaPLeLearner,
  VPTLearner,
  prompted_activation_bytes,
  prompted_image_tower,
)
from pomp_jax.rooms.regularisation import words
from pomp_jax.rooms.regularisation.averaging import averaging
from pomp_jax.rooms.regularisation.consistency import consistency_term
from pomp_jax.rooms.regularisation.fields import Consistency
from pomp_jax.train.initial_context import initial_context, initial_words
from pomp_jax.train.methods import method_of
from tests.evaluate.test_ranking import Pictures
from tests.rooms.regularisation.test_consistency import published
from tests.support.checks import assert_close, equations
from tests.support.clips import pooled
from tests.support.small_run import settings
from tests.support.torch_world import NAMES, World, write_world

pytestmark = pytest.mark.mesh

N_LAYERS = 3


class Tiny(NamedTuple):
  """A CLIP with ten classes, eight images and their labels."""

  world: World
  frozen: Frozen
  images: np.ndarray
  labels: np.ndarray


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  """Class features of its own for learners that want fixed ones."""
  world = write_world(
    tmp_path_factory.mktemp("tiny"), NAMES[:4] + NAMES[5:11], positions=24
  )
  rng = np.random.default_rng(0)
  classes = rng.standard_normal((10, world.clip.config.projection_dim)).astype(
    np.float32
  )
  images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
  labels = np.array([3, 3, 7, 0, 1, 9, 4, 3], np.int32)
  return Tiny(world, world.frozen._replace(classes=classes), images, labels)


def learner_of(tiny, name):
  """Returns a learner without a token budget."""
  tower = text_tower("shared", tiny.world.clip.config.text_config)
  vision = prompted_image_tower(tiny.world.clip, chunk=1 if name == "vpt_deep" else 0)
  width, vision_width = (
    tiny.world.clip.text_width,
    tiny.world.clip.config.vision_config.hidden_size,
  )
  plain = lambda m, position="end": ContextLearner(
    PromptContext(m, width, position), tower
  )
  return {
    "pomp": lambda: plain(2),
    "cocoop": lambda: CoCoOpLearner(plain(3, "middle"), 24),
    "vpt_shallow": lambda: VPTLearner(vision, vision_width, 4, depth=1),
    "vpt_deep": lambda: VPTLearner(vision, vision_width, 2, depth=N_LAYERS),
    "maple": lambda: MaPLeLearner(vision, plain(2), N_LAYERS, vision_width),
    "ivlp": lambda: IVLPLearner(vision, vision_width, 3, N_LAYERS, plain(2)),
    "maple_one": lambda: MaPLeLearner(vision, plain(3), 1, vision_width),
  }[name]()


@contextlib.contextmanager
def tokens_put_in(first, layers, tokens, place):
  """Appends tokens[0] to the input of `first`, if any; tokens[j] replace `place` in
  layer j's."""
  hooks = []

  def rows(hidden, j):
    return tokens[j].expand(len(hidden), -1, -1)

  if first is not None:
    hooks.append(
      first.register_forward_pre_hook(
        lambda module, inputs: (torch.cat([inputs[0], rows(inputs[0], 0)], dim=1),)
      )
    )

  def replaced(j):
    def hook(module, inputs, keywords):
      hidden = inputs[0].clone()
      hidden[:, place] = rows(hidden, j)
      return (hidden, *inputs[1:]), keywords

    return hook

  for j in range(1, len(tokens)):
    hooks.append(layers[j].register_forward_pre_hook(replaced(j), with_kwargs=True))
  yield
  for hook in hooks:
    hook.remove()


def torch_image_features(tiny, tokens):
  """Returns f(x) of all images with tokens [J,V,D] after the patches."""
  vision = tiny.world.model.vision_model
  behind = slice(-tokens.shape[1], None)
  with tokens_put_in(vision.pre_layrnorm, vision.encoder.layers, tokens, behind):
    return tiny.world.image_features(tiny.images)


def torch_class_features(tiny, context, position="end", deep=()):
  """Returns g(t_c) of all classes, with MaPLe's deeper vectors in place of the
  context."""
  layers = tiny.world.model.text_model.encoder.layers
  tokens = [None, *deep]
  with tokens_put_in(None, layers, tokens, slice(1, 1 + len(context))):
    return tiny.world.class_features(context, position)


def torch_logits(tiny, learner, params):
  if isinstance(learner, CoCoOpLearner):
    images = functional.normalize(tiny.world.image_features(tiny.images))
    net = params["meta_net"]
    hidden = torch.relu(images @ net["hidden"]["kernel"] + net["hidden"]["bias"])
    shifts = hidden @ net["shift"]["kernel"] + net["shift"]["bias"]
    rows = []
    for image, shift in zip(images, shifts, strict=True):
      classes = torch_class_features(tiny, params["context"] + shift, "middle")
      rows.append(functional.normalize(classes) @ image)
    return tiny.world.scale * torch.stack(rows)
  images, classes = torch_features(tiny, learner, params)
  return (
    tiny.world.scale * functional.normalize(images) @ functional.normalize(classes).T
  )


def torch_features(tiny, learner, params):
  """Returns f(x) of all images and g(t_c) of all classes, which no image changes."""
  if isinstance(learner, MaPLeLearner):
    deep = list(params.get("deep", ()))
    text = torch.stack([params["context"], *deep])
    coupling = params["coupling"]
    visual = torch.stack([text[j] @ coupling["kernel"][j] for j in range(len(text))])
    images = torch_image_features(tiny, visual + coupling["bias"][:, None])
    return images, torch_class_features(tiny, params["context"], deep=deep)
  no_tokens = torch.zeros(1, 0, tiny.world.clip.config.vision_config.hidden_size)
  images = torch_image_features(tiny, params.get("visual", no_tokens))
  if "context" in params:
    return images, torch_class_features(
      tiny, params["context"], deep=list(params.get("deep", ()))
    )
  return images, torch.tensor(np.asarray(tiny.frozen.classes), dtype=torch.float64)


def to_torch(tree):
  return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), tree)


@pytest.mark.parametrize(
  "name", ["cocoop", "vpt_shallow", "vpt_deep", "maple", "maple_one", "ivlp"]
)
def test_loss_and_gradients_equal_torch(tiny, name):
  """A step of rate 1 on a 2 x 2 mesh moves the parameters by the gradient; K = N."""
  learner = learner_of(tiny, name)
  if not learner.learns_images:
    learner = dataclasses.replace(learner, image_tower=image_tower(tiny.world.clip))
  n_classes, mesh = len(tiny.frozen.tokens.lengths), make_mesh(2, jax.devices()[:4])
  optimizer = sgd(lambda step: 1.0, 0.0, 0.0)
  step = make_train_step(
    StepParts(
      mesh=mesh,
      learner=learner,
      optimizer=optimizer,
      settings=ContrastSettings(
        n_classes, n_classes, "log", tiny.world.clip.logit_scale
      ),
      accumulate=2,
    )
  )
  state = replicate(create_state(learner, optimizer, seed=3), mesh)
  before = jax.tree.map(np.array, state.params)
  params = to_torch(before)
  leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(params)]
  logits = torch_logits(tiny, learner, params)
  labels = torch.tensor(tiny.labels).long()
  loss = functional.cross_entropy(logits, labels)
  loss.backward()

  rows = NamedSharding(mesh, PartitionSpec("data"))
  batch = jax.device_put({"image": tiny.images, "label": tiny.labels}, rows)
  state, metrics = step(state, replicate(tiny.frozen, mesh), batch)
  assert_close(metrics["loss"], loss.item())
  assert (
    float(metrics["accuracy"])
    == (logits.argmax(dim=1) == labels).double().mean().item()
  )
  for start, moved, leaf in zip(
    jax.tree.leaves(before), jax.tree.leaves(state.params), leaves, strict=True
  ):
    if start.size:
      assert leaf.grad.abs().max() > 0
      # The difference of float32 parameters loses some digits of the gradient.
      rounding = 1e-6 * np.abs(start).max() / leaf.grad.abs().max().item()
      assert_close(start - np.asarray(moved), leaf.grad, 2e-5 + rounding)


@pytest.mark.parametrize(
  ("name", "vision", "text", "most"),
  [("vpt_deep", 3, 2, 3), ("maple", 3, 2, 2), ("maple", 2, 3, 2), ("ivlp", 2, 3, 2)]
  + [("protext", 2, 3, 3)],
)
def test_a_depth_has_at_most_the_layers_of_the_shallower_tower(
  tiny, name, vision, text, most
):
  config = copy.deepcopy(tiny.world.clip.config)
  config.vision_config.num_hidden_layers = vision
  config.text_config.num_hidden_layers = text
  method = method_of(name)
  method.check(Prompt().having(Tokens(depth=most)), config)
  with pytest.raises(
    ConfigError, match=f"prompt.depth: got {most + 1}, expected at most {most}"
  ):
    method.check(Prompt().having(Tokens(depth=most + 1)), config)


@pytest.mark.parametrize(
  ("name", "terms"),
  [
    pytest.param("pomp", {"squared": 8.0}, id="KgCoOp"),
    pytest.param(
      "pomp",
      {"l1": 25.0, "kl": 1.0},
      id="PromptSRC of a context alone",
      marks=pytest.mark.slow("the terms are tested one by one"),
    ),
    pytest.param(
      "ivlp",
      {"l1": 25.0, "kl": 1.0, "images": 10.0},
      id="PromptSRC",
      marks=pytest.mark.slow("the terms are tested one by one"),
    ),
  ],
)
def test_five_epochs_equal_the_published_trainer(tiny, name, terms):
  """First gradient, losses and the mean over the ends of five epochs, on a 2 x 2 mesh.

  KgCoOp/trainers/kgcoop.py of htyao89/KgCoOp c43ccc3: `CustomCLIP.forward`,
  `KgCoOp.forward_backward`. trainers/promptsrc.py of muzairkhattak/PromptSRC bb95c77:
  `CustomCLIP.forward`, `PromptSRC.forward_backward`. Dassl's SGD is torch's. From this
  seed no feature comes within rounding of its anchor, where L1's gradient jumps.
  """
  consistency = {"consistency": consistency_term(terms)} if terms else {}
  tower, mesh = image_tower(tiny.world.clip), make_mesh(2, jax.devices()[:4])
  learner = dataclasses.replace(
    learner_of(tiny, name), image_tower=tower, terms=consistency
  )
  rate, epochs = 0.0025, np.arange(1, 6)
  gaussian = {"mean": 3.0, "sigma": 1.5, "decay": 0.0}
  average = averaging("gaussian", schedule="epoch", steps_per_epoch=2, **gaussian)
  optimizer = optax.chain(sgd(lambda step: rate, 0.9, 5e-4), average)
  n_classes = len(tiny.frozen.tokens.lengths)
  settings = ContrastSettings(n_classes, n_classes, "log", tiny.world.clip.logit_scale)
  step = make_train_step(StepParts(mesh, learner, optimizer, settings, accumulate=2))
  state = replicate(create_state(learner, optimizer, seed=4), mesh)
  params = to_torch(state.params)
  leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(params)]
  torch_optimizer = torch.optim.SGD(leaves, rate, 0.9, weight_decay=5e-4)
  unit_rows = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
  anchors = unit_rows(tiny.frozen.classes)
  text0 = torch.tensor(anchors, dtype=torch.float64)
  images0 = functional.normalize(tiny.world.image_features(tiny.images))
  frozen = replicate(tiny.frozen._replace(anchors=anchors), mesh)
  rows = NamedSharding(mesh, PartitionSpec("data"))
  batch = jax.device_put({"image": tiny.images, "label": tiny.labels}, rows)
  labels, scale, means = torch.tensor(tiny.labels).long(), tiny.world.scale, []
  for number in range(1, 11):
    images, text = map(functional.normalize, torch_features(tiny, learner, params))
    logits = scale * images @ text.T
    given = logits, text, text0, scale * images0 @ text0.T
    loss = functional.cross_entropy(logits, labels)
    for kind, weight in terms.items():
      of_images = kind == "images"
      term = (
        functional.l1_loss(images, images0) if of_images else published(kind, *given)
      )
      loss = loss + weight * term
    torch_optimizer.zero_grad()
    loss.backward()
    gradient = [(leaf.grad + 5e-4 * leaf).detach() for leaf in leaves]
    torch_optimizer.step()
    state, metrics = step(state, frozen, batch)
    assert_close(metrics["loss"], loss.item())
    if number == 1:
      for trace, leaf in zip(
        jax.tree.leaves(optax.tree.get(state.opt_state, "trace")), gradient, strict=True
      ):
        assert_close(trace, leaf)
    if number % 2 == 0:
      means.append([leaf.detach().numpy().copy() for leaf in leaves])
  weights = np.exp(-0.5 * ((epochs - 3.0) / 1.5) ** 2)
  found = jax.tree.leaves(result_of(state.params, state.opt_state))
  for leaf, *of_epochs in zip(found, *means, strict=True):
    assert_close(leaf, np.average(of_epochs, axis=0, weights=weights))
    assert np.abs(of_epochs[0] - of_epochs[-1]).max() > 1e-3


def test_promptsrcs_anchors_are_the_mean_of_the_towers_outputs(quick):
  """`VLPromptLearner.fixed_embeddings` of muzairkhattak/PromptSRC bb95c77, and its
  norm."""
  names = ("cat", "the_dog", "star of the sea")
  encoder = Encoder(quick.clip, mesh=make_mesh(devices=jax.devices()[:1]))
  classes = dataclasses.replace(
    load_class_list("imagenet1k"), names=names, synsets=None
  )
  outputs = []
  for template in load_templates("imagenet_60"):
    texts = [template.replace("{}", name.replace("_", " ")) for name in names]
    with torch.no_grad():
      outputs.append(pooled(quick.torch_model.get_text_features(**quick.padded(texts))))
  expected = functional.normalize(torch.stack(outputs).mean(0)).numpy()
  anchors = unpack(promptsrc.get_config()).of(Consistency).anchors
  assert_close(words.features(anchors, encoder, classes), expected, 1e-5)
  # The mean of unit features is another, and a cache must tell them apart.
  other = anchors.replace("outputs", "ensemble")
  assert np.abs(words.features(other, encoder, classes) - expected).max() > 1e-3
  assert describe(other, classes) != describe(anchors, classes)


@pytest.mark.parametrize("name", ["cocoop", "vpt_deep", "maple", "ivlp"])
def test_accuracy_equals_that_of_torchs_logits(tiny, name, monkeypatch):
  monkeypatch.setattr("pomp_jax.rooms.baselines.learner_accuracy._CLASSES", 4)
  monkeypatch.setattr("pomp_jax.rooms.baselines.learner_accuracy._IMAGES", 5)
  monkeypatch.setattr(
    "pomp_jax.rooms.baselines.learner_accuracy._IMAGES_WITH_CLASSES", 3
  )
  learner = learner_of(tiny, name)
  params = learner.init(jax.random.key(5))
  with torch.no_grad():
    logits = torch_logits(tiny, learner, to_torch(params))
    features = functional.normalize(tiny.world.image_features(tiny.images)).numpy()
  encoder = Encoder(tiny.world.clip, mesh=make_mesh(devices=jax.devices()[:1]))
  names = tuple(f"class {c}" for c in range(logits.shape[1]))
  # Right for five of the eight by torch.
  labels = logits.argmax(dim=1).numpy().astype(np.int32)
  labels[[1, 4, 6]] = logits.topk(6, dim=1).indices[[1, 4, 6], 5].numpy()
  split = SplitFeatures(
    names, labels, features.astype(np.float32), np.arange(len(labels))
  )
  accuracy = learner_accuracy(encoder, learner, name == "cocoop", Data())
  params, frozen = replicate((params, tiny.frozen), encoder.mesh)
  source = Pictures(names, labels, tiny.images)
  found = accuracy(params, frozen, split, source)
  assert (found["top1"], found["top5"], found["images"]) == (5 / 8, 5 / 8, 8)
  # Batch by batch; the last image also pads.
  assert source.read.sum() == (0 if name == "cocoop" else 2 * 5)
  # Of some of the images.
  some = np.array([0, 1, 2, 4, 7])
  split = SplitFeatures(names, labels[some], split.features[some], some)
  found = accuracy(params, frozen, split, source)
  assert (found["top1"], found["images"]) == (3 / 5, 5)


def test_cocoop_without_its_net_is_the_plain_context(tiny):
  module = PromptContext(3, tiny.world.clip.text_width)
  tower = text_tower("shared", tiny.world.clip.config.text_config)
  plain = ContextLearner(module, tower, 30)
  cocoop = CoCoOpLearner(plain, 24)
  params = cocoop.init(jax.random.key(0))
  params["meta_net"] = jax.tree.map(jnp.zeros_like, params["meta_net"])
  ids, images = jnp.array([4, 1, 9, 1]), jnp.ones((2, 24))
  frozen = jax.tree.map(jnp.asarray, tiny.frozen)
  found = jax.jit(cocoop.text_features)(params, frozen, ids, images)
  expected = jax.jit(plain.text_features)(
    {"context": params["context"]}, frozen, ids, images
  )
  for image in range(2):
    assert_close(found.features[:, image], expected.features)
  np.testing.assert_array_equal(found.available, expected.available)


def test_first_parameters_are_functions_of_the_key_with_the_published_spread(tiny):
  learner = learner_of(tiny, "maple")
  first, again, other = (learner.init(jax.random.key(seed)) for seed in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.any(np.asarray(first["context"]) == np.asarray(other["context"]))
  kernel = np.asarray(first["coupling"]["kernel"])
  np.testing.assert_array_equal(kernel[1], kernel[2])
  assert not np.any(kernel[0] == kernel[1])
  assert 0.9 < np.abs(kernel).max() * np.sqrt(kernel.shape[1]) <= 1
  assert 0.01 < np.asarray(first["deep"]).std() < 0.03


def test_initial_maple_equals_the_hand_written_sentence(tiny):
  """With two learned words and two fixed ones, features equal HuggingFace's of the
  sentence."""
  sentence, names = "the star of a", ("cat", "the_dog of the star", "x")
  config = settings(
    **{"method": "maple", "prompt.m": 2, "prompt.init": sentence, "negatives": "all"}
  )
  encoder = Encoder(tiny.world.clip, mesh=make_mesh(devices=jax.devices()[:1]))
  method = method_of(config.method)
  ids_M, fixed_F = np.split(
    initial_words(config.prompt, tiny.world.clip, fixed_words=True), [2]
  )
  whole = tiny.world.clip.tokenizer(f"{sentence} cat.")["input_ids"][1:]
  frozen = method.frozen_arrays(config.prompt, "", encoder, names)
  own = np.asarray(frozen.tokens.ids[0])
  assert [*ids_M, *own[: frozen.tokens.lengths[0]]] == whole
  assert len(fixed_F) == 2

  start = initial_context(
    config.prompt, tiny.world.clip, len(names), method.fixed_words
  )
  embeddings_VxD = np.asarray(token_table(tiny.world.clip.params))
  np.testing.assert_array_equal(start, embeddings_VxD[whole[:2]])
  module = PromptContext(2, tiny.world.clip.text_width, init_value=start)
  plain = ContextLearner(module, encoder.text_tower())
  learner = method.make_learner(plain, encoder, config.prompt, config.clip)
  params = learner.init(jax.random.key(0))
  text_features = jax.jit(learner.text_features)
  found = text_features(params, frozen, jnp.arange(3), jnp.zeros((0, 1))).features
  # HuggingFace's own mask knows no float64.
  model = copy.deepcopy(tiny.world.model).float()
  for name, feature in zip(names, found, strict=True):
    text = f"{sentence} {name.replace('_', ' ')}."
    ids = torch.tensor([tiny.world.clip.tokenizer(text)["input_ids"]])
    with torch.no_grad():
      assert_close(feature, pooled(model.get_text_features(ids))[0].numpy(), 2e-5)

  for changes in ({"method": "pomp"}, {"prompt.m": 5}):
    with pytest.raises(ConfigError, match=r"prompt\.init: .*4"):
      other = config.replace(changes)
      initial_words(other.prompt, tiny.world.clip, method_of(other.method).fixed_words)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_prompted_tower_is_rematerialised_only_where_memory_asks(quick, share):
  images = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  )
  config = quick.clip.config.vision_config
  tokens = np.full((2, 3, config.hidden_size), 0.1, np.float32)
  needed = prompted_activation_bytes(config, len(images), tokens.shape[1])

  def gradient(chunk, limit):
    tower = prompted_image_tower(quick.clip, chunk=chunk, limit_bytes=limit)
    return jax.jit(
      jax.grad(lambda t: jnp.sum(tower(quick.clip.vision_params, images, t) ** 2))
    )

  def rematerialised(function):
    program = jax.make_jaxpr(function)(tokens)
    return any(e.primitive.name.startswith("remat") for e in equations(program.jaxpr))

  chunked = gradient(2, share * needed)
  assert rematerialised(chunked) == (share < 1)
  # One chunk would need all of its activations at once in either case.
  whole = gradient(3, share * needed)
  assert not rematerialised(whole)
  assert_close(chunked(tokens), whole(tokens), 1e-5)


def test_the_estimate_of_a_prompted_towers_activations(quick):
  config, n_images = quick.clip.config.vision_config, 64
  images = jnp.zeros((n_images, 32, 32, 3), jnp.uint8)
  tokens = np.full((2, 3, config.hidden_size), 0.1, np.float32)
  tower = prompted_image_tower(quick.clip)
  loss = lambda t: jnp.sum(tower(quick.clip.vision_params, images, t) ** 2)
  measured = (
    jax.jit(jax.grad(loss)).lower(tokens).compile().memory_analysis().temp_size_in_bytes
  )
  assert 0.6 < prompted_activation_bytes(config, n_images, 3) / measured < 1.5
