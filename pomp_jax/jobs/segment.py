"""A class for every pixel under prompts side by side: IoU, label images, pictures.

Without regions the classes of patches, by a training-free recipe; with regions the classes of
crops and of a network's embeddings, added up over the regions of a pixel.

Leaves in the run's folder `results.json` with every figure, `results.md`, `report.html`,
`plots/segmentation.png` and `labels/<number of the prompt>/<image>.png`. A restart resumes after
the last block of images.

With several processes all of them work on each block together, and the first writes.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import json
import logging
from typing import Any

import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis.labels import counted, prompt_labels
from pomp_jax.analysis.run_report import write_run_report
from pomp_jax.analysis.segmentation import segmentation_sheet
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.pixels import IGNORED, read_values, write_labels
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import file_stamps, fingerprint
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import local_copy
from pomp_jax.files.run_folder import RunFolder, to_json, with_provenance, write_json, writing
from pomp_jax.files.terminal import steps_of, waiting
from pomp_jax.inference.class_matrix import ClassMatrix, check_prompt, class_matrix, key_parts
from pomp_jax.inference.label_maps import label_maps_of_regions
from pomp_jax.inference.named_prompts import NamedPrompt
from pomp_jax.inference.pixel_metrics import PixelTally
from pomp_jax.inputs.networks import read_prompts_of
from pomp_jax.inputs.pixel_sets import PixelSet, open_pixel_set
from pomp_jax.inputs.region_scorer import RegionScorer, Seen
from pomp_jax.inputs.region_sources import (
  Images,
  check_region_source,
  open_region_source,
  region_key_parts,
)
from pomp_jax.inputs.regions import (
  check_alone,
  compared,
  trained_classes,
)
from pomp_jax.inputs.segmenter import check_patches, open_segmenter

log = logging.getLogger(__name__)

# Images between two saves.
_BLOCK = 16
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"
# Images -> for each of them the label map under each prompt.
Segmenter = Callable[[Sequence[int]], Iterator[list[np.ndarray]]]


def check(config: Settings, workdir: str) -> None:
  """Opens images, labels, regions and prompts; writes nothing.

  Raises:
    ConfigError, ClipError, PromptFileError, CheckpointError, RunFolderError, VocabularyError,
      ImageError, PixelError, RegionFileError, AnnotationError, MaskFormerError: one line each.
  """
  RunFolder(workdir).check(config.job)
  check_alone(config.regions)
  pixels = open_pixel_set(config.segment)
  clip_config = inputs.clip_config(config.clip.model)
  for named in read_prompts_of(config.segment.prompts, "segment.prompts", config):
    check_prompt(named, pixels.classes.synonyms, clip_config, config.clip.model)
  if config.regions.source == "none":
    check_patches(config.segment, clip_config)
  with waiting("reading all labels"):
    pixels.check()
  boxes_alone = check_region_source(config, _images(pixels))
  if boxes_alone is not None:
    found = f"regions with masks (image {boxes_alone} has boxes alone)"
    raise ConfigError("regions.path", config.regions.path, found)


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Segments the images that are missing, and sums up: returns what `results.json` holds.

  Processes other than the first return an empty dict.

  Raises:
    ImageError, RegionFileError: an image or its regions can't be read.
    MaskFormerError: a network with another CLIP inside than the configured one.
  """
  folder, first = RunFolder(workdir), hosts.is_first()
  encoder = inputs.open_encoder(config)
  pixels = open_pixel_set(config.segment)
  plain = read_prompts_of(config.segment.prompts, "segment.prompts", config)
  prompts = compared(config.regions, plain)
  synonyms = pixels.classes.synonyms
  matrices = [class_matrix(encoder, synonyms, named) for named in plain]
  by = _by_patches if config.regions.source == "none" else _by_regions
  segment = by(config, encoder, pixels, matrices)
  if first:
    folder.create()
    write_json(folder.config, config.to_dict())
  state = _State(folder, _key(config, encoder, pixels, prompts), len(prompts), len(synonyms))
  if first and not state.done:
    # From now on no other start may resume with these label images.
    state.save(0)
  n_images = len(pixels.keys)
  starts = range(hosts.from_first(state.done, "images that are done"), n_images, _BLOCK)
  for start in steps_of(starts, "segmentation", f"blocks of {_BLOCK} images"):
    block = range(start, min(start + _BLOCK, n_images))
    for index, maps in zip(block, segment(block), strict=True):
      if first:
        state.add(pixels.labels(index), maps)
        if config.segment.output or index in _shown(n_images):
          _write_maps(folder, pixels, index, maps)
    if first:
      state.save(block.stop)
  if not first:
    return {}
  results = _results(config, encoder, pixels, prompts, state.tallies)
  if folder.read_results() == results:
    log.info("%s: this segmentation has finished; nothing to do", workdir)
    return results
  stored = with_provenance(results)
  with writing(folder.path):
    _write_report(config, folder, pixels, stored)
  # Last: a folder with results is a finished run.
  folder.write_results(stored)
  log.info("figures and pictures are in %s", folder.path)
  return results


