"""Fields of the jobs on regions that must fit together; nothing is opened here."""

from pomp_jax.config.declare import ConfigError
from pomp_jax.config.fields import Settings
from pomp_jax.config.region_fields import Detect, Propose, Regions, Segment
from pomp_jax.files.paths import exists, is_dir, is_file

_NETWORK = "a .pth file or a run's folder that exists"


def check_predicted_regions(settings: Settings) -> None:
  """Checks the regions of `predict`.

  Raises:
    ConfigError: the first field that does not fit.
  """
  network, task = settings.propose.network, settings.predict.task
  source = settings.regions.source
  if source == "truth":
    raise ConfigError("regions.source", "truth", "none, file or network where job='predict'")
  if network and source == "file":
    raise ConfigError("propose.network", network, "'' where regions.source='file'")
  # A network's name is enough to ask for its regions.
  needed = network or (task == "detect" and source == "none")
  if needed and not exists(network):
    raise ConfigError("propose.network", network, f"{_NETWORK}, or regions.source='file'")
  _check_regions(settings.regions)
  _check_source(settings)
  if settings.regions.alone:
    raise ConfigError("regions.alone", True, "False where job='predict'")
  if task == "segment":
    _check_background(settings.segment)


def check_segment(settings: Settings) -> None:
  """Checks the fields of `segment`.

  Raises:
    ConfigError: the first that does not fit.
  """
  segment = settings.segment
  _check_regions(settings.regions)
  _check_source(settings)
  _check_background(segment)
  if segment.background and segment.label_values == "reduce_zero_label":
    accepted = "index where there is a background, whose value is 0"
    raise ConfigError("segment.label_values", "reduce_zero_label", accepted)
  if segment.source == "world":
    if not segment.n_images:
      raise ConfigError("segment.n_images", 0, "1 or more where segment.source='world'")
    for field in ("images", "labels", "names", "background"):
      if value := getattr(segment, field):
        raise ConfigError(f"segment.{field}", value, "nothing where segment.source='world'")
    return
  for field in ("images", "labels"):
    folder = getattr(segment, field)
    if not is_dir(folder) and (folder or field == "images"):
      raise ConfigError(f"segment.{field}", folder, "a folder that exists")
  if not segment.labels and settings.regions.source == "truth":
    raise ConfigError("segment.labels", "", "a folder of labels where regions.source='truth'")


def check_detect(settings: Settings) -> None:
  """Checks the fields of `detect`.

  Raises:
    ConfigError: the first that does not fit.
  """
  detect = settings.detect
  _check_regions(settings.regions)
  _check_source(settings)
  if settings.regions.source == "none":
    raise ConfigError("regions.source", "none", "truth, file or network where job='detect'")
  _check_detect_images(detect)


def check_propose(settings: Settings) -> None:
  """Checks the fields of `propose`.

  Raises:
    ConfigError: the first that does not fit.
  """
  _check_network(settings.propose)
  if settings.propose.images == "segment":
    check_segment(settings)
  else:
    _check_detect_images(settings.detect)


def check_train_masks(settings: Settings) -> None:
  """Checks the fields of `train_masks`.

  Raises:
    ConfigError: the first that does not fit.
  """
  own = settings.train_masks
  fixed = {"method": "pomp", "data.views": 1, "data.features": "online", "accumulate": 1}
  fixed |= {"mesh.class_size": 1, "checkpoint.select": "last"}
  values = settings.flat()
  for field, value in fixed.items():
    if values[field] != value:
      raise ConfigError(field, values[field], f"{value!r} where job='train_masks'")
  if own.max_scale < own.min_scale:
    raise ConfigError("train_masks.max_scale", own.max_scale, f"{own.min_scale} or more")
  if own.source == "world":
    if not own.n_images:
      raise ConfigError("train_masks.n_images", 0, "1 or more where train_masks.source='world'")
    for field in ("images", "labels", "annotations", "names"):
      if value := getattr(own, field):
        raise ConfigError(f"train_masks.{field}", value, "nothing where train_masks.source='world'")
    return
  if not is_dir(own.images):
    raise ConfigError("train_masks.images", own.images, "a folder that exists")
  if own.source in ("folder", "panoptic") and not is_dir(own.labels):
    raise ConfigError("train_masks.labels", own.labels, "a folder that exists")
  if own.source in ("coco", "panoptic") and not is_file(own.annotations):
    raise ConfigError("train_masks.annotations", own.annotations, "a JSON file that exists")


def _check_detect_images(detect: Detect) -> None:
  if detect.source == "world":
    if not detect.n_images:
      raise ConfigError("detect.n_images", 0, "1 or more where detect.source='world'")
    for field in ("annotations", "images", "names"):
      if value := getattr(detect, field):
        raise ConfigError(f"detect.{field}", value, "nothing where detect.source='world'")
    return
  if not is_file(detect.annotations):
    raise ConfigError("detect.annotations", detect.annotations, "a JSON file that exists")
  if detect.images and not is_dir(detect.images):
    raise ConfigError("detect.images", detect.images, "a folder that exists")


def _check_background(segment: Segment) -> None:
  if segment.background_below and not segment.background:
    raise ConfigError("segment.background_below", segment.background_below, "0 without background")


def _check_source(settings: Settings) -> None:
  if settings.regions.source == "network":
    _check_network(settings.propose)


def _check_regions(regions: Regions) -> None:
  if regions.source == "file" and not exists(regions.path):
    raise ConfigError("regions.path", regions.path, "a file or folder that exists")
  if regions.source != "file" and regions.path:
    raise ConfigError("regions.path", regions.path, "'' unless regions.source='file'")


def _check_network(propose: Propose) -> None:
  if not exists(propose.network):
    raise ConfigError("propose.network", propose.network, _NETWORK)
