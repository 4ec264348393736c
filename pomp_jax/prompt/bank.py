"""The bank: text features of all classes under recent prompts, which samplers compare
images with.

A step writes back the features that it computes anyway and renews the next few classes
in turn, so that no row is older than N / renew steps. Rows are sharded over all devices
of the mesh.

Shapes: N classes, R rows of a device (N rounded up to a multiple of the devices), D
data indices, B images of a group, C classes, E embedding.
"""

import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.clip.packed import taken_of
from pomp_jax.prompt.mesh import CLASS, DATA

DTYPES = ("float32", "bfloat16")
# Shard i of the rows is on device (data, class) with i = data * class_size + class.
SHARDED = P((DATA, CLASS))


class Bank(struct.PyTreeNode):
  """Unit text features of all classes."""

  rows: Any  # [N,E]; sharded, the device's own [R,E]
  n_classes: int = struct.field(pytree_node=False)  # N, static
  # Whether `rows` are a device's own, inside a `shard_map` over the mesh.
  sharded: bool = struct.field(pytree_node=False, default=False)
  # Whether `mean_softmax` has an image's own class too, as a teacher's does.
  keeps_own: bool = struct.field(pytree_node=False, default=False)

  def of_classes(self, ids_C: Int32[Array, " C"]) -> Float[Array, "C E"]:
    """Features of some classes, which may differ between data indices."""
    if not self.sharded:
      return self.rows[ids_C].astype(jnp.float32)
    ids_DC = jax.lax.all_gather(ids_C, DATA, tiled=True)
    local_DC = ids_DC - self._first_row()
    mine_DC = (local_DC >= 0) & (local_DC < len(self.rows))
    found_DCxE = jnp.where(
      mine_DC[:, None], self.rows[jnp.where(mine_DC, local_DC, 0)], 0
    )
    found_DCxE = jax.lax.psum(found_DCxE.astype(jnp.float32), CLASS)
    return jax.lax.psum_scatter(found_DCxE, DATA, tiled=True)

  def mean_softmax(
    self,
    anchors_BxE: Float[Array, "B E"],
    labels_B: Int32[Array, " B"],
    temperature: float,
    *,
    own_class: bool,
  ) -> Float[Array, " N"]:
    """Mean over the images of softmax_c(a_i . g_c / T), 0 for an image's own, but of a
    teacher.

    The anchors a_i are unit features; a negative T is for the classes far from them.
    With `own_class` an image's own class takes part in its denominator: an image that
    is certain of its class then proposes next to nothing, and the sum is below 1.
    """
    shares_BxR = self._shares(anchors_BxE, labels_B, temperature, own_class)
    q_DxR = jnp.mean(shares_BxR.reshape(-1, len(labels_B), len(self.rows)), axis=1)
    if self.sharded:
      # To each data index the shares of its own images: from data index d the rows of
      # d.
      q_DxR = jax.lax.all_to_all(q_DxR, DATA, split_axis=0, concat_axis=0, tiled=True)
      q_DxR = jax.lax.all_gather(q_DxR, CLASS, axis=1)
    return q_DxR.reshape(-1)[: self.n_classes]

  def _shares(
    self,
    anchors_BxE: jax.Array,
    labels_B: jax.Array,
    temperature: float,
    own_class: bool,
  ) -> jax.Array:
    """Softmax of each image over the rows of all devices, 0 for its own class, but of a
    teacher.

    [B,R], of the device's rows and the images of all data indices.
    """
    if self.sharded:
      # Every device scores the images of all data indices against its own rows.
      anchors_BxE = jax.lax.all_gather(anchors_BxE, DATA, tiled=True)
      labels_B = jax.lax.all_gather(labels_B, DATA, tiled=True)
    ids_R = self._first_row() + jnp.arange(len(self.rows))
    logits_BxR = (
      jnp.matmul(
        anchors_BxE.astype(self.rows.dtype),
        self.rows.T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
      )
      / temperature
    )
    own_BxR = labels_B[:, None] == ids_R
    is_class_R = ids_R < self.n_classes
    counted_BxR = is_class_R if own_class else is_class_R & ~own_BxR
    logits_BxR = jnp.where(counted_BxR, logits_BxR, -jnp.inf)
    reduced = lambda how, values_B: (
      how(values_B, (DATA, CLASS)) if self.sharded else values_B
    )
    highest_B = reduced(jax.lax.pmax, jnp.max(logits_BxR, axis=1))
    terms_BxR = jnp.exp(logits_BxR - highest_B[:, None])
    totals_B = reduced(jax.lax.psum, jnp.sum(terms_BxR, axis=1))
    shares_BxR = terms_BxR / totals_B[:, None]
    return shares_BxR if self.keeps_own else jnp.where(own_BxR, 0.0, shares_BxR)

  def _first_row(self) -> jax.Array | int:
    return _first_row(len(self.rows)) if self.sharded else 0


