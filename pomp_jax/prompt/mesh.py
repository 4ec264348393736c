"""The mesh of devices: `data` splits the images, `class` splits the classes of one draw."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import InputError

DATA, CLASS = "data", "class"


def make_mesh(class_size: int = 1, devices: Any = None) -> Mesh:
  """Builds a mesh [data, class] of these devices, or all; `class_size` split one draw's classes.

  InputError: the devices do not divide by `class_size`.
  """
  if devices is None:
    # The devices of a process are together, so that its images are on neighbouring rows.
    devices = hosts.devices()
  devices = np.asarray(devices)
  if devices.size % class_size:
    expected = f"a divisor of the {devices.size} devices"
    raise InputError(f"config.mesh.class_size: got {class_size}, expected {expected}")
  return Mesh(devices.reshape(-1, class_size), (DATA, CLASS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies a tree, equal on all hosts, to every device of the mesh; shapes stay shapes."""
  return _placed(tree, NamedSharding(mesh, P()))


def split_rows(tree: Any, mesh: Mesh) -> Any:
  """Splits the first axis of a tree's arrays, equal on all hosts, over the devices of the mesh."""
  return _placed(tree, NamedSharding(mesh, P((DATA, CLASS))))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
  def place(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return leaf.update(sharding=sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

  return jax.tree.map(place, tree)
