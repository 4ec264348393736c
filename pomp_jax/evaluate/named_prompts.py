"""Prompts by their names in a config: files, hand-written texts, all checkpoints of
a run."""

from collections.abc import Callable, Sequence
import functools
import logging
import os
from typing import Any, NamedTuple

import numpy as np
from transformers import CLIPTextConfig

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.tokens import TokenizeError, Tokenizer, check_token_counts
from pomp_jax.config import ConfigError
from pomp_jax.config.errors import require
from pomp_jax.data.class_lists import (
  TEMPLATES,
  ClassList,
  load_templates,
  normalized_names,
)
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.ranking import Scorer
from pomp_jax.files import prompt_file
from pomp_jax.files.checkpoints import (
  CheckpointError,
  Restored,
  read_checkpoint,
  read_checkpoints,
)
from pomp_jax.files.paths import is_dir, join
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import CLASS_FEATURES, FINISHED_RUN, OTHER_PROMPTS
from pomp_jax.prompt.optimizer import result_of
from pomp_jax.registry import METHODS

# Names of hand-written prompts: the class list's own template, and means over an
# ensemble of templates: of unit features (ENSEMBLE) or of the text tower's outputs
# (OUTPUTS).
HAND_WRITTEN, ENSEMBLE, OUTPUTS = "hand_written", "ensemble", "outputs"
_TAKES = (
  "one or more of the following: a prompt file or hf:OWNER/NAME, a .npy"
  " file of class features, a finished run's folder, its checkpoints/ for all, a text with"
  " one {},"
  f" {HAND_WRITTEN}, {ENSEMBLE}, {ENSEMBLE}:NAME or {OUTPUTS}:NAME (averaged before they are"
  f" normalised) with NAME one of {', '.join(TEMPLATES)}; with the room mixtures a .json of"
  " sentences for each class, waffle:SEED, 0.5*A + 0.5*B of two of these"
)


class OtherPrompt:
  """Prompt of a kind that a room adds; `hooks.OTHER_PROMPTS` opens it by its name.

  `of_one_list` is whether the prompt fits only one list of classes, `has_rows` whether
  it holds one row a class, `upright` whether its training turned images as their EXIF
  orientation says (None if unknown).
  """

  of_one_list = has_rows = False
  upright: bool | None = None
  # `features` computes the unit class features [N,E]. `check`, `check_lengths` and
  # `describe` do the work of `check_prompt`, `check_lengths` and `describe` below; the
  # two checks accept everything unless a subclass replaces them.
  features: Callable[[Encoder, ClassList], np.ndarray]
  check: Callable[[str, Sequence[Sequence[str]], ClipConfig, str], None] = lambda *_: (
    None
  )
  check_lengths: Callable[[ClassList, Tokenizer, CLIPTextConfig, str], None] = (
    lambda *_: None
  )
  describe: Callable[[ClassList], list[Any]]
  needs_pixels = False  # whether the prompt scores images, not their stored features

  def classifier(self, encoder: Encoder, classes: ClassList) -> np.ndarray | Scorer:
    """Unit features [N,E], or a function that scores images in another way."""
    return self.features(encoder, classes)


_warn_once = functools.cache(logging.getLogger(__name__).warning)

AnyPrompt = prompt_file.Prompt | prompt_file.ClassFeatures | OtherPrompt | str


class NamedPrompt(NamedTuple):
  """A prompt with its label."""

  # name as written by the user; "x" for the folder runs/x, "x@80" for a checkpoint
  label: str
  prompt: AnyPrompt  # learned, of a room, or the name of a hand-written prompt
  step: int | None = None  # step of a checkpoint; None for other prompts


def read_prompts(
  names: Sequence[str], field: str, chosen: bool = False
) -> list[NamedPrompt]:
  """Loads the prompts that a config field names.

  Args:
    names: prompts as the user writes them.
    field: dotted name of the field, for messages.
    chosen: whether a mixture may lack its weights because the caller chooses them.

  Raises:
    ConfigError: a name is unknown, repeated or missing.
    PromptFileError: a file can't be read.
  """
  prompts: list[NamedPrompt] = []
  for name in names:
    prompts += _prompts_of(name, field, chosen)
  # Label runs by the names of their folders if all labels then differ.
  short = [_folder_name(named.label) for named in prompts]
  if len(set(short)) == len(prompts):
    prompts = [
      named._replace(label=label) for named, label in zip(prompts, short, strict=True)
    ]
  labels = {named.label for named in prompts}
  if not prompts or len(labels) < len(prompts):
    raise ConfigError(field, names, _TAKES + "; none twice")
  return prompts


