"""The registries: tables of methods, data sources, jobs and more, by config value.

A row names its module, which is imported only when it is used. To add a method or
another entry, add a file and a row here.
"""

from collections.abc import Mapping
import importlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pomp_jax.errors import InputError

WORLD = "world"


def load(path: str) -> Any:
  """Imports "module" below `pomp_jax`; for "module:name" returns the module's name."""
  module, _, function = path.partition(":")
  found = importlib.import_module(f"pomp_jax.{module}")
  return getattr(found, function) if function else found


class Method(NamedTuple):
  """One value of `config.method`.

  A method learns by gradient steps (`steps`), or has its own function `run`. Paths are
  "module:name" below `pomp_jax`.
  """

  # class like `train.methods.Pomp`, if the method learns by gradient steps
  steps: str = ""
  run: str = ""  # function (config, the run's folder) -> results, otherwise
  fixes: Mapping[str, Any] = {}  # field -> the only value that the method accepts
  saves_prompt: bool = False  # whether the method learns a prompt for `prompt.npz`
  # whether the method learns tokens of the image tower, which needs pixels
  pixels: bool = False
  deep: bool = False  # whether `prompt.depth` layers have tokens of their own
  seeded: bool = True  # whether the seed changes the result


_NOT_AUGMENTED = {"data.augment": "none"}
_FIXED_TEXT = {"consistency_squared": 0.0, "consistency_l1": 0.0}
_DEEP_TEXT = {"prompt.position": "end", "clip.text_tower": "shared"}
# CoOp is pomp with negatives="all". KgCoOp is CoOp with consistency_squared.
METHODS = {
  "pomp": Method("train.methods:Pomp", saves_prompt=True),
  "cocoop": Method("rooms.baselines.cocoop:CoCoOp"),
  "vpt_shallow": Method(
    "rooms.baselines.visual_tokens:VPT", fixes=_FIXED_TEXT, pixels=True
  ),
  "vpt_deep": Method(
    "rooms.baselines.visual_tokens:VPT", fixes=_FIXED_TEXT, pixels=True, deep=True
  ),
  "maple": Method(
    "rooms.baselines.visual_tokens:MaPLe", fixes=_DEEP_TEXT, pixels=True, deep=True
  ),
  # PromptSRC is ivlp with consistency terms and an average of the parameters.
  "ivlp": Method(
    "rooms.baselines.visual_tokens:IVLP", fixes=_DEEP_TEXT, pixels=True, deep=True
  ),
  "protext": Method(
    "rooms.baselines.visual_tokens:DeepText", fixes=_DEEP_TEXT, deep=True
  ),
  "kdpl": Method(
    "rooms.baselines.kdpl:KDPL",
    fixes={"loss": "softmax", "correction": "log", "dry_run": ""}
    | {"sampling.ancestors_weight": 0.0},
    saves_prompt=True,
  ),
  "zero_shot": Method(
    run="rooms.baselines.classifiers:run", fixes=_NOT_AUGMENTED, seeded=False
  ),
  "linear_probe": Method(
    run="rooms.baselines.linear_probe:run", fixes=_NOT_AUGMENTED, seeded=False
  ),
  "tip_adapter": Method(run="rooms.baselines.tip_adapter:run", seeded=False),
  "tip_adapter_f": Method(run="rooms.baselines.tip_adapter:run"),
}


