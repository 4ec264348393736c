"""What a room may do for the core: one typed hook each, which the room's author reads.

A hook is false where its room is not installed. The core asks `if HOOK:` and calls
`HOOK.open()`, which imports the room then. To take a room off, delete its folder and
leave its hooks `Hook("")`. The type checker holds each room to its contract, at the end
of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from pomp_jax.registry import load

if TYPE_CHECKING:
  import numpy as np
  import optax

  from pomp_jax.clip.architecture import ClipConfig
  from pomp_jax.clip.load import Clip
  from pomp_jax.clip.tokens import Tokenizer
  from pomp_jax.clip.weights import Weights
  from pomp_jax.config import fields
  from pomp_jax.config.group import Group
  from pomp_jax.data.class_lists import Category, ClassList
  from pomp_jax.encoder import Encoder
  from pomp_jax.evaluate.evaluation_sets import EvaluationSet, OfSplit
  from pomp_jax.evaluate.named_prompts import NamedPrompt, OtherPrompt
  from pomp_jax.files.checkpoints import Restored
  from pomp_jax.files.metrics_log import Tracker
  from pomp_jax.files.paths import Path
  from pomp_jax.files.prompt_file import ClassFeatures, Prompt
  from pomp_jax.files.run_folder import RunFolder
  from pomp_jax.prompt.learner import Term
  from pomp_jax.prompt.sampling.samplers import SamplingArrays
  from pomp_jax.report.report import Report, Section
  from pomp_jax.train.resume import Checkpoint
  from pomp_jax.train.training import PromptRun, Run

Contract = TypeVar("Contract")


class Hook(Generic[Contract]):
  """A place where a room may help the core, by a module or by a name of one."""

  def __init__(self, path: str):
    """Takes "module" or "module:name" below `pomp_jax`, or "" if not installed."""
    self.path = path

  def __bool__(self) -> bool:
    """Whether the room is installed."""
    return bool(self.path)

  def open(self) -> Contract:
    """Imports what the room does; only of an installed room."""
    return cast("Contract", load(self.path))

  def takes(self, room: Contract) -> None:
    """Does nothing; the type checker compares a room with the contract here."""


class ByClass(Protocol):
  """Figures of each class."""

  def sets_of(
    self,
    names: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, Any]],
    reference: str,
    labels: Mapping[str, str],
  ) -> dict[str, dict[str, Any]]:
    """Converts the scores of splits to sets, which `write`, `summary` and `sections`
    take.

    Args:
      names: names of the N classes, by split.
      scores: figures by split and prompt; shares are fractions of 1.
      reference: prompt that the others are compared with.
      labels: texts that explain prompts, by prompt.

    Returns:
      The sets by split.
    """

  def write(self, folder: RunFolder, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes files with a row for each class."""

  def summary(
    self, of_set: Mapping[str, Any], label: str | None = None
  ) -> dict[str, Any]:
    """What `results.json` holds of a set."""

  def sections(
    self, sets: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
  ) -> list[Section]:
    """Sections of a report, from the summaries."""


class Averaging(Protocol):
  """An average of the parameters, as a part of the optimizer."""

  def __call__(
    self, optim: fields.Optim, steps_per_epoch: int
  ) -> optax.GradientTransformation | None:
    """Returns what keeps the average in its state; None where the config asks for
    none."""


class Choice(Protocol):
  """What is kept of a training from words."""

  @property
  def prompt(self) -> Prompt:
    """The prompt that is kept."""

  @property
  def checkpoint(self) -> Checkpoint:
    """The checkpoint that was compared with the words."""

  @property
  def rows(self) -> Mapping[str, Prompt | str]:
    """Prompts that the tables have beside it."""

  @property
  def reference(self) -> str:
    """Row that the others are compared with."""

  @property
  def facts(self) -> dict[str, Any]:
    """What `results.json` says of the choice."""


