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
from pomp_jax.config.rows import require
from pomp_jax.data.class_lists import (
  TEMPLATES,
  ClassList,
  load_templates,
  normalized_names,
)
from pomp_jax.encoder import Encoder, unit_rows
from pomp_jax.evaluate.other_clip import warn_of_other_clip
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
from pomp_jax.files.terminal import steps_of
from pomp_jax.hooks import CLASS_FEATURES, FINISHED_RUN, OTHER_PROMPTS
from pomp_jax.prompt.optimizer import result_of
from pomp_jax.registry import METHODS

# Prompts by name: the first template of the class list, and the mean over an ensemble,
# of unit features or of the text tower's outputs.
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
  """Class vectors of a room's own kind, by the name of `hooks.OTHER_PROMPTS`.

  `of_one_list` is whether it does not fit any names, `has_rows` whether it has one row
  a class, `upright` as that of a learned prompt.
  """

  of_one_list = has_rows = False
  upright: bool | None = None
  # Unit features [N,E] under it; the other three as the functions of these names below,
  # and checks that accept everything unless a class has its own.
  features: Callable[[Encoder, ClassList], np.ndarray]
  check: Callable[[str, Sequence[Sequence[str]], ClipConfig, str], None] = lambda *_: (
    None
  )
  check_lengths: Callable[[ClassList, Tokenizer, CLIPTextConfig, str], None] = (
    lambda *_: None
  )
  describe: Callable[[ClassList], list[Any]]
  needs_pixels = False  # whether stored features of images are of no use

  def classifier(self, encoder: Encoder, classes: ClassList) -> np.ndarray | Scorer:
    """Unit features [N,E], or what scores images where these do not tell all."""
    return self.features(encoder, classes)


_warn_once = functools.cache(logging.getLogger(__name__).warning)

AnyPrompt = prompt_file.Prompt | prompt_file.ClassFeatures | OtherPrompt | str


class NamedPrompt(NamedTuple):
  """A prompt with its label."""

  # name as written by the user; "x" for the folder runs/x, "x@80" for a checkpoint
  label: str
  prompt: AnyPrompt  # learned, of a room, or the name of hand-written texts
  step: int | None = None  # of a checkpoint


def read_prompts(
  names: Sequence[str], field: str, chosen: bool = False
) -> list[NamedPrompt]:
  """Loads the prompts that a config field names; ConfigError if one is unknown or
  repeated.

  A mixture needs weights unless the caller has them `chosen`.
  """
  found: list[NamedPrompt] = []
  for item in names:
    if OTHER_PROMPTS and (other := OTHER_PROMPTS.open()(item, field, chosen)):
      found.append(NamedPrompt(item, other))
    elif (
      item.count("{}") == 1
      or item in (HAND_WRITTEN, ENSEMBLE)
      or _named_templates(item)
    ):
      found.append(NamedPrompt(item, item))
    elif os.path.basename(item.rstrip("/")) == "checkpoints" and is_dir(item):
      run, n_before = os.path.dirname(item.rstrip("/")) or ".", len(found)
      for one in read_checkpoints(item):  # one at a time in memory
        prompt = _of_checkpoint(one, join(item, str(one.step)))
        found.append(NamedPrompt(f"{run}@{one.step}", prompt, one.step))
      require(
        len(found) > n_before, field, item, "a run's folder of complete checkpoints"
      )
    elif prompt_file.is_prompt_file(item):
      is_features = item.endswith(".npy")
      expected = "no .npy file of class features without the room interchange"
      require(CLASS_FEATURES or not is_features, field, item, expected)
      read = CLASS_FEATURES.open() if is_features else prompt_file.load_prompt
      found.append(NamedPrompt(item, read(item)))
    elif is_dir(item) and (finished := _finished_run(item, field)):
      found.append(NamedPrompt(item, finished))
    else:
      raise ConfigError(field, item, _TAKES)
  # Call runs by the names of their folders, where these differ.
  short = [_folder_name(named.label) for named in found]
  if len(set(short)) == len(found):
    found = [
      named._replace(label=name) for named, name in zip(found, short, strict=True)
    ]
  if not found or len({named.label for named in found}) < len(found):
    raise ConfigError(field, names, _TAKES + "; none twice")
  return found


