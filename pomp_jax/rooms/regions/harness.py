"""What `detect`, `segment`, `propose` and `predict` share: images in blocks, handed to a sink.

A job finds something in each image of a block, on all processes together, and its sink takes it on
the first process. Finished blocks are pieces of `files.pieces`, so a restart does only the others.
`detect` and `segment` also share how they open prompts, and what they write at the end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import logging
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pomp_jax import hosts
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.class_matrix import ClassMatrix, check_prompt, class_matrix, key_parts
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import Piece, Pieces, file_stamps, fingerprint
from pomp_jax.files.run_folder import DamagedFileError, RunFolder, to_json, write_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.regions.fields import Detect, Segment
from pomp_jax.rooms.regions.networks import read_prompts_of
from pomp_jax.rooms.regions.opened import compared, needs_crops
from pomp_jax.rooms.regions.region_sources import region_key_parts

log = logging.getLogger(__name__)


@runtime_checkable
class Sink(Protocol):
  """Takes what is found in images, on the first process."""

  def take(self, row: int, found: Any) -> None:
    """Takes what is found in an image; images come in their order."""

  def piece(self) -> tuple[dict[str, Any], Mapping[str, np.ndarray] | None]:
    """Facts and arrays to store of the images taken since the last call."""


class Blocks:
  """The images of a job in blocks, which are pieces of a store if there is one."""

  def __init__(self, n_images: int, size: int, store: Pieces | None = None):
    """Touches nothing; a block has `size` images."""
    starts = range(0, n_images, size)
    blocks = [range(start, min(start + size, n_images)) for start in starts]
    self._rows = {f"{block.start:07d}-{block.stop:07d}": block for block in blocks}
    self._what, self._store = f"blocks of {size} images", store

  def run(
    self,
    find: Callable[[Sequence[int]], Iterable[tuple[int, Any]]],
    sink: Sink,
    description: str,
    fits: Callable[[dict[str, Any]], bool] = lambda facts: True,
  ) -> None:
    """Finds what is missing, on all processes.

    Args:
      find: numbers of images -> number of an image, and what is found in it.
      sink: what takes it.
      description: of the work, for the log.
      fits: see `Pieces.missing`.
    """
    missing, store = list(self._rows), self._store
    if store is not None:
      missing = store.missing(self._rows, fits)
      if len(missing) == len(self._rows) and hosts.is_first():
        # The files of another start will be replaced, so it must not resume.
        store.remove()
    for name in steps_of(missing, description, self._what):
      for row, found in find(self._rows[name]):
        if hosts.is_first():
          sink.take(row, found)
      if store is not None and hosts.is_first():
        store.save(name, *sink.piece())

  def pieces(self) -> Iterator[Piece]:
    """Pieces of all blocks in the order of the images, on the first process."""
    assert self._store is not None
    for name in self._rows:
      if (piece := self._store.load(name)) is None:
        raise DamagedFileError(f"{self._store.folder}: {name} is lost; restart to compute it again")
      yield piece


def store_of(folder: RunFolder, key: str) -> Pieces:
  """The store of the blocks of a run that is not finished."""
  return Pieces(folder.path / "progress", key)


def start(folder: RunFolder, config: Settings) -> None:
  """Creates the folder of a run that has work to do, on the first process.

  Results of an earlier run go: they would vouch for files that this one replaces.
  """
  if hosts.is_first():
    folder.create()
    with writing(folder.results):
      folder.results.unlink(missing_ok=True)
    write_json(folder.config, config.to_dict())


class Comparison:
  """Prompts side by side on the images of a data set, for `detect` and `segment`.

  Attributes:
    encoder: the CLIP.
    prompts: prompts under the labels of their results.
    key: fingerprint of all that the results depend on; a file counts by its stamp.
  """

  def __init__(
    self,
    config: Settings,
    own: Detect | Segment,
    classes: ClassSplit,
    keys: Sequence[str | int],
    files: Iterable[str | Path],
    version: str,
  ):
    """Opens the CLIP and the prompts.

    Args:
      config: the config.
      own: `config.detect` or `config.segment`.
      classes: names and halves of the classes.
      keys: names of the images.
      files: files of images and labels.
      version: version of the job's computation.
    """
    self._config, self._classes = config, classes
    self.encoder = inputs.open_encoder(config)
    self._plain = read_prompts_of(own.prompts, f"{config.job}.prompts", config)
    self.prompts = compared(config.regions, self._plain)
    parts = [version, self.encoder.image_fingerprint, self.encoder.clip.name, str(own)]
    parts += [config.clip.text_tower, str(tuple(keys)), str(classes)]
    parts += [*region_key_parts(config, keys), file_stamps(files)]
    for named in self.prompts:
      parts += key_parts(named, classes.synonyms)
    self.key = fingerprint(parts)

  def matrices(self) -> list[ClassMatrix]:
    """Computes the classes under each prompt of the config."""
    return [class_matrix(self.encoder, self._classes.synonyms, named) for named in self._plain]

  def groups(self) -> dict[str, np.ndarray]:
    """Classes of the halves `base` and `novel`, unless a half is empty."""
    groups = {name: self._classes.indices(name) for name in ("base", "novel")}
    return {name: members for name, members in groups.items() if len(members)}

  def write(
    self,
    folder: RunFolder,
    store: Pieces,
    results: dict[str, Any],
    draw: Callable[[dict[str, Any]], None],
  ) -> dict[str, Any]:
    """Writes tables, pictures, a page with both, and the results; returns these.

    Args:
      folder: the run's folder.
      store: pieces of its blocks, which are no longer needed then.
      results: what the job has found out.
      draw: draws the pictures, given the results.
    """
    config, classes = self._config, self._classes
    of_all = {"key": self.key, "job": config.job, "clip_model": self.encoder.clip.name}
    of_all |= {"regions": config.regions.source}
    of_all |= {"classes": classes.names, "groups": classes.groups}
    plain = json.loads(to_json(of_all | results))
    with writing(folder.path):
      draw(plain)
    finish_run(folder, config, plain, "results.md")
    with contextlib.suppress(OSError):
      store.remove()
    log.info("figures and pictures are in %s", folder.path)
    return plain


def check_prompts(config: Settings, own: Detect | Segment, classes: ClassSplit) -> None:
  """Reads the prompts of `detect` or `segment`, and checks that they fit CLIP and classes."""
  clip_config = inputs.clip_config(config.clip.model)
  for named in read_prompts_of(own.prompts, f"{config.job}.prompts", config):
    check_prompt(named, classes.synonyms, clip_config, config.clip.model)


def check_masks(config: Settings, task: str, boxes_alone: str | int | None) -> None:
  """Raises ConfigError if a task needs masks that the regions of an image lack.

  Args:
    config: the config.
    task: `segment` or `detect`.
    boxes_alone: result of `check_region_source`.
  """
  if boxes_alone is None:
    return
  if task == "segment":
    found = f"regions with masks (image {boxes_alone} has boxes alone)"
    raise ConfigError("regions.path", config.regions.path, found)
  if config.regions.crop == "masked" and needs_crops(config.regions):
    accepted = f"context (image {boxes_alone} has regions without masks)"
    raise ConfigError("regions.crop", "masked", accepted)