def _by_patches(
  config: Settings, encoder: Encoder, pixels: PixelSet, matrices: Sequence[ClassMatrix]
) -> Segmenter:
  """Features of patches are computed once for all prompts."""
  segmenter = open_segmenter(config, encoder)
  return lambda block: segmenter.label_maps([pixels.image(index) for index in block], matrices)


def _by_regions(
  config: Settings, encoder: Encoder, pixels: PixelSet, matrices: Sequence[ClassMatrix]
) -> Segmenter:
  """Crops are made once for all prompts."""
  images = _images(pixels)
  source = open_region_source(config, encoder, images)
  scorer = RegionScorer(
    config.regions,
    encoder,
    source.header,
    trained_classes(source.header, pixels.classes),
    logit_scale=config.segment.logit_scale,
    tight=True,
  )

  def segment(block):
    seen = (
      Seen(images.pixels(index), regions, f"image {pixels.keys[index]}")
      for index, regions in zip(block, source.regions(block), strict=True)
    )
    for one, scores in scorer.scores(seen, matrices):
      masks, sides = one.regions.drawn(one.where), one.image.shape[:2]
      yield list(label_maps_of_regions(scores, masks, *sides))

  return segment


def _images(pixels: PixelSet) -> Images:
  """Images of a block are decoded once."""
  decoded = functools.lru_cache(_BLOCK)(pixels.image)
  return Images(pixels.keys, pixels.shape, decoded, pixels.regions)


class _State:
  """Counts of the images that are done, in `progress.npz`.

  Attributes:
    done: number of images.
    tallies: counts under each prompt.
  """

  def __init__(self, folder: RunFolder, key: str, n_prompts: int, n_classes: int):
    self._path, self._key = folder.path / "progress.npz", key
    self.done, self.tallies = 0, [PixelTally(n_classes) for _ in range(n_prompts)]
    try:
      with np.load(local_copy(self._path), allow_pickle=False) as stored:
        if str(stored["key"]) == key:
          self.done = int(stored["done"])
          for tally, counts in zip(self.tallies, stored["counts"], strict=True):
            tally.counts[:] = counts
    except FileNotFoundError:
      pass
    except Exception as error:  # a damaged file raises errors of many classes
      log.warning("%s: can't be read (%s); all images are segmented again", self._path, error)
      self.done = 0

  def add(self, labels_HxW: np.ndarray, maps: Sequence[np.ndarray]) -> None:
    """Counts one image."""
    for tally, predicted_HxW in zip(self.tallies, maps, strict=True):
      tally.add(labels_HxW, predicted_HxW)

  def save(self, done: int) -> None:
    """Saves the counts of the first `done` images."""
    self.done = done
    counts = np.stack([tally.counts for tally in self.tallies])
    with writing(self._path), replacing(self._path) as file:
      np.savez(file, key=self._key, done=done, counts=counts)