def _prompts_of(name: str, field: str, chosen: bool) -> list[NamedPrompt]:
  """The prompt of a name; for a folder of checkpoints, the prompt of each."""
  prompt: AnyPrompt | None = None
  if OTHER_PROMPTS:
    prompt = OTHER_PROMPTS.open()(name, field, chosen)
  if prompt:
    return [NamedPrompt(name, prompt)]
  is_text = name.count("{}") == 1 or name in (HAND_WRITTEN, ENSEMBLE)
  if is_text or _named_templates(name):
    return [NamedPrompt(name, name)]
  if os.path.basename(name.rstrip("/")) == "checkpoints" and is_dir(name):
    return _of_all_checkpoints(name, field)
  if prompt_file.is_prompt_file(name):
    return [NamedPrompt(name, _of_file(name, field))]
  if is_dir(name):
    prompt = _finished_run(name, field)
    if prompt:
      return [NamedPrompt(name, prompt)]
  raise ConfigError(field, name, _TAKES)


def _of_all_checkpoints(folder: str, field: str) -> list[NamedPrompt]:
  """The prompt of each checkpoint in a run's folder `checkpoints`."""
  run = os.path.dirname(folder.rstrip("/")) or "."
  prompts = []
  # `read_checkpoints` holds one checkpoint at a time in memory.
  for checkpoint in read_checkpoints(folder):
    step = checkpoint.step
    prompt = _of_checkpoint(checkpoint, join(folder, str(step)))
    prompts.append(NamedPrompt(f"{run}@{step}", prompt, step))
  require(len(prompts) > 0, field, folder, "a run's folder of complete checkpoints")
  return prompts


def _of_file(name: str, field: str) -> AnyPrompt:
  """The prompt of a file; a room reads the class features of a .npy file."""
  if not name.endswith(".npy"):
    return prompt_file.load_prompt(name)
  expected = "no .npy file of class features without the room interchange"
  require(CLASS_FEATURES, field, name, expected)
  return CLASS_FEATURES.open()(name)


def read_prompt(name: str, field: str) -> NamedPrompt:
  """Loads the prompt of a field that takes a single prompt.

  Raises:
    ConfigError: the name is unknown, or stands for several prompts.
    PromptFileError: a file can't be read.
  """
  prompts = read_prompts([name], field)
  expected = "one prompt, such as the prompt.npz of a run's folder"
  require(len(prompts) == 1, field, name, expected)
  return prompts[0]


def _folder_name(label: str) -> str:
  """Shortens the path of a run's folder to its last part; keeps the step of a
  checkpoint."""
  folder, at, step = label.rpartition("@")
  if at and step.isdigit():
    return f"{_folder_name(folder)}@{step}"
  if is_dir(label):
    return os.path.basename(os.path.abspath(label))
  return label


def of_one_list(prompt: AnyPrompt) -> bool:
  """Whether a prompt fits only one list of classes, rather than any names."""
  if isinstance(prompt, prompt_file.Prompt):
    return prompt.context.ndim == 3  # a context of its own for each class
  # Class features lack the attribute: they are those of one list.
  return not isinstance(prompt, str) and getattr(prompt, "of_one_list", True)


def turned_otherwise(prompts: Sequence[NamedPrompt], upright: bool) -> list[str]:
  """Labels of the prompts whose training did not turn pictures as `upright` says.

  `upright` is whether pictures are turned here as their EXIF orientation says.
  """
  labels = []
  for named in prompts:
    recorded = getattr(named.prompt, "upright", None)
    if recorded is not None and recorded != upright:
      labels.append(named.label)
  return labels


def warn_of_turns(prompts: Sequence[NamedPrompt], upright: bool, where: str) -> None:
  """Warns of prompts whose training did not turn pictures as they are turned here.

  Args:
    prompts: prompts to use.
    upright: whether pictures are turned here as their EXIF orientation says.
    where: setting that decides `upright`, for the message.
  """
  labels = turned_otherwise(prompts, upright)
  if not labels:
    return
  here = "not turned"
  in_training = "turned its own"
  if upright:
    here = "turned"
    in_training = "did not turn its own"
  _warn_once(
    "%s: pictures are %s as their EXIF says; the training of %s %s",
    where,
    here,
    ", ".join(map(repr, labels)),
    in_training,
  )


def check_prompt(
  named: NamedPrompt,
  synonyms: Sequence[Sequence[str]],
  clip_config: ClipConfig,
  clip_model: str,
) -> None:
  """Checks that a prompt fits a CLIP and the classes; needs no weights.

  A hand-written prompt, which is a text, always fits.

  Args:
    named: prompt and its label, for messages.
    synonyms: names of each class. A class-specific prompt must have a context for each
      name, and a file of class features a row for each class.
    clip_config: sizes of the CLIP.
    clip_model: name of the CLIP.

  Raises:
    PromptFileError: the prompt does not fit.
  """
  label = named.label
  prompt = named.prompt
  if isinstance(prompt, prompt_file.Prompt):
    prompt_file.check_fits(
      prompt,
      width=clip_config.text_config.hidden_size,
      clip_model=clip_model,
      n_classes=sum(map(len, synonyms)),
      path=label,
    )
  elif isinstance(prompt, prompt_file.ClassFeatures):
    prompt.check_fits(len(synonyms), clip_config.projection_dim, where=label)
  elif isinstance(prompt, OtherPrompt):
    prompt.check(label, synonyms, clip_config, clip_model)


