"""The table of fields: one row each with type, default, check and help.

The base config, validation, `--help` and docs/config.md come from it. Groups that one room reads
are in its `fields.py`, and `registry.JOBS` has the groups of each job. Checks of several fields
together are in `checks.py`.
"""

from collections.abc import Mapping
import dataclasses

from pomp_jax import hooks, registry
from pomp_jax.clip.packed import REMAT
from pomp_jax.clip.precision import DTYPES
from pomp_jax.clip.text import TEXT_TOWERS
from pomp_jax.config.declare import Check, above, at_least, below, between, one_of, pair, row
from pomp_jax.data.subsets import HALVES
from pomp_jax.data.views import AUGMENTS
from pomp_jax.hooks import PROFILER
from pomp_jax.prompt.bank import DTYPES as BANK_DTYPES
from pomp_jax.prompt.context import POSITIONS
from pomp_jax.prompt.loss import CORRECTIONS, LOSSES
from pomp_jax.prompt.optimizer import OPTIMIZERS, SCHEDULES
from pomp_jax.prompt.sampling.samplers import ANCHORS, EXCLUSIONS, SAMPLERS
from pomp_jax.registry import FORMATS, METHODS, READERS, SOURCES, TASKS, TRACKERS, WORLD

_steps = pair if PROFILER else Check(lambda steps: not steps, "nothing: no room profiles")
_m = at_least(0 if hooks.WORDS else 1)
_weight = at_least(0) if hooks.CONSISTENCY else between(0, 0)
CONSISTENCIES = ("squared", "l1", "kl", "images")  # terms of the loss, see `hooks.CONSISTENCY`
AUTOMATIC = -1.0  # of `consistency_squared`
_squared = Check(
  lambda weight: weight == AUTOMATIC or 0 <= weight < float("inf"), "0 or more, or -1 for automatic"
)
_averages = ("none", "gaussian", "ema") if hooks.AVERAGING else ("none",)
_suites = hooks.SUITES.open().SUITES if hooks.SUITES else ()
_activation = one_of("auto", "quick_gelu", "gelu")
_template = Check(lambda text: text.count("{}") == 1, "a text with one {} for the name")
_spike = Check(lambda factor: factor == 0 or 1 < factor < float("inf"), "0, or a number above 1")
BEST = "best"  # of `prompt.candidates`


@dataclasses.dataclass(frozen=True)
class Clip:
  """The frozen CLIP."""

  model: str = row(WORLD, '"world", or a folder, a file or a hub id: see docs/weights.md')
  activation: str = row("auto", "MLP activation; auto: the checkpoint's", _activation)
  image_tower: bool = row(True, "load the image tower; features of a file need none")
  text_tower: str = row("shared", "shared (fast) or reference (the oracle)", one_of(*TEXT_TOWERS))
  dtype: str = row("float32", "compute type; float32 is exact, the others faster", one_of(*DTYPES))
  remat: str = row("auto", "rematerialisation; auto: the fastest", one_of("auto", *REMAT))
  n_chunks: int = row(0, "chunks of a step's classes; 0: chosen by memory_gib", at_least(0))
  memory_gib: float = row(0.0, "activation memory a device, GiB; 0: half of its limit", at_least(0))
  chunk: int = row(1024, "classes or images at a time, for features of many", at_least(1))
  image_chunk: int = row(64, "images in a device's memory at a time; 0: no limit", at_least(0))