def _key(
  config: Settings, encoder: Encoder, pixels: PixelSet, prompts: Sequence[NamedPrompt]
) -> str:
  """Of all that the figures depend on; a file counts by its size and modification time."""
  synonyms = pixels.classes.synonyms
  parts = [_VERSION, encoder.image_fingerprint, encoder.clip.name, str(config.segment)]
  parts += [config.clip.text_tower, "\n".join(pixels.keys), file_stamps(pixels.files)]
  parts += region_key_parts(config, pixels.keys)
  for named in prompts:
    parts += key_parts(named, synonyms)
  return fingerprint(parts)


def _shown(n_images: int) -> list[int]:
  """Images in the plot, evenly over all."""
  return spread_evenly(_SHOWN, n_images).tolist()


def _labels_path(folder: RunFolder, pixels: PixelSet, index: int, prompt: int):
  return folder.path / "labels" / str(prompt) / f"{pixels.keys[index]}.png"


def _write_maps(
  folder: RunFolder, pixels: PixelSet, index: int, maps: Sequence[np.ndarray]
) -> None:
  for number, map_HxW in enumerate(maps):
    path = _labels_path(folder, pixels, index, number)
    with writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      write_labels(path, map_HxW, len(pixels.classes))


def _results(
  config: Settings,
  encoder: Encoder,
  pixels: PixelSet,
  prompts: Sequence[NamedPrompt],
  tallies: Sequence[PixelTally],
) -> dict[str, Any]:
  classes = pixels.classes
  groups = {name: classes.indices(name) for name in ("base", "novel")}
  groups = {name: members for name, members in groups.items() if len(members)}
  figures = {}
  for named, tally in zip(prompts, tallies, strict=True):
    iou_C, accuracy_C = tally.per_class()
    figures[named.label] = {
      **tally.figures(groups),
      "per_class": {"iou": iou_C, "accuracy": accuracy_C},
    }
  results = {
    "job": config.job,
    "clip_model": encoder.clip.name,
    "regions": config.regions.source,
    "recipe": config.segment.recipe if config.regions.source == "none" else None,
    "prompts": [
      {"label": named.label, "step": named.step, "labels": f"labels/{number}"}
      for number, named in enumerate(prompts)
    ],
    "images": len(pixels.keys),
    "classes": classes.names,
    "groups": classes.groups,
    "pixels": tallies[0].counts[0],
    "figures": figures,
  }
  return json.loads(to_json(results))


def _write_report(
  config: Settings, folder: RunFolder, pixels: PixelSet, results: dict[str, Any]
) -> None:
  """Writes tables, pictures, and the page with both."""
  shown = _shown(results["images"])
  truth = [pixels.labels(index) for index in shown]
  titles = ["truth"] if any((labels != IGNORED).any() for labels in truth) else []
  maps = [[labels] if titles else [] for labels in truth]
  labels = prompt_labels([prompt["label"] for prompt in results["prompts"]])
  for number, label in enumerate(labels):
    titles.append(label)
    for index, row in zip(shown, maps, strict=True):
      row.append(_read_map(_labels_path(folder, pixels, index, number), len(pixels.classes)))
  segmentation_sheet(
    folder.plots / "segmentation.png",
    [pixels.image(index) for index in shown],
    maps,
    titles,
    pixels.classes.names,
    f"{len(shown)} of {counted(results['images'], 'image')},"
    f" {counted(len(pixels.classes), 'class')}",
  )
  write_run_report(folder, config, results, "results.md")


def _read_map(path, n_classes: int) -> np.ndarray:
  map_HxW = read_values(path).astype(np.int32)
  return np.where(map_HxW < n_classes, map_HxW, IGNORED)
