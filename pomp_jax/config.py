"""The base config: every field there is, its default, and what it takes.

A file in `configs/` starts from `base()` and changes a few fields; the command line overrides any
(`--config.optim.lr=0.01`). `validate` runs before anything heavy starts.
"""

from collections.abc import Iterator, Mapping
import difflib
import os
import re
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax.clip.made_up import MADE_UP
from pomp_jax.clip.shared import KEEP
from pomp_jax.clip.text import TEXT_TOWERS
from pomp_jax.data.augment import AUGMENTS
from pomp_jax.data.coop import COOP_SETS
from pomp_jax.data.subsets import HALVES
from pomp_jax.data.suites import SUITES
from pomp_jax.data.vocabularies import CLASS_LISTS
from pomp_jax.prompt.context import POSITIONS
from pomp_jax.prompt.contrast import CORRECTIONS
from pomp_jax.prompt.optimizer import SCHEDULES
from pomp_jax.prompt.sampling import ANCHORS, EXCLUSIONS, SAMPLERS

JOBS = (
  "pretrain",
  "cache",
  "evaluate",
  "predict",
  "repeat",
  "benchmark",
  "export",
  "prepare",
  "analyse",
  "baselines",
  "ablate",
)
WORLD = "world"
MADE_UP_DATA = "made_up"
SOURCES = (WORLD, "folder", "coop", "tfds", MADE_UP_DATA)
MADE_UP_CLIP = "made_up:"  # in front of the name of a published architecture
FEATURES = ("online", "cached")

# What is learned: by gradient steps on the contrast of images and classes, or on image features.
# CoOp is pomp with negatives = "all".
STEP_METHODS = ("pomp", "cocoop", "vpt_shallow", "vpt_deep", "maple")
FEATURE_METHODS = ("zero_shot", "linear_probe", "tip_adapter", "tip_adapter_f")
METHODS = STEP_METHODS + FEATURE_METHODS

# Of a CLIP's weights: no hub id ends so.
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".msgpack")

# What `export` writes, and the suffixes that the file may have; first the usual one.
EXPORT_FORMATS = {
  "npz": (".npz",),
  "safetensors": (".safetensors",),
  "pth": (".pth.tar", ".pth", ".pt"),
  "detic": (".npy",),
  "open_clip": (".npy", ".safetensors"),
}
# Of these, the ones that hold features of names, not the prompt.
FEATURE_FORMATS = ("detic", "open_clip")


class ConfigError(Exception):
  """A field that can't be: one line with its name, what it got and what it takes.

  No ValueError: ml_collections rewrites those that config files raise.
  """

  def __init__(self, field: str, got: Any, takes: str):
    super().__init__(f"config.{field}: got {got!r}, takes {takes}")
    self.field = field


