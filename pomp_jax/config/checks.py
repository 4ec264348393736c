"""From a config file to checked `Settings`: each field by its row, then fields together.

Nothing is opened here.
"""

from collections.abc import Mapping
import importlib.util
import inspect
import os
import re
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax import hooks, registry
from pomp_jax.clip.open_clip import named_clip
from pomp_jax.clip.text import WITHOUT_FLAX, has_flax_clip
from pomp_jax.config.declare import ConfigError, check_name, check_value, require
from pomp_jax.config.fields import Clip, Contrast, Data, Export, Optim, Predict, Sampling
from pomp_jax.config.settings import (
  HERE,
  Settings,
  check_read,
  defaults,
  fields_of,
  flatten,
  value_of_text,
)
from pomp_jax.data.class_lists import CLASS_LISTS
from pomp_jax.errors import InputError
from pomp_jax.files.atomic import why_unwritable
from pomp_jax.files.compilation import AUTO
from pomp_jax.files.paths import exists, is_dir, is_file
from pomp_jax.files.prompt_file import NO_NAMES, is_prompt_file, recorded_classes
from pomp_jax.prompt.sampling.samplers import SAMPLERS
from pomp_jax.registry import groups_of, load

SYNTHETIC_CLIP = "synthetic:"  # prefix of a published architecture with random weights
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".msgpack")  # no hub id ends in one
_PROMPTS = "a prompt file that exists, a run's folder with prompt.npz, hf:OWNER/NAME"
_CLIPS = (
  "world, a folder or file that exists, open_clip:MODEL/TAG, or a hub id OWNER/NAME such as"
  " openai/clip-vit-base-patch16 or laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
)
_NAMES = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"


def base(job: str = "pretrain", *others: str) -> ConfigDict:
  """The fields that a job reads, for a config file to change; locked, so that a typo adds none.

  So are those of `others`, jobs that the file is for too, by `--config.job=JOB`, if installed.
  """
  return with_jobs(ConfigDict(), job, *others)


def with_jobs(config: ConfigDict, job: str, *others: str) -> ConfigDict:
  """A config as that of another job: with the fields that it and `others` read, too."""
  of_all = ConfigDict()
  for name in (*(other for other in others if other in registry.JOBS), job):
    of_all.update(defaults(name).to_dict())
  of_all.update({name: value for name, value in config.items() if name != "job"})
  return of_all.lock()


def with_argument(
  config: ConfigDict,
  argument: str | None,
  *,
  variants: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  **short: str,
) -> ConfigDict:
  """Applies the string behind a config file's colon: `configs/demo.py:k=64,seed=1`.

  The config is changed in place. `argument` has `name=value` or the names of `variants` (values of
  several fields), separated by commas. A comma in a text stays in it, unless a field or a variant
  follows. `short` has names of fields beside their own.
  """
  begins = [r"[\w.]+=", *(rf"{re.escape(name)}(?:,|$)" for name in variants)]
  for item in filter(None, re.split(rf",(?={'|'.join(begins)})", argument or "")):
    if item.rstrip(",") in variants:
      config.update_from_flattened_dict(dict(variants[item.rstrip(",")]))
      continue
    name, equals, text = item.partition("=")
    if variants and not equals:
      raise ConfigError(name, "nothing", f"a value, or one of the variants {', '.join(variants)}")
    field = short.get(name, name)
    check_name(field, {*fields_of(), *short})
    known = flatten(config.to_dict())
    check_read(field, config.job, known)
    if fields_of()[field].type not in (str, tuple[str, ...]):
      text = text.rstrip(",")  # of an empty item
    value = value_of_text(field, text)
    if field == "job" and value in registry.JOBS and not fields_of(value).keys() <= known.keys():
      expected = f"{config.job!r}, whose fields this config has; --config.job={value} changes it"
      raise ConfigError("job", value, expected)
    config.update_from_flattened_dict({field: value})
  return config


def unpack(config: ConfigDict, job: str = "") -> Settings:
  """Typed settings of the config's job, or of another one for which the file has fields too.

  Fields of other jobs are dropped. ConfigError for an unknown field or type; see `validate`.
  """
  values = flatten(config.to_dict()) | ({"job": job} if job else {})
  settings = defaults(values.get("job", "pretrain"))
  others = fields_of().keys() - fields_of(settings.job).keys()
  return settings.replace({field: v for field, v in values.items() if field not in others})


