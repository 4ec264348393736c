"""What `detect`, `segment` and `propose` share: images in blocks, and prompts side by side.

A job finds something in each image of a block, on all processes together, and the first process
writes it. Finished blocks are pieces of `files.pieces`, so a restart does only the others.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import logging
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import check_prompt
from pomp_jax.files.paths import file_stamps
from pomp_jax.files.pieces import Piece, Pieces, fingerprint
from pomp_jax.files.run_folder import RunFolder, to_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.regions.class_matrix import ClassMatrix, class_matrix, key_parts
from pomp_jax.rooms.regions.fields import Detect, Propose, Regions, Segment
from pomp_jax.rooms.regions.image_sets import BoxSet, PixelSet
from pomp_jax.rooms.regions.proposals import network_key_parts, prompts_of
from pomp_jax.rooms.regions.region_folder import region_files
from pomp_jax.rooms.regions.region_scorer import compared

log = logging.getLogger(__name__)


class Blocks:
  """The images of a run in blocks, which are pieces of a store."""

  def __init__(
    self, folder: RunFolder, record: Mapping[str, Any], key: str, n_images: int, size: int
  ):
    """Creates the folder of a run that has work to do, on the first process.

    `record` is the config as `config.json` has it, `key` that of the store, `size` is in images.
    Results of an earlier run are removed: they would vouch for files that this one replaces.
    """
    if hosts.is_first():
      folder.create(record)
      with writing(folder.results):
        folder.results.unlink(missing_ok=True)
    self.folder, self.record, self.key = folder, record, key
    blocks = [range(n_images)[start : start + size] for start in range(0, n_images, size)]
    self._rows = {f"{block.start:07d}-{block.stop:07d}": block for block in blocks}
    self._what, self.store = f"blocks of {size} images", Pieces(folder.path / "progress", key)

  def run(
    self,
    find: Callable[[Sequence[int]], Iterable[tuple[int, Any]]],
    take: Callable[[Iterator[tuple[int, Any]]], tuple],
    description: str,
    fits: Callable[[dict[str, Any]], bool] = lambda facts: True,
  ) -> None:
    """Finds what is missing, on all processes; `take` gets it on the first.

    `find` yields the number of each image in turn, and what is found in it; `take` returns facts
    and arrays to store. `description` names the work in the log. For `fits` see `Pieces.missing`.
    """
    missing = self.store.missing(self._rows, fits)
    if len(missing) == len(self._rows) and hosts.is_first():
      # The files of another start will be replaced, so it must not resume.
      self.store.remove()
    for name in steps_of(missing, description, self._what):
      found = iter(find(self._rows[name]))
      if hosts.is_first():
        self.store.save(name, *take(found))
      else:
        deque(found, maxlen=0)  # computes its share

  def pieces(self) -> Iterator[Piece]:
    """Pieces of all blocks in the order of the images, on the first process."""
    return map(self.store.read, self._rows)


class Comparison:
  """Prompts side by side on the images of a data set, for `detect` and `segment`.

  Attributes:
    prompts: prompts under the labels of their results.
    groups: classes of the halves `base` and `novel`, unless a half is empty.
    key: fingerprint of all that the results depend on; a file counts by its stamp.
  """

  def __init__(
    self,
    version: str,  # of the job's computation
    encoder: Encoder,
    data: BoxSet | PixelSet,
    own: Detect | Segment,
    regions: Regions,
    propose: Propose,
    clip: Clip,
  ):
    """Reads the prompts."""
    self._encoder, self._data, self._plain = encoder, data, prompts_of(own, propose)
    self.prompts = compared(regions.alone, self._plain)
    parts = [version, encoder.image_fingerprint, encoder.clip.name, str(own)]
    parts += [clip.text_tower, str(tuple(data.keys)), str(data.classes), str(regions)]
    if regions.source == "file":
      parts.append(file_stamps(region_files(regions.path, data.keys)))
    if regions.source == "network":
      parts += network_key_parts(propose, regions.mask_threshold, clip.dtype)
    parts.append(file_stamps(data.files))
    for named in self.prompts:
      parts += key_parts(named, data.classes.synonyms)
    self.key = fingerprint(parts)
    halves = [name for name in ("base", "novel") if name in data.classes.groups]
    self.groups: dict[str, np.ndarray] = {name: data.classes.indices(name) for name in halves}

  def matrices(self) -> list[ClassMatrix]:
    """Computes the classes under each prompt of the config."""
    synonyms = self._data.classes.synonyms
    return [class_matrix(self._encoder, synonyms, named) for named in self._plain]

  def write(
    self, blocks: Blocks, own: Mapping[str, Any], draw: Callable[[dict[str, Any]], None]
  ) -> dict[str, Any]:
    """Writes the pictures of `draw`, the report, and the results, which it returns.

    `own` are the figures of the job. Removes the store of the blocks.
    """
    record, folder = blocks.record, blocks.folder
    of_all = {"key": blocks.key, "job": record["job"], "clip_model": self._encoder.clip.name}
    of_all |= {"regions": record["regions"]["source"]}
    of_all |= {"classes": self._data.classes.names, "groups": self._data.classes.groups}
    plain = json.loads(to_json({**of_all, **own}))
    with writing(folder.path):
      draw(plain)
    finish_run(folder, record, plain, "results.md")
    with contextlib.suppress(OSError):
      blocks.store.remove()
    log.info("figures and pictures are in %s", folder.path)
    return plain


def check_prompts(
  own: Detect | Segment, propose: Propose, synonyms: Sequence[Sequence[str]], clip_model: str
) -> None:
  """Raises InputError unless the prompts fit a CLIP and classes with these names."""
  clip_config = inputs.clip_config(clip_model)
  for named in prompts_of(own, propose):
    check_prompt(named, synonyms, clip_config, clip_model)