def base() -> ConfigDict:
  """The defaults; locked, so that no field can be added by a typo."""
  config = ConfigDict()
  config.job = "pretrain"  # what to run, one of JOBS
  config.dry_run = False  # measure the run on made-up data, and say what it will take
  config.method = "pomp"  # what is learned, one of METHODS; the rest are baselines
  config.seed = 0  # of the context's first value, the draws, and the order of the images

  # The frozen CLIP.
  config.clip = ConfigDict()
  config.clip.model = WORLD  # "world", or a folder, file or hub id: see docs/weights.md
  config.clip.activation = "auto"  # of its MLPs: quick_gelu, gelu; auto: as the checkpoint has it
  config.clip.text_tower = "shared"  # shared (names packed, no padding) or reference (the oracle)
  config.clip.dtype = "float32"  # compute type: float32 or bfloat16
  config.clip.keep = "auto"  # for the backward pass: activations, layers, chunks; auto: what fits
  config.clip.n_chunks = 0  # parts that a step's classes are computed in; 0: as many as it takes
  config.clip.memory_gib = 4.0  # of activations on a device, for the automatic choices
  config.clip.chunk = 1024  # classes or images at a time when features of many are needed
  config.clip.images_at_a_time = 64  # in a device's memory together, training or not; 0: no limit

  # Images and their classes.
  config.data = ConfigDict()
  config.data.source = WORLD  # or stored images: folder, coop, tfds, made_up; see docs/data.md
  config.data.root = ""  # where they are: a folder a class, CoOp's $DATA, or TFDS's data_dir
  config.data.dataset = ""  # for coop a class list's name, for tfds that or TFDS's own
  config.data.names = ""  # a class list or a file of names; those of the data set if empty
  config.data.shots = 0  # stored images a class for training; 0: all
  config.data.shots_seed = 1  # of the few-shot subset; CoOp's are 1, 2 and 3
  config.data.classes = "all"  # CoOp's halves: base, the first, and new, the others
  config.data.cache = ""  # a folder for the labels of TFDS sets, so that they are read once
  config.data.images_per_class = 16  # of the world, and of made-up data
  config.data.n_classes = 0  # so many of the source's classes, spread over its list; 0: all
  config.data.augment = "none"  # none (as test images), crop_flip, or recipe (and RandAugment2)
  config.data.views = 1  # V of each image in an epoch, from one decode; batch_size counts views
  config.data.augment_seed = 0
  config.data.fresh_epochs = 0  # after so many epochs the same views come again; 0: never
  config.data.features = "online"  # or cached: the images', as config.job="cache" computed them
  config.data.feature_cache = ""  # the folder of the cached features
  config.data.threads = 2  # that render or decode ahead of the step, in each worker
  config.data.workers = 0  # processes that decode, for machines of many cores; 0: threads alone
  config.data.max_corrupt = 0.001  # share of the images that may be unreadable: others stand in

  # The prompt.
  config.prompt = ConfigDict()
  config.prompt.m = 4  # M, context vectors
  config.prompt.position = "end"  # where the name stands; end, middle or front of the prompt
  config.prompt.init = ""  # words whose embeddings it starts from; N(0, 0.02^2) if empty
  config.prompt.class_specific = False  # one context a class
  config.prompt.depth = 1  # layers that have prompts of their own: of vpt_deep and maple
  config.prompt.visual = 8  # tokens among an image's own, of vpt_shallow and vpt_deep

  # The baselines that learn on image features.
  config.probe = ConfigDict()
  config.probe.iterations = 1000  # of L-BFGS for each strength of the penalty
  config.tip = ConfigDict()
  config.tip.alpha = 1.17  # weight of the cache while tip_adapter_f learns it
  config.tip.beta = 1.0  # sharpness there
  config.tip.alpha_max = 3.0  # alpha is searched for from 0.1 to this, ...
  config.tip.alphas = 20  # in so many steps,
  config.tip.beta_max = 7.0  # and so is beta
  config.tip.betas = 200

  # Local contrast and local correction.
  config.negatives = "sampled"  # sampled: K of them; all: the exact contrast over N, k is not read
  config.k = 1000  # K, classes that an image is contrasted with, its own included; N is all
  config.correction = "log"  # log (unbiased), log10 (as published), none, refined, logq
  config.sampling = ConfigDict()  # see docs/sampling.md
  config.sampling.name = "uniform"  # uniform, hard, easy, hierarchical, frequency
  config.sampling.mix = 0.5  # share of the uniform draw in the others, above 0
  config.sampling.temperature = 0.05  # of hard and easy, in units of the cosine
  config.sampling.anchors = "classes"  # near which hard draws: the images' classes, or the images
  config.sampling.refresh_every = 50  # steps, after which the bank of class features is made anew
  config.sampling.power = 0.5  # of the class counts, for frequency
  config.sampling.exclude = "none"  # never an image's negatives: similar to its class, or kin of it
  config.sampling.exclude_threshold = 0.95  # the cosine above which classes are similar
  config.sampling.batch_positives = False  # the other images' classes as negatives too
  config.sampling.ancestors_weight = 0.0  # of a loss over kinds of classes beside the classes'

  # Training.
  config.batch_size = 256  # images a step, over all devices
  config.accumulate = 1  # draws that a data index computes one after the other
  config.epochs = 5
  config.steps = 0  # steps of the whole run; 0: `epochs` times the images, by the batch size
  config.optim = ConfigDict()
  config.optim.lr = 0.002
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "epoch"  # when the cosine moves: once an epoch, or every step
  config.optim.warmup = 1.0  # epochs at warmup_lr; any fraction under the step schedule
  config.optim.warmup_lr = 1e-5

  # Devices.
  config.mesh = ConfigDict()
  config.mesh.class_size = 1  # devices that split one draw's classes; the rest split the images

  # Evaluation, over all classes of a split.
  config.eval = ConfigDict()
  config.eval.images = 2048  # of each split
  config.eval.cache = ""  # a folder for class features by prompt, CLIP and names; none: in memory
  config.eval.template = "a photo of a {}."  # the hand-written prompt beside the learned one

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 100  # steps; each is validated
  config.checkpoint.keep = 3  # the newest few, and the best by validation beside them
  config.log = ConfigDict()
  config.log.every = 10  # steps

  # job = "evaluate": prompts over a suite of data sets.
  config.evaluate = ConfigDict()
  config.evaluate.suite = WORLD  # one of data.suites.SUITES
  config.evaluate.sets = ""  # of the suite's, separated by ";"; empty: its usual ones
  config.evaluate.reader = "coop"  # coop (its layout), tfds (prepared), folder (one a class)
  config.evaluate.root = ""  # where they lie: CoOp's $DATA, TFDS's data_dir, the folder of folders
  # Separated by ";": prompt files, runs' folders (for all their checkpoints), texts with a {},
  # hand_written (the set's own text), ensemble (CLIP's texts for it), ensemble:imagenet_7.
  config.evaluate.prompts = "hand_written"
  config.evaluate.images = 0  # of each set, its classes evenly; 0: all, of the world eval.images
  config.evaluate.batch_size = 512  # images at a time, over all devices

  # job = "analyse": what prompts do to class features, on the sets that `evaluate` names.
  config.analyse = ConfigDict()
  config.analyse.prompts = "hand_written"  # as evaluate.prompts
  config.analyse.top = 5  # nearest tokens of each learned vector

  # job = "predict": names for a folder of images.
  config.predict = ConfigDict()
  config.predict.prompt = ""  # a prompt.npz, or a template with {} for the name
  config.predict.images = ""  # a folder
  config.predict.names = ""  # a class list such as imagenet1k, or a file: one name a line, or JSON
  config.predict.top = 5

  # job = "export": the prompt, or features of names under it, for other programs.
  config.export = ConfigDict()
  config.export.prompt = ""  # a prompt file; for features also a template with {} for the name
  config.export.format = "npz"  # npz, safetensors, pth; features of names: detic, open_clip
  config.export.names = ""  # for features: a text file, one name a line, or COCO or LVIS JSON
  config.export.synonyms = False  # average over the synonyms that an LVIS JSON has
  config.export.output = ""  # file name within the run's folder; empty: a usual one

  # job = "prepare": images as distributed, made into a TFDS data set; see docs/data.md.
  config.prepare = ConfigDict()
  config.prepare.dataset = ""  # imagenet21k, fgvc_aircraft, coop_stanford_cars, coop_ucf101, ..
  config.prepare.input = ""  # the archive, or the folder, that it is made of
  config.prepare.names = ""  # for imagenet21k: a class list with synsets; all of its own if empty
  config.prepare.shots = 0  # images a class to store; 0: all
  config.prepare.shots_seed = 1  # of the choice
  config.prepare.held_out = 0  # images a class for the split "validation" of an undivided input
  config.prepare.workers = 2  # processes

  # job = "baselines": methods side by side, each over the seeds of `repeat`.
  config.baselines = ConfigDict()
  config.baselines.methods = ""  # label:field=value,field=value, separated by ";"

  # job = "repeat": the pretrain job once for each seed.
  config.repeat = ConfigDict()
  config.repeat.seeds = (0, 1, 2)

  # job = "ablate": the pretrain job for every combination of values; docs/ablations.md.
  config.ablate = ConfigDict()
  config.ablate.grid = ""  # such as "k=16|64|all;correction=log|none;seed=0|1|2"
  config.ablate.lanes = 0  # cells that one program trains together, at most; 0: what memory takes
  config.ablate.part = ""  # "2/5": this process takes the second of five parts; all if empty

  return config.lock()


