"""The bank: text features of all classes under recent prompts, to compare images with.

A step writes the features that it computes anyway to the bank, and renews the next few
classes in turn, so that no row is older than N / renew steps. Rows are sharded over all
devices of the mesh.

Shapes: N classes, R rows of a device (N over the number of devices, rounded up), D data
indices, B images of a group, C classes of a call, X classes to write, E embedding.
"""

from collections.abc import Callable
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

# Shard i of the rows is on device (data, class) with i = data * class_size + class.
SHARDED = P((DATA, CLASS))


class Bank(struct.PyTreeNode):
  """Unit text features of all classes."""

  rows: Any  # [N,E]; sharded, the device's own [R,E]
  n_classes: int = struct.field(pytree_node=False)  # N, static
  # Whether `rows` are one device's shard, inside a `shard_map` over the mesh.
  sharded: bool = struct.field(pytree_node=False, default=False)
  # Whether `mean_softmax` keeps an image's share of its own class, as a teacher's bank.
  keeps_own: bool = struct.field(pytree_node=False, default=False)

  def of_classes(self, ids_C: Int32[Array, " C"]) -> Float[Array, "C E"]:
    """Features of the given classes; each data index may ask for others."""
    if not self.sharded:
      return self.rows[ids_C].astype(jnp.float32)
    # Each device takes the classes of all data indices, looks up those that it holds,
    # and sets the others to zero. The sum goes to the data index that asked.
    ids_DC = jax.lax.all_gather(ids_C, DATA, tiled=True)
    local_DC = ids_DC - self._first_row()
    is_here_DC = (local_DC >= 0) & (local_DC < len(self.rows))
    is_here_DCx1 = is_here_DC[:, None]
    rows_DCxE = self.rows[jnp.where(is_here_DC, local_DC, 0)]
    features_DCxE = jnp.where(is_here_DCx1, rows_DCxE, 0)
    features_DCxE = jax.lax.psum(features_DCxE.astype(jnp.float32), CLASS)
    return jax.lax.psum_scatter(features_DCxE, DATA, tiled=True)

  def mean_softmax(
    self,
    anchors_BxE: Float[Array, "B E"],
    labels_B: Int32[Array, " B"],
    temperature: float,
    *,
    own_class: bool,
  ) -> Float[Array, " N"]:
    """Mean over the images of softmax_c(a_i . g_c / T).

    An image adds zero for its own class, unless `keeps_own`.

    Args:
      anchors_BxE: unit features a_i, one for each image.
      labels_B: class of each image.
      temperature: T, in units of the cosine; a negative T favours classes far from the
        anchors.
      own_class: whether the denominator of an image's softmax contains its own class.
        If it does, an image that is certain of its class adds next to nothing, and the
        sum of the result over the classes is below 1.
    """
    shares_BxR = self._shares(anchors_BxE, labels_B, temperature, own_class)
    n_images = len(labels_B)
    q_DxR = jnp.mean(shares_BxR.reshape(-1, n_images, len(self.rows)), axis=1)
    if self.sharded:
      # Each data index gets the shares of its own images, over the rows of all devices.
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
    """Softmax of each image over the rows of all devices, see `mean_softmax`.

    Returns:
      [B,R], for the images of all data indices and the rows of this device.
    """
    if self.sharded:
      # Every device scores the images of all data indices against its own rows.
      anchors_BxE = jax.lax.all_gather(anchors_BxE, DATA, tiled=True)
      labels_B = jax.lax.all_gather(labels_B, DATA, tiled=True)
    ids_R = self._first_row() + jnp.arange(len(self.rows))
    cosine_BxR = jnp.matmul(
      anchors_BxE.astype(self.rows.dtype),
      self.rows.T,
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )
    logits_BxR = cosine_BxR / temperature
    is_own_BxR = labels_B[:, None] == ids_R
    # The last device's rows beyond N are padding.
    counted_BxR = ids_R < self.n_classes
    if not own_class:
      counted_BxR = counted_BxR & ~is_own_BxR
    logits_BxR = jnp.where(counted_BxR, logits_BxR, -jnp.inf)
    highest_B = self._over_devices(jax.lax.pmax, jnp.max(logits_BxR, axis=1))
    terms_BxR = jnp.exp(logits_BxR - highest_B[:, None])
    totals_B = self._over_devices(jax.lax.psum, jnp.sum(terms_BxR, axis=1))
    shares_BxR = terms_BxR / totals_B[:, None]
    if self.keeps_own:
      return shares_BxR
    return jnp.where(is_own_BxR, 0.0, shares_BxR)

  def _over_devices(self, reduction: Callable, values_B: jax.Array) -> jax.Array:
    """Reduces values over all devices; does nothing if the bank is not sharded."""
    if not self.sharded:
      return values_B
    return reduction(values_B, (DATA, CLASS))

  def _first_row(self) -> jax.Array | int:
    if not self.sharded:
      return 0
    return _first_row(len(self.rows))


def _first_row(n_rows: int) -> jax.Array:
  """Number of the class in the first of this device's rows."""
  row_of_mesh = jax.lax.axis_index(DATA) * jax.lax.axis_size(CLASS)
  index = row_of_mesh + jax.lax.axis_index(CLASS)
  return index * n_rows


