"""The soft prompt: M learned vectors, and their place among a class's own tokens.

Shapes: N classes, C classes of a call, M context vectors, L own tokens of a class
(name, ".", EOT), D width, P tokens that all classes share at the start, S start tokens
(1 or 0), I vectors that are inserted after the name, T = L + I.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32

POSITIONS = ("end", "middle", "front")

# CoOp and POMP: v ~ N(0, 0.02^2).
INIT_STDDEV = 0.02


class ClassTokens(NamedTuple):
  """Own tokens of the classes, one row for each class."""

  # Arrays of JAX or NumPy.
  ids: Any  # token ids of name, ".", EOT, zero-padded, int32 [C,L]
  # Tokens of the name alone, int32 [C]; `middle` and `front` insert context behind it.
  name_lengths: Any
  lengths: Any  # all own tokens, EOT included, int32 [C]


class Sequences(NamedTuple):
  """Prompts as inputs of a text tower (see `clip.text`)."""

  prefix: Float[Array, "P D"]
  suffix: Float[Array, "C L D"]
  lengths: Int32[Array, " C"]


class PromptContext(nn.Module):
  """The learned context, [M,D] or class-specific [N,M,D], and its layout.

  `end`: SOS, v_1..v_M, name, ".", EOT. `middle`: SOS, v_1..v_h, name, v_h+1..v_M, ".",
  EOT with h = M // 2. `front`: SOS, name, v_1..v_M, ".", EOT.
  """

  n_vectors: int  # M; 0 is the bare name
  width: int  # D
  position: str = "end"  # one of POSITIONS
  n_classes: int | None = None  # N for class-specific contexts; None for a shared one
  # Initial context, [M,D] (such as embeddings of "a photo of a") or [N,M,D]; None: N(0,
  # 0.02^2).
  init_value: Any = None

  def setup(self) -> None:
    shape: tuple[int, ...] = (self.n_vectors, self.width)
    if self.n_classes is not None:
      shape = (self.n_classes, *shape)
    self.context = self.param("context", self._initialise, shape)

  @property
  def n_before(self) -> int:
    """Number of vectors before the name."""
    by_position = {"end": self.n_vectors, "middle": self.n_vectors // 2, "front": 0}
    return by_position[self.position]

  @property
  def n_own(self) -> int:
    """Number of vectors in each class's own suffix, which the classes do not share."""
    if self.n_classes is not None:
      return self.n_vectors
    return self.n_vectors - self.n_before

  def _initialise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if self.init_value is None:
      return INIT_STDDEV * jax.random.normal(key, shape)
    value = jnp.asarray(self.init_value, jnp.float32)
    if value.shape not in (shape, shape[-2:]):
      raise ValueError(f"init_value: got shape {value.shape}, expected {shape[-2:]}")
    return jnp.broadcast_to(value, shape)

  def __call__(
    self,
    sos_SxD: Float[Array, "S D"],
    tokens_CxLxD: Float[Array, "C L D"],
    name_lengths_C: Int32[Array, " C"],
    lengths_C: Int32[Array, " C"],
    class_ids_C: Int32[Array, " C"] | None = None,
  ) -> Sequences:
    """Lays out the context and the embeddings of the classes' own tokens.

    Args:
      sos_SxD: embedding of the start token, or [0,D] for a tokenizer without one.
      tokens_CxLxD: embeddings of `ClassTokens.ids`.
      name_lengths_C: tokens of each name, see `ClassTokens`.
      lengths_C: own tokens of each class, see `ClassTokens`.
      class_ids_C: rows of a class-specific context; not read for a shared one.

    Returns:
      The prefix that all classes share (SOS, and the shared context before the name),
      and each class's suffix.
    """
    n_before = self.n_before
    n_after = self.n_vectors - n_before
    if self.n_classes is None:
      prefix_PxD = jnp.concatenate([sos_SxD, self.context[:n_before]])
      n_classes = tokens_CxLxD.shape[0]
      inside_CxIxD = jnp.broadcast_to(
        self.context[n_before:], (n_classes, n_after, self.width)
      )
      suffix_CxLxD = insert_after_name(tokens_CxLxD, inside_CxIxD, name_lengths_C)
      return Sequences(prefix_PxD, suffix_CxLxD, lengths_C + self.n_own)
    # The classes share SOS alone: the whole context is in each suffix.
    context_CxMxD = self.context[class_ids_C]
    rest_CxLxD = insert_after_name(
      tokens_CxLxD, context_CxMxD[:, n_before:], name_lengths_C
    )
    suffix_CxLxD = jnp.concatenate([context_CxMxD[:, :n_before], rest_CxLxD], axis=1)
    return Sequences(sos_SxD, suffix_CxLxD, lengths_C + self.n_own)


def insert_after_name(
  tokens_CxLxD: Float[Array, "C L D"],
  vectors_CxIxD: Float[Array, "C I D"],
  name_lengths_C: Int32[Array, " C"],
) -> Float[Array, "C L+I D"]:
  """Inserts vectors after each class's name, for all classes at once.

  Args:
    tokens_CxLxD: embeddings of each class's own tokens.
    vectors_CxIxD: vectors to insert, the same number for each class.
    name_lengths_C: tokens of each name; the tokens of the name stay in place.
  """
  n_tokens = tokens_CxLxD.shape[1]
  n_inside = vectors_CxIxD.shape[1]
  if n_inside == 0:
    return tokens_CxLxD
  position_1xT = jnp.arange(n_tokens + n_inside)[None]
  start_Cx1 = name_lengths_C[:, None]
  # `pool` holds the own tokens, then the vectors. The result reads from it the name,
  # then the vectors, then the other own tokens.
  after_CxT = position_1xT - start_Cx1
  source_CxT = jnp.where(
    after_CxT < n_inside, n_tokens + after_CxT, position_1xT - n_inside
  )
  source_CxT = jnp.where(after_CxT < 0, position_1xT, source_CxT)
  pool = jnp.concatenate([tokens_CxLxD, vectors_CxIxD], axis=1)
  return jnp.take_along_axis(pool, source_CxT[:, :, None], axis=1)
