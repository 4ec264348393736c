"""Readers of the rooms' files run no pickle and wait for no pipe; see
tests/files/test_fuzz.py."""

import pytest

from pomp_jax.rooms.interchange.class_features import read_class_features
from pomp_jax.rooms.interchange.torch_archive import TorchArchive
from pomp_jax.rooms.regions.mask_former.published_weights import read_mask_former
from pomp_jax.rooms.regions.region_folder import (
  RegionFolder,
  RegionHeader,
  RegionWriter,
)
from tests.files.test_fuzz import check_no_pickle_is_run, check_no_pipe_is_waited_for


def read_regions(path):
  RegionWriter(path.parent, RegionHeader("a network"))
  RegionFolder(path.parent).read(7, 30, 40)


READERS = {
  "archive.pt": lambda path: TorchArchive(path).value,
  "segmentation.pth": read_mask_former,
  "features.npy": read_class_features,
  "7.npz": read_regions,
}


@pytest.mark.parametrize("name", READERS)
def test_no_pickle_is_run(tmp_path, name):
  check_no_pickle_is_run(tmp_path, name, READERS[name])


@pytest.mark.parametrize("name", READERS)
def test_no_pipe_is_waited_for(tmp_path, name):
  check_no_pipe_is_waited_for(tmp_path / name, READERS[name])
