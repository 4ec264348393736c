"""Words that a training starts from, stays near, and must beat on the validation
images.

Prompts are named as in `evaluate.prompts`. Shapes: N classes, E embedding, M context
vectors, L tokens, D width.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import Clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import TokenizeError, tokenize
from pomp_jax.config import ConfigError, fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import BEST
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder, unit_rows
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.named_prompts import (
  ENSEMBLE,
  HAND_WRITTEN,
  OUTPUTS,
  check_prompt,
  describe,
  read_prompts,
)
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.paths import exists
from pomp_jax.files.prompt_file import Prompt, Sentences
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regularisation.contest import Contest
from pomp_jax.rooms.regularisation.fields import AUTOMATIC, Consistency, Words
from pomp_jax.train.batches import readable_features
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.training import PromptRun

log = logging.getLogger(__name__)

_FIELD = "prompt.candidates"
# Weight of the words' class vectors in a mixture with the trained class vectors.
_SHARE_OF_WORDS = 0.5
# Width of an interval, as a share of 1, above which validation images decide next to
# nothing.
_WIDE = 0.1
# `consistency_squared=-1` stands for the second number if the CLIP's logit scale is
# below the first, and otherwise for the third.
_LOW_SCALE, _WEIGHT_AT_LOW_SCALE, _WEIGHT = 50.0, 8.0, 0.0
# Top-1 of each candidate by name, as the mean over the classes of validation images.
Scores = Mapping[str, float]


def with_automatic_weight(
  contrast: fields.Contrast, logit_scale: float
) -> fields.Contrast:
  """Replaces `consistency_squared=-1` by a weight that suits the CLIP, and logs it.

  docs/reproduce/better_than_words.md has the measurements behind the rule.

  Args:
    contrast: terms of the loss.
    logit_scale: the CLIP's factor on the cosine.

  Returns:
    `contrast` with the weight; unchanged if it states a weight.
  """
  consistency = contrast.of(Consistency)
  if consistency.consistency_squared != AUTOMATIC:
    return contrast

  if logit_scale < _LOW_SCALE:
    weight = _WEIGHT_AT_LOW_SCALE
    comparison = "below"
  else:
    weight = _WEIGHT
    comparison = "at least"
  log.info(
    "logit scale %.1f of the CLIP, %s %g: consistency_squared=%g",
    logit_scale,
    comparison,
    _LOW_SCALE,
    weight,
  )
  weighted = dataclasses.replace(consistency, consistency_squared=weight)
  return contrast.having(weighted)


def check(
  contrast: fields.Contrast,
  prompt: fields.Prompt,
  data: fields.Data,
  clip: ClipConfig,
  model: str,
) -> None:
  """Checks that anchors and candidates fit the CLIP and the classes; reads no weights.

  Args:
    contrast: anchors of the consistency terms.
    prompt: candidates of the initial words.
    data: classes and validation images of the training.
    clip: architecture of the CLIP.
    model: name of the CLIP.

  Raises:
    InputError: a prompt is unusable or misfits, or there are no validation images.
  """
  # Field of the config that names each prompt.
  field_of: dict[str, str] = {}
  if prompt.init == BEST:
    accepted = (
      "words or a file: these data have no validation images to choose the best by"
    )
    require(opening.has_validation(data), "prompt.init", BEST, accepted)
    for name in candidates(prompt):
      field_of[name] = _FIELD
  consistency = contrast.of(Consistency)
  if consistency.weights and consistency.anchors != BEST:
    field_of[consistency.anchors] = "anchors"

  for name, field in field_of.items():
    prompts = read_prompts([name], field)
    # A folder of checkpoints, for example, stands for several prompts.
    require(len(prompts) == 1, field, name, "one prompt")
    is_text = isinstance(prompts[0].prompt, str)
    if not is_text:
      class_names = opening.open_source(data, "train").names
      synonyms = [(class_name,) for class_name in class_names]
      check_prompt(prompts[0], synonyms, clip, model)


def candidates(prompt: fields.Prompt) -> tuple[str, ...]:
  """Names of the candidates; () unless the training starts from the best candidate."""
  return prompt.of(Words).candidates if prompt.init == BEST else ()


def anchors(
  contrast: fields.Contrast, scores: Scores | None, encoder: Encoder, classes: ClassList
) -> np.ndarray | None:
  """Computes the anchors: the consistency terms hold learned class features near them.

  Args:
    contrast: terms of the loss, and the name of the anchors.
    scores: scores of the candidates, the best of which may be the anchors; None for a
      training without candidates.
    encoder: the CLIP.
    classes: classes of the training.

  Returns:
    Unit features [N,E]; None if no term has a weight.
  """
  consistency = contrast.of(Consistency)
  if not consistency.weights:
    return None
  name = consistency.anchors
  if name == BEST and scores:
    name = best(scores)
  return features(name, encoder, classes)


def features(name: str, encoder: Encoder, classes: ClassList) -> np.ndarray:
  """Unit features [N,E] of the classes under a name.

  Args:
    name: name of a prompt.
    encoder: the CLIP.
    classes: the N classes.
  """
  return features_under(encoder, classes, read_prompts([name], _FIELD)[0].prompt)


def start(
  prompt: fields.Prompt,
  data: fields.Data,
  evaluation: fields.Eval,
  encoder: Encoder,
  classes: ClassList,
  folder: RunFolder,
) -> tuple[fields.Prompt, Scores]:
  """Returns the prompt's fields with the initial words, and the candidates' scores.

  A run that resumes reads the scores from its folder.

  Args:
    prompt: fields of the prompt, with the candidates.
    data: validation images.
    evaluation: number of validation images.
    encoder: the CLIP.
    classes: classes of the training.
    folder: folder of the run.

  Raises:
    ConfigError: no candidate can be the initial words.
  """
  stored = None
  if hosts.is_first() and exists(folder.candidates):
    stored = read_json(folder.candidates)
  scores_by_name: Scores | None = hosts.from_first(stored, "the candidates")
  if scores_by_name is None:
    source = opening.open_source(data, "validation", n_images=evaluation.images)
    split = readable_features(data, encoder, source, folder)
    scores_by_name = scores(candidates(prompt), encoder, classes, split)
    name = best(scores_by_name)
    log.info(
      "validation: mean over %s with %s; the best words are %r: %.1f%%",
      counted(len(np.unique(split.labels)), "class"),
      counted(len(split.labels), "image"),
      name,
      100 * scores_by_name[name],
    )
  return with_words(prompt, scores_by_name, encoder.clip), scores_by_name


def scores(
  names: Sequence[str], encoder: Encoder, classes: ClassList, split: SplitFeatures
) -> dict[str, float]:
  """Scores the candidates by their top-1 on validation images, mean over the classes.

  Candidates are the names, the texts of ensembles, and "WORDS {}." for each text that
  has words before the name: a training can start from this form only. A candidate whose
  sentences are too long for the CLIP is skipped with a warning.

  Args:
    names: names of prompts.
    encoder: the CLIP.
    classes: classes of the images.
    split: features and labels of validation images.

  Returns:
    The score of each candidate, within [0, 1], by its name.

  Raises:
    ConfigError: all candidates are skipped.
  """
  all_candidates: list[str] = []
  for name in _single(names, classes):
    all_candidates.append(name)
    words = _words_before(name)
    if words:
      all_candidates.append(f"{words} {{}}.")

  scores_by_name: dict[str, float] = {}
  # The keys of a dict are distinct and in order.
  for candidate in dict.fromkeys(all_candidates):
    try:
      features_NxE = features(candidate, encoder, classes)
    except TokenizeError as error:
      log.warning("%s: %r is skipped: %s", _FIELD, candidate, error)
      continue
    accuracy = topk_accuracy(
      split.features, features_NxE, split.labels, mesh=encoder.mesh
    )
    scores_by_name[candidate] = accuracy["macro_top1"]
  accepted = "a text that leaves the CLIP's text tower room for each name"
  require(scores_by_name, _FIELD, tuple(names), accepted)
  return scores_by_name


def _single(names: Sequence[str], classes: ClassList) -> list[str]:
  """Names of candidates: `hand_written` becomes its text, and each ensemble is followed
  by its texts."""
  single = []
  for name in names:
    if name == HAND_WRITTEN:
      single += describe(name, classes)
      continue
    single.append(name)
    if name == ENSEMBLE or name.startswith(f"{ENSEMBLE}:"):
      single += describe(name, classes)
  return single


def _words_before(name: str) -> str:
  """Words before the {} of a text; "" without words, and for a name that is no text."""
  # A text is read as itself.
  if "{}" not in name or read_prompts([name], _FIELD)[0].prompt != name:
    return ""
  return name.partition("{}")[0].strip()


def best(found: Scores) -> str:
  """Name of the best candidate; of equally good candidates the first."""
  return max(found, key=lambda name: found[name])


def with_words(prompt: fields.Prompt, found: Scores, clip: Clip) -> fields.Prompt:
  """Sets `init` and `m` of the prompt to the best candidate of the form "WORDS {}.".

  Step 0 of the training equals this candidate.

  Args:
    prompt: fields of the prompt; if `m` is not 0, only words of `m` tokens fit.
    found: scores of the candidates.
    clip: the CLIP, whose tokenizer counts the tokens.

  Raises:
    ConfigError: no candidate fits.
  """
  for name in sorted(found, key=lambda name: -found[name]):
    words = _words_before(name)
    if name != f"{words} {{}}.":
      continue
    m = len(_tokens(words, clip))
    if m and prompt.m in (0, m):
      return dataclasses.replace(prompt, init=words, m=m)
  size = f"{prompt.m} tokens" if prompt.m else "words"
  raise ConfigError(
    _FIELD, prompt.of(Words).candidates, f"a text with {size} before {{}}"
  )


def _tokens(words: str, clip: Clip) -> np.ndarray:
  """Token ids of words, without the end token."""
  ids_1xL, lengths_1 = tokenize([words], clip.tokenizer, clip.config.text_config)
  return ids_1xL[0, : lengths_1[0] - 1]


class Choice(NamedTuple):
  """Result of a training that started from words."""

  prompt: Prompt  # content of prompt.npz
  checkpoint: Checkpoint  # of the training, whatever `prompt` is
  rows: dict[str, Prompt]  # other prompts in the tables of the results, by row
  # row that the other rows are compared with: the words, if a file can hold them
  reference: str
  facts: dict[str, Any]  # for results.json


def choose(run: PromptRun, last: Checkpoint, earlier: Checkpoint | None) -> Choice:
  """Chooses among words, training, and their mixture; all processes call it together.

  A prompt is better than another if the paired 95% interval of the difference, in mean
  accuracy over the classes of the validation images, is above 0. The mixture, half the
  class vectors of words and training each, replaces the words only if the mixture is
  better. The trained prompt replaces the winner only if the trained prompt is better.

  Args:
    run: the finished training, with its candidates.
    last: last checkpoint of the training.
    earlier: checkpoint with the highest mean accuracy over the classes. It replaces the
      last checkpoint only if it is better.
  """
  assert run.candidates is not None
  source = opening.open_source(run.data, "validation", n_images=run.eval.images)
  split = readable_features(run.data, run.encoder, source, run.folder)
  classes = opening.class_list(run.data, run.eval.template, run.source.names)
  name = best(run.candidates)

  # `contest` takes words, training and mixture; `prompts` those that a file can hold.
  contest = Contest(split, run.encoder.mesh)
  checkpoint, trained_NxE = _enter_training(contest, run, last, earlier)
  prompts = {"trained": run.prompt_of(checkpoint.state)}
  words_NxE = features(name, run.encoder, classes)
  contest.enter("words", words_NxE)
  words = as_prompt(name, run.encoder.clip, classes)
  if words is not None:
    prompts["words"] = words
  templates = _templates(name, classes)
  if templates:
    sentences = Sentences(templates, _SHARE_OF_WORDS)
    prompts["mixture"] = dataclasses.replace(prompts["trained"], sentences=sentences)
    mixed_NxE = (1 - _SHARE_OF_WORDS) * trained_NxE + _SHARE_OF_WORDS * words_NxE
    contest.enter("mixture", unit_rows(mixed_NxE))

  chosen = "words"
  for kind in ("mixture", "trained"):
    if contest.is_better(kind, chosen):
      chosen = kind
  name_of_file = name
  if chosen not in prompts:
    # The words were chosen, but no prompt file can hold sentences of each class or random
    # words. Save the best candidate that a file can hold instead.
    prompts["words"], name_of_file = _held(run.candidates, run.encoder.clip, classes)

  step = f"step {checkpoint.step}"
  mixture = f"{1 - _SHARE_OF_WORDS:g}*{step} + {_SHARE_OF_WORDS:g}*{name}"
  name_of_kind = {"words": name_of_file, "trained": step, "mixture": mixture}
  saved = name_of_kind[chosen]
  labels = {"trained": f"trained prompt, {step}", "words": f"words: {name}"}
  if chosen != "trained":
    labels["prompt"] = f"{chosen}: {saved}"
  figures = {}
  for kind in ("words", "trained", "mixture"):
    # The words have figures even if no file can hold them.
    if kind == "words" or kind in prompts:
      figures[kind] = contest.figures(kind, "words")
  facts: dict[str, Any] = {
    "candidates": dict(run.candidates),
    "best": name,
    "validation": {
      "images": len(split.labels),
      "classes": len(np.unique(split.labels)),
    },
    "figures": figures,
    "step": checkpoint.step,
    "chosen": chosen,
    "saved": saved,
    "labels": labels,
  }
  facts["remark"] = _remark(facts)

  prompt = dataclasses.replace(prompts.pop(chosen), config=run.config)
  # The other prompts become rows of the tables. A mixture that was not chosen does not.
  prompts.pop("mixture", None)
  if name == run.eval.template:
    prompts.pop("words", None)  # the hand-written prompt has a row already
  if chosen == "words":
    reference = "prompt"
  elif "words" in prompts:
    reference = "words"
  else:
    reference = HAND_WRITTEN
  return Choice(prompt, checkpoint, prompts, reference, facts)


class _Trained(NamedTuple):
  """The checkpoint that takes part in the contest for the training."""

  checkpoint: Checkpoint
  features: np.ndarray  # unit class features [N,E] under its prompt


def _enter_training(
  contest: Contest, run: PromptRun, last: Checkpoint, earlier: Checkpoint | None
) -> _Trained:
  """Enters the training into the contest, under the name `trained`.

  The last checkpoint is entered, unless the earlier one is better than it by the whole
  interval.

  Args:
    contest: right answers by name.
    run: the finished training.
    last: last checkpoint of the training.
    earlier: the checkpoint with the best validation, if any.
  """
  last_NxE = run.class_features(run.result(last.state))
  contest.enter("trained", last_NxE)
  if earlier is None or earlier.step == last.step:
    return _Trained(last, last_NxE)

  earlier_NxE = run.class_features(run.result(earlier.state))
  contest.enter("earlier", earlier_NxE)
  if not contest.is_better("earlier", "trained"):
    return _Trained(last, last_NxE)
  contest.enter("trained", earlier_NxE)
  return _Trained(earlier, earlier_NxE)


def _held(candidates: Scores, clip: Clip, classes: ClassList) -> tuple[Prompt, str]:
  """The best candidate that a prompt file can hold, and its name.

  There is always one, because a training starts from a candidate "WORDS {}.".
  """
  held = {}
  for name, score in candidates.items():
    if as_prompt(name, clip, classes) is not None:
      held[name] = score
  name = best(held)
  prompt = as_prompt(name, clip, classes)
  assert prompt is not None
  return prompt, name


def _remark(facts: Mapping[str, Any]) -> str:
  """Says in a sentence how words and training did on the validation images.

  Args:
    facts: facts of a `Choice`, all but the remark.
  """
  validation = facts["validation"]
  images = counted(validation["images"], "image")
  classes = counted(validation["classes"], "class")
  figures = facts["figures"]
  words = figures["words"]
  trained = figures["trained"]
  low, high = trained["difference"]["interval"]
  if low > 0:
    verdict = "training beat the words"
  elif high < 0:
    verdict = "training is worse than the words"
  else:
    verdict = "level with the words"
  remark = (
    f"validation, {images} of {classes}, mean over classes:"
    f" words {facts['best']!r} {_share(words)}, step {facts['step']}"
    f" {_share(trained)}: {verdict} {_points(trained)}"
  )

  is_level = low <= 0 <= high
  if is_level and high - low > _WIDE:
    remark += "; so few images tell little: hold out more"

  saved = facts["saved"]
  if facts["chosen"] == "words":
    remark += f"; prompt.npz is {saved!r}"
    if saved != facts["best"]:
      remark += f", as no file holds {facts['best']!r}: evaluate.prompts takes it"
  elif facts["chosen"] == "mixture":
    mixture = figures["mixture"]
    remark += (
      f"; the mean of both {_share(mixture)} beat the words {_points(mixture)}:"
      f" prompt.npz is {saved!r}"
    )
  return remark


def _share(figures: Mapping[str, Any]) -> str:
  """Text of the mean accuracy over the classes and the number of right answers."""
  return f"{100 * figures['macro_top1']:.1f}% ({figures['right']:,} right)"


def _points(figures: Mapping[str, Any]) -> str:
  """Text of the difference from the words, with its interval."""
  difference = figures["difference"]
  low, high = difference["interval"]
  return (
    f"({100 * difference['macro_top1']:+.1f} points, 95% interval {100 * low:+.1f} to"
    f" {100 * high:+.1f})"
  )


def _templates(name: str, classes: ClassList) -> tuple[str, ...]:
  """Sentences of a name that stands for the mean of their unit features; () for any
  other name."""
  prompt = read_prompts([name], _FIELD)[0].prompt
  if not isinstance(prompt, str) or prompt.startswith(f"{OUTPUTS}:"):
    return ()
  return tuple(describe(prompt, classes))


def as_prompt(name: str, clip: Clip, classes: ClassList) -> Prompt | None:
  """Turns a candidate into a prompt that a file can hold.

  "WORDS {}." becomes a context of the embeddings of its words, which other programs can
  read too. Any other sentence, a mean of several sentences and the bare name become
  `Sentences` without a context.

  Args:
    name: name of the candidate.
    clip: the CLIP of the embeddings.
    classes: classes of the training, which decide the texts of an ensemble.

  Returns:
    The prompt; None for class features, and for contexts of each class.
  """
  words = _words_before(name)
  if words and name == f"{words} {{}}.":
    context_MxD = np.asarray(token_embeddings(clip.params, _tokens(words, clip)))
    return Prompt(context_MxD, clip.name, position="end")

  templates = _templates(name, classes)
  if templates:
    context_0xD = np.zeros((0, clip.text_width), np.float32)
    sentences = Sentences(templates)
    return Prompt(context_0xD, clip.name, position="end", sentences=sentences)

  prompt = read_prompts([name], _FIELD)[0].prompt
  if isinstance(prompt, Prompt) and prompt.context.ndim == 2:
    return prompt
  return None
