"""Class features by few programs: sentences of any length, and any number of names,
share one."""

import collections
import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.encoder import Encoder, rounded_up
from pomp_jax.evaluate import opening
from pomp_jax.files.pieces import ArrayCache
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import class_sequences
from pomp_jax.prompt.loss import normalize
from tests.support.clips import PLAIN_TOWER, with_kernel
from tests.support.small_run import small_config

CANDIDATES = (
  "{}.",
  "art of the {}.",
  "a photo of a {}.",
  "a bad photo of the {}.",
  "itap of a {}.",
  "a photo of the {}.",
  "a {} in a game.",
)
SHORT = ["cat", "leaf", "o'clock", "star", "fox"]
NAMES = [
  "cat",
  "guinea pig",
  "Boeing 747-400",
  "red star on navy",
  "teal leaf",
  "o'clock",
]


@pytest.fixture
def encoder(one_layer):
  clip = opening.open_encoder(small_config(**{"clip.model": one_layer}).clip).clip
  return Encoder(clip, chunk=4)


@pytest.fixture
def compiled():
  """How often each function has been compiled."""
  counts = collections.Counter()

  def count(event: str, seconds: float, **facts: str) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      counts[facts.get("fun_name", "")] += 1

  jax.monitoring.register_event_duration_secs_listener(count)
  yield counts
  jax.monitoring.unregister_event_duration_listener(count)


def test_candidate_sentences_share_a_program(encoder, compiled):
  found = [encoder.class_features(SHORT, text) for text in CANDIDATES]
  encoder.class_features([f"teal {name}" for name in SHORT * 2], CANDIDATES[0])
  assert {name: n for name, n in compiled.items() if "class_features" in name} == {
    "jit(class_features)": 1
  }
  for text, features_NxE in list(zip(CANDIDATES, found, strict=True))[:2]:
    tokens = encoder._tokenize([text.replace("{}", name) for name in SHORT])
    context = np.zeros((0, encoder.clip.text_width), np.float32)
    assert_unpadded(features_NxE, encoder, tokens, context)


def assert_unpadded(found_NxE, encoder, tokens, context, position="end"):
  """Asserts that features are those of a program for exactly these tokens."""
  frozen, n_classes = encoder.frozen(tokens), len(tokens.ids)
  own = n_classes if context.ndim == 3 else None
  module = PromptContext(context.shape[-2], context.shape[-1], position, own)

  @jax.jit
  def features(context):
    rows = class_sequences(module, {"context": context}, frozen, jnp.arange(n_classes))
    return normalize(encoder.text_tower()(frozen.text, *rows))

  np.testing.assert_allclose(found_NxE, features(context), rtol=0, atol=2e-6)


def test_padding_does_not_change_a_learned_prompt(encoder):
  """Neither class-specific vectors, nor as many as the text tower's positions leave
  room for."""
  most = encoder.clip.positions - 1 - int(max(encoder.vocabulary(NAMES, 1).lengths))
  for shape, position in (((len(NAMES), 3), "middle"), ((most,), "front")):
    size = (*shape, encoder.clip.text_width)
    context = np.random.default_rng(0).normal(0, 0.02, size).astype(np.float32)
    found = encoder.class_features(NAMES, Prompt(context, encoder.clip.name, position))
    assert_unpadded(
      found, encoder, encoder.vocabulary(NAMES, shape[-1]), context, position
    )


@pytest.fixture
def numbered():
  """A function: encoder -> the encoder, whose class features are the number of
  computations."""
  numbers = itertools.count(1)

  def number(encoder):
    compute = lambda params, frozen, position, **_: np.full(
      (len(SHORT), 2), next(numbers), float
    )
    encoder.features_of_classes = compute
    return encoder

  return number


def test_the_cache_tells_apart_what_class_features_depend_on(encoder, numbered):
  """Position, vectors, names, and whether the features are normalised."""
  context = np.ones((4, encoder.clip.text_width), np.float32)
  prompts = [
    Prompt(context, encoder.clip.name, place) for place in ("end", "middle", "front")
  ]
  prompts += [
    Prompt(2 * context, encoder.clip.name),
    Prompt(context[:2], encoder.clip.name),
  ]
  prompts += ["{}.", "a {}."]
  encoder._cache = ArrayCache(in_memory=99)
  features = numbered(encoder).class_features
  keys = list(itertools.product((SHORT, SHORT[::-1]), prompts, (True, False)))
  for _ in range(2):  # computed, and found again
    found = [features(names, prompt, unit=unit)[0, 0] for names, prompt, unit in keys]
    assert found == list(range(1, len(keys) + 1))


def test_a_store_of_class_features_serves_encoders_that_differ(
  encoder, numbered, tmp_path
):
  """In the tower's precision, its kind, its weights, its embeddings or its settings."""
  clip = encoder.clip
  kernel = 2 * np.asarray(clip.params["text_projection"]["kernel"])
  text_config = copy.copy(clip.config.text_config)
  text_config.num_attention_heads *= 2
  other_heads = dataclasses.replace(clip.config, text_config=text_config)

  def found():
    cache = ArrayCache(tmp_path / "classes")
    encoders = [
      Encoder(clip, cache=cache),
      Encoder(clip, cache=cache, dtype="bfloat16"),
      Encoder(clip, cache=cache, tower=PLAIN_TOWER),
      Encoder(with_kernel(clip, "text_projection", kernel), cache=cache),
      Encoder(dataclasses.replace(clip, config=other_heads), cache=cache),
    ]
    return [numbered(one).class_features(SHORT, "{}.")[0, 0] for one in encoders]

  assert found() == [1, 2, 3, 4, 5]
  # Another process finds them.
  assert found() == [1, 2, 3, 4, 5]


def test_shapes_are_rounded_up_by_a_quarter_at_most():
  values = {number: rounded_up(number, 16) for number in range(1, 4000)}
  assert all(number <= value for number, value in values.items())
  assert all(
    4 * value < 5 * number + 4 for number, value in values.items() if number >= 16
  )
  assert len(set(values.values())) == 33
