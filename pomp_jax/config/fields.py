"""The groups of fields: a row for each field, and the checks of each group."""

import dataclasses
import os
import re
from typing import Any

from pomp_jax import hooks, registry
from pomp_jax.clip.open_clip import named_clip
from pomp_jax.clip.precision import DTYPES
from pomp_jax.clip.text import TEXT_TOWERS, WITHOUT_FLAX, has_flax_clip
from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.group import Group
from pomp_jax.config.rows import Check, above, at_least, below, between, one_of, row
from pomp_jax.data.class_lists import CLASS_LISTS
from pomp_jax.data.subsets import HALVES
from pomp_jax.data.views import AUGMENTS
from pomp_jax.errors import InputError
from pomp_jax.files.atomic import why_unwritable
from pomp_jax.files.paths import exists, is_dir, is_file
from pomp_jax.files.prompt_file import NO_NAMES, is_prompt_file, recorded_classes
from pomp_jax.prompt.context import POSITIONS
from pomp_jax.prompt.loss import CORRECTIONS, LOSSES
from pomp_jax.prompt.optimizer import OPTIMIZERS, SCHEDULES
from pomp_jax.prompt.sampling.samplers import ANCHORS, EXCLUSIONS, SAMPLERS
from pomp_jax.registry import FORMATS, METHODS, READERS, SOURCES, TASKS, WORLD

_m = at_least(0 if hooks.WORDS else 1)
_activation = one_of("auto", "quick_gelu", "gelu")
_template = Check(lambda text: text.count("{}") == 1, "a text with one {} for the name")
BEST = "best"  # value of `prompt.init`
SYNTHETIC_CLIP = "synthetic:"  # prefix of a published architecture with random weights
# Suffixes of weight files; no hub id ends in one of these.
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".msgpack")
_PROMPTS = "a prompt file that exists, a run's folder with prompt.npz, hf:OWNER/NAME"
_CLIPS = (
  "world, a folder or file that exists, open_clip:MODEL/TAG, or a hub id OWNER/NAME such as"
  " openai/clip-vit-base-patch16 or laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
)
_NAMES = f"a file of names that exists, or one of {', '.join(CLASS_LISTS)}"


@dataclasses.dataclass(frozen=True)
class Clip(Group):
  """The frozen CLIP."""

  model: str = row(
    WORLD, '"world", or a folder, a file or a hub id: see docs/how-to/weights.md'
  )
  activation: str = row("auto", "MLP activation; auto: the checkpoint's", _activation)
  image_tower: bool = row(True, "load the image tower; features of a file need none")
  text_tower: str = row(
    "shared", "shared (fast) or reference (the oracle)", one_of(*TEXT_TOWERS)
  )
  dtype: str = row(
    "float32", "compute type; float32 is exact, the others faster", one_of(*DTYPES)
  )
  memory_gib: float = row(
    0.0, "activation memory a device, GiB; 0: half of its limit", at_least(0)
  )
  image_chunk: int = row(
    64, "images in a device's memory at a time; 0: no limit", at_least(0)
  )

  def check_model(self, dry_run: str) -> None:
    """Checks everything that is known of the CLIP before it is opened.

    Args:
      dry_run: `config.dry_run`. In a dry run the model may be a published
        architecture, which then gets random weights.

    Raises:
      ConfigError: a name that can't be a CLIP, or a text tower that is not installed.
    """
    name = self.model.removeprefix(SYNTHETIC_CLIP)
    asks_for_synthetic = name != self.model
    is_synthetic = False
    architectures: tuple[str, ...] = ()
    if hooks.SYNTHETIC_CLIPS and (dry_run or asks_for_synthetic):
      synthetic_clips = hooks.SYNTHETIC_CLIPS.open()
      is_synthetic = synthetic_clips.is_synthetic(name)
      architectures = synthetic_clips.SYNTHETIC_CLIPS
    if asks_for_synthetic:
      expected = f"{SYNTHETIC_CLIP} and one of {', '.join(architectures)}"
      require(is_synthetic, "clip.model", self.model, expected)

    try:
      source = named_clip(name).source
    except InputError as error:
      raise ConfigError("clip.model", self.model, str(error)) from error
    if not is_synthetic and not exists(source):
      # A hub id starts with a letter or a digit and has at most one slash.
      is_hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source)
      is_open_clip_name = re.match(r"(ViT|RN\d|EVA\d|convnext|PE-)[\w-]*(/|$)", source)
      is_weight_file = source.endswith(_WEIGHT_SUFFIXES)
      fits = is_hub_id and not is_open_clip_name and not is_weight_file
      require(fits, "clip.model", source, _CLIPS)

    if self.text_tower == "reference":
      require(has_flax_clip(), "clip.text_tower", self.text_tower, WITHOUT_FLAX)


