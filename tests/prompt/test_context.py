"""Where the context stands, and what it starts from."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pomp_jax.prompt.context import PromptContext
from tests.support.oracles import plain_layout

# Fixed sizes: every new shape would be compiled anew.
N_CLASSES, N_ROWS, N_TOKENS, WIDTH = 5, 3, 7, 2


@st.composite
def _prompts(draw):
  """A prompt's settings and classes of different lengths, some with no padding left."""
  lengths = draw(st.lists(st.integers(1, N_TOKENS), min_size=N_ROWS, max_size=N_ROWS))
  return {
    "n_vectors": draw(st.integers(0, 16)),
    "position": draw(st.sampled_from(["end", "middle", "front"])),
    "per_class": draw(st.booleans()),
    "lengths": lengths,
    "name_lengths": [draw(st.integers(0, length)) for length in lengths],
    "class_ids": draw(
      st.lists(st.integers(0, N_CLASSES - 1), min_size=N_ROWS, max_size=N_ROWS)
    ),
  }


def _apply(prompt, context, sos, tokens):
  module = PromptContext(
    prompt["n_vectors"],
    WIDTH,
    prompt["position"],
    N_CLASSES if prompt["per_class"] else None,
  )
  return jax.jit(module.apply)(
    {"params": {"context": context}},
    sos,
    tokens,
    jnp.array(prompt["name_lengths"], jnp.int32),
    jnp.array(prompt["lengths"], jnp.int32),
    jnp.array(prompt["class_ids"], jnp.int32),
  )


@hypothesis.given(prompt=_prompts())
def test_every_layout_is_the_plain_one(prompt):
  # Each vector is a number of its own: SOS 1, tokens 100 + .., the context 1000 + ...
  sos = np.ones((1, WIDTH), np.float32)
  tokens = 100 + np.arange(N_ROWS * N_TOKENS * WIDTH, dtype=np.float32)
  tokens = tokens.reshape(N_ROWS, N_TOKENS, WIDTH)
  shape = (N_CLASSES,) * prompt["per_class"] + (prompt["n_vectors"], WIDTH)
  context = 1000 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

  sequences = _apply(
    prompt, jnp.asarray(context), jnp.asarray(sos), jnp.asarray(tokens)
  )
  # What precedes the name is computed once for all classes that share it.
  n = 0 if prompt["per_class"] else prompt["n_vectors"]
  assert (
    len(sequences.prefix)
    == 1 + {"end": n, "middle": n // 2, "front": 0}[prompt["position"]]
  )
  for row in range(N_ROWS):
    n_name, length = prompt["name_lengths"][row], prompt["lengths"][row]
    expected = plain_layout(
      sos[0],
      context[prompt["class_ids"][row]] if prompt["per_class"] else context,
      tokens[row, :n_name],
      tokens[row, n_name:length],
      prompt["position"],
    )
    found = jnp.concatenate(
      [sequences.prefix, sequences.suffix[row, : sequences.lengths[row]]]
    )
    np.testing.assert_array_equal(found, expected)


def _context(*settings, **named):
  module = PromptContext(*settings, **named)
  return module.init(jax.random.key(0), method=lambda m: m.context)["params"]["context"]


@pytest.mark.parametrize("n_classes", [None, 16])
def test_a_fresh_context_is_normal_with_deviation_0_02(n_classes):
  context = np.asarray(_context(16, 512, n_classes=n_classes))
  assert context.shape == ((16, 512) if n_classes is None else (16, 16, 512))
  assert context.dtype == np.float32
  # The shape by Kolmogorov-Smirnov; the deviation to four of its standard errors at
  # 8,192 values.
  assert scipy.stats.kstest(context.ravel() / 0.02, "norm").pvalue > 0.01
  assert abs(context.std() / 0.02 - 1) < 0.03
  assert len(np.unique(context)) > 0.9 * context.size


def test_a_context_starts_from_words_for_all_classes_or_for_each():
  words = np.arange(6, dtype=np.float32).reshape(3, 2)
  np.testing.assert_array_equal(_context(3, 2, init_value=words), words)
  np.testing.assert_array_equal(
    _context(3, 2, n_classes=4, init_value=words), [words] * 4
  )
  each = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
  np.testing.assert_array_equal(_context(3, 2, n_classes=4, init_value=each), each)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 3), (1, 3, 2), (5, 3, 2)])
@pytest.mark.parametrize("n_classes", [None, 4])
def test_a_first_value_of_another_shape_is_refused(shape, n_classes):
  with pytest.raises(ValueError, match="init_value"):
    _context(3, 2, n_classes=n_classes, init_value=np.zeros(shape, np.float32))
