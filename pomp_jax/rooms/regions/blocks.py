"""What `detect`, `segment` and `propose` share: images in blocks, handed to a sink.

A job finds something in each image of a block, on all processes together, and its sink takes it on
the first process. Finished blocks are pieces of `files.pieces`, so a restart does only the others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import logging
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pomp_jax import hosts
from pomp_jax.config import Settings
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import NamedPrompt, check_prompt
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import Piece, Pieces, file_stamps, fingerprint
from pomp_jax.files.run_folder import DamagedFileError, RunFolder, to_json, write_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.regions.class_matrix import ClassMatrix, class_matrix, key_parts
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.region_scorer import compared
from pomp_jax.rooms.regions.region_sources import read_prompts_of, region_key_parts

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
    blocks = [range(n_images)[start : start + size] for start in range(0, n_images, size)]
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
      sink: takes what is found.
      description: name of the work, for the log.
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


def start(folder: RunFolder, config: Settings, key: str) -> Pieces:
  """Creates the folder of a run that has work to do, on the first process; the store of its blocks.

  Results of an earlier run go: they would vouch for files that this one replaces.
  """
  if hosts.is_first():
    folder.create()
    with writing(folder.results):
      folder.results.unlink(missing_ok=True)
    write_json(folder.config, config.to_dict())
  return Pieces(folder.path / "progress", key)


class Comparison:
  """Prompts side by side on the images of a data set, for `detect` and `segment`.

  Attributes:
    encoder: the CLIP.
    prompts: prompts under the labels of their results.
    key: fingerprint of all that the results depend on; a file counts by its stamp.
    groups: classes of the halves `base` and `novel`, unless a half is empty.
  """

  def __init__(
    self,
    config: Settings,
    classes: ClassSplit,
    keys: Sequence[str | int],
    files: Iterable[str | Path],
    version: str,
  ):
    """Opens the CLIP and the prompts.

    `keys` name the images, `files` hold images and labels, `version` is the job's computation's.
    """
    self._config, self._classes = config, classes
    halves = [name for name in ("base", "novel") if name in classes.groups]
    self.groups = {name: classes.indices(name) for name in halves}
    self.encoder = inputs.open_encoder(
      config.clip, config.mesh.class_size, config.data.feature_store
    )
    self._plain = _prompts(config)
    self.prompts = compared(config.regions, self._plain)
    parts = [version, self.encoder.image_fingerprint, self.encoder.clip.name]
    parts += [
      str(getattr(config, config.job)),
      config.clip.text_tower,
      str(tuple(keys)),
      str(classes),
    ]
    parts += [*region_key_parts(config, keys), file_stamps(files)]
    for named in self.prompts:
      parts += key_parts(named, classes.synonyms)
    self.key = fingerprint(parts)

  def matrices(self) -> list[ClassMatrix]:
    """Computes the classes under each prompt of the config."""
    return [class_matrix(self.encoder, self._classes.synonyms, named) for named in self._plain]

  def write(
    self,
    folder: RunFolder,
    store: Pieces,
    results: dict[str, Any],
    draw: Callable[[dict[str, Any]], None],
  ) -> dict[str, Any]:
    """Writes tables, the pictures of `draw`, a page with both, and the results; returns these.

    Removes the pieces of the run's blocks.
    """
    config, classes = self._config, self._classes
    of_all = {"key": self.key, "job": config.job, "clip_model": self.encoder.clip.name}
    of_all |= {"regions": config.regions.source, "classes": classes.names, "groups": classes.groups}
    plain = json.loads(to_json(of_all | results))
    with writing(folder.path):
      draw(plain)
    finish_run(folder, config.to_dict(), plain, "results.md")
    with contextlib.suppress(OSError):
      store.remove()
    log.info("figures and pictures are in %s", folder.path)
    return plain


def check_prompts(config: Settings, classes: ClassSplit) -> None:
  """Reads the prompts of `detect` or `segment`, and checks that they fit CLIP and classes."""
  clip_config = inputs.clip_config(config.clip.model)
  for named in _prompts(config):
    check_prompt(named, classes.synonyms, clip_config, config.clip.model)


def _prompts(config: Settings) -> list[NamedPrompt]:
  own = getattr(config, config.job)
  return read_prompts_of(own.prompts, f"{config.job}.prompts", config)