@dataclasses.dataclass(frozen=True)
class Data(Group):
  """Images and their classes; see docs/how-to/data.md."""

  source: str = row(
    WORLD, "image source: the embedded world or stored images", one_of(*SOURCES)
  )
  root: str = row(
    "", "folder of the images: a folder per class, CoOp's $DATA, or TFDS's data_dir"
  )
  dataset: str = row(
    "", "data set: for coop a class list's name, for tfds that or TFDS's own"
  )
  names: str = row("", "class list or file of names; empty: the data set's")
  shots: int = row(0, "stored training images per class; 0: all", at_least(0))
  shots_seed: int = row(
    1, "random seed of the few-shot subset; CoOp's are 1, 2 and 3", at_least(0)
  )
  classes: str = row(
    "all", "classes to train on: all, or one of CoOp's halves", one_of(*HALVES)
  )
  base: str = row("", "class list or file of names: the classes to train on")
  novel: str = row(
    "", "class list or file of names: evaluated beside base; empty: all others"
  )
  test_share: float = row(
    0.2, "test share of a class, in a folder without test images", below(1)
  )
  validation_share: float = row(0.1, "likewise, of validation images", below(1))
  duplicates: str = row(
    "drop",
    "of a folder's test and validation pictures, those that equal one of an earlier split",
    one_of("drop", "keep"),
  )
  cache: str = row("", "cache folder for the labels of tfds and regions; empty: none")
  images_per_class: int = row(
    16, "training images per class, of generated data", at_least(1)
  )
  n_classes: int = row(
    0, "classes from the source's list, evenly spread; 0: all", at_least(0)
  )
  upright: bool = row(
    False, "turn images as their EXIF orientation says; CLIP's code does not"
  )
  augment: str = row(
    "none", "augmentation; recipe: with RandAugment", one_of(*AUGMENTS)
  )
  views: int = row(
    1, "views V of an image in an epoch; batch_size counts views", at_least(1)
  )
  augment_seed: int = row(0, "random seed of the augmentation", at_least(0))
  crop_area: float = row(
    0.08, "smallest share of an image's area in a random crop", above(0, 1)
  )
  view_epochs: int = row(
    0, "epochs after which the same views repeat; 0: never", at_least(0)
  )
  features: str = row(
    "online",
    "image features: computed each step, once and stored, or of a file",
    one_of("online", "stored", "file"),
  )
  feature_store: str = row(
    "", "folder of image and class features; empty: the run's, images alone"
  )
  threads: int = row(
    0, "threads that prepare images, per worker; 0: by the cores", at_least(0)
  )
  workers: int = row(
    -1, "processes that decode; 0: threads alone; -1: by the cores", at_least(-1)
  )
  max_corrupt: float = row(
    0.001, "largest share of unreadable images (replaced)", at_least(0)
  )

  @property
  def has_folder(self) -> bool:
    """Whether the data is in an existing folder, which a dry run measures."""
    return (
      self.source in ("folder", "features") and bool(self.root) and is_dir(self.root)
    )

  def check(self) -> None:
    """Raises ConfigError for a cache folder that can't be written to.

    Without this check the first write would fail, perhaps after hours.
    """
    check_cache("data.feature_store", self.feature_store)
    check_cache("data.cache", self.cache)

  def check_source(self, n_images: int, dry_run: str) -> None:
    """Checks that the data of a training or evaluation fits its source.

    Args:
      n_images: images of each split in an evaluation, `config.eval.images`.
      dry_run: `config.dry_run`.

    Raises:
      ConfigError: a field does not fit, or a file or folder is missing.
    """
    of_file = self.source == "features"
    expected = f"'online' or 'stored' where data.source={self.source!r}"
    if of_file:
      expected = "'file' where data.source='features'"
    require(
      of_file == (self.features == "file"), "data.features", self.features, expected
    )
    # A dry run opens images only in an existing folder, which it measures.
    if dry_run and not (of_file or self.has_folder):
      expected = "in a dry run the number of test images, which it does not open"
      require(n_images, "eval.images", 0, expected)
      return
    source = registry.SOURCES[self.source]
    where = f"where data.source={self.source!r}"
    fits = source.stored or n_images
    require(fits, "eval.images", n_images, f"1 or more {where}: it is endless")
    for name in source.unread:
      value: Any = getattr(self, name)
      default: Any = getattr(Data, name)
      require(value == default, f"data.{name}", value, f"{default!r} {where}")
    if source.generated:
      check_class_list("data.names", self.names)
    if source.generated or not source.stored:
      return

    if self.root or source.root:
      require(is_dir(self.root), "data.root", self.root, "a folder that exists")
    expected = source.expected_dataset(self.dataset)
    require(not expected, "data.dataset", self.dataset, expected)
    share = self.validation_share
    expected = f"less than 1 together with data.test_share = {self.test_share}"
    require(self.test_share + share < 1, "data.validation_share", share, expected)
    fits = not self.base or self.classes == "all"
    require(fits, "data.classes", self.classes, "'all' where data.base has a list")
    fits = bool(self.base) or not self.novel
    require(fits, "data.novel", self.novel, "'' where data.base is empty")
    lists = {
      "data.names": self.names,
      "data.base": self.base,
      "data.novel": self.novel,
    }
    lists_of_source = registry.load(source.lists) if source.lists else ()
    for field, names in lists.items():
      if names and names not in lists_of_source:
        check_class_list(field, names)

  def check_views(self, batch_size: int) -> None:
    """Checks that the augmentation fits the features and the batches.

    Args:
      batch_size: `config.batch_size`, in views.

    Raises:
      ConfigError: a field does not fit.
    """
    augments = self.augment != "none"
    fits = not augments or self.features != "file"
    require(fits, "data.augment", self.augment, "'none' where data.features='file'")
    fits = augments or self.views == 1
    expected = "1 where data.augment='none': all views are equal"
    require(fits, "data.views", self.views, expected)
    fits = batch_size % self.views == 0
    require(fits, "batch_size", batch_size, f"a multiple of data.views = {self.views}")

    # Stored features can serve later epochs only if the views repeat.
    repeats = not augments or self.view_epochs > 0
    fits = self.features != "stored" or repeats
    where = f"data.augment={self.augment!r} and data.view_epochs=0"
    expected = f"'online' where {where}: no view repeats"
    require(fits, "data.features", self.features, expected)