class Words(Protocol):
  """Anchors of the consistency, and candidates of `prompt.init=best`."""

  def with_automatic_weight(
    self, contrast: fields.Contrast, logit_scale: float
  ) -> fields.Contrast:
    """The fields with a weight in the place of an automatic one."""

  def check(
    self,
    contrast: fields.Contrast,
    prompt: fields.Prompt,
    data: fields.Data,
    clip: ClipConfig,
    model: str,
  ) -> None:
    """Checks that the texts and files of anchors and candidates fit the CLIP.

    It runs before the weights are read.

    Args:
      contrast: `config.contrast`, with the anchors.
      prompt: `config.prompt`, with the candidates.
      data: `config.data`, with the class names.
      clip: sizes of the CLIP.
      model: name of the CLIP.

    Raises:
      ConfigError: a text or file does not fit.
    """

  def start(
    self,
    prompt: fields.Prompt,
    data: fields.Data,
    evaluation: fields.Eval,
    encoder: Encoder,
    classes: ClassList,
    folder: RunFolder,
  ) -> tuple[fields.Prompt, Mapping[str, float]]:
    """Chooses the candidate from which training starts, on the validation images.

    Args:
      prompt: `config.prompt`, with the candidates.
      data: `config.data`.
      evaluation: `config.eval`, with the number of images.
      encoder: CLIP of the run.
      classes: classes of the training.
      folder: folder of the run, which stores features of the images.

    Returns:
      The fields with the best candidate in the place of `init`, and the accuracy of
      each candidate, a fraction of 1, by name.
    """

  def candidates(self, prompt: fields.Prompt) -> tuple[str, ...]:
    """Returns names of the candidates, as `evaluate.prompts` has them.

    () unless a training starts from the best.
    """

  def anchors(
    self,
    contrast: fields.Contrast,
    candidates: Mapping[str, float] | None,
    encoder: Encoder,
    classes: ClassList,
  ) -> np.ndarray | None:
    """Computes the class features that the learned ones stay near.

    Args:
      contrast: `config.contrast`, which names the anchors.
      candidates: accuracy of each candidate by name, see `start`; None without them.
      encoder: CLIP of the run.
      classes: the N classes of the training.

    Returns:
      Unit vectors [N,E]; None if the loss has no such term.
    """

  def choose(self, run: PromptRun, last: Checkpoint, earlier: Checkpoint | None) -> Any:
    """What is kept of a training that started from words: a `Choice`.

    Args:
      run: the finished training.
      last: its last checkpoint.
      earlier: its best checkpoint before, if there is one.
    """


class Profiler(Protocol):
  """Records a profile of some steps."""

  def after(self, step: int, result: Any) -> None:
    """Is told of each step that is done, with what it returned."""

  def close(self) -> None:
    """Ends a profile that is still being recorded."""


class SyntheticClips(Protocol):
  """Architectures with random weights, for measurements."""

  @property
  def SYNTHETIC_CLIPS(self) -> tuple[str, ...]:
    """Their names, for messages."""

  def is_synthetic(self, name: str) -> bool:
    """Whether there is one of this name."""

  def open_clip(self, model: str) -> Clip:
    """Builds one."""

  def config_and_tokenizer(self, model: str) -> tuple[ClipConfig, Tokenizer]:
    """Its sizes and tokens, without weights."""


class NamedSets(Protocol):
  """Data sets of an evaluation, by name and a user's own."""

  def evaluation_sets(
    self, evaluate: fields.Evaluate, source: str, of_split: OfSplit
  ) -> list[EvaluationSet]:
    """The sets that the config names, unopened; none where it names none.

    Args:
      evaluate: `config.evaluate`.
      source: `config.data.source`.
      of_split: function that opens a split of `config.data`.
    """

  def facts(self, evaluate: fields.Evaluate) -> dict[str, str]:
    """What `results.json` says of the choice."""


class Suites(Protocol):
  """Tables of data sets."""

  @property
  def GROUPS(self) -> Mapping[str, tuple]:
    """Their tables, as `report.evaluation_report.Group`."""


class HubUpload(Protocol):
  """Uploads a prompt to a hub."""

  def wanted(self, export: fields.Export) -> bool:
    """Whether the config asks for an upload."""

  def check(self, export: fields.Export, prompt: Prompt) -> None:
    """Raises HubError for what can't be uploaded; sends nothing."""

  def push(self, export: fields.Export, prompt: Prompt, folder: Path) -> str:
    """Uploads, and returns the URL.

    Args:
      export: `config.export`.
      prompt: prompt to upload.
      folder: folder of the run.
    """


