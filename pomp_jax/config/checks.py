"""What can be judged of a config before anything is opened."""

import os
import re
from typing import Any

from ml_collections import ConfigDict

from pomp_jax.clip.packed import REMAT
from pomp_jax.clip.precision import DTYPES
from pomp_jax.clip.synthetic import SYNTHETIC_CLIPS
from pomp_jax.clip.text import TEXT_TOWERS
from pomp_jax.config.accepted import (
  EXPORT_FORMATS,
  FEATURE_FORMATS,
  FEATURE_METHODS,
  FEATURES,
  JOBS,
  MADE_UP_CLIP,
  MADE_UP_DATA,
  METHODS,
  PIXEL_METHODS,
  SOURCES,
  STEP_METHODS,
  WEIGHT_SUFFIXES,
  WORLD,
)
from pomp_jax.config.named_fields import ConfigError, check_at_least, check_choice, fields, value_of
from pomp_jax.data.class_lists import CLASS_LISTS
from pomp_jax.data.coop import COOP_SETS
from pomp_jax.data.subsets import HALVES
from pomp_jax.data.suites import NO_SUITE, READERS, SUITES
from pomp_jax.data.views import AUGMENTS
from pomp_jax.files.atomic import why_unwritable
from pomp_jax.prompt.context import POSITIONS
from pomp_jax.prompt.loss import CORRECTIONS
from pomp_jax.prompt.optimizer import SCHEDULES
from pomp_jax.prompt.sampling import ANCHORS, EXCLUSIONS, SAMPLERS

# What stands for a URL.
LOCAL_PATH = "a local path: buckets are not supported yet; mount it, and name its folder"


def validate(config: ConfigDict) -> None:
  """Checks every field that can be judged alone; jobs check what needs their data.

  Raises:
    ConfigError: the first field that is wrong.
  """
  _no_urls(config)
  check_choice(config, "job", JOBS)
  check_choice(config, "method", METHODS)
  check_choice(config, "clip.text_tower", TEXT_TOWERS)
  check_choice(config, "clip.dtype", DTYPES)
  check_choice(config, "data.source", SOURCES)
  check_choice(config, "data.classes", HALVES)
  check_choice(config, "data.augment", AUGMENTS)
  check_choice(config, "data.features", FEATURES)
  check_choice(config, "prompt.position", POSITIONS)
  check_choice(config, "correction", CORRECTIONS)
  check_choice(config, "negatives", ("sampled", "all"))
  check_choice(config, "sampling.name", tuple(SAMPLERS))
  check_choice(config, "sampling.anchors", ANCHORS)
  check_choice(config, "sampling.exclude", tuple(EXCLUSIONS))
  check_choice(config, "clip.keep", ("auto", "activations", *REMAT[1:]))
  check_choice(config, "optim.schedule", SCHEDULES)
  check_choice(config, "on_bad_loss", ("stop", "roll_back"))
  check_choice(config, "checkpoint.on_failure", ("stop", "retry"))
  for field in (
    "clip.chunk",
    "data.images_per_class",
    "data.threads",
    "data.views",
    "prepare.workers",
    "prompt.m",
    "sampling.refresh_every",
    "prompt.depth",
    "prompt.visual",
    "probe.iterations",
    "tip.views",
    "tip.alphas",
    "tip.betas",
    "batch_size",
    "accumulate",
    "epochs",
    "mesh.class_size",
    "evaluate.batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "predict.top",
    "analyse.top",
    "gradient_bias.images",
    "gradient_bias.rows",
  ):
    check_at_least(config, field, 1)
  check_at_least(config, "k", 2)
  for field in (
    "seed",
    "steps",
    "data.n_classes",
    "data.shots",
    "data.shots_seed",
    "data.augment_seed",
    "data.fresh_epochs",
    "eval.images",
    "data.workers",
    "data.max_corrupt",
    "prepare.shots",
    "prepare.shots_seed",
    "prepare.held_out",
    "ablate.lanes",
    "clip.n_chunks",
    "clip.images_at_a_time",
    "evaluate.images",
    "tip.epochs",
    "tip.alpha",
    "tip.beta",
    "tip.alpha_max",
    "tip.beta_max",
    "max_roll_backs",
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "optim.warmup",
    "optim.warmup_lr",
    "sampling.power",
    "sampling.ancestors_weight",
  ):
    check_at_least(config, field, 0)
  if not 0 < config.sampling.mix <= 1:
    raise ConfigError("sampling.mix", config.sampling.mix, "above 0, at most 1")
  if not 0 < config.data.crop_area <= 1:
    raise ConfigError("data.crop_area", config.data.crop_area, "above 0, at most 1")
  if not (config.loss_spike == 0 or 1 < config.loss_spike < float("inf")):
    raise ConfigError("loss_spike", config.loss_spike, "a factor above 1, or 0 for none")
  for field in ("clip.memory_gib", "sampling.temperature"):
    if not 0 < value_of(config, field) < float("inf"):
      raise ConfigError(field, value_of(config, field), "a number above 0")
  if not -1 <= config.sampling.exclude_threshold <= 1:
    raise ConfigError("sampling.exclude_threshold", config.sampling.exclude_threshold, "-1 to 1")
  _method(config)
  _watch(config)
  if config.seed >= 2**32:
    raise ConfigError("seed", config.seed, "an integer from 0 to 4294967295")
  if config.optim.schedule == "epoch" and config.optim.warmup != int(config.optim.warmup):
    raise ConfigError(
      "optim.warmup", config.optim.warmup, "whole epochs under optim.schedule='epoch'"
    )
  if config.eval.template.count("{}") != 1:
    raise ConfigError("eval.template", config.eval.template, "a text with one {} for the name")
  model = config.clip.model
  if model.startswith(MADE_UP_CLIP) and model.removeprefix(MADE_UP_CLIP) not in SYNTHETIC_CLIPS:
    raise ConfigError(
      "clip.model", model, f"{MADE_UP_CLIP} and one of {', '.join(SYNTHETIC_CLIPS)}"
    )
  model = model.removeprefix(MADE_UP_CLIP)
  # A dry run makes up the weights of a published architecture.
  made_up = config.dry_run and model in SYNTHETIC_CLIPS
  # A hub id has one slash at most, and starts with a letter or a digit.
  hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
  is_hub_id = hub_id and not model.endswith(WEIGHT_SUFFIXES)
  if not (os.path.exists(model) or is_hub_id or made_up):
    raise ConfigError("clip.model", model, "a folder or file that exists, or a hub id")
  check_choice(config, "clip.activation", ("auto", "quick_gelu", "gelu"))
  # A dry run has no need of the data.
  if not config.dry_run:
    _data(config)
  elif not config.eval.images:
    takes = "in a dry run the number of test images, which it does not open"
    raise ConfigError("eval.images", 0, takes)
  _views(config)
  _caches(config)
  if config.job == "predict":
    _predict(config.predict)
  check_choice(config, "evaluate.suite", (NO_SUITE, *SUITES))
  check_choice(config, "evaluate.reader", READERS)
  check_choice(config, "export.format", tuple(EXPORT_FORMATS))
  if config.job == "export":
    _export(config.export)
  if config.job == "prepare" and not os.path.exists(config.prepare.input):
    raise ConfigError("prepare.input", config.prepare.input, "a file or folder that exists")
  seeds = config.repeat.seeds
  if config.job in ("repeat", "baselines") and (
    not seeds or not all(map(_is_seed, seeds)) or len(set(seeds)) < len(seeds)
  ):
    takes = "one or more different integers from 0 to 4294967295"
    raise ConfigError("repeat.seeds", seeds, takes)


