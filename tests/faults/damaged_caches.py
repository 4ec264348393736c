"""Caches and checkpoints with one bit flipped, truncated, or overwritten: nothing wrong is read.

Each trial damages one file and reads it as a run does. The outcome is one of

- `refused`: an error or a warning names the file, and it is not used;
- `recomputed`: a warning names the file, and it counts as missing;
- `harmless`: exactly what was written is read;
- `WRONG`: anything else.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import pathlib
import shutil

import jax
import numpy as np

from pomp_jax.files.array_cache import (
  ArrayCache,
  DamagedBlockError,
  FeatureBlocks,
  FeatureCacheError,
)
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints, read_checkpoints
from tests.faults.training import warnings

# Damages per kind: flips of one bit, truncations, and stretches of zeros or ones.
FLIPS, CUTS, STRETCHES = 30, 4, 4

_MADE_FROM = {"image_tower": "0" * 64, "augment": "recipe", "views": 2, "augment_seed": 0}
_METRICS = {1: 0.9, 2: 0.5, 3: 0.25}


def trials(seed: int, tmp_path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Makes each file, damages it in many ways, and reads it.

  Args:
    seed: seed of the contents and the damages.
    tmp_path: empty folder.

  Yields:
    Kind of file and damage, and outcome.
  """
  rng = np.random.default_rng(seed)
  for name, prepare in _KINDS.items():
    folder = tmp_path / name.replace(" ", "_")
    folder.mkdir()
    file, read = prepare(rng, folder)
    content = file.read_bytes()
    for how, damaged in _damaged(content, rng):
      file.write_bytes(damaged)
      yield f"{name}, {how}", read()
    file.write_bytes(content)
    assert read() == "harmless", name


def _damaged(content: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
  size = len(content)
  # A third of the flips are in the header and in the checksum.
  ends = np.r_[rng.integers(0, min(size, 128), FLIPS // 3), rng.integers(max(0, size - 4), size, 2)]
  for where in np.r_[ends, rng.integers(0, size, FLIPS - len(ends))].tolist():
    flipped = bytearray(content)
    flipped[where] ^= 1 << int(rng.integers(8))
    yield "one bit flipped", bytes(flipped)
  # Also of the checksum alone.
  for cut in (4, *rng.integers(1, size + 1, CUTS - 1).tolist()):
    yield "cut off", content[: size - cut]
  for number in range(STRETCHES):
    start = int(rng.integers(0, size))
    stretch = content[start : start + 512]
    filler = bytes([255 * (number % 2)]) * len(stretch)
    yield "overwritten", content[:start] + filler + content[start + 512 :]


def _array(array_of: Callable, rng: np.random.Generator, folder: pathlib.Path):
  array = array_of(rng)
  ArrayCache(folder).keep("key", array)
  file = folder / "key.npy"

  def read() -> str:
    with warnings() as said:
      found = ArrayCache(folder).find("key")
    if found is None:
      return "recomputed" if _names(said, file) else "WRONG"
    return _compared(found, array)

  return file, read


def _blocks(name: str, rng: np.random.Generator, folder: pathlib.Path):
  features = rng.standard_normal((10, 2, 16), np.float32)

  def open_blocks(block_size: int = 4) -> FeatureBlocks:
    return FeatureBlocks(
      *(folder,), n_images=10, n_versions=2, width=16, made_from=_MADE_FROM, block_size=block_size
    )

  blocks = open_blocks()
  blocks.create()
  for block in range(blocks.n_blocks):
    blocks.write(block, features[blocks.indices(block)])
  file, every = folder / name, np.arange(10)

  def read() -> str:
    try:
      opened = open_blocks(1024)
    except FeatureCacheError as error:
      return "refused" if str(file) in str(error) else "WRONG"
    with warnings() as said:
      to_compute = opened.to_compute()
    try:
      found = opened.read(every, np.tile([0, 1], (10, 1)))
    except DamagedBlockError:
      return "recomputed" if to_compute and said else "WRONG"
    return "WRONG" if to_compute else _compared(found, features)

  return file, read


def _metrics(rng: np.random.Generator, folder: pathlib.Path):
  """Damages the best checkpoint's JSON: it stays the best, or is set aside."""
  with Checkpoints(folder / "whole") as checkpoints:
    for step, metric in _METRICS.items():
      checkpoints.save(step, {"context": np.full(3, step)}, {"step": step}, metric=metric)
  file = folder / "metadata"
  place = pathlib.Path("1", "meta", "metadata")
  shutil.copy(folder / "whole" / place, file)

  def read() -> str:
    with contextlib.ExitStack() as stack:
      copy = shutil.copytree(folder / "whole", folder / "copy")
      stack.callback(shutil.rmtree, copy)
      shutil.copy(file, copy / place)
      said = stack.enter_context(warnings())
      checkpoints = stack.enter_context(Checkpoints(copy, keep=1))
      checkpoints.save(4, {"context": np.full(3, 4)}, {"step": 4}, metric=0.1)
      kept = checkpoints.steps()
      if kept == [1, 4]:
        return "harmless"
      aside = kept == [2, 4] and (copy / "damaged-1").is_dir()
      return "refused" if aside and any("step 1 is DAMAGED" in line for line in said) else "WRONG"

  return file, read


def _state(rng: np.random.Generator, folder: pathlib.Path):
  """Damages the largest file of a checkpoint that another run reads."""
  state = {"params": {"context": rng.standard_normal((16, 64))}, "list": [np.arange(3)]}
  with Checkpoints(folder / "run") as checkpoints:
    checkpoints.save(1, state, {"position": 1})
  files = [path for path in (folder / "run" / "1" / "state").rglob("*") if path.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)

  def read() -> str:
    try:
      (found,) = read_checkpoints(folder / "run")
    except CheckpointError as error:
      return "refused" if str(folder / "run") in str(error) else "WRONG"
    same = jax.tree.map(np.array_equal, found.state, state)
    return "harmless" if all(jax.tree.leaves(same)) else "WRONG"

  return file, read


_KINDS = {
  "class features in eval.cache": functools.partial(
    _array, lambda rng: rng.standard_normal((6, 32), np.float32)
  ),
  "TFDS labels in data.cache": functools.partial(_array, lambda rng: rng.integers(0, 9, 200)),
  "block of image features": functools.partial(_blocks, "block-00001.npy"),
  "description of image features": functools.partial(_blocks, "cache.json"),
  "metric of the best checkpoint": _metrics,
  "state of a checkpoint": _state,
}


def _compared(found: np.ndarray, expected: np.ndarray) -> str:
  same = found.dtype == expected.dtype and np.array_equal(found, expected)
  return "harmless" if same else "WRONG"


def _names(lines: list[str], file: pathlib.Path) -> bool:
  return len(lines) == 1 and str(file) in lines[0] and "\n" not in lines[0]
