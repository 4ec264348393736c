"""Findings: the stage, kind and subject of a failure, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Most subjects that a joined sentence describes one by one. If there are more, the
# sentence describes only the first.
_DESCRIBED = 3


class Finding(NamedTuple):
  """A cause that the measurements suggest."""

  stage: str
  kind: str  # one of KINDS
  subject: str  # set, "all sets", "weights", a prompt or a run
  sentence: str  # what was found
  first: str  # what to check first
  # What other subjects may have in common, such as "sets can't be opened"; "": nothing.
  shared: str = ""


class Kind(NamedTuple):
  """What to do about a kind of finding."""

  first: str  # what to check first
  then: str  # how to run again after the fix


_SAME = (
  "the same command: digests of ids, labels, names and weights are keys of pieces/"
)
_OF_IMAGES = (
  "the same command: sizes and times of the image files are keys of pieces/; delete"
  " pieces/ only if another file has the size and the time of the one before"
)
_OF_TRAINING = (
  "train again in another folder, or delete that seed below trainings/; then the same"
  " command"
)
_OF_CODE = "delete pieces/ if code was changed, else nothing; then the same command"
_OF_PROMPT = "the same command with the other file: its content is a key of pieces/"

KINDS = {
  "split": Kind("the split file: whether it is the published one, and whole", _SAME),
  "labels": Kind("the labels: which class each number stands for", _SAME),
  "names": Kind("the class names as they are written into the sentences", _SAME),
  "templates": Kind(
    "the templates of the hand-written prompts, and how they are averaged", _OF_CODE
  ),
  "images": Kind(
    "the files of the images: which archive they were taken from", _OF_IMAGES
  ),
  "leak": Kind(
    "the lists of the splits: test images must not be training images", _SAME
  ),
  "preprocessing": Kind(
    "resizing, cropping, and the mean and standard deviation of pixels", _OF_CODE
  ),
  "weights": Kind(
    "the weights: which CLIP they are of, and whether the file is whole", _SAME
  ),
  "logit scale": Kind("the logit scale in the weights: OpenAI's is 100", _SAME),
  "precision": Kind(
    "config.clip.dtype: the targets were computed in float32",
    "the same command with the other type, which is a key of pieces/",
  ),
  "regions": Kind(
    "the regions: the network and data set that they were made with", _SAME
  ),
  "prompt": Kind(
    "the prompt file: its CLIP, its number of vectors, the name's position", _OF_PROMPT
  ),
  "optimizer": Kind(
    "the fields optim.*, batch_size and steps of the training", _OF_TRAINING
  ),
  "sampling": Kind("k and the sampler of the training", _OF_TRAINING),
  "correction": Kind("the correction of the training's loss", _OF_TRAINING),
  "training data": Kind("classes and images of the training", _OF_TRAINING),
  "seeds": Kind(
    "the seeds of the trainings: each must have its own",
    "the same command with folders of other seeds in reproduce.runs",
  ),
  "training": Kind("the course of the training: its loss and its data", _OF_TRAINING),
}


def finding(
  stage: str, kind: str, subject: str, sentence: str, shared: str = ""
) -> Finding:
  """Makes a finding, with what to check first for its kind.

  Args:
    stage: one of `rows.STAGES`.
    kind: one of `KINDS`.
    subject: what failed.
    sentence: what was found.
    shared: what other subjects may have in common with it, for `joined`.
  """
  return Finding(stage, kind, subject, sentence, KINDS[kind].first, shared)


def joined(findings: Sequence[Finding]) -> list[Finding]:
  """Joins findings to one per cause, in the order in which the causes first appear.

  Findings of one stage, kind and subject have one cause. Findings of one stage and kind
  on several subjects have one cause if they have equal `shared` texts, or else equal
  sentences.

  Args:
    findings: findings of all stages.
  """
  by_subject: dict[tuple[str, str, str], list[Finding]] = {}
  for one in findings:
    by_subject.setdefault((one.stage, one.kind, one.subject), []).append(one)
  of_subjects = [_of_one_subject(group) for group in by_subject.values()]
  by_cause: dict[tuple[str, ...], list[Finding]] = {}
  for one in of_subjects:
    cause = (one.stage, one.kind, one.shared or one.sentence)
    by_cause.setdefault(cause, []).append(one)
  return [_of_subjects(group) for group in by_cause.values()]


def _of_one_subject(group: Sequence[Finding]) -> Finding:
  sentences = dict.fromkeys(one.sentence for one in group)
  if len(sentences) == 1:
    return group[0]
  # Clear `shared`, because it describes only one of the sentences.
  return group[0]._replace(sentence="; ".join(sentences), shared="")


def _of_subjects(group: Sequence[Finding]) -> Finding:
  if len(group) == 1:
    return group[0]
  subject = ", ".join(one.subject for one in group)
  shared = group[0].shared
  if not shared:
    return group[0]._replace(subject=subject)
  described = [f"{one.subject}: {one.sentence}" for one in group]
  sentence = f"{len(group)} {shared}: {'; '.join(described)}"
  if len(group) > _DESCRIBED:
    sentence = f"{len(group)} {shared}, such as {described[0]}"
  return group[0]._replace(subject=subject, sentence=sentence)


def to_dict(one: Finding) -> dict[str, Any]:
  """A finding as JSON values, without `shared`, which only `joined` reads."""
  values = one._asdict()
  del values["shared"]
  return values


def then(found: Mapping[str, Any]) -> str:
  """How to run again after the fix of a stored finding.

  Args:
    found: a finding in the form of `to_dict`.
  """
  return KINDS[found["kind"]].then