@dataclasses.dataclass(frozen=True)
class Data:
  """Images and their classes; see docs/data.md."""

  source: str = row(WORLD, "image source: the embedded world or stored images", one_of(*SOURCES))
  root: str = row("", "folder of the images: a folder per class, CoOp's $DATA, or TFDS's data_dir")
  dataset: str = row("", "data set: for coop a class list's name, for tfds that or TFDS's own")
  annotations: str = row("", "for regions: COCO or LVIS JSON, or a folder of label images")
  names: str = row("", "class list or file of names; empty: the data set's")
  shots: int = row(0, "stored training images per class; 0: all", at_least(0))
  shots_seed: int = row(1, "random seed of the few-shot subset; CoOp's are 1, 2 and 3", at_least(0))
  classes: str = row("all", "classes to train on: all, or one of CoOp's halves", one_of(*HALVES))
  base: str = row("", "class list or file of names: the classes to train on")
  novel: str = row("", "class list or file of names: evaluated beside base; empty: all others")
  test_share: float = row(0.2, "test share of a class, in a folder without test images", below(1))
  validation_share: float = row(0.1, "likewise, of validation images", below(1))
  duplicates: str = row(
    "drop",
    "of a folder's test and validation pictures, those that equal one of an earlier split",
    one_of("drop", "keep"),
  )
  cache: str = row("", "cache folder for the labels of TFDS sets; empty: none")
  images_per_class: int = row(16, "training images per class, of generated data", at_least(1))
  n_classes: int = row(0, "classes from the source's list, evenly spread; 0: all", at_least(0))
  upright: bool = row(False, "turn images as their EXIF orientation says; CLIP's code does not")
  augment: str = row("none", "augmentation; recipe: with RandAugment", one_of(*AUGMENTS))
  views: int = row(1, "views V of an image in an epoch; batch_size counts views", at_least(1))
  augment_seed: int = row(0, "random seed of the augmentation", at_least(0))
  crop_area: float = row(0.08, "smallest share of an image's area in a random crop", above(0, 1))
  view_epochs: int = row(0, "epochs after which the same views repeat; 0: never", at_least(0))
  features: str = row(
    "online",
    "image features: computed each step, once and stored, or of a file",
    one_of("online", "stored", "file"),
  )
  feature_store: str = row("", "folder of image and class features; empty: the run's, images alone")
  threads: int = row(0, "threads that prepare images, per worker; 0: by the cores", at_least(0))
  workers: int = row(-1, "processes that decode; 0: threads alone; -1: by the cores", at_least(-1))
  max_corrupt: float = row(0.001, "largest share of unreadable images (replaced)", at_least(0))


@dataclasses.dataclass(frozen=True)
class Prompt:
  """The prompt."""

  m: int = row(4, "context vectors M; 0: as many as the words where init=best", _m)
  position: str = row("end", "position of the name in the prompt", one_of(*POSITIONS))
  init: str = row(
    "",
    "words, prompt file or run's folder; maple and ivlp keep words beyond M fixed; best: words of"
    " the best candidate; empty: N(0, 0.02^2)",
  )
  candidates: tuple[str, ...] = row(
    ("hand_written", "ensemble:imagenet_7", "{}."),
    "where init=best, prompts as evaluate.prompts that training must beat on validation images; an"
    " ensemble stands for its texts too",
  )
  class_specific: bool = row(False, "one context per class")
  depth: int = row(1, "layers with own prompts, for vpt_deep, maple, ivlp, protext", at_least(1))
  visual_tokens: int = row(8, "prompt tokens in the image tower, for vpt_*, ivlp", at_least(1))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Negative sampling; see docs/sampling.md."""

  name: str = row("uniform", "sampler of the negatives", one_of(*SAMPLERS))
  mix: float = row(0.1, "share of the uniform distribution in the other samplers", above(0, 1))
  temperature: float = row(0.05, "temperature of hard, in units of the cosine", above(0))
  anchors: str = row("classes", "anchors of hard", one_of(*ANCHORS))
  renew: int = row(64, "rows of the bank that a step renews in turn", at_least(0))
  bank_dtype: str = row("float32", "type of the bank's rows", one_of(*BANK_DTYPES))
  power: float = row(0.5, "exponent of the class counts, for frequency", at_least(0))
  exclude: str = row("none", "classes that are never negatives", one_of(*EXCLUSIONS))
  exclude_threshold: float = row(0.95, "cosine above which classes are similar", between(-1, 1))
  batch_positives: bool = row(False, "the other images' classes as negatives too")
  ancestors_weight: float = row(0.0, "weight of the loss over the classes' ancestors", at_least(0))


@dataclasses.dataclass(frozen=True)
class Optim:
  """The optimizer and its learning rate."""

  name: str = row("sgd", "optimizer", one_of(*OPTIMIZERS))
  lr: float = row(0.002, "learning rate", at_least(0))
  momentum: float = row(0.9, "momentum; beta1 of adamw", at_least(0))
  beta2: float = row(0.98, "beta2 of adamw", below(1))
  epsilon: float = row(1e-8, "epsilon of adamw", above(0))
  weight_decay: float = row(5e-4, "weight decay", at_least(0))
  clip_norm: float = row(0.0, "largest norm of the gradient; 0: any", at_least(0))
  schedule: str = row("epoch", "cosine per epoch (published) or step", one_of(*SCHEDULES))
  warmup: float = row(1.0, "warmup, epochs; a fraction under the step schedule", at_least(0))
  warmup_lr: float = row(1e-5, "learning rate of the warmup", at_least(0))
  average: str = row(
    "none",
    "mean over the training that is the result: Gaussian over epochs (PromptSRC), or exponential",
    one_of(*_averages),
  )
  # Bounds within which float32 holds the logarithms of the weights.
  average_mean: float = row(15.0, "epoch of the largest weight, for gaussian", between(0, 10**6))
  average_sigma: float = row(
    1.0, "standard deviation of the weights, epochs, for gaussian", between(1e-6, 10**6)
  )
  average_decay: float = row(0.99, "factor of the weights a step, for ema", below(1))


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The device mesh."""

  class_size: int = row(1, "devices that split one draw's classes", at_least(1))