def read_prompt(name: str, field: str) -> NamedPrompt:
  """Loads the prompt of a field that takes one; ConfigError as `read_prompts`, or
  for several."""
  found = read_prompts([name], field)
  require(
    len(found) == 1, field, name, "one prompt, such as the prompt.npz of a run's folder"
  )
  return found[0]


def _folder_name(label: str) -> str:
  """Shortens the path of a run's folder to its last part; keeps the step of a
  checkpoint."""
  folder, at, step = label.rpartition("@")
  if at and step.isdigit():
    return f"{_folder_name(folder)}@{step}"
  return os.path.basename(os.path.abspath(label)) if is_dir(label) else label


def of_one_list(prompt: AnyPrompt) -> bool:
  """Whether a prompt belongs to one list of classes, so that it does not fit any
  names."""
  if isinstance(prompt, prompt_file.Prompt):
    return prompt.context.ndim == 3
  return not isinstance(prompt, str) and getattr(prompt, "of_one_list", True)


def turned_otherwise(prompts: Sequence[NamedPrompt], upright: bool) -> list[str]:
  """Labels of the prompts whose training turned its pictures otherwise.

  `upright` is whether pictures are turned as their EXIF orientation says.
  """
  labels = []
  for named in prompts:
    recorded = getattr(named.prompt, "upright", None)
    if recorded is not None and recorded != upright:
      labels.append(named.label)
  return labels


def warn_of_turns(prompts: Sequence[NamedPrompt], upright: bool, where: str) -> None:
  """Warns of prompts that were trained on pictures turned otherwise than these are.

  `upright` is whether these are turned as their EXIF orientation says, `where` names
  what says so.
  """
  others = turned_otherwise(prompts, upright)
  if others:
    _warn_once(
      "%s: pictures are %s as their EXIF says; the training of %s %s",
      where,
      "turned" if upright else "not turned",
      ", ".join(map(repr, others)),
      "did not turn its own" if upright else "turned its own",
    )


def features_under(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt
) -> np.ndarray:
  """Computes unit features [N,E] of a class list under the prompt of a `NamedPrompt`.

  Features under several texts are averaged and normalised (Radford et al., 2021,
  section 3.1.4): unit features under `ensemble`, the text tower's outputs under
  `outputs`, as PromptSRC's anchors.
  """
  if isinstance(prompt, OtherPrompt):
    return prompt.features(encoder, classes)
  if isinstance(prompt, prompt_file.Prompt):
    return _learned(encoder, classes, prompt)
  if isinstance(prompt, prompt_file.ClassFeatures):
    prompt.check_fits(
      len(classes), encoder.clip.config.projection_dim, "class features"
    )
    return prompt.features
  texts = steps_of(texts_of(prompt, classes), "class features of texts", "texts")
  unit = not prompt.startswith(f"{OUTPUTS}:")
  of_texts = (encoder.class_features(classes.names, text, unit=unit) for text in texts)
  return unit_rows(functools.reduce(np.add, of_texts))


def classifier_under(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt
) -> np.ndarray | Scorer:
  """What `predictions.tally` takes: features as `features_under`, or what scores
  images."""
  if isinstance(prompt, OtherPrompt):
    return prompt.classifier(encoder, classes)
  return features_under(encoder, classes, prompt)


def class_features(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt, *, unit: bool = True
) -> np.ndarray:
  """Computes features [N,E] as `features_under`, but a text's are the tower's own.

  Those of a text or a learned prompt alone may have other than unit rows.
  """
  if isinstance(prompt, prompt_file.Prompt):
    return _learned(encoder, classes, prompt, unit=unit)
  if isinstance(prompt, str) and prompt.count("{}") == 1:
    return encoder.class_features(classes.names, prompt, unit=unit)
  return features_under(encoder, classes, prompt)


def _learned(
  encoder: Encoder, classes: ClassList, prompt: prompt_file.Prompt, unit: bool = True
) -> np.ndarray:
  """Features under a learned prompt; warns of one that is another CLIP's."""
  features_NxE = encoder.class_features(classes.names, prompt, unit=unit)
  warn_of_other_clip(encoder, classes.names, prompt, features_NxE)
  return features_NxE


