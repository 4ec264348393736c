"""Readers of the rooms' files run no pickle and wait for no pipe; see
tests/files/test_fuzz.py."""

import pytest

from pomp_jax.rooms.certainty.classifier_export import read_classifier
from pomp_jax.rooms.certainty.trees import load_class_tree
from pomp_jax.rooms.data_sets.archives import open_input
from pomp_jax.rooms.data_sets.coop import open_coop
from pomp_jax.rooms.data_sets.feature_folder import read_header
from pomp_jax.rooms.data_sets.own_sets import read_sets_file
from pomp_jax.rooms.interchange.class_feature_files import (
  load_categories,
  read_class_features,
)
from pomp_jax.rooms.interchange.torch_archive import TorchArchive
from pomp_jax.rooms.mixtures.descriptions import read_descriptions
from pomp_jax.rooms.regions.annotations import read_annotations, read_panoptic
from pomp_jax.rooms.regions.class_splits import read_class_split
from pomp_jax.rooms.regions.label_images import read_values
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


def read_coop(path):
  """Reads the split of DTD; its folder is a link to the file's, `dtd`."""
  folder = path.parent / "dtd"
  if not folder.exists():
    folder.symlink_to(path.parent)
  open_coop(path.parent, "dtd")


READERS = {
  "annotations.json": read_annotations,
  "archive.pt": lambda path: TorchArchive(path).value,
  "categories.json": load_categories,
  "classes.txt": read_class_split,
  "classifier.safetensors": lambda path: read_classifier(str(path)),
  "descriptions.json": lambda path: read_descriptions(str(path)),
  "features.json": lambda path: read_header(path.parent),
  "imagenet21k.tar": lambda path: open_input("imagenet21k", path),
  "label_image.png": read_values,
  "panoptic.json": read_panoptic,
  "sets.csv": read_sets_file,
  "split_zhou_DescribableTextures.json": read_coop,
  "tree.csv": lambda path: load_class_tree(str(path), ["a name"], ""),
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