@dataclasses.dataclass(frozen=True)
class Prompt(Group):
  """The prompt."""

  m: int = row(4, "context vectors M; 0: as many as the words where init=best", _m)
  position: str = row("end", "position of the name in the prompt", one_of(*POSITIONS))
  init: str = row(
    "",
    "words, prompt file or run's folder; maple and ivlp keep words beyond M fixed; best: words of"
    " the best candidate; empty: N(0, 0.02^2)",
  )
  class_specific: bool = row(False, "one context per class")


@dataclasses.dataclass(frozen=True)
class Sampling(Group):
  """Negative sampling; see docs/reproduce/sampling.md."""

  name: str = row("uniform", "sampler of the negatives", one_of(*SAMPLERS))
  mix: float = row(
    0.1, "share of the uniform distribution in the other samplers", above(0, 1)
  )
  temperature: float = row(
    0.05, "temperature of hard, in units of the cosine", above(0)
  )
  anchors: str = row("classes", "anchors of hard", one_of(*ANCHORS))
  renew: int = row(64, "rows of the bank that a step renews in turn", at_least(0))
  power: float = row(0.5, "exponent of the class counts, for frequency", at_least(0))
  exclude: str = row("none", "classes that are never negatives", one_of(*EXCLUSIONS))
  exclude_threshold: float = row(
    0.95, "cosine above which classes are similar", between(-1, 1)
  )
  batch_positives: bool = row(False, "the other images' classes as negatives too")
  ancestors_weight: float = row(
    0.0, "weight of the loss over the classes' ancestors", at_least(0)
  )