@dataclasses.dataclass(frozen=True)
class Eval:
  """The evaluation of a training, over all classes of a split."""

  images: int = row(2048, "images of each split; 0: all, of stored images", at_least(0))
  template: str = row("a photo of a {}.", "hand-written prompt beside the learned one", _template)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Checkpoints."""

  every: int = row(100, "steps between checkpoints; each is validated", at_least(1))
  keep: int = row(3, "newest checkpoints that are kept, beside the best by validation", at_least(1))
  select: str = row(
    "last",
    "checkpoint behind prompt.npz and the results: the last, or the best by validation; the prompt"
    " of the other is prompt_best.npz or prompt_last.npz",
    one_of("last", "best"),
  )
  on_failure: str = row("stop", "reaction to a failed save", one_of("stop", "retry"))


@dataclasses.dataclass(frozen=True)
class Log:
  """The log."""

  every: int = row(10, "steps between log lines", at_least(1))
  tracker: str = row("none", "experiment tracker; see docs/watching.md", one_of("none", *TRACKERS))


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """The job evaluate: prompts over data sets; see docs/evaluation.md."""

  suite: str = row(registry.NO_SUITE, "suite of data sets", one_of(registry.NO_SUITE, *_suites))
  sets: tuple[str, ...] = row((), "named sets or suites; empty: the whole suite")
  source: str = row(READERS[0], "layout of the stored sets", one_of(*READERS))
  root: str = row("", "folder of the sets: CoOp's $DATA, TFDS's data_dir, or a folder of folders")
  sets_file: str = row("", "TOML file of one's own sets")
  own_sets: tuple[Mapping, ...] = row((), "one's own sets as dicts, in a config file")
  skip_missing: bool = row(False, "evaluation of the other sets where some can't be opened")
  prompts: tuple[str, ...] = row(("hand_written",), "prompts, see docs/evaluation.md")
  images: int = row(0, "images of each set, evenly over classes; 0: all", at_least(0))
  batch_size: int = row(512, "images in a batch, over all devices", at_least(1))


@dataclasses.dataclass(frozen=True)
class Predict:
  """The job predict: names for pictures, their pixels or their objects; see docs/evaluation.md."""

  task: str = row("classify", "what is named: pictures, their pixels, or objects", one_of(*TASKS))
  prompt: str = row(
    "", "prompt file, run's folder, text with {}, or another name of evaluate.prompts"
  )
  images: str = row("", "an image, or a folder of images and of such folders")
  names: str = row(
    "", "class list such as imagenet1k, or a file: one name per line, or JSON; empty: the run's"
  )
  top: int = row(5, "names per image; of other tasks those in the log", at_least(1))


@dataclasses.dataclass(frozen=True)
class Export:
  """The job export: the prompt, or features of names, for other programs; see docs/formats.md."""

  prompt: str = row(
    "", "prompt file, run's folder, hf:OWNER/NAME; for features as evaluate.prompts"
  )
  format: str = row("npz", "format; detic, open_clip: features", one_of(*FORMATS))
  names: str = row(
    "", "for features: class list or file of names, or COCO or LVIS JSON; empty: the run's"
  )
  synonyms: bool = row(False, "average over the synonyms of an LVIS JSON")
  output: str = row("", "file name in the run's folder; empty: see docs/formats.md")
  hub: str = row("", "repository to upload the prompt to, hf:OWNER/NAME; see docs/reuse.md")
  license: str = row("", "licence of the uploaded prompt: apache-2.0, mit, ..")
  private: bool = row(False, "private repository, where it is created; a public one is refused")


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A training of a prompt or a baseline: the method, and the classes of its loss."""

  method: str = row("pomp", "method that learns; all but pomp are baselines", one_of(*METHODS))
  negatives: str = row("sampled", "contrast: K classes or all N (exact)", one_of("sampled", "all"))
  k: int = row(1000, "classes K that an image is contrasted with, its own included", at_least(2))
  correction: str = row("log", "correction of the sampled loss", one_of(*CORRECTIONS))
  loss: str = row("softmax", "cross-entropy, SigLIP's sum, or a distance", one_of(*LOSSES))
  logit_bias: float = row(0.0, "added to sigmoid's logits; 0: the CLIP's own", between(-1e3, 1e3))
  consistency_squared: float = row(
    0.0,
    "weight of 1 - cosine of class features and anchors (KgCoOp); -1: by the CLIP's logit scale",
    _squared if hooks.CONSISTENCY else _weight,
  )
  consistency_l1: float = row(0.0, "weight of their l1 distance (PromptSRC)", _weight)
  consistency_kl: float = row(
    0.0, "weight of the KL from the frozen CLIP's probabilities (PromptSRC)", _weight
  )
  consistency_images: float = row(
    0.0, "weight of image features' l1 distance to the frozen CLIP's (PromptSRC)", _weight
  )
  anchors: str = row(
    "ensemble:imagenet_7", "anchors: a prompt as evaluate.prompts'; best: of prompt.candidates"
  )

  @property
  def consistency(self) -> tuple[tuple[str, float], ...]:
    """Some of CONSISTENCIES and their weights."""
    weights = ((kind, getattr(self, f"consistency_{kind}")) for kind in CONSISTENCIES)
    return tuple((kind, weight) for kind, weight in weights if weight)


@dataclasses.dataclass(frozen=True)
class Loop:
  """Any training by steps: its batches and length, and what a bad loss does."""

  batch_size: int = row(256, "views in a step, over all devices", between(1, 2**20))
  accumulate: int = row(1, "draws that a data index computes one after the other", at_least(1))
  epochs: int = row(5, "epochs", between(1, 2**20))
  steps: int = row(0, "steps of the whole run; 0: from epochs", between(0, 2**31 - 1))
  on_bad_loss: str = row("stop", "reaction to a bad loss", one_of("stop", "roll_back"))
  loss_spike: float = row(0.0, "factor over the usual loss that is bad; 0: not finite only", _spike)
  max_roll_backs: int = row(3, "roll-backs after which the run stops", at_least(0))
  profile_steps: tuple[int, ...] = row((), "first and last step of a profile; empty: none", _steps)
