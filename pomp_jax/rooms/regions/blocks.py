"""Blocks of images and the comparison of prompts, for `detect`, `segment` and
`propose`.

All processes compute the results of a block's images together, and the first process
stores them. A finished block is a piece of `files.pieces`, so a restart computes only
the missing blocks.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import itertools
import json
import logging
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import check_prompt
from pomp_jax.files.atomic import checksum
from pomp_jax.files.paths import Path, file_stamps, read_bytes
from pomp_jax.files.pieces import Piece, Pieces, fingerprint
from pomp_jax.files.run_folder import RunFolder, RunFolderError, to_json, writing
from pomp_jax.files.terminal import steps_of, waiting
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.regions.class_matrix import ClassMatrix, class_matrix, key_parts
from pomp_jax.rooms.regions.fields import Detect, Propose, Regions, Segment
from pomp_jax.rooms.regions.image_sets import BoxSet, PixelSet
from pomp_jax.rooms.regions.proposals import network_key_parts, prompts_of
from pomp_jax.rooms.regions.region_folder import region_files
from pomp_jax.rooms.regions.region_scorer import compared

log = logging.getLogger(__name__)

_READS = 16  # files that are read at a time: a bucket answers slowly
_FILES = "files"  # key of `Taken.files` among the facts of a piece


class Taken(NamedTuple):
  """Results of a block: facts, arrays, and the checksum of each file by its path in the
  run's folder."""

  facts: Mapping[str, Any] = {}
  arrays: Mapping[str, np.ndarray] | None = None
  files: Mapping[str, str] = {}


class Blocks:
  """The images of a run in blocks, each stored as a piece."""

  def __init__(
    self,
    folder: RunFolder,
    record: Mapping[str, Any],
    key: str,
    n_images: int,
    size: int,
  ):
    """Splits the images into blocks and creates the run's folder.

    Process 0 alone creates it, and removes the results of an earlier run, because this
    run replaces the files that they describe.

    Args:
      folder: folder of the run.
      record: the config, as written to `config.json`.
      key: key of the store of finished blocks.
      n_images: number of images of the run.
      size: number of images of a block.
    """
    if hosts.is_first():
      folder.create(record)
      with writing(folder.results):
        folder.results.unlink(missing_ok=True)
    self.folder = folder
    self.record = record
    self.key = key
    self._images_of_block: dict[str, range] = {}
    for start in range(0, n_images, size):
      stop = min(start + size, n_images)
      self._images_of_block[f"{start:07d}-{stop:07d}"] = range(start, stop)
    self._unit = f"blocks of {size} images"
    self.store = Pieces(folder.path / "progress", key)

  def run(
    self,
    find: Callable[[Sequence[int]], Iterable[tuple[int, Any]]],
    take: Callable[[Iterator[tuple[int, Any]]], Taken],
    description: str,
  ) -> None:
    """Computes the missing blocks on all processes; the first process stores them.

    A block also counts as missing if a file that it has written has changed since.

    Args:
      find: yields the number and the result of each image of a block, in order.
      take: writes the files of a block from these results, and returns what to store.
      description: name of the work, for the log.
    """
    with waiting(f"checking the files of earlier starts: {description}"):
      missing = self.store.missing(self._images_of_block, self._has_files)
    if len(missing) == len(self._images_of_block) and hosts.is_first():
      # This run replaces the files of an earlier start. Remove the pieces of that
      # start, so that its config can't resume from them.
      self.store.remove()
    for name in steps_of(missing, description, self._unit):
      results = iter(find(self._images_of_block[name]))
      if hosts.is_first():
        taken = take(results)
        self.store.save(name, {**taken.facts, _FILES: taken.files}, taken.arrays)
      else:
        # Exhaust the iterator: the devices of this process compute their share.
        deque(results, maxlen=0)

  def check_files(self) -> None:
    """Raises RunFolderError if a file has changed since a block wrote it."""
    with waiting("checking the files that were written"):
      for piece in self.pieces():
        for path in self._changed_files(piece.facts):
          raise RunFolderError(
            f"{path}: changed while the job ran; the same command resumes"
          )

  def _has_files(self, facts: Mapping[str, Any]) -> bool:
    """Whether all files of a stored block are unchanged.

    False for a block of an earlier version, which stored no checksums.
    """
    if _FILES not in facts:
      return False
    changed = self._changed_files(facts)
    for path in changed:
      log.warning(
        "%s: missing, or changed after it was written; computing it again", path
      )
    return not changed

  def _changed_files(self, facts: Mapping[str, Any]) -> list[Path]:
    """Files of a stored block that are missing or have another checksum."""
    checksums = {
      self.folder.path / name: written for name, written in facts[_FILES].items()
    }

    def is_changed(path: Path) -> bool:
      try:
        return checksum(read_bytes(path)) != checksums[path]
      except OSError:
        return True

    with concurrent.futures.ThreadPoolExecutor(_READS) as pool:
      changed = pool.map(is_changed, checksums)
      return list(itertools.compress(checksums, changed))

  def pieces(self) -> Iterator[Piece]:
    """Reads the pieces of all blocks in the order of the images, on the first
    process."""
    return map(self.store.read, self._images_of_block)


