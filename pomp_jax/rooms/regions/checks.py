"""Fields of the jobs on regions that must fit together; nothing is opened here.

Every check raises ConfigError for the first field that does not fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pomp_jax.config.declare import ConfigError, require
from pomp_jax.config.fields import Checkpoint, Data, Loop, Mesh, Predict
from pomp_jax.files.paths import exists, is_dir, is_file
from pomp_jax.rooms.regions.fields import Detect, Propose, Regions, Segment, TrainMasks

_NETWORK = "a .safetensors or .pth file, or a run's folder that exists"
_ACCEPTED: dict[Callable[..., bool], str] = {
  is_dir: "a folder that exists",
  is_file: "a JSON file that exists",
  exists: _NETWORK,
}


def check_task(predict: Predict, regions: Regions, segment: Segment, propose: Propose) -> None:
  """Checks the regions of `predict`."""
  network = propose.network
  if regions.source == "truth":
    raise ConfigError("regions.source", "truth", "none, file or network where job='predict'")
  if network and regions.source == "file":
    raise ConfigError("propose.network", network, "'' where regions.source='file'")
  # A network's name is enough to ask for its regions.
  if network or (predict.task == "detect" and regions.source == "none"):
    expected = f"{_NETWORK}, or regions.source='file'"
    require(exists(network), "propose.network", network, expected)
  _check_regions(regions, network)
  require(not regions.alone, "regions.alone", True, "False where job='predict'")
  if predict.task == "segment":
    _check_background(segment)


def check_segment(segment: Segment, regions: Regions, propose: Propose) -> None:
  """Checks the fields of `segment`."""
  _check_regions(regions, propose.network)
  _check_background(segment)
  if segment.background and segment.label_values == "reduce_zero_label":
    accepted = "index where there is a background, whose value is 0"
    raise ConfigError("segment.label_values", "reduce_zero_label", accepted)
  if segment.source == "world":
    _check_world("segment", segment, ("images", "labels", "names", "background"))
    return
  _check_path("segment.images", segment.images, is_dir)
  if segment.labels or regions.source == "truth":
    _check_path("segment.labels", segment.labels, is_dir)


def check_detect(detect: Detect, regions: Regions, propose: Propose) -> None:
  """Checks the fields of `detect`."""
  _check_regions(regions, propose.network)
  if regions.source == "none":
    raise ConfigError("regions.source", "none", "truth, file or network where job='detect'")
  _check_detect_images(detect)


def check_propose(propose: Propose, segment: Segment, detect: Detect, regions: Regions) -> None:
  """Checks the fields of `propose`."""
  _check_path("propose.network", propose.network, exists)
  if propose.images == "segment":
    check_segment(segment, regions, propose)
  else:
    _check_detect_images(detect)


def check_train_masks(
  train_masks: TrainMasks, data: Data, loop: Loop, mesh: Mesh, checkpoint: Checkpoint
) -> None:
  """Checks the fields of `train_masks`."""
  own = train_masks
  for field, value, fixed in (
    ("data.views", data.views, 1),
    ("data.features", data.features, "online"),
    ("accumulate", loop.accumulate, 1),
    ("mesh.class_size", mesh.class_size, 1),
    ("checkpoint.select", checkpoint.select, "last"),
  ):
    require(value == fixed, field, value, f"{fixed!r} where job='train_masks'")
  expected = f"{own.min_scale} or more"
  require(own.min_scale <= own.max_scale, "train_masks.max_scale", own.max_scale, expected)
  if own.source == "world":
    _check_world("train_masks", own, ("images", "labels", "annotations", "names"))
    return
  _check_path("train_masks.images", own.images, is_dir)
  if own.source in ("folder", "panoptic"):
    _check_path("train_masks.labels", own.labels, is_dir)
  if own.source in ("coco", "panoptic"):
    _check_path("train_masks.annotations", own.annotations, is_file)


def _check_world(group: str, own: Any, unread: Sequence[str]) -> None:
  """Checks that the world's scenes are counted, and that no files are named beside them."""
  where = f"where {group}.source='world'"
  require(own.n_images > 0, f"{group}.n_images", 0, f"1 or more {where}")
  for field in unread:
    value = getattr(own, field)
    require(not value, f"{group}.{field}", value, f"nothing {where}")


def _check_detect_images(detect: Detect) -> None:
  if detect.source == "world":
    _check_world("detect", detect, ("annotations", "images", "names"))
    return
  _check_path("detect.annotations", detect.annotations, is_file)
  if detect.images:
    _check_path("detect.images", detect.images, is_dir)


def _check_background(segment: Segment) -> None:
  below = segment.background_below
  fits = bool(segment.background) or not below
  require(fits, "segment.background_below", below, "0 without background")


def _check_regions(regions: Regions, network: str) -> None:
  source, path = regions.source, regions.path
  if source == "file":
    require(exists(path), "regions.path", path, "a file or folder that exists")
  else:
    require(not path, "regions.path", path, "'' unless regions.source='file'")
  if source == "network":
    _check_path("propose.network", network, exists)


def _check_path(field: str, path: str, fits: Callable[..., bool]) -> None:
  require(fits(path), field, path, _ACCEPTED[fits])
