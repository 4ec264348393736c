"""Which devices share a draw's classes, and which rows of a batch a process reads."""

import dataclasses
from unittest import mock

import jax
from jax.experimental import mesh_utils
import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.errors import InputError
from pomp_jax.hosts import resources
from pomp_jax.prompt.mesh import CLASS, DATA, make_mesh
from pomp_jax.train.batches import process_shards


def mesh_of(n_processes, n_devices, class_size):
  """The mesh of processes whose devices are numbered in turn, as on a TPU's torus."""
  devices = [
    mock.Mock(spec=jax.Device, process_index=i % n_processes, id=i)
    for i in range(n_processes * n_devices)
  ]
  with (
    mock.patch.object(jax, "devices", lambda: devices[::-1]),
    mock.patch.object(hosts, "devices", resources.devices),
  ):
    return make_mesh(class_size)


@pytest.mark.parametrize("class_size", [1, 2, 4, 8])
def test_neighbours_are_of_one_process(class_size):
  mesh = mesh_of(2, 4, class_size)
  assert mesh.axis_names == (DATA, CLASS) and mesh.devices.shape == (
    8 // class_size,
    class_size,
  )
  found = [(device.process_index, device.id) for device in mesh.devices.ravel()]
  assert found == [(0, 0), (0, 2), (0, 4), (0, 6), (1, 1), (1, 3), (1, 5), (1, 7)]


@pytest.mark.parametrize("class_size", [3, 5, 7, 16])
def test_devices_that_do_not_divide_are_refused(class_size):
  with pytest.raises(
    InputError, match=rf"mesh\.class_size: got {class_size}, .* of the 8 devices"
  ):
    mesh_of(2, 4, class_size)


@pytest.mark.parametrize(
  ("n_processes", "n_devices", "class_size", "expected"),
  [
    (1, 8, 2, {0: (0, 1)}),
    (2, 4, 1, {0: (0, 2), 1: (1, 2)}),
    (2, 4, 2, {0: (0, 2), 1: (1, 2)}),
    (2, 4, 4, {0: (0, 2), 1: (1, 2)}),
    # All devices split the classes of the same images.
    (2, 4, 8, {0: (0, 1), 1: (0, 1)}),
    (4, 2, 4, {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    # A process would have a part of another's row.
    (3, 4, 6, {}),
    (2, 3, 2, {}),
    (4, 3, 6, {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
  ],
)
def test_the_rows_that_a_process_reads(n_processes, n_devices, class_size, expected):
  assert process_shards(mesh_of(n_processes, n_devices, class_size)) == expected


def test_given_devices_keep_their_order():
  devices = jax.devices()
  mesh = make_mesh(1, devices)
  np.testing.assert_array_equal(mesh.devices, np.asarray(devices)[:, None])


@dataclasses.dataclass(frozen=True)
class OfSlice:
  """What a mesh asks of a device of several slices."""

  id: int
  slice_index: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


@pytest.mark.parametrize("class_size", [1, 2, 4])
def test_the_data_axis_goes_over_the_slices(class_size):
  """Processes are numbered across the slices; jax's own function agrees."""
  devices = [
    OfSlice(id=i, slice_index=i // 2 % 2, process_index=i // 2) for i in range(8)
  ]
  mesh = make_mesh(class_size, devices)
  slices = [[device.slice_index for device in row] for row in mesh.devices]
  assert slices == [[i] * class_size for i in (0, 1) for _ in range(4 // class_size)]
  expected = mesh_utils.create_hybrid_device_mesh(
    (4 // class_size, class_size), (2, 1), devices=devices
  )
  np.testing.assert_array_equal(mesh.devices, expected)


def test_classes_of_a_draw_are_not_split_over_slices():
  devices = [OfSlice(id=i, slice_index=i // 6, process_index=0) for i in range(12)]
  assert make_mesh(3, devices).shape == {DATA: 4, CLASS: 3}
  for class_size in (4, 12):
    line = (
      f"config.mesh.class_size: got {class_size},"
      " expected a divisor of the 6 devices of a slice"
    )
    with pytest.raises(InputError, match=f"^{line}$"):
      make_mesh(class_size, devices)