class MixtureWeights(Protocol):
  """Weights of the mixtures among prompts, chosen on validation images."""

  def check(self) -> None:
    """Raises ConfigError where they can't be chosen."""

  def key(self, encoder: Encoder) -> list[str]:
    """Parts of a cache key of what they depend on."""

  def choose(self, encoder: Encoder) -> tuple[list[NamedPrompt], list[dict[str, Any]]]:
    """The prompts with their weights, and what `results.json` says of each."""


class RegionsOnPage(Protocol):
  """Pixels and objects on the page."""

  @property
  def RegionsOfPictures(self) -> Callable[..., Any]:
    """What the page asks for them, of the encoder and the fields of CLIP and page."""

  def check(self, page: Group, clip_model: str) -> None:
    """Raises InputError where the network can't be used."""

  def examples(self) -> list[tuple[Any, str, str]]:
    """Pictures with their boxes and names."""


# An average of the parameters.
AVERAGING: Hook[Averaging] = Hook("rooms.regularisation.averaging:average_of")
# A term of the loss; None where the config asks for none.
CONSISTENCY: Hook[Callable[[fields.Contrast], Term | None]] = Hook(
  "rooms.regularisation.consistency:term_of"
)
WORDS: Hook[Words] = Hook("rooms.regularisation.words")
# Scheme of a URL -> the library that is to be installed for it, or None.
MISSING_LIBRARY: Hook[Callable[[str], str | None]] = Hook(
  "rooms.buckets.libraries:missing_library"
)
BY_CLASS: Hook[ByClass] = Hook("rooms.analysis.by_class")
# A training, its prompt and its results -> a function that draws pictures with their
# classes.
PREDICTION_SHEET: Hook[
  Callable[[PromptRun, Prompt, Mapping[str, Any]], Callable[[Path], None] | None]
] = Hook("rooms.analysis.prediction_sheet:prediction_sheet")
# WordNet ids of the classes -> makes tallies of errors on its tree, see
# `evaluate.metrics.Tally`.
TREE_ERRORS: Hook[Callable[[Sequence[str]], Callable[[], Any]]] = Hook(
  "rooms.analysis.tree_errors:tallies"
)
# Fields of the loop, a folder, steps that are done -> a profiler; None where none is
# asked for.
PROFILER: Hook[Callable[[fields.Loop, Path, int], Profiler | None]] = Hook(
  "rooms.benchmark.profiler:open_profiler"
)
# A training -> a function: seconds of a step -> scalars of the log.
SHARE_OF_PEAK: Hook[Callable[[Run], Callable[[float], dict[str, float]]]] = Hook(
  "rooms.benchmark.flops:share_of_peak"
)
SYNTHETIC_CLIPS: Hook[SyntheticClips] = Hook("rooms.benchmark.synthetic_clip")
NAMED_SETS: Hook[NamedSets] = Hook("rooms.data_sets.chosen_sets")
SUITES: Hook[Suites] = Hook("rooms.data_sets.suites")
# Group of sets, kind of figure, rows of ours -> published figures by method.
PUBLISHED: Hook[Callable[[str, str, Mapping[str, Any]], dict[str, dict[str, Any]]]] = (
  Hook("rooms.data_sets.suites:published")
)
# Relations of classes that samplers read; None where the data has none.
RELATIONS: Hook[Callable[[fields.Data, Sequence[str]], SamplingArrays | None]] = Hook(
  "rooms.hierarchy.relations:relations"
)
CLASS_FEATURES: Hook[Callable[[str | os.PathLike], ClassFeatures]] = Hook(
  "rooms.interchange.class_features:read_class_features"
)
# Writes the results of `evaluate` in CLIP_benchmark's form.
CLIP_BENCHMARK: Hook[Callable[[Path, Mapping[str, Any]], None]] = Hook(
  "rooms.interchange.clip_benchmark:write"
)
# Folder of a Dassl trainer -> its prompt file, or None.
DASSL_PROMPT: Hook[Callable[[Path], Path | None]] = Hook(
  "rooms.interchange.torch_archive:prompt_of_trainer"
)
HUB_PROMPT: Hook[Callable[[str | os.PathLike], Prompt]] = Hook(
  "rooms.interchange.prompt_hub:load_from_hub"
)
HUB_UPLOAD: Hook[HubUpload] = Hook("rooms.interchange.prompt_hub")
# A report -> its tables, for results.tex.
LATEX: Hook[Callable[[Report], str]] = Hook("rooms.interchange.latex:latex")
# Fields of the log, the run's folder, its config -> what is told of a training.
TRACKER: Hook[Callable[[fields.Log, RunFolder, Mapping[str, Any]], Tracker]] = Hook(
  "rooms.interchange.tracker:open_tracker"
)
TORCH_WEIGHTS: Hook[Callable[[Path], contextlib.AbstractContextManager[Weights]]] = (
  Hook("rooms.interchange.torch_archive:open_torch")
)
# Annotations, read from the file of this path -> categories by id.
CATEGORIES: Hook[Callable[[str | os.PathLike, Any], dict[int, Category]]] = Hook(
  "rooms.regions.categories:categories_by_id"
)
# Prompts of `evaluate`, its groups clip, data and eval -> what chooses the weights of
# mixtures.
MIXTURE_WEIGHTS: Hook[
  Callable[
    [Sequence[NamedPrompt], fields.Clip, fields.Data, fields.Eval], MixtureWeights
  ]
] = Hook("rooms.mixtures.weights:Weights")
# Name, field, whether weights are chosen later -> a prompt, or None for another kind of
# name.
OTHER_PROMPTS: Hook[Callable[[str, str, bool], OtherPrompt | None]] = Hook(
  "rooms.mixtures.prompts:read_prompt"
)
# A checkpoint of a method that learns no prompt, and its path -> what classifies.
FINISHED_RUN: Hook[Callable[[Restored, str | os.PathLike], OtherPrompt]] = Hook(
  "rooms.baselines.finished_run:FinishedRun"
)
REGIONS_ON_PAGE: Hook[RegionsOnPage] = Hook("rooms.regions.on_page")

