"""Hooks: what rooms may do for the core, each with a contract for the room's author.

A hook is false if its room is not installed. The core asks `if HOOK:` and calls
`HOOK.open()`, which imports the room. To remove a room, delete its folder and set its
hooks to `Hook("")`. At the end of this file the type checker compares each room with
its contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
from typing import (
  TYPE_CHECKING,
  Any,
  Generic,
  Protocol,
  TypeVar,
  cast,
  runtime_checkable,
)

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
  from pomp_jax.evaluate.named_prompts import NamedPrompt, OtherPrompt
  from pomp_jax.evaluate.sets_to_evaluate import EvaluationSet, OfSplit
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
  """A place where a room may help the core, with a module or a name in a module."""

  def __init__(self, path: str):
    """Takes "module" or "module:name" below `pomp_jax`; "" if no room is installed."""
    self.path = path

  def __bool__(self) -> bool:
    """Whether the room is installed."""
    return bool(self.path)

  def open(self) -> Contract:
    """Imports and returns the room's module or name. Call only if it is installed."""
    return cast("Contract", load(self.path))

  def takes(self, room: Contract) -> None:
    """Does nothing at run time. A call makes the type checker compare a room with the
    contract."""


class ByClass(Protocol):
  """Figures of each class in the results of trainings and of `evaluate`."""

  def sets_of(
    self,
    names: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, Any]],
    reference: str,
    labels: Mapping[str, str],
  ) -> dict[str, dict[str, Any]]:
    """Converts scores by split to the sets that `write`, `summary` and `sections` take.

    Args:
      names: names of the classes, by split.
      scores: figures by split and prompt; shares are fractions of 1.
      reference: prompt that the others are compared with.
      labels: texts that explain prompts, by prompt.

    Returns:
      One set for each split, by split.
    """

  def write(self, folder: RunFolder, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes files with one row for each class into the run's folder."""

  def summary(
    self, of_set: Mapping[str, Any], label: str | None = None
  ) -> dict[str, Any]:
    """Returns what `results.json` holds of a set."""

  def sections(
    self, sets: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
  ) -> list[Section]:
    """Returns the sections of a report, made from the summaries by split."""


class Averaging(Protocol):
  """An average of the parameters, as a part of the optimizer."""

  def __call__(
    self, optim: fields.Optim, steps_per_epoch: int
  ) -> optax.GradientTransformation | None:
    """Returns a transformation that keeps the average in its state; None if the config
    asks for no average."""


class Choice(Protocol):
  """Which prompt is kept after a training that started from words."""

  @property
  def prompt(self) -> Prompt:
    """The prompt that is kept."""

  @property
  def checkpoint(self) -> Checkpoint:
    """The checkpoint that was compared with the words."""

  @property
  def rows(self) -> Mapping[str, Prompt | str]:
    """Further prompts in the tables, beside the prompt that is kept."""

  @property
  def reference(self) -> str:
    """Name of the row that the other rows are compared with."""

  @property
  def facts(self) -> dict[str, Any]:
    """What `results.json` says of the choice."""


class Words(Protocol):
  """Anchors of the consistency term, and candidates of `prompt.init=best`."""

  def with_automatic_weight(
    self, contrast: fields.Contrast, logit_scale: float
  ) -> fields.Contrast:
    """Returns the fields with a number in the place of an automatic weight."""

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
    """Chooses the candidate that training starts from, by the validation images.

    Args:
      prompt: `config.prompt`, with the candidates.
      data: `config.data`.
      evaluation: `config.eval`, with the number of images.
      encoder: CLIP of the run.
      classes: classes of the training.
      folder: folder of the run, which stores features of the images.

    Returns:
      The fields of the prompt with the best candidate as `init`, and the accuracy of
      each candidate by name, a fraction of 1.
    """

  def candidates(self, prompt: fields.Prompt) -> tuple[str, ...]:
    """Returns the candidates under the names that `evaluate.prompts` takes.

    There are none, (), unless training starts from the best candidate.
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
      candidates: accuracy of each candidate by name, see `start`; None if there are no
        candidates.
      encoder: CLIP of the run.
      classes: the N classes of the training.

    Returns:
      Unit vectors [N,E]; None if the loss has no such term.
    """

  def choose(self, run: PromptRun, last: Checkpoint, earlier: Checkpoint | None) -> Any:
    """Returns a `Choice`: which prompt is kept of a training that started from words.

    Args:
      run: the finished training.
      last: last checkpoint of the training.
      earlier: best checkpoint before the last; None if there is none.
    """


class Profiler(Protocol):
  """Records a profile of some steps."""

  def after(self, step: int, result: Any) -> None:
    """Takes notice of a finished step; `result` is what the step returned."""

  def close(self) -> None:
    """Ends the profile, if it is still being recorded."""


class SyntheticClips(Protocol):
  """CLIPs of known architectures with random weights, for measurements."""

  @property
  def SYNTHETIC_CLIPS(self) -> tuple[str, ...]:
    """Names of the synthetic CLIPs, for messages."""

  def is_synthetic(self, name: str) -> bool:
    """Whether a synthetic CLIP has this name."""

  def open_clip(self, model: str) -> Clip:
    """Builds a synthetic CLIP with random weights."""

  def config_and_tokenizer(self, model: str) -> tuple[ClipConfig, Tokenizer]:
    """Returns the sizes and the tokenizer of a synthetic CLIP, without weights."""


class NamedSets(Protocol):
  """Data sets of an evaluation: known sets by name, and a user's own sets."""

  def sets_to_evaluate(
    self, evaluate: fields.Evaluate, source: str, of_split: OfSplit
  ) -> list[EvaluationSet]:
    """Returns the sets that the config names, not opened yet; [] if it names none.

    Args:
      evaluate: `config.evaluate`.
      source: `config.data.source`.
      of_split: function that opens a split of `config.data`.
    """

  def facts(self, evaluate: fields.Evaluate) -> dict[str, str]:
    """What `results.json` says of the chosen sets."""


class Suites(Protocol):
  """Suites: groups of data sets that share a table in reports."""

  @property
  def GROUPS(self) -> Mapping[str, tuple]:
    """By name, the arguments of each `report.evaluation_report.Group`."""


class HubUpload(Protocol):
  """Uploads a prompt to a hub."""

  def wanted(self, export: fields.Export) -> bool:
    """Whether the config asks for an upload."""

  def check(self, export: fields.Export, prompt: Prompt) -> None:
    """Raises HubError if the prompt can't be uploaded; sends nothing."""

  def push(self, export: fields.Export, prompt: Prompt, folder: Path) -> str:
    """Uploads the prompt, and returns its URL.

    Args:
      export: `config.export`.
      prompt: prompt to upload.
      folder: folder of the run.
    """


@runtime_checkable
class MixtureWeights(Protocol):
  """Chooses weights for those prompts that are mixtures, on validation images."""

  def check(self) -> None:
    """Raises ConfigError if the weights can't be chosen."""

  def key(self, encoder: Encoder) -> list[str]:
    """Returns parts of a cache key: all that the weights depend on."""

  def choose(self, encoder: Encoder) -> tuple[list[NamedPrompt], list[dict[str, Any]]]:
    """Returns the prompts with chosen weights, and rows of `results.json` about the
    choices."""


class RegionsOnPage(Protocol):
  """Segments pictures and detects objects on the page."""

  @property
  def RegionsOfPictures(self) -> Callable[..., Any]:
    """Class that answers the page; built from encoder, and fields of CLIP and page."""

  def check(self, page: Group, clip_model: str) -> None:
    """Raises InputError if a field of the page does not fit regions of this CLIP."""

  def examples(self) -> list[tuple[Any, str, str]]:
    """Returns example pictures, each with boxes and names as text."""


# Keeps an average of the parameters.
AVERAGING: Hook[Averaging] = Hook("rooms.regularisation.averaging:average_of")
# Fields of `config.contrast` -> a term of the loss; None if the config asks for none.
CONSISTENCY: Hook[Callable[[fields.Contrast], Term | None]] = Hook(
  "rooms.regularisation.consistency:term_of"
)
WORDS: Hook[Words] = Hook("rooms.regularisation.words")
# Scheme of a URL -> words for the library of this scheme, if the library is missing or
# too old; None otherwise.
MISSING_LIBRARY: Hook[Callable[[str], str | None]] = Hook(
  "rooms.buckets.libraries:missing_library"
)
BY_CLASS: Hook[ByClass] = Hook("rooms.analysis.by_class")
# A training, its prompt and its results -> a function that draws a sheet of pictures
# with predicted classes; None if no picture can be read.
PREDICTION_SHEET: Hook[
  Callable[[PromptRun, Prompt, Mapping[str, Any]], Callable[[Path], None] | None]
] = Hook("rooms.analysis.prediction_sheet:prediction_sheet")
# WordNet ids of the classes -> a function that makes tallies of errors on WordNet's
# tree, see `evaluate.metrics.Tally`.
TREE_ERRORS: Hook[Callable[[Sequence[str]], Callable[[], Any]]] = Hook(
  "rooms.analysis.tree_errors:tallies"
)
# Fields of the loop, a folder, number of finished steps -> a profiler; None if the
# config asks for none.
PROFILER: Hook[Callable[[fields.Loop, Path, int], Profiler | None]] = Hook(
  "rooms.benchmark.profiler:open_profiler"
)
# A training -> a function from the seconds of a step to scalars of the log.
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
# Fields of the data, class names -> relations of classes that samplers read; None if
# the data has none.
RELATIONS: Hook[Callable[[fields.Data, Sequence[str]], SamplingArrays | None]] = Hook(
  "rooms.hierarchy.relations:relations"
)
CLASS_FEATURES: Hook[Callable[[str | os.PathLike], ClassFeatures]] = Hook(
  "rooms.interchange.class_feature_files:read_class_features"
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
# A report -> the tables of results.tex.
LATEX: Hook[Callable[[Report], str]] = Hook("rooms.interchange.latex:latex")
# Fields of the log, the run's folder, the run's config -> the tracker of a training.
TRACKER: Hook[Callable[[fields.Log, RunFolder, Mapping[str, Any]], Tracker]] = Hook(
  "rooms.interchange.tracker:open_tracker"
)
TORCH_WEIGHTS: Hook[Callable[[Path], contextlib.AbstractContextManager[Weights]]] = (
  Hook("rooms.interchange.torch_archive:open_torch")
)
# Path of a file of annotations, its content -> categories by id.
CATEGORIES: Hook[Callable[[str | os.PathLike, Any], dict[int, Category]]] = Hook(
  "rooms.regions.categories:categories_by_id"
)
# Prompts of `evaluate`, groups clip, data and eval of its config -> an object that
# chooses the weights of mixtures.
MIXTURE_WEIGHTS: Hook[
  Callable[
    [Sequence[NamedPrompt], fields.Clip, fields.Data, fields.Eval], MixtureWeights
  ]
] = Hook("rooms.mixtures.weights:Weights")
# Name of a prompt, field that has the name, whether weights are chosen later -> a
# prompt; None for a name of another kind.
OTHER_PROMPTS: Hook[Callable[[str, str, bool], OtherPrompt | None]] = Hook(
  "rooms.mixtures.prompts:read_prompt"
)
# A checkpoint of a method that learns no prompt, and its path -> the run as a prompt
# that classifies.
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
    class_feature_files,
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
  CLASS_FEATURES.takes(class_feature_files.read_class_features)
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