def validate(settings: Settings) -> None:
  """Raises ConfigError for the first wrong field, without opening data; jobs check the rest.

  A check of the registry gets the groups and fields that its parameters are named for.
  """
  values, groups = settings.flat(), groups_of(settings.job)
  for field, value in values.items():
    check_value(field, fields_of()[field].metadata["check"], value)
  try:
    if "contrast" in groups:
      fixed = _fixed_by_method(settings.method, settings.sampling)
      if settings.dry_run != HERE:  # the step of each method is compiled
        fixed.pop("dry_run", None)
      for field, value in fixed.items():
        accepted = f"{value!r} where method={settings.method!r}"
        require(values[field] == value, field, values[field], accepted)
      _check_loss(settings.contrast, settings.sampling, settings.optim)
      fits = hooks.WORDS or settings.prompt.init != "best"
      require(fits, "prompt.init", "best", "words or a file")
      if hooks.WORDS:
        hooks.WORDS.open().check_fields(settings.prompt, settings.contrast, settings.checkpoint)
      _check_views(settings.data, settings.batch_size)
    if "log" in groups and (tracker := settings.log.tracker) != "none":
      package = importlib.util.find_spec(tracker)
      expected = f"'none' without its package: pip install \"pomp-jax[{tracker}]\""
      # A folder of that name has no origin.
      require(package and package.origin, "log.tracker", tracker, expected)
    _check_model(settings.clip, settings.dry_run)
    sources = {values.get("data.source"), values.get("evaluate.source")}
    needless = settings.job == "export" or ("eval" in groups and "features" in sources)
    expected = "True where images are to be encoded"
    require(settings.clip.image_tower or needless, "clip.image_tower", False, expected)
    if "eval" in groups:
      _check_data(settings.data, settings.eval.images, settings.dry_run)
    # Caches, which may first be written to after hours.
    for field in ("data.feature_store", "data.cache", "compilation_cache"):
      if (folder := values.get(field)) and (field, folder) != ("compilation_cache", AUTO):
        problem = why_unwritable(folder)
        require(not problem, field, folder, f"a folder that can be written to; {problem}")
    checks = [registry.JOBS[settings.job].check]
    if "predict" in groups:
      checks.append(registry.TASKS[settings.predict.task].check)
    for check in map(load, filter(None, checks)):
      check(**{name: getattr(settings, name) for name in inspect.signature(check).parameters})
  except OSError as error:  # of a bucket
    field = next((field for field, value in values.items() if value == error.filename), "")
    expected = f"a bucket that can be read ({error.strerror})"
    raise ConfigError(field, error.filename, expected) from error


def _fixed_by_method(name: str, sampling: Sampling) -> dict[str, Any]:
  """The only value that a method accepts, of each field that it does not read."""
  method = registry.METHODS[name]
  fixed = dict(method.fixes)
  if not method.saves_prompt:
    fixed |= {"prompt.class_specific": False, "dry_run": ""}
    # The bank holds class features under a context.
    if "bank" in SAMPLERS[sampling.name].needs:
      fixed["sampling.name"] = "uniform"
    if sampling.exclude == "similar":
      fixed["sampling.exclude"] = "none"
  if method.pixels:
    fixed["data.features"] = "online"
  else:
    fixed["consistency_images"] = 0.0
  if not method.deep:
    fixed["prompt.depth"] = 1
  return fixed


def _check_loss(contrast: Contrast, sampling: Sampling, optim: Optim) -> None:
  if contrast.loss == "sigmoid":
    expected = "'log', importance weights, or 'none' where loss='sigmoid'"
    require(contrast.correction in ("log", "none"), "correction", contrast.correction, expected)
  if contrast.loss != "softmax":
    weight, expected = sampling.ancestors_weight, f"0.0 where loss={contrast.loss!r}"
    require(not weight, "sampling.ancestors_weight", weight, expected)
  fits = optim.name == "sgd" or optim.momentum < 1
  require(fits, "optim.momentum", optim.momentum, "below 1 where optim.name='adamw'")
  fits = optim.schedule != "epoch" or optim.warmup == int(optim.warmup)
  require(fits, "optim.warmup", optim.warmup, "whole epochs where optim.schedule='epoch'")


def _check_model(clip: Clip, dry_run: str) -> None:
  name = clip.model.removeprefix(SYNTHETIC_CLIP)
  is_published = False
  # A dry run gives a published architecture random weights.
  if hooks.SYNTHETIC_CLIPS and (dry_run or clip.model != name):
    is_published = hooks.SYNTHETIC_CLIPS.open().is_synthetic(name)
  if clip.model != name:
    published = hooks.SYNTHETIC_CLIPS.open().SYNTHETIC_CLIPS if hooks.SYNTHETIC_CLIPS else ()
    expected = f"{SYNTHETIC_CLIP} and one of {', '.join(published)}"
    require(is_published, "clip.model", clip.model, expected)
  try:
    name = named_clip(name).source
  except InputError as error:
    raise ConfigError("clip.model", clip.model, str(error)) from error
  if not (exists(name) or is_published):
    # A hub id starts with a letter or a digit and has a slash at most; open_clip's models are none.
    of_open_clip = re.match(r"(ViT|RN\d|EVA\d|convnext|PE-)[\w-]*(/|$)", name)
    hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not name.endswith(_WEIGHT_SUFFIXES)
    require(hub_id and not of_open_clip, "clip.model", name, _CLIPS)
  if clip.text_tower == "reference":
    require(has_flax_clip(), "clip.text_tower", clip.text_tower, WITHOUT_FLAX)