def place_rows(features_NxE: np.ndarray, mesh: Mesh) -> jax.Array:
  """Shards the features of all classes over the mesh.

  Args:
    features_NxE: unit features, equal on all hosts.
    mesh: devices that share the rows.

  Returns:
    The rows in float32, their number rounded up to a multiple of the devices. Rows
    beyond N are zero.
  """
  n_classes, width = features_NxE.shape
  # Round up to a multiple of the devices.
  n_rows = -(-n_classes // mesh.size) * mesh.size
  rows = np.zeros((n_rows, width), np.float32)
  rows[:n_classes] = features_NxE
  return jax.make_array_from_callback(
    rows.shape, bank_sharding(mesh), lambda index: rows[index]
  )


def bank_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of the rows, in the normal form that a compiled step gives its result.

  Another spelling of the same sharding would compile the step a second time.
  """
  axes = tuple(axis for axis in (DATA, CLASS) if mesh.shape[axis] > 1)
  match axes:
    case ():
      spec = P()
    case (axis,):
      spec = P(axis)
    case _:
      spec = P(axes)
  return NamedSharding(mesh, spec)


def write_rows(
  rows: Float[Array, "rows E"],
  mesh: Mesh,
  ids_X: Int32[Array, " X"],
  features_XxE: Float[Array, "X E"],
) -> Float[Array, "rows E"]:
  """Writes features of classes into a sharded bank; to be called under `jit`.

  If the caller's `jit` donates `rows`, they are written in place. For an id that
  repeats, the first features are written, so the result does not depend on the order of
  writes.

  Args:
    rows: result of `place_rows`.
    mesh: devices that share the rows.
    ids_X: classes, equal on all devices; an id beyond the rows writes nothing.
    features_XxE: features of these classes, of any length; the bank gets unit features.
  """

  def write_local(rows_RxE: Array, ids_X: Array, features_XxE: Array) -> Array:
    """Writes the classes that this device holds."""
    n_rows = len(rows_RxE)
    n_ids = len(ids_X)
    # Row n_rows stands for "none of this device's": `mode="drop"` ignores it.
    local_X = ids_X - _first_row(n_rows)
    local_X = jnp.where((local_X >= 0) & (local_X < n_rows), local_X, n_rows)
    # If several ids stand for a row, only the first of them writes it.
    place_X = jnp.arange(n_ids)
    first_R = jnp.full(n_rows + 1, n_ids).at[local_X].min(place_X)
    target_X = jnp.where(first_R[local_X] == place_X, local_X, n_rows)
    norm_Xx1 = jnp.linalg.norm(features_XxE, axis=-1, keepdims=True)
    unit_XxE = features_XxE / norm_Xx1
    return rows_RxE.at[target_X].set(unit_XxE.astype(rows_RxE.dtype), mode="drop")

  write = jax.shard_map(
    write_local, mesh=mesh, in_specs=(SHARDED, P(), P()), out_specs=SHARDED
  )
  return write(rows, ids_X, features_XxE)


def renewal_token_budget(
  lengths_N: np.ndarray,
  n_own: int,
  n_parts: int,
  rows: int,
  capacity: int | None = None,
) -> int:
  """Computes the token budget of a renewal: own tokens of its longest part.

  See `renewed_classes`.

  Args:
    lengths_N: own tokens of each class's name.
    n_own: context vectors in each class's own suffix, `PromptContext.n_own`.
    n_parts: parts of a step: its devices times its micro-steps.
    rows: classes of a part.
    capacity: own tokens of a block, `Encoder.capacity`; None without blocks.
  """
  own_N = np.asarray(lengths_N, np.int32) + np.int32(n_own)
  taken_N = taken_of(own_N, capacity)
  n_classes = taken_N.size
  # Steps that renew all classes once, rounded up.
  turn = -(-n_classes // (n_parts * rows))
  # The classes of each step, by the formula of `renewed_classes`.
  first = np.arange(turn)[:, None]
  ids = (first + turn * np.arange(n_parts * rows)) % n_classes
  taken = taken_N[ids].reshape(turn, n_parts, rows)
  return math.ceil(taken.sum(axis=-1).max())


def renewed_classes(
  step: Int32[Array, ""],
  part: Int32[Array, ""],
  n_parts: int,
  rows: int,
  n_classes: int,
) -> Int32[Array, " rows"]:
  """The classes that one part of a step renews.

  Step t renews the classes t, t + T, t + 2T, .., with T = ceil(N / (n_parts rows)), so
  any T steps renew all N. The classes of a step are not neighbours in the list, whose
  names have similar lengths. Neighbours would need a larger token budget: 912 tokens
  instead of 582, for 128 of ImageNet-21K's classes.

  Args:
    step: number of the step t, from 0 on.
    part: number of the part, a device and micro-step, from 0 on.
    n_parts: number of parts of a step.
    rows: classes that each part computes.
    n_classes: N.
  """
  turn = -(-n_classes // (n_parts * rows))
  # Take the remainder first, so that no number exceeds N + n_parts * rows.
  first = step % turn
  row_of_step = part * rows + jnp.arange(rows, dtype=jnp.int32)
  return (first + turn * row_of_step) % n_classes
