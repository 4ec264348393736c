"""Words that a training starts from, stays near, and must beat on the validation images.

Names are those of `evaluate.prompts`. N classes, E embedding.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import Clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import tokenize
from pomp_jax.config import METHODS, ConfigError, fields
from pomp_jax.config.declare import require
from pomp_jax.config.fields import BEST
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import (
  ENSEMBLE,
  HAND_WRITTEN,
  check_prompt,
  describe,
  features_under,
  read_prompts,
)
from pomp_jax.evaluate.predictions import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.paths import exists
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.train.batches import readable_features

_FIELD = "prompt.candidates"
# Validation top-1 of each candidate by name.
Scores = Mapping[str, float]


def check_fields(
  prompt: fields.Prompt, contrast: fields.Contrast, checkpoint: fields.Checkpoint
) -> None:
  """Checks the fields that depend on each other; opens nothing."""
  if prompt.init != BEST:
    require(prompt.m, "prompt.m", prompt.m, "1 or more where prompt.init is not 'best'")
    expected = "a prompt; 'best' where prompt.init='best'"
    fits = not contrast.consistency or contrast.anchors != BEST
    require(fits, "anchors", contrast.anchors, expected)
    return
  method, where = contrast.method, "where prompt.init='best'"
  require(METHODS[method].saves_prompt, "prompt.init", BEST, f"words or '' for {method}")
  require(prompt.position == "end", "prompt.position", prompt.position, f"'end' {where}")
  require(checkpoint.select == BEST, "checkpoint.select", checkpoint.select, f"'best' {where}")
  require(prompt.candidates, _FIELD, prompt.candidates, f"one or more {where}")


def check(
  contrast: fields.Contrast, prompt: fields.Prompt, data: fields.Data, clip: ClipConfig, model: str
) -> None:
  """Checks that anchors and candidates fit the CLIP and the classes; reads no weights."""
  names = {}
  if prompt.init == BEST:
    takes = "words or a file: these data have no validation images to choose the best by"
    require(inputs.has_validation(data), "prompt.init", BEST, takes)
    names = dict.fromkeys(prompt.candidates, _FIELD)
  if contrast.consistency and contrast.anchors != BEST:
    names[contrast.anchors] = "anchors"
  for name, field in names.items():
    found = read_prompts([name], field)
    require(len(found) == 1, field, name, "one prompt")
    if not isinstance(found[0].prompt, str):
      classes = inputs.open_source(data, "train").names
      check_prompt(found[0], [(own,) for own in classes], clip, model)


def features(name: str, encoder: Encoder, classes: ClassList) -> np.ndarray:
  """Unit features [N,E] of the classes under a name."""
  return features_under(encoder, classes, read_prompts([name], _FIELD)[0].prompt)


def start(
  prompt: fields.Prompt,
  data: fields.Data,
  evaluation: fields.Eval,
  encoder: Encoder,
  classes: ClassList,
  folder: RunFolder,
) -> tuple[fields.Prompt, Scores]:
  """The prompt with the words that training starts from, and the candidates' scores.

  A run that has started has these in its folder. ConfigError as `with_words`'.
  """
  stored = read_json(folder.candidates) if hosts.is_first() and exists(folder.candidates) else None
  found: Scores | None = hosts.from_first(stored, "the candidates")
  if found is None:
    source = inputs.open_source(data, "validation", n_images=evaluation.images)
    split = readable_features(data, encoder, source, folder)
    found = scores(prompt.candidates, encoder, classes, split)
  return with_words(prompt, found, encoder.clip), found


def scores(
  names: Sequence[str], encoder: Encoder, classes: ClassList, split: SplitFeatures
) -> dict[str, float]:
  """Top-1 of the candidates: names, texts of ensembles, and "WORDS {}." of each for a start."""
  found: dict[str, float] = {}
  for name in _single(names, classes):
    for one in (name, f"{words} {{}}.") if (words := _words_before(name)) else (name,):
      if one not in found:
        rows_NxE, mesh = features(one, encoder, classes), encoder.mesh
        found[one] = topk_accuracy(split.features, rows_NxE, split.labels, mesh=mesh)["top1"]
  return found


def _single(names: Sequence[str], classes: ClassList) -> list[str]:
  """The names; `hand_written` is its text, and the texts of an ensemble follow it."""
  found = []
  for name in names:
    several = name == ENSEMBLE or name.startswith(f"{ENSEMBLE}:")
    found += [name] if name != HAND_WRITTEN else []
    found += describe(name, classes) if several or name == HAND_WRITTEN else []
  return found


def _words_before(name: str) -> str:
  """Words before the {} of a text; "" for none, and for a name that is no text."""
  is_text = "{}" in name and read_prompts([name], _FIELD)[0].prompt == name
  return name.partition("{}")[0].strip() if is_text else ""


def best(found: Scores) -> str:
  """Name of the best candidate; of equal ones the first."""
  return max(found, key=lambda name: found[name])


def with_words(prompt: fields.Prompt, found: Scores, clip: Clip) -> fields.Prompt:
  """The prompt's fields with `init` and M of the best candidate "WORDS {}.", which is its step 0.

  ConfigError if there is none, or none of `prompt.m` tokens where that is not 0.
  """
  for name in sorted(found, key=lambda name: -found[name]):
    words = _words_before(name)
    m = len(_tokens(words, clip)) if name == f"{words} {{}}." else 0
    if m and prompt.m in (0, m):
      return dataclasses.replace(prompt, init=words, m=m)
  size = f"{prompt.m} tokens" if prompt.m else "words"
  raise ConfigError(_FIELD, prompt.candidates, f"a text with {size} before {{}}")


def _tokens(words: str, clip: Clip) -> np.ndarray:
  ids_1xL, lengths_1 = tokenize([words], clip.tokenizer, clip.config.text_config)
  return ids_1xL[0, : lengths_1[0] - 1]


class Outcome(NamedTuple):
  """What a training has become beside its candidates."""

  prompt: Prompt | None  # words as a context, where no checkpoint is better; None for a checkpoint
  facts: dict[str, Any]  # for results.json: candidates, best, saved, remark


def outcome(found: Scores, clip: Clip, step: int, top1: float | None) -> Outcome:
  """Compares the candidates with the best checkpoint; of equal ones the words are better."""
  words = best(found)
  contexts = {name: found[name] for name in found if _as_prompt(name, clip) is not None}
  trained, saved, prompt = top1 or 0.0, f"step {step}", None
  if contexts and contexts[best(contexts)] >= trained:
    saved = best(contexts)
    prompt = _as_prompt(saved, clip)
  remark = f"{words!r} {100 * found[words]:.1f}%, step {step} {100 * trained:.1f}% on validation: "
  if found[words] < trained:
    remark += "training beat the words"
  else:
    remark += f"no training beat the words; prompt.npz is {saved!r}"
    if saved != words:
      remark += f", as {words!r} is no context: evaluate.prompts takes it"
  return Outcome(
    prompt, {"candidates": dict(found), "best": words, "saved": saved, "remark": remark}
  )


def _as_prompt(name: str, clip: Clip) -> Prompt | None:
  """The shared context that is a candidate: of "WORDS {}.", or of a prompt file; None for none."""
  words = _words_before(name)
  if words and name == f"{words} {{}}.":
    context_MxD = np.asarray(token_embeddings(clip.params, _tokens(words, clip)))
    return Prompt(context_MxD, clip.name, "end")
  found = read_prompts([name], _FIELD)[0].prompt
  return found if isinstance(found, Prompt) and found.context.ndim == 2 else None