def _first_row(n_rows: int) -> jax.Array:
  """The first class of this device's rows."""
  index = jax.lax.axis_index(DATA) * jax.lax.axis_size(CLASS) + jax.lax.axis_index(
    CLASS
  )
  return index * n_rows


def place_rows(features_NxE: np.ndarray, mesh: Mesh, dtype: str) -> jax.Array:
  """Shards the features of all classes over the mesh; rows beyond N are zero."""
  n_rows = -(-len(features_NxE) // mesh.size) * mesh.size
  rows = np.zeros((n_rows, features_NxE.shape[1]), jnp.dtype(dtype))
  rows[: len(features_NxE)] = features_NxE
  return jax.make_array_from_callback(
    rows.shape, bank_sharding(mesh), lambda index: rows[index]
  )


def bank_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of the rows, in the normal form that a compiled step gives its result."""
  axes = tuple(axis for axis in (DATA, CLASS) if mesh.shape[axis] > 1)
  return NamedSharding(mesh, P(axes if len(axes) > 1 else axes[0]) if axes else P())


def write_rows(
  rows: Float[Array, "rows E"],
  mesh: Mesh,
  ids_X: Int32[Array, " X"],
  features_XxE: Float[Array, "X E"],
) -> Float[Array, "rows E"]:
  """Writes features, of any length, into a sharded bank; to be called under `jit`.

  `rows` that the caller's `jit` donates are written in place. An id beyond the rows
  writes nothing. Of equal ids the first counts, so that the result does not depend on
  the order of the writes.
  """

  def write(rows_RxE: Array, ids_X: Array, features_XxE: Array) -> Array:
    n_rows = len(rows_RxE)
    local_X = ids_X - _first_row(n_rows)
    local_X = jnp.where((local_X >= 0) & (local_X < n_rows), local_X, n_rows)
    place_X = jnp.arange(len(ids_X))
    first_R = jnp.full(n_rows + 1, len(ids_X)).at[local_X].min(place_X)
    target_X = jnp.where(first_R[local_X] == place_X, local_X, n_rows)
    unit_XxE = features_XxE / jnp.linalg.norm(features_XxE, axis=-1, keepdims=True)
    return rows_RxE.at[target_X].set(unit_XxE.astype(rows_RxE.dtype), mode="drop")

  return jax.shard_map(
    write, mesh=mesh, in_specs=(SHARDED, P(), P()), out_specs=SHARDED
  )(rows, ids_X, features_XxE)


def renewal_token_budget(
  lengths_N: np.ndarray,
  n_own: int,
  n_parts: int,
  rows: int,
  capacity: int | None = None,
) -> int:
  """Own tokens of the longest part of a renewal, see `renewed_classes` and
  `Encoder.capacity`."""
  taken_N = taken_of(np.asarray(lengths_N, np.int32) + np.int32(n_own), capacity)
  turn = -(-taken_N.size // (n_parts * rows))
  ids = (np.arange(turn)[:, None] + turn * np.arange(n_parts * rows)) % taken_N.size
  return math.ceil(taken_N[ids].reshape(turn, n_parts, rows).sum(-1).max())


def renewed_classes(
  step: Int32[Array, ""],
  part: Int32[Array, ""],
  n_parts: int,
  rows: int,
  n_classes: int,
) -> Int32[Array, " rows"]:
  """The classes that one part of a step renews; any ceil(N / (n_parts rows)) steps
  renew all N.

  Step t renews the classes t, t + T, t + 2T, .., with T = ceil(N / (n_parts rows)), of
  which each part, a device and micro-step, computes `rows`. Neighbours in a list have
  names of similar lengths and need a larger token budget: 912 tokens beside 582 for 128
  of ImageNet-21K's classes.
  """
  # The remainder first, so that no number exceeds N + n_parts * rows.
  turn = -(-n_classes // (n_parts * rows))
  return (
    step % turn + turn * (part * rows + jnp.arange(rows, dtype=jnp.int32))
  ) % n_classes