@dataclasses.dataclass(frozen=True)
class Optim(Group):
  """The optimizer and its learning rate."""

  name: str = row("sgd", "optimizer", one_of(*OPTIMIZERS))
  lr: float = row(0.002, "learning rate", at_least(0))
  momentum: float = row(0.9, "momentum; beta1 of adamw", at_least(0))
  beta2: float = row(0.98, "beta2 of adamw", below(1))
  epsilon: float = row(1e-8, "epsilon of adamw", above(0))
  weight_decay: float = row(5e-4, "weight decay", at_least(0))
  clip_norm: float = row(0.0, "largest norm of the gradient; 0: any", at_least(0))
  schedule: str = row(
    "epoch", "cosine per epoch (published) or step", one_of(*SCHEDULES)
  )
  warmup: float = row(
    1.0, "warmup, epochs; a fraction under the step schedule", at_least(0)
  )
  warmup_lr: float = row(1e-5, "learning rate of the warmup", at_least(0))

  def check(self) -> None:
    """Raises ConfigError for numbers that do not fit the optimizer or the schedule."""
    fits = self.name == "sgd" or self.momentum < 1
    require(fits, "optim.momentum", self.momentum, "below 1 where optim.name='adamw'")
    fits = self.schedule != "epoch" or self.warmup == int(self.warmup)
    require(
      fits, "optim.warmup", self.warmup, "whole epochs where optim.schedule='epoch'"
    )


@dataclasses.dataclass(frozen=True)
class Mesh(Group):
  """The device mesh."""

  class_size: int = row(1, "devices that split one draw's classes", at_least(1))


