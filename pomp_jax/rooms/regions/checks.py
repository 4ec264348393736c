"""Fields of the jobs on regions that must fit together; nothing is opened here.

Every check raises ConfigError for the first field that does not fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pomp_jax.config.declare import ConfigError, require
from pomp_jax.config.fields import Settings
from pomp_jax.files.paths import exists, is_dir, is_file
from pomp_jax.rooms.regions.fields import Segment

_NETWORK = "a .safetensors or .pth file, or a run's folder that exists"
_ACCEPTED = {is_dir: "a folder that exists", is_file: "a JSON file that exists", exists: _NETWORK}


def check_predicted_regions(settings: Settings) -> None:
  """Checks the regions of `predict`."""
  network, task = settings.propose.network, settings.predict.task
  regions = settings.regions
  if regions.source == "truth":
    raise ConfigError("regions.source", "truth", "none, file or network where job='predict'")
  if network and regions.source == "file":
    raise ConfigError("propose.network", network, "'' where regions.source='file'")
  # A network's name is enough to ask for its regions.
  if network or (task == "detect" and regions.source == "none"):
    expected = f"{_NETWORK}, or regions.source='file'"
    require(exists(network), "propose.network", network, expected)
  _check_regions(settings)
  require(not regions.alone, "regions.alone", True, "False where job='predict'")
  if task == "segment":
    _check_background(settings.segment)


def check_segment(settings: Settings) -> None:
  """Checks the fields of `segment`."""
  segment = settings.segment
  _check_regions(settings)
  _check_background(segment)
  if segment.background and segment.label_values == "reduce_zero_label":
    accepted = "index where there is a background, whose value is 0"
    raise ConfigError("segment.label_values", "reduce_zero_label", accepted)
  if segment.source == "world":
    _check_world("segment", segment, ("images", "labels", "names", "background"))
    return
  _check_path(settings, "segment.images", is_dir)
  if segment.labels or settings.regions.source == "truth":
    _check_path(settings, "segment.labels", is_dir)


def check_detect(settings: Settings) -> None:
  """Checks the fields of `detect`."""
  _check_regions(settings)
  if settings.regions.source == "none":
    raise ConfigError("regions.source", "none", "truth, file or network where job='detect'")
  _check_detect_images(settings)


def check_propose(settings: Settings) -> None:
  """Checks the fields of `propose`."""
  _check_path(settings, "propose.network", exists)
  if settings.propose.images == "segment":
    check_segment(settings)
  else:
    _check_detect_images(settings)


def check_train_masks(settings: Settings) -> None:
  """Checks the fields of `train_masks`."""
  own, values = settings.train_masks, settings.flat()
  fixed = {"data.views": 1, "data.features": "online", "accumulate": 1}
  fixed |= {"mesh.class_size": 1, "checkpoint.select": "last"}
  for field, value in fixed.items():
    require(values[field] == value, field, values[field], f"{value!r} where job='train_masks'")
  expected = f"{own.min_scale} or more"
  require(own.min_scale <= own.max_scale, "train_masks.max_scale", own.max_scale, expected)
  if own.source == "world":
    _check_world("train_masks", own, ("images", "labels", "annotations", "names"))
    return
  _check_path(settings, "train_masks.images", is_dir)
  if own.source in ("folder", "panoptic"):
    _check_path(settings, "train_masks.labels", is_dir)
  if own.source in ("coco", "panoptic"):
    _check_path(settings, "train_masks.annotations", is_file)


def _check_world(group: str, own: Any, unread: Sequence[str]) -> None:
  """Checks that the world's scenes are counted, and that no files are named beside them."""
  where = f"where {group}.source='world'"
  require(own.n_images > 0, f"{group}.n_images", 0, f"1 or more {where}")
  for field in unread:
    value = getattr(own, field)
    require(not value, f"{group}.{field}", value, f"nothing {where}")


def _check_detect_images(settings: Settings) -> None:
  detect = settings.detect
  if detect.source == "world":
    _check_world("detect", detect, ("annotations", "images", "names"))
    return
  _check_path(settings, "detect.annotations", is_file)
  if detect.images:
    _check_path(settings, "detect.images", is_dir)


def _check_background(segment: Segment) -> None:
  below = segment.background_below
  fits = bool(segment.background) or not below
  require(fits, "segment.background_below", below, "0 without background")


def _check_regions(settings: Settings) -> None:
  source, path = settings.regions.source, settings.regions.path
  if source == "file":
    require(exists(path), "regions.path", path, "a file or folder that exists")
  else:
    require(not path, "regions.path", path, "'' unless regions.source='file'")
  if source == "network":
    _check_path(settings, "propose.network", exists)


def _check_path(settings: Settings, field: str, fits: Callable[[str], bool]) -> None:
  path = settings.flat()[field]
  require(fits(path), field, path, _ACCEPTED[fits])