class Source(NamedTuple):
  """One value of `config.data.source`.

  The module of a source with stored images has the functions `splits` and `open_split`
  for `evaluate.image_splits`. Other modules have `open_source`, `n_training_classes`
  and `evaluation_splits`.
  """

  module: str  # path below `pomp_jax`
  unread: tuple[str, ...] = ()  # fields of `config.data` that must have their defaults
  stored: bool = True  # whether the images are files on a disk
  root: bool = True  # whether `data.root` must be a folder that exists
  generated: bool = False  # whether images are generated from `data.names` alone
  test_sets: bool = False  # whether `evaluate.source` may name it
  # whether images for missing splits are held out of the training images
  holds_out: bool = False
  # whether empty classes and duplicates between splits are dropped
  sorted_by_hand: bool = False
  draws_shots: bool = False  # whether `open_split` itself draws few-shot subsets
  # "module:function": name of a data set -> "" if accepted, else what is expected
  dataset: str = ""
  # "module:name" of names of class lists that the source reads, beside packaged lists
  lists: str = ""

  def expected_dataset(self, name: str) -> str:
    """Says what is expected instead of a data set's name; "" if it is accepted."""
    return load(self.dataset)(name) if self.dataset else ""


SOURCES = {
  WORLD: Source(
    "world",
    ("root", "dataset", "names", "shots", "classes", "base", "novel"),
    stored=False,
    root=False,
  ),
  "coop": Source(
    "rooms.data_sets.coop",
    test_sets=True,
    draws_shots=True,
    dataset="rooms.data_sets.fields:expected_by_coop",
  ),
  "tfds": Source(
    "rooms.data_sets.tfds",
    root=False,
    test_sets=True,
    dataset="rooms.data_sets.fields:expected_by_tfds",
  ),
  "folder": Source(
    "data.folder",
    ("dataset",),
    test_sets=True,
    holds_out=True,
    sorted_by_hand=True,
  ),
  "features": Source(
    "rooms.data_sets.feature_folder",
    ("dataset", "upright"),
    test_sets=True,
    holds_out=True,
  ),
  "regions": Source(
    "rooms.regions.training_crops",
    ("dataset",),
    holds_out=True,
    lists="rooms.regions.class_splits:CLASS_SPLITS",
  ),
  "synthetic": Source("rooms.benchmark.synthetic_images", root=False, generated=True),
}

# Values of `evaluate.source`; the first is the default.
READERS = tuple(name for name, source in SOURCES.items() if source.test_sets)


@runtime_checkable
class JobModule(Protocol):
  """The functions in the module of a job. With several processes, all call both."""

  def check(self, config: Any, workdir: str) -> object:
    """Raises a one-line error if the job can't work; writes nothing."""

  def run(self, config: Any, workdir: str) -> object:
    """Does the job.

    Only process 0 must finish writing before `run` returns: the other processes wait
    for process 0 in `hosts.finish`. `pretrain` and `ablate` themselves wait for process
    0, because jobs that call them read their files next.
    """


class Job(NamedTuple):
  """One value of `config.job`."""

  # path below `pomp_jax` of a `JobModule`; its docstring's summary is in `--help`
  module: str
  config: str  # "module:class" of the job's fields, a `config.Config`
  # "module:function": `results.json`, fields by dotted name -> `report.Report`
  report: str = ""
  # whether the job trains by steps, so that all processes can stop after the same step
  trains: bool = False
  processes: bool = True  # whether the job can run with several processes
  devices: bool = True  # whether the job computes on JAX's devices


