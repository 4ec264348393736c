"""The mesh of devices: `data` splits the images, `class` the classes of one draw."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import InputError

# Names of the axes.
DATA = "data"
CLASS = "class"
# Function (parameters of the tower, images [G,H,W,3]) -> features [G,E].
ImageTower = Callable[[Any, jax.Array], jax.Array]


def make_mesh(class_size: int = 1, devices: Any = None) -> Mesh:
  """Builds a mesh [data, class].

  Devices of a slice stay together: the data axis runs over the slices, so that a sum
  can be taken within each slice first.

  Args:
    class_size: devices that split the classes of one draw.
    devices: devices of the mesh; None for all.

  Raises:
    InputError: the devices, or those of a slice, do not divide by `class_size`.
  """
  if devices is None:
    # Ordered by process, so that the images of a process are on neighbouring rows.
    devices = hosts.devices()
  # `mesh_utils.create_hybrid_device_mesh` puts the slices in this order too, but it may
  # place the devices of one process apart from each other.
  devices = np.asarray(sorted(devices, key=slice_of))
  if devices.size % class_size:
    expected = f"a divisor of the {devices.size} devices"
    raise InputError(f"config.mesh.class_size: got {class_size}, expected {expected}")
  rows = devices.reshape(-1, class_size)
  if any(slice_of(first) != slice_of(last) for first, last in rows[:, [0, -1]]):
    # Devices of several slices would split the classes. Every step would gather the
    # features of all classes through the data-centre network.
    slices = [slice_of(device) for device in devices]
    _, sizes = np.unique(slices, return_counts=True)
    expected = f"a divisor of the {sizes.min()} devices of a slice"
    raise InputError(f"config.mesh.class_size: got {class_size}, expected {expected}")
  return Mesh(rows, (DATA, CLASS))


def slice_of(device: Any) -> int:
  """The slice of a device, or 0 without slices, which the data-centre network joins."""
  return getattr(device, "slice_index", None) or 0


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies a tree, equal on all hosts, to every device; shapes get a sharding."""
  return _placed(tree, NamedSharding(mesh, P()))


def split_rows(tree: Any, mesh: Mesh) -> Any:
  """Splits the first axis of arrays, equal on all hosts, over the devices."""
  return _placed(tree, NamedSharding(mesh, P((DATA, CLASS))))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
  def place(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(sharding=sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

  return jax.tree.map(place, tree)


def over_all_devices(mesh: Mesh, image_tower: ImageTower) -> ImageTower:
  """Splits the image tower's rows over all devices, those of the class axis too.

  The result takes images that are sharded over `data`, and is not compiled.
  """

  def features_of_share(params: Any, images: jax.Array) -> jax.Array:
    return image_tower(params, _own_share(images))

  features_of_shares = jax.shard_map(
    features_of_share,
    mesh=mesh,
    in_specs=(P(), P(DATA)),
    out_specs=P((DATA, CLASS)),
  )

  def features(params: Any, images: jax.Array) -> jax.Array:
    n_data = mesh.shape[DATA]
    n_images = images.shape[0]
    shares = features_of_shares(params, images)
    # The shares of a data index are its images, padded to a multiple of the class axis.
    padded = shares.reshape(n_data, -1, shares.shape[-1])
    without_padding = padded[:, : n_images // n_data]
    return without_padding.reshape(n_images, -1)

  return features


def _own_share(images: jax.Array) -> jax.Array:
  """This device's share of a data index's images along the class axis.

  The shares are of equal size: zeros are appended after the last image.
  """
  class_size = jax.lax.axis_size(CLASS)
  n_images = images.shape[0]
  rows = -(-n_images // class_size)  # rounded up
  no_padding = [(0, 0)] * (images.ndim - 1)
  padding = [(0, rows * class_size - n_images), *no_padding]
  start = jax.lax.axis_index(CLASS) * rows
  return jax.lax.dynamic_slice_in_dim(jnp.pad(images, padding), start, rows)


def split_over_class(
  function: Callable[[jax.Array], jax.Array], images_B: jax.Array
) -> jax.Array:
  """Applies a function to this device's share of the images, and gathers all results.

  Call this function inside the step's `shard_map`.
  """
  shares = jax.lax.all_gather(function(_own_share(images_B)), CLASS, tiled=True)
  return shares[: len(images_B)]
