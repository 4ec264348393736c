"""No reader of arrays or weights runs a pickle, wherever it stands in a file."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pomp_jax.clip import load_clip
from pomp_jax.clip.weights import open_weights
from pomp_jax.errors import InputError
from pomp_jax.files.array_cache import ArrayCache, FeatureBlocks
from pomp_jax.files.class_features import read_class_features
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.torch_archive import TorchArchive, TorchArchiveError
from pomp_jax.masks.weights import read_mask_former
from pomp_jax.regions.files import RegionFolder, RegionHeader, RegionWriter
from tests.support.fuzzing import Bomb, allowed_errors, bombs

CONTEXT = np.ones((4, 8), np.float32)
TENSORS = {"ctx": torch.ones(4, 8)}
ARRAYS = {
  "context": CONTEXT,
  "boxes": np.zeros((1, 4), np.float32),
  "clip_model": np.array("a/clip"),
  "position": np.array("end"),
  "template": np.array("{}."),
  "format_version": np.array(1),
  "config": np.array("{}"),
}


def read_weights(path):
  with open_weights(path) as weights:
    for name in weights.shapes:
      weights.read(name)


def read_torch(path):
  with TorchArchive(path) as archive:
    return archive.value


def read_blocks(path):
  blocks = FeatureBlocks(path.parent, n_images=4, n_versions=1, width=8, made_from={}, block_size=4)
  blocks.create()
  blocks.read(np.arange(4), np.zeros((4, 1), int))


def read_regions(path):
  RegionWriter(path.parent, RegionHeader("a network"))
  RegionFolder(path.parent).read(7, 30, 40)


READERS = {
  "prompt.npz": load_prompt,
  "prompt.safetensors": load_prompt,
  "prompt.pth.tar-5": load_prompt,
  "archive.pt": read_torch,
  "weights.bin": read_weights,
  "clip.pt": lambda path: load_clip(str(path)),
  "segmentation.pth": read_mask_former,
  "features.npy": read_class_features,
  "key.npy": lambda path: ArrayCache(path.parent).find("key"),
  "block-00000.npy": read_blocks,
  "7.npz": read_regions,
}


def npy(pickled: bytes) -> bytes:
  file = io.BytesIO()
  header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + pickled


def files_with(folder) -> list[bytes]:
  """Files that hold a pickle which would make `folder`: bare, in arrays, in torch's archives."""
  found = []
  for pickled in bombs(folder):
    found += [pickled, npy(pickled)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("archive/data.pkl", pickled)
      archive.writestr("archive/version", "3\n")
    found.append(file.getvalue())
  for name in ARRAYS:
    file = io.BytesIO()
    np.savez(file, **ARRAYS | {name: np.array([Bomb(folder)], object)}, allow_pickle=True)
    found.append(file.getvalue())
  for content in ({"state_dict": TENSORS}, {"model": TENSORS}, TENSORS):
    file = io.BytesIO()
    torch.save(content | {"hook": Bomb(folder)}, file)
    found.append(file.getvalue())
  return found


@pytest.mark.parametrize("name", READERS)
def test_no_pickle_is_run(tmp_path, name):
  trace = tmp_path / "trace"
  path = tmp_path / "read" / name
  path.parent.mkdir()
  for content in files_with(trace):
    path.write_bytes(content)
    with allowed_errors(InputError, TorchArchiveError, within=[path.parent]):
      READERS[name](path)
    assert not trace.exists()


def test_they_would_run(tmp_path):
  """Else the test above would prove nothing."""
  for number, pickled in enumerate(bombs(tmp_path / "trace")):
    pickle.loads(pickled)
    (tmp_path / "trace").rename(tmp_path / str(number))
  file = io.BytesIO(files_with(tmp_path / "trace")[-1])
  torch.load(file, weights_only=False)
  assert (tmp_path / "trace").exists()