if TYPE_CHECKING:
  from pomp_jax.rooms.analysis import by_class, prediction_sheet, tree_errors
  from pomp_jax.rooms.baselines import finished_run
  from pomp_jax.rooms.benchmark import flops, profiler, synthetic_clip
  from pomp_jax.rooms.buckets import libraries
  from pomp_jax.rooms.data_sets import chosen_sets, suites
  from pomp_jax.rooms.hierarchy import relations
  from pomp_jax.rooms.interchange import (
    class_features,
    clip_benchmark,
    latex,
    prompt_hub,
    torch_archive,
    tracker,
  )
  from pomp_jax.rooms.mixtures import prompts, weights
  from pomp_jax.rooms.regions import categories, on_page
  from pomp_jax.rooms.regularisation import averaging, consistency, words

  AVERAGING.takes(averaging.average_of)
  CONSISTENCY.takes(consistency.term_of)
  WORDS.takes(words)
  MISSING_LIBRARY.takes(libraries.missing_library)
  BY_CLASS.takes(by_class)
  PREDICTION_SHEET.takes(prediction_sheet.prediction_sheet)
  TREE_ERRORS.takes(tree_errors.tallies)
  PROFILER.takes(profiler.open_profiler)
  SHARE_OF_PEAK.takes(flops.share_of_peak)
  SYNTHETIC_CLIPS.takes(synthetic_clip)
  NAMED_SETS.takes(chosen_sets)
  SUITES.takes(suites)
  PUBLISHED.takes(suites.published)
  RELATIONS.takes(relations.relations)
  CLASS_FEATURES.takes(class_features.read_class_features)
  CLIP_BENCHMARK.takes(clip_benchmark.write)
  DASSL_PROMPT.takes(torch_archive.prompt_of_trainer)
  HUB_PROMPT.takes(prompt_hub.load_from_hub)
  HUB_UPLOAD.takes(prompt_hub)
  LATEX.takes(latex.latex)
  TRACKER.takes(tracker.open_tracker)
  CATEGORIES.takes(categories.categories_by_id)
  MIXTURE_WEIGHTS.takes(weights.Weights)
  OTHER_PROMPTS.takes(prompts.read_prompt)
  FINISHED_RUN.takes(finished_run.FinishedRun)
  REGIONS_ON_PAGE.takes(on_page)