class Comparison:
  """Prompts side by side on the images of a data set, for `detect` and `segment`.

  Attributes:
    prompts: prompts with the labels of their results.
    groups: numbers of the classes in the halves `base` and `novel`, without an empty
      half.
    key: cache key of all that the results depend on; of files it has `file_stamps`.
  """

  def __init__(
    self,
    version: str,
    encoder: Encoder,
    data: BoxSet | PixelSet,
    settings: Detect | Segment,
    regions: Regions,
    propose: Propose,
    clip: Clip,
  ):
    """Reads the prompts.

    Args:
      version: version of the job's computation, a part of the key.
      encoder: the CLIP.
      data: images with annotations.
      settings: fields of the job, with the names of the prompts.
      regions: where regions come from and how they are scored.
      propose: fields of the network.
      clip: fields of the CLIP.

    Raises:
      InputError: a prompt is unusable.
    """
    self._encoder = encoder
    self._data = data
    self._plain = prompts_of(settings, propose)
    self.prompts = compared(regions.alone, self._plain)
    parts = [
      version,
      encoder.image_fingerprint,
      encoder.clip.name,
      str(settings),
      clip.text_tower,
      str(tuple(data.keys)),
      str(data.classes),
      str(regions),
    ]
    if regions.source == "file":
      parts.append(file_stamps(region_files(regions.path, data.keys)))
    if regions.source == "network":
      parts += network_key_parts(propose, regions.mask_threshold, clip.dtype)
    parts.append(file_stamps(data.files))
    for named in self.prompts:
      parts += key_parts(named, data.classes.synonyms)
    self.key = fingerprint(parts)
    self.groups: dict[str, np.ndarray] = {}
    for name in ("base", "novel"):
      if name in data.classes.groups:
        self.groups[name] = data.classes.indices(name)

  def matrices(self) -> list[ClassMatrix]:
    """Computes the class matrix of each prompt of the config."""
    synonyms = self._data.classes.synonyms
    return [class_matrix(self._encoder, synonyms, named) for named in self._plain]

  def write(
    self,
    blocks: Blocks,
    figures: Mapping[str, Any],
    draw: Callable[[dict[str, Any]], None],
  ) -> dict[str, Any]:
    """Writes pictures, report and results, and removes the store of the blocks.

    Args:
      blocks: finished blocks of the run, whose files are checked first.
      figures: members of the results that only this job has.
      draw: draws the pictures of the results.

    Returns:
      The results as `results.json` has them.

    Raises:
      RunFolderError: a file has changed since a block wrote it.
    """
    record = blocks.record
    folder = blocks.folder
    results = {
      "key": blocks.key,
      "job": record["job"],
      "clip_model": self._encoder.clip.name,
      "regions": record["regions"]["source"],
      "classes": self._data.classes.names,
      "groups": self._data.classes.groups,
      **figures,
    }
    # Draw and report the values that `results.json` will hold: numbers, no arrays.
    plain = json.loads(to_json(results))
    blocks.check_files()
    with writing(folder.path):
      draw(plain)
    finish_run(folder, record, plain)
    with contextlib.suppress(OSError):
      blocks.store.remove()
    log.info("figures and pictures are in %s", folder.path)
    return plain


def check_prompts(
  settings: Detect | Segment,
  propose: Propose,
  synonyms: Sequence[Sequence[str]],
  clip_model: str,
) -> None:
  """Reads each prompt of a job and checks that the CLIP can apply it to the classes.

  Args:
    settings: fields of the job, with the names of its prompts.
    propose: fields of the network, whose prompt the job may name.
    synonyms: names of each class.
    clip_model: name of the CLIP.

  Raises:
    InputError: a prompt is unusable, or misfits the CLIP or the classes.
  """
  clip_config = opening.clip_config(clip_model)
  for prompt in prompts_of(settings, propose):
    check_prompt(prompt, synonyms, clip_config, clip_model)