@dataclasses.dataclass(frozen=True)
class Eval(Group):
  """The evaluation of a training, over all classes of a split."""

  images: int = row(2048, "images of each split; 0: all, of stored images", at_least(0))
  template: str = row(
    "a photo of a {}.", "hand-written prompt beside the learned one", _template
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint(Group):
  """Checkpoints."""

  every: int = row(100, "steps between checkpoints; each is validated", at_least(1))
  keep: int = row(
    3, "newest checkpoints that are kept, beside the best by validation", at_least(1)
  )
  select: str = row(
    "last",
    "checkpoint behind prompt.npz and the results: the last, or the best by validation; the prompt"
    " of the other is prompt_best.npz or prompt_last.npz",
    one_of("last", "best"),
  )
  on_failure: str = row("stop", "reaction to a failed save", one_of("stop", "retry"))


@dataclasses.dataclass(frozen=True)
class Log(Group):
  """The log."""

  every: int = row(10, "steps between log lines", at_least(1))


@dataclasses.dataclass(frozen=True)
class Evaluate(Group):
  """The job evaluate: prompts over data sets; see docs/how-to/evaluation.md."""

  source: str = row(READERS[0], "layout of the stored sets", one_of(*READERS))
  root: str = row(
    "", "folder of the sets: CoOp's $DATA, TFDS's data_dir, or a folder of folders"
  )
  skip_missing: bool = row(
    False, "evaluation of the other sets where some can't be opened"
  )
  prompts: tuple[str, ...] = row(
    ("hand_written",), "prompts, see docs/how-to/evaluation.md"
  )
  images: int = row(0, "images of each set, evenly over classes; 0: all", at_least(0))
  batch_size: int = row(512, "images in a batch, over all devices", at_least(1))


@dataclasses.dataclass(frozen=True)
class Predict(Group):
  """The job predict: names for pictures, their pixels or their objects; see
  docs/how-to/evaluation.md."""

  task: str = row(
    "classify", "what is named: pictures, their pixels, or objects", one_of(*TASKS)
  )
  prompt: str = row(
    "", "prompt file, run's folder, text with {}, or another name of evaluate.prompts"
  )
  images: str = row("", "an image, or a folder of images and of such folders")
  names: str = row(
    "",
    "class list such as imagenet1k, or a file: one name per line, or JSON; empty: the run's",
  )
  top: int = row(5, "names per image; of other tasks those in the log", at_least(1))
  calibration: str = row(
    "auto",
    "the prompt's temperature: where it fits, required, or never",
    one_of("auto", "required", "never"),
  )

  def check(self) -> None:
    """Checks that there are pictures, a prompt and names.

    Raises:
      ConfigError: one is missing.
    """
    expected = "a file or a folder that exists"
    require(exists(self.images), "predict.images", self.images, expected)
    expected = f"{_PROMPTS}, or a text with {{}}"
    require(self.prompt, "predict.prompt", self.prompt, expected)
    check_class_list("predict.names", self.names, self.prompt)


@dataclasses.dataclass(frozen=True)
class Export(Group):
  """The job export: the prompt, or features of names, for other programs; see
  docs/reference/formats.md."""

  prompt: str = row(
    "", "prompt file, run's folder, hf:OWNER/NAME; for features as evaluate.prompts"
  )
  format: str = row("npz", "format; detic, open_clip: features", one_of(*FORMATS))
  names: str = row(
    "",
    "for features: class list or file of names, or COCO or LVIS JSON; empty: the run's",
  )
  output: str = row(
    "", "file name in the run's folder; empty: see docs/reference/formats.md"
  )

  def check(self) -> None:
    """Checks that there is a prompt, and that names and files fit the format.

    Raises:
      ConfigError: a field does not fit.
    """
    kind = registry.FORMATS[self.format]
    if kind.features:
      expected = f"{_PROMPTS}, or a template with {{}}"
      require(self.prompt, "export.prompt", self.prompt, expected)
      check_class_list("export.names", self.names, self.prompt)
    else:
      require(is_prompt_file(self.prompt), "export.prompt", self.prompt, _PROMPTS)

    if self.output:
      # The file is written in the run's folder, so a path is an error.
      is_name = os.path.basename(self.output) == self.output
      fits = is_name and self.output.endswith(kind.suffixes)
      expected = f"a file name that ends with {' or '.join(kind.suffixes)}"
      require(fits, "export.output", self.output, expected)


@dataclasses.dataclass(frozen=True)
class Contrast(Group):
  """A training of a prompt or a baseline: the method, and the classes of its loss."""

  method: str = row(
    "pomp", "method that learns; all but pomp are baselines", one_of(*METHODS)
  )
  negatives: str = row(
    "sampled", "contrast: K classes or all N (exact)", one_of("sampled", "all")
  )
  k: int = row(
    1000, "classes K that an image is contrasted with, its own included", at_least(2)
  )
  correction: str = row("log", "correction of the sampled loss", one_of(*CORRECTIONS))
  margin: float = row(
    0.0,
    "fixed margin on the negatives' logits, for correction=none",
    between(-1e3, 1e3),
  )
  loss: str = row(
    "softmax", "cross-entropy, SigLIP's sum, or a distance", one_of(*LOSSES)
  )
  logit_bias: float = row(
    0.0, "added to sigmoid's logits; 0: the CLIP's own", between(-1e3, 1e3)
  )


@dataclasses.dataclass(frozen=True)
class Loop(Group):
  """Any training by steps: its batches and length, and what a bad loss does."""

  batch_size: int = row(256, "views in a step, over all devices", between(1, 2**20))
  accumulate: int = row(
    1, "draws that a data index computes one after the other", at_least(1)
  )
  epochs: int = row(5, "epochs", between(1, 2**20))
  steps: int = row(0, "steps of the whole run; 0: from epochs", between(0, 2**31 - 1))
  roll_backs: int = row(
    0,
    "times that a bad loss, also one above 5 times the usual, restores the last checkpoint; 0: a"
    " loss that is not finite stops the run",
    at_least(0),
  )


def check_cache(field: str, folder: str) -> None:
  """Raises ConfigError for a folder that can't be written to; "" stands for none."""
  problem = why_unwritable(folder) if folder else None
  require(not problem, field, folder, f"a folder that can be written to; {problem}")


def check_class_list(field: str, names: str, prompt: str = "") -> None:
  """Checks that a field names a packaged class list, a file or a run's own classes.

  Args:
    field: dotted name of the field, for messages.
    names: class list or file; "" for the classes that the prompt's run recorded.
    prompt: prompt of a run; "" if `names` must be a list or a file.

  Raises:
    ConfigError: there is no such list, or the run has recorded none.
  """
  if prompt and not names:
    has_names = recorded_classes(prompt)
    require(has_names, field, names, f"{_NAMES}; {prompt!r} {NO_NAMES}")
    return
  is_list = names in CLASS_LISTS or is_file(names)
  require(is_list, field, names, _NAMES)