def with_argument(
  config: ConfigDict,
  argument: str | None,
  *,
  variants: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  **short: str,
) -> ConfigDict:
  """Applies the string behind a config file's colon: `configs/demo.py:k=64,seed=1`.

  Args:
    config: changed in place.
    argument: `name=value,name=value`, or empty; or the name of a variant beside them.
    variants: name -> field -> value, for several fields at once.
    **short: short name -> field, for names that are not fields themselves.

  Returns:
    The same config.

  Raises:
    ConfigError: an unknown name, or a value of the wrong type.
  """
  for item in filter(None, (argument or "").split(",")):
    if item in variants:
      config.update_from_flattened_dict(dict(variants[item]))
      continue
    name, equals, text = item.partition("=")
    if variants and not equals:
      raise ConfigError(name, "nothing", f"a value, or one of the variants {', '.join(variants)}")
    field = short.get(name, name)
    check_field(config, field, set(short))
    set_field(config, field, text)
  return config


def set_field(config: ConfigDict, field: str, text: str) -> None:
  """Sets a field from text, in the type that it has.

  Raises:
    ConfigError: the text does not read as that type.
  """
  *parents, leaf = field.split(".")
  for parent in parents:
    config = config[parent]
  kind = type(config[leaf])
  try:
    if kind is bool:
      value: Any = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    elif kind is tuple:
      value = tuple(int(part) for part in text.split("+"))
    else:
      value = kind(text)
  except (ValueError, KeyError) as error:
    raise ConfigError(field, text, f"a value of type {kind.__name__}") from error
  config[leaf] = value


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """All fields with their full names: ("optim.lr", 0.002), ..."""
  for name in config:
    if isinstance(config[name], ConfigDict):
      yield from fields(config[name], f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", config[name]


def check_field(config: ConfigDict, field: str, others: set[str] = frozenset()) -> None:
  """Refuses a field that does not exist, naming the nearest one that does.

  Raises:
    ConfigError: no such field.
  """
  known = [name for name, _ in fields(config)] + sorted(others)
  if field not in known:
    # The last part alone finds `config.lr` for `config.optim.lr`.
    near = difflib.get_close_matches(field, known, 1, 0.6) or [
      name for name in known if name.split(".")[-1] == field.split(".")[-1]
    ]
    hint = f"; did you mean config.{near[0]}?" if near else ""
    raise ConfigError(field, "a value", f"none, there is no such field{hint}")


def validate(config: ConfigDict) -> None:
  """Checks every field that can be judged alone; jobs check what needs their data.

  Raises:
    ConfigError: the first field that is wrong.
  """
  _choice(config, "job", JOBS)
  _choice(config, "method", METHODS)
  _choice(config, "clip.text_tower", TEXT_TOWERS)
  _choice(config, "clip.dtype", ("float32", "bfloat16"))
  _choice(config, "data.source", SOURCES)
  _choice(config, "data.classes", HALVES)
  _choice(config, "data.augment", AUGMENTS)
  _choice(config, "data.features", FEATURES)
  _choice(config, "prompt.position", POSITIONS)
  _choice(config, "correction", CORRECTIONS)
  _choice(config, "negatives", ("sampled", "all"))
  _choice(config, "sampling.name", SAMPLERS)
  _choice(config, "sampling.anchors", ANCHORS)
  _choice(config, "sampling.exclude", EXCLUSIONS)
  _choice(config, "clip.keep", ("auto", *KEEP))
  _choice(config, "optim.schedule", SCHEDULES)
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
    "tip.alphas",
    "tip.betas",
    "batch_size",
    "accumulate",
    "epochs",
    "mesh.class_size",
    "eval.images",
    "evaluate.batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "predict.top",
    "analyse.top",
  ):
    _at_least(config, field, 1)
  _at_least(config, "k", 2)
  for field in (
    "seed",
    "steps",
    "data.n_classes",
    "data.shots",
    "data.shots_seed",
    "data.augment_seed",
    "data.fresh_epochs",
    "data.workers",
    "data.max_corrupt",
    "prepare.shots",
    "prepare.shots_seed",
    "prepare.held_out",
    "ablate.lanes",
    "clip.n_chunks",
    "clip.images_at_a_time",
    "clip.memory_gib",
    "evaluate.images",
    "tip.alpha",
    "tip.beta",
    "tip.alpha_max",
    "tip.beta_max",
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "optim.warmup",
    "optim.warmup_lr",
    "sampling.power",
    "sampling.ancestors_weight",
  ):
    _at_least(config, field, 0)
  if not 0 < config.sampling.mix <= 1:
    raise ConfigError("sampling.mix", config.sampling.mix, "above 0, at most 1")
  if not 0 < config.sampling.temperature < float("inf"):
    raise ConfigError("sampling.temperature", config.sampling.temperature, "a number above 0")
  if not -1 <= config.sampling.exclude_threshold <= 1:
    raise ConfigError("sampling.exclude_threshold", config.sampling.exclude_threshold, "-1 to 1")
  _method(config)
  if config.seed >= 2**32:
    raise ConfigError("seed", config.seed, "an integer from 0 to 4294967295")
  if config.optim.schedule == "epoch" and config.optim.warmup != int(config.optim.warmup):
    raise ConfigError(
      "optim.warmup", config.optim.warmup, "whole epochs under optim.schedule='epoch'"
    )
  if config.eval.template.count("{}") != 1:
    raise ConfigError("eval.template", config.eval.template, "a text with one {} for the name")
  model = config.clip.model
  if model.startswith(MADE_UP_CLIP) and model.removeprefix(MADE_UP_CLIP) not in MADE_UP:
    raise ConfigError("clip.model", model, f"{MADE_UP_CLIP} and one of {', '.join(MADE_UP)}")
  model = model.removeprefix(MADE_UP_CLIP)
  # A hub id has one slash at most, and starts with a letter or a digit.
  hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
  if not os.path.exists(model) and (not hub_id or model.endswith(WEIGHT_SUFFIXES)):
    raise ConfigError("clip.model", model, "a folder or file that exists, or a hub id")
  _choice(config, "clip.activation", ("auto", "quick_gelu", "gelu"))
  # A dry run has no need of the data.
  if not config.dry_run:
    _data(config.data)
  _views(config)
  if config.job == "predict":
    _predict(config.predict)
  _choice(config, "evaluate.suite", tuple(SUITES))
  _choice(config, "evaluate.reader", ("coop", "tfds", "folder"))
  _choice(config, "export.format", tuple(EXPORT_FORMATS))
  if config.job == "export":
    _export(config.export)
  if config.job == "prepare" and not os.path.exists(config.prepare.input):
    raise ConfigError("prepare.input", config.prepare.input, "a file or folder that exists")
  if config.job in ("repeat", "baselines") and len(set(config.repeat.seeds)) != max(
    len(config.repeat.seeds), 1
  ):
    raise ConfigError("repeat.seeds", config.repeat.seeds, "one or more different seeds")


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
    if config.sampling.name in ("hard", "easy"):
      fixed["sampling.name"] = "uniform"
    if config.sampling.exclude == "similar":
      fixed["sampling.exclude"] = "none"
  if method in ("vpt_shallow", "vpt_deep", "maple"):
    # They learn from pixels.
    fixed["data.features"] = "online"
  if method == "maple":
    fixed |= {"prompt.position": "end", "clip.text_tower": "shared"}
  if method not in ("vpt_deep", "maple"):
    fixed["prompt.depth"] = 1
  for field, value in fixed.items():
    if _value(config, field) != value:
      raise ConfigError(field, _value(config, field), f"{value!r} where method={method!r}")


def _data(data: ConfigDict) -> None:
  if data.source == WORLD:
    unread = {"root": "", "dataset": "", "names": "", "shots": 0, "classes": "all"}
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
  if data.names and data.names not in CLASS_LISTS and not os.path.isfile(data.names):
    takes = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"
    raise ConfigError("data.names", data.names, takes)


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


def _value(config: ConfigDict, field: str) -> Any:
  return dict(fields(config))[field]


def _choice(config: ConfigDict, field: str, accepted: tuple[str, ...]) -> None:
  value = _value(config, field)
  if value not in accepted:
    near = difflib.get_close_matches(str(value), accepted, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(field, value, f"one of {', '.join(accepted)}{hint}")


def _at_least(config: ConfigDict, field: str, least: int) -> None:
  value = _value(config, field)
  # Written so that NaN is refused as well.
  if not value >= least or value == float("inf"):
    raise ConfigError(field, value, f"{least} or more")