def is_url(text: str) -> bool:
  """Whether a text has a scheme, as `gs://bucket/run` has; as a path it would be a local folder."""
  return bool(re.search(r"\b[A-Za-z][A-Za-z0-9+.-]*://", text))


def _no_urls(config: ConfigDict) -> None:
  """In none of the texts, nor in one of the parts of those that name several paths."""
  for field, value in fields(config):
    if isinstance(value, str) and is_url(value):
      raise ConfigError(field, value, LOCAL_PATH)


def _caches(config: ConfigDict) -> None:
  """Folders that are written to after hours, it may be."""
  for field in ("eval.cache", "data.cache", "data.feature_cache"):
    folder = value_of(config, field)
    writes = folder and (field != "data.feature_cache" or config.job == "cache")
    if writes and (problem := why_unwritable(folder)):
      raise ConfigError(field, folder, f"a folder that can be written to; {problem}")


def _is_seed(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _method(config: ConfigDict) -> None:
  """What the baselines can't be combined with."""
  method = config.method
  if config.job == "repeat" and method in FEATURE_METHODS:
    takes = f"one of {', '.join(STEP_METHODS)} where job='repeat'; see job='baselines'"
    raise ConfigError("method", method, takes)
  fixed = {}
  if method != "pomp":
    fixed |= {"prompt.class_specific": False, "dry_run": False}
    # The bank is of class features under a context.
    if "bank" in SAMPLERS[config.sampling.name].needs:
      fixed["sampling.name"] = "uniform"
    if config.sampling.exclude == "similar":
      fixed["sampling.exclude"] = "none"
  if method in PIXEL_METHODS:
    fixed["data.features"] = "online"
  if method in ("zero_shot", "linear_probe"):
    # On images as they are.
    fixed |= {"data.augment": "none"}
  if method == "maple":
    fixed |= {"prompt.position": "end", "clip.text_tower": "shared"}
  if method not in ("vpt_deep", "maple"):
    fixed["prompt.depth"] = 1
  for field, value in fixed.items():
    if value_of(config, field) != value:
      raise ConfigError(field, value_of(config, field), f"{value!r} where method={method!r}")


def _watch(config: ConfigDict) -> None:
  if not 0 <= config.watch.port < 2**16:
    raise ConfigError("watch.port", config.watch.port, "0 (none) to 65535")
  if config.watch.port and not config.watch.host:
    raise ConfigError("watch.host", config.watch.host, "an address of this machine")
  profiled = re.fullmatch(r"([0-9]{1,12})\+([0-9]{1,12})", config.profile_steps)
  if config.profile_steps and not (profiled and 1 <= int(profiled[1]) <= int(profiled[2])):
    takes = "the first and the last step to profile, such as 20+30"
    raise ConfigError("profile_steps", config.profile_steps, takes)


def _data(config: ConfigDict) -> None:
  data = config.data
  if data.source == WORLD:
    if not config.eval.images:
      raise ConfigError("eval.images", 0, f"1 or more where data.source='{WORLD}': it has no end")
    unread = {"root": "", "dataset": "", "names": "", "shots": 0, "classes": "all"}
    unread |= {"base": "", "novel": ""}
    for field, value in unread.items():
      if data[field] != value:
        raise ConfigError(f"data.{field}", data[field], f"{value!r} where data.source='{WORLD}'")
    return
  if data.source == MADE_UP_DATA:
    if data.names not in CLASS_LISTS and not os.path.isfile(data.names):
      takes = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"
      raise ConfigError("data.names", data.names, takes)
    return
  if not os.path.isdir(data.root) and (data.root or data.source != "tfds"):
    raise ConfigError("data.root", data.root, "a folder that exists")
  if data.source == "folder" and data.dataset:
    raise ConfigError("data.dataset", data.dataset, "'' where data.source='folder'")
  if data.source == "coop" and data.dataset not in COOP_SETS:
    raise ConfigError("data.dataset", data.dataset, f"one of {', '.join(COOP_SETS)}")
  if data.source == "tfds" and not data.dataset:
    raise ConfigError("data.dataset", data.dataset, "a data set of TFDS, such as food101")
  _names(data, "names")
  _groups(data)


def _groups(data: ConfigDict) -> None:
  """Held-out shares, and lists of base and novel classes."""
  for field in ("test_share", "validation_share"):
    if not 0 <= data[field] < 1:
      raise ConfigError(f"data.{field}", data[field], "a share from 0 to below 1")
  if data.test_share + data.validation_share >= 1:
    takes = f"less than 1 together with data.test_share = {data.test_share}"
    raise ConfigError("data.validation_share", data.validation_share, takes)
  if data.base and data.classes != "all":
    raise ConfigError("data.classes", data.classes, "'all' where data.base has a list")
  if data.novel and not data.base:
    raise ConfigError("data.novel", data.novel, "'' where data.base is empty")
  for field in ("base", "novel"):
    _names(data, field)


def _names(data: ConfigDict, field: str) -> None:
  names = data[field]
  if names and names not in CLASS_LISTS and not os.path.isfile(names):
    takes = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"
    raise ConfigError(f"data.{field}", names, takes)


def _views(config: ConfigDict) -> None:
  data = config.data
  if data.augment == "none" and data.views > 1:
    raise ConfigError("data.views", data.views, "1 where data.augment='none': all would be alike")
  if config.batch_size % data.views:
    raise ConfigError("batch_size", config.batch_size, f"a multiple of data.views = {data.views}")
  if config.job != "cache" and data.features != "cached":
    return
  if data.augment != "none" and not data.fresh_epochs:
    takes = "the number of epochs whose views are cached, 1 or more"
    raise ConfigError("data.fresh_epochs", data.fresh_epochs, takes)
  folder = data.feature_cache
  if config.dry_run:
    return
  if not folder or (config.job != "cache" and not os.path.isdir(folder)):
    takes = "a folder" if config.job == "cache" else "a folder that config.job='cache' has made"
    raise ConfigError("data.feature_cache", folder, takes)


def _predict(predict: ConfigDict) -> None:
  if not os.path.isdir(predict.images):
    raise ConfigError("predict.images", predict.images, "a folder that exists")
  if predict.names not in CLASS_LISTS and not os.path.isfile(predict.names):
    takes = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"
    raise ConfigError("predict.names", predict.names, takes)
  if "{}" not in predict.prompt and not os.path.isfile(predict.prompt):
    raise ConfigError(
      "predict.prompt", predict.prompt, "a prompt file that exists, or a template with {}"
    )


def _export(export: ConfigDict) -> None:
  features = export.format in FEATURE_FORMATS
  if not (features and "{}" in export.prompt) and not os.path.isfile(export.prompt):
    takes = "a prompt file that exists" + (", or a template with {}" if features else "")
    raise ConfigError("export.prompt", export.prompt, takes)
  if features and not os.path.isfile(export.names):
    raise ConfigError("export.names", export.names, "a file that exists")
  suffixes = EXPORT_FORMATS[export.format]
  name = export.output
  if name and (os.path.basename(name) != name or not name.endswith(suffixes)):
    raise ConfigError("export.output", name, f"a file name that ends with {' or '.join(suffixes)}")