def check_prompt(
  named: NamedPrompt,
  synonyms: Sequence[Sequence[str]],
  clip_config: ClipConfig,
  clip_model: str,
) -> None:
  """Raises PromptFileError if a prompt does not fit a CLIP or the classes; needs no
  weights.

  `synonyms` are the names of each class. A file of class features has one row a class.
  """
  label, prompt, _ = named
  if isinstance(prompt, prompt_file.Prompt):
    n_names = sum(map(len, synonyms))
    prompt_file.check_fits(
      prompt, clip_config.text_config.hidden_size, clip_model, n_names, label
    )
  elif isinstance(prompt, prompt_file.ClassFeatures):
    prompt.check_fits(len(synonyms), clip_config.projection_dim, label)
  elif isinstance(prompt, OtherPrompt):
    prompt.check(label, synonyms, clip_config, clip_model)


def check_lengths(
  prompt: AnyPrompt,
  classes: ClassList,
  tokenizer: Tokenizer,
  config: CLIPTextConfig,
  where: str,
) -> None:
  """Raises TokenizeError if a text of the classes under a prompt is too long for the
  tower."""
  if isinstance(prompt, prompt_file.ClassFeatures):
    return
  if isinstance(prompt, OtherPrompt):
    return prompt.check_lengths(classes, tokenizer, config, where)
  budget = config.max_position_embeddings - 1
  # Templates, and the positions that their texts have.
  templates: list[tuple[str, int]] = []
  if isinstance(prompt, prompt_file.Prompt):
    templates.append(("{}.", budget - prompt.context.shape[-2]))
    if prompt.sentences is not None:
      templates += [(text, budget) for text in prompt.sentences.templates]
  else:
    templates += [(text, budget) for text in texts_of(prompt, classes)]
  names = normalized_names(classes.names)
  try:
    for template, positions in templates:
      texts = [template.replace("{}", name) for name in names]
      check_token_counts(texts, tokenizer, config, positions)
  except TokenizeError as error:
    raise TokenizeError(f"{where}: {error}") from error


def describe(prompt: AnyPrompt, classes: ClassList) -> list[Any]:
  """Returns the cache key parts of the features under a prompt, for
  `pieces.fingerprint`."""
  if isinstance(prompt, prompt_file.Prompt):
    sentences = [] if prompt.sentences is None else [prompt.sentences.to_json()]
    return [prompt.position, prompt.context, *sentences]
  if isinstance(prompt, prompt_file.ClassFeatures):
    return [prompt.features]
  if isinstance(prompt, OtherPrompt):
    return prompt.describe(classes)
  mean = [OUTPUTS] if prompt.startswith(f"{OUTPUTS}:") else []
  return [*mean, *texts_of(prompt, classes)]


def _of_checkpoint(checkpoint: Restored, path: str | os.PathLike) -> AnyPrompt:
  """The prompt of a checkpoint, or what another method has learned."""
  method = checkpoint.meta.get("config", {}).get("method", "pomp")
  if FINISHED_RUN and method in METHODS and not METHODS[method].saves_prompt:
    return FINISHED_RUN.open()(checkpoint, path)
  return prompt_of_checkpoint(checkpoint, path)


def _finished_run(folder: str, field: str) -> AnyPrompt | None:
  """What a finished run without a prompt file has learned; None for another folder."""
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
  """Texts with {} that a hand-written name, or a text itself, stands for."""
  named = {HAND_WRITTEN: (classes.template,), ENSEMBLE: classes.ensemble}
  return named.get(prompt) or _named_templates(prompt) or (prompt,)


def _named_templates(text: str) -> tuple[str, ...]:
  kind, _, name = text.partition(":")
  return (
    load_templates(name) if kind in (ENSEMBLE, OUTPUTS) and name in TEMPLATES else ()
  )


def prompt_of_checkpoint(
  checkpoint: Restored, path: str | os.PathLike
) -> prompt_file.Prompt:
  """Returns the prompt that a checkpoint in the folder `path` holds.

  CheckpointError if it holds none, such as of another method; PromptFileError for an
  invalid one.
  """
  state, config = checkpoint.state, checkpoint.meta.get("config", {})
  try:
    if not METHODS[method := config.get("method", "pomp")].saves_prompt:
      raise CheckpointError(
        f"{path}: is of method {method!r}; a prompt (pomp, kdpl) is needed"
      )
    params = result_of(state["params"], state.get("opt_state"))
    context, model = params["context"], config["clip"]["model"]
    prompt = prompt_file.Prompt(context, model, config["prompt"]["position"], config)
  except (KeyError, TypeError) as error:
    raise CheckpointError(f"{path}: holds no prompt ({error!r})") from error
  prompt_file.validate(path, prompt)
  return prompt