JOBS = {
  "pretrain": Job(
    "train.pretrain",
    "config.jobs:TrainingConfig",
    "report.run_report:training_report",
    trains=True,
  ),
  "evaluate": Job(
    "evaluate.evaluate",
    "config.jobs:EvaluateConfig",
    "report.evaluation_report:evaluation_report",
  ),
  "predict": Job(
    "evaluate.predict",
    "config.jobs:PredictConfig",
    "report.predict_report:predict_report",
  ),
  "repeat": Job(
    "rooms.baselines.repeat",
    "rooms.baselines.fields:RepeatConfig",
    "rooms.baselines.reports:seeds_report",
    trains=True,
  ),
  "benchmark": Job(
    "rooms.benchmark.benchmark",
    "rooms.benchmark.fields:BenchmarkConfig",
    processes=False,
  ),
  "export": Job("evaluate.export", "config.jobs:ExportConfig"),
  "prepare": Job(
    "rooms.data_sets.prepare",
    "rooms.data_sets.fields:PrepareConfig",
    processes=False,
    devices=False,
  ),
  "analyse": Job(
    "rooms.analysis.analyse",
    "rooms.analysis.fields:AnalyseConfig",
    "rooms.analysis.geometry:geometry_report",
  ),
  "baselines": Job(
    "rooms.baselines.baselines",
    "rooms.baselines.fields:BaselinesConfig",
    "rooms.baselines.reports:baselines_report",
    processes=False,
  ),
  "ablate": Job(
    "rooms.ablation.ablate",
    "rooms.ablation.fields:AblateConfig",
    "rooms.ablation.ablation_report:ablation_report",
  ),
  "detect": Job(
    "rooms.regions.detect",
    "rooms.regions.fields:DetectConfig",
    "rooms.regions.reports:regions_report",
  ),
  "segment": Job(
    "rooms.regions.segment",
    "rooms.regions.fields:SegmentConfig",
    "rooms.regions.reports:regions_report",
  ),
  "propose": Job(
    "rooms.regions.propose", "rooms.regions.fields:ProposeConfig", processes=False
  ),
  "train_masks": Job(
    "rooms.regions.train_masks", "rooms.regions.fields:TrainMasksConfig", trains=True
  ),
  "page": Job("rooms.page.page", "rooms.page.fields:PageConfig", processes=False),
  "reproduce": Job(
    "rooms.reproduce.reproduce",
    "rooms.reproduce.fields:ReproduceConfig",
    "rooms.reproduce.reproduction_report:reproduction_report",
    processes=False,
  ),
  "calibrate": Job(
    "rooms.certainty.calibrate",
    "rooms.certainty.fields:CalibrateConfig",
    "rooms.certainty.reports:calibration_report",
  ),
  "near_names": Job(
    "rooms.certainty.near_names", "rooms.certainty.fields:NearNamesConfig"
  ),
  "gradient_bias": Job(
    "rooms.analysis.gradient_bias",
    "rooms.analysis.fields:GradientBiasConfig",
    "rooms.analysis.bias:gradient_bias_report",
    processes=False,
  ),
}


class Extension(NamedTuple):
  """Fields that a room adds to groups of the config; `Group.of` returns them."""

  fields: str  # "module:class", a `config.group.Group`
  extends: tuple[str, ...]  # names of the classes that the fields are added to
  # prefix of the fields' names; "" if they are named like the extended group's fields
  prefix: str = ""


# Extensions by the title that `--help` and docs/reference/config.md show.
EXTENSIONS = {
  "kdpl": Extension("rooms.baselines.fields:Kdpl", ("Contrast",), "kdpl"),
  "probe": Extension("rooms.baselines.fields:Probe", ("Contrast",), "probe"),
  "tip": Extension("rooms.baselines.fields:Tip", ("Contrast",), "tip"),
  "tokens": Extension("rooms.baselines.fields:Tokens", ("Prompt",)),
  "profile": Extension("rooms.benchmark.fields:Profile", ("Loop",)),
  "price": Extension("rooms.benchmark.fields:Price", ("Config",)),
  "tracking": Extension("rooms.interchange.fields:Tracking", ("Log",)),
  "synonyms": Extension("rooms.interchange.fields:Synonyms", ("Export",)),
  "upload": Extension("rooms.interchange.fields:Upload", ("Export",)),
  "annotations": Extension("rooms.regions.fields:RegionData", ("Data",)),
  "sets": Extension("rooms.data_sets.fields:Sets", ("Evaluate",)),
  "consistency": Extension("rooms.regularisation.fields:Consistency", ("Contrast",)),
  "average": Extension("rooms.regularisation.fields:Average", ("Optim",)),
  "words": Extension("rooms.regularisation.fields:Words", ("Prompt",)),
  "regions": Extension("rooms.regions.fields:Regions", ("Predict", "Page"), "regions"),
  "segment": Extension("rooms.regions.fields:Segment", ("Predict", "Page"), "segment"),
  "detect": Extension("rooms.regions.fields:Detect", ("Predict", "Page"), "detect"),
  "classifier": Extension(
    "rooms.certainty.fields:ClassifierFile", ("Export",), "classifier"
  ),
  "certain": Extension("rooms.certainty.fields:Certain", ("Predict",), "certain"),
  "propose": Extension("rooms.regions.fields:Propose", ("Predict", "Page"), "propose"),
}