def check_lengths(
  prompt: AnyPrompt,
  classes: ClassList,
  tokenizer: Tokenizer,
  config: CLIPTextConfig,
  where: str,
) -> None:
  """Checks that every text of the classes under a prompt fits the text tower.

  Args:
    prompt: prompt of a `NamedPrompt`.
    classes: names, and templates of hand-written prompts.
    tokenizer: tokenizer of the CLIP.
    config: sizes of the text tower, whose positions limit a text.
    where: label of the prompt and the set, for messages.

  Raises:
    TokenizeError: a text is too long.
  """
  if isinstance(prompt, prompt_file.ClassFeatures):
    return  # no text is encoded
  if isinstance(prompt, OtherPrompt):
    prompt.check_lengths(classes, tokenizer, config, where)
    return

  n_positions = config.max_position_embeddings - 1  # one is the start token's
  # Templates, each with the most tokens that its texts may have.
  limits: list[tuple[str, int]] = []
  if isinstance(prompt, prompt_file.Prompt):
    n_vectors = prompt.context.shape[-2]
    limits.append((prompt_file.TEMPLATE, n_positions - n_vectors))
    if prompt.sentences is not None:
      for template in prompt.sentences.templates:
        limits.append((template, n_positions))
  else:
    for template in texts_of(prompt, classes):
      limits.append((template, n_positions))

  names = normalized_names(classes.names)
  try:
    for template, n_tokens in limits:
      texts = [template.replace("{}", name) for name in names]
      check_token_counts(texts, tokenizer, config, n_tokens)
  except TokenizeError as error:
    raise TokenizeError(f"{where}: {error}") from error


def describe(prompt: AnyPrompt, classes: ClassList) -> list[Any]:
  """Returns the cache key parts of the features under a prompt, for
  `pieces.fingerprint`."""
  if isinstance(prompt, prompt_file.Prompt):
    parts: list[Any] = [prompt.position, prompt.context]
    if prompt.sentences is not None:
      parts.append(prompt.sentences.to_json())
    return parts
  if isinstance(prompt, prompt_file.ClassFeatures):
    return [prompt.features]
  if isinstance(prompt, OtherPrompt):
    return prompt.describe(classes)
  texts = list(texts_of(prompt, classes))
  if prompt.startswith(f"{OUTPUTS}:"):
    return [OUTPUTS, *texts]
  return texts


def _of_checkpoint(checkpoint: Restored, path: str | os.PathLike) -> AnyPrompt:
  """The prompt of a checkpoint; for a method without one, what it has learned."""
  method = checkpoint.meta.get("config", {}).get("method", "pomp")
  if FINISHED_RUN and method in METHODS and not METHODS[method].saves_prompt:
    return FINISHED_RUN.open()(checkpoint, path)
  return prompt_of_checkpoint(checkpoint, path)


def _finished_run(folder: str, field: str) -> AnyPrompt | None:
  """What a finished run without a prompt file has learned; None for other folders."""
  results = RunFolder(folder).read_results()
  if results is None or "method" not in results or not FINISHED_RUN:
    return None
  if "evaluated_step" not in results:
    expected = "a run that learns by steps"
    known = f"{results['method']} tells apart the classes of its training alone"
    raise ConfigError(field, folder, f"{expected}; {known}")
  path = join(folder, "checkpoints", str(results["evaluated_step"]))
  return _of_checkpoint(read_checkpoint(path), path)


def texts_of(prompt: str, classes: ClassList) -> Sequence[str]:
  """Templates of a hand-written prompt by its name; a template stands for itself."""
  if prompt == HAND_WRITTEN:
    return (classes.template,)
  # If the class list has no ensemble, "ensemble" is taken as a text.
  if prompt == ENSEMBLE and classes.ensemble:
    return classes.ensemble
  return _named_templates(prompt) or (prompt,)


def _named_templates(text: str) -> tuple[str, ...]:
  kind, _, name = text.partition(":")
  if kind in (ENSEMBLE, OUTPUTS) and name in TEMPLATES:
    return load_templates(name)
  return ()


def prompt_of_checkpoint(
  checkpoint: Restored, path: str | os.PathLike
) -> prompt_file.Prompt:
  """Returns the prompt that a checkpoint in the folder `path` holds.

  Raises:
    CheckpointError: the checkpoint holds no prompt, such as that of another method.
    PromptFileError: the prompt is invalid.
  """
  state = checkpoint.state
  config = checkpoint.meta.get("config", {})
  try:
    method = config.get("method", "pomp")
    if not METHODS[method].saves_prompt:
      raise CheckpointError(
        f"{path}: is of method {method!r}; a prompt (pomp, kdpl) is needed"
      )
    params = result_of(state["params"], state.get("opt_state"))
    prompt = prompt_file.Prompt(
      context=params["context"],
      clip_model=config["clip"]["model"],
      position=config["prompt"]["position"],
      config=config,
    )
  except (KeyError, TypeError) as error:
    raise CheckpointError(f"{path}: holds no prompt ({error!r})") from error
  prompt_file.validate(path, prompt)
  return prompt