def has_folder(data: Data) -> bool:
  """Whether images or features are in a folder that exists: a dry run measures these."""
  return data.source in ("folder", "features") and bool(data.root) and is_dir(data.root)


def _check_data(data: Data, images: int, dry_run: str) -> None:
  """Checks the data, and the number of images of an evaluation."""
  of_file, expected = data.source == "features", "'file' if and only if data.source='features'"
  require(of_file == (data.features == "file"), "data.features", data.features, expected)
  # A dry run needs no images, and measures a folder that is there.
  if dry_run and not (of_file or has_folder(data)):
    expected = "in a dry run the number of test images, which it does not open"
    require(images, "eval.images", 0, expected)
    return
  source, where = registry.SOURCES[data.source], f"where data.source={data.source!r}"
  require(source.stored or images, "eval.images", images, f"1 or more {where}: it is endless")
  for name in source.unread:
    value, default = getattr(data, name), getattr(Data, name)
    require(value == default, f"data.{name}", value, f"{default!r} {where}")
  if source.generated:
    _check_names("data.names", data.names)
  if source.generated or not source.stored:
    return
  if data.root or source.root:
    require(is_dir(data.root), "data.root", data.root, "a folder that exists")
  expected = source.expected_dataset(data.dataset)
  require(not expected, "data.dataset", data.dataset, expected)
  if "annotations" not in source.unread:
    expected = "a JSON file or a folder of label images that exists"
    require(exists(data.annotations), "data.annotations", data.annotations, expected)
  share = data.validation_share
  expected = f"less than 1 together with data.test_share = {data.test_share}"
  require(data.test_share + share < 1, "data.validation_share", share, expected)
  whole = not data.base or data.classes == "all"
  require(whole, "data.classes", data.classes, "'all' where data.base has a list")
  require(data.base or not data.novel, "data.novel", data.novel, "'' where data.base is empty")
  for field in ("names", "base", "novel"):
    names = getattr(data, field)
    if names and not (source.lists and names in load(source.lists)):
      _check_names(f"data.{field}", names)


def _check_names(field: str, names: str, prompt: str = "") -> None:
  """Checks a class list; it may be empty beside a run's prompt, which has names of its own."""
  if prompt and not names:
    require(recorded_classes(prompt), field, names, f"{_NAMES}; {prompt!r} {NO_NAMES}")
    return
  require(names in CLASS_LISTS or is_file(names), field, names, _NAMES)


def _check_views(data: Data, batch_size: int) -> None:
  unchanged = data.augment == "none"
  fits = unchanged or data.features != "file"
  require(fits, "data.augment", data.augment, "'none' where data.features='file'")
  expected = "1 where data.augment='none': all views are equal"
  require(not unchanged or data.views == 1, "data.views", data.views, expected)
  expected = f"a multiple of data.views = {data.views}"
  require(batch_size % data.views == 0, "batch_size", batch_size, expected)
  repeats = data.features != "stored" or unchanged or data.view_epochs
  expected = f"'online' where data.augment={data.augment!r} and data.view_epochs=0: no view repeats"
  require(repeats, "data.features", data.features, expected)


def check_predict(predict: Predict) -> None:
  """Checks the fields of `predict`."""
  images, prompt = predict.images, predict.prompt
  require(exists(images), "predict.images", images, "a file or a folder that exists")
  require(prompt, "predict.prompt", prompt, f"{_PROMPTS}, or a text with {{}}")
  _check_names("predict.names", predict.names, prompt)


def check_export(export: Export) -> None:
  """Checks the fields of `export`."""
  name, prompt, suffixes = export.output, export.prompt, registry.FORMATS[export.format].suffixes
  if registry.FORMATS[export.format].features:
    require(prompt, "export.prompt", prompt, f"{_PROMPTS}, or a template with {{}}")
    _check_names("export.names", export.names, prompt)
  else:
    require(is_prompt_file(prompt), "export.prompt", prompt, _PROMPTS)
  if export.hub:
    require(hooks.HUB_UPLOAD, "export.hub", export.hub, "'' without the room interchange")
    hooks.HUB_UPLOAD.open().check_fields(export)
  fits = not name or (os.path.basename(name) == name and name.endswith(suffixes))
  require(fits, "export.output", name, f"a file name that ends with {' or '.join(suffixes)}")