class Task(NamedTuple):
  """One value of `config.predict.task`."""

  # Paths are "module:function" below `pomp_jax`.
  open: str  # class of the task, derived from `evaluate.predict.Task`
  # rows of a picture -> columns of the report before the names, as texts by header
  summary: str = ""
  # Heading in the report and key in the results of each fact that only this task adds.
  facts: tuple[tuple[str, str], ...] = ()


TASKS = {
  "classify": Task("evaluate.predict:Classify"),
  "segment": Task("rooms.regions.predict_tasks:SegmentPictures"),
  "detect": Task("rooms.regions.predict_tasks:DetectPictures"),
  "certain": Task(
    "rooms.certainty.predict_task:CertainPictures",
    summary="rooms.certainty.reports:picture_summary",
    facts=(("answers", "answers"), ("class vectors", "size")),
  ),
}


class Format(NamedTuple):
  """One value of `config.export.format`, for prompts or for features of names."""

  usual_name: str  # name of the file, unless `config.export.output` has another
  suffixes: tuple[str, ...]  # suffixes that a file may have
  names: str = ""  # regular expression of the end of a prompt file's name
  # "module:function": path -> fields of a prompt, like `files.prompt_file.read_npz`
  read: str = ""
  encode: str = ""  # "module:function": context and texts -> content of a file
  features: str = ""  # module that exports features, with `check` and `compute`


FORMATS = {
  "npz": Format(
    usual_name="prompt.npz",
    suffixes=(".npz",),
    names=r"\.npz",
    read="files.prompt_file:read_npz",
    encode="files.prompt_file:encode_npz",
  ),
  "safetensors": Format(
    usual_name="prompt.safetensors",
    suffixes=(".safetensors",),
    names=r"\.safetensors",
    read="rooms.interchange.safetensors_prompts:read",
    encode="rooms.interchange.safetensors_prompts:encode",
  ),
  # Dassl, on which CoOp and POMP are built, writes model.pth.tar-5 and
  # model-best.pth.tar.
  "pth": Format(
    usual_name="prompt.pth.tar",
    suffixes=(".pth.tar", ".pth", ".pt"),
    names=r"\.(pt|pth)(\.tar)?(-\d+)?",
    read="rooms.interchange.torch_archive:read",
    encode="rooms.interchange.torch_archive:encode",
  ),
  "detic": Format(
    "class_features.npy", (".npy",), features="rooms.interchange.class_feature_files"
  ),
  "open_clip": Format(
    "zero_shot_weights.npy",
    (".npy", ".safetensors"),
    features="rooms.interchange.class_feature_files",
  ),
  "classifier": Format(
    "classifier.safetensors",
    (".safetensors",),
    features="rooms.certainty.classifier_export",
  ),
}


# Scheme of an object store's URLs -> the store's class, a file system of fsspec.
STORES = {
  "gs": "rooms.buckets.google_store.GoogleStore",
  "s3": "rooms.buckets.amazon_store.AmazonStore",
}

# `pomp_jax.hooks` lists what else rooms do for the core.
DRY_RUN = "rooms.benchmark.dry_run"  # what `config.dry_run` runs instead of a job


def load_job(name: str) -> JobModule:
  """Imports the module of a job; "dry_run" is the module that `config.dry_run` runs.

  Raises:
    InputError: the room benchmark, which has the dry run, is not installed.
  """
  if name == "dry_run" and not DRY_RUN:
    raise InputError("dry_run: the benchmark, which measures, is not installed")
  module: JobModule = load(DRY_RUN if name == "dry_run" else JOBS[name].module)
  return module
