"""What a failure is called: its stage, kind and subject, and what to check first."""

from typing import NamedTuple


class Finding(NamedTuple):
  """A cause that the measurements suggest."""

  stage: str
  kind: str  # one of KINDS
  subject: str  # set, "all sets", "weights", a prompt or a run
  sentence: str  # what was found
  first: str  # what to check first


# Kind -> what to check first.
KINDS = {
  "split": "the split file: whether it is the published one, and whole",
  "labels": "the labels: which class each number stands for",
  "names": "the class names as they are written into the sentences",
  "templates": "the templates of the hand-written prompts, and how they are averaged",
  "images": "the files of the images: which archive they were taken from",
  "leak": "the lists of the splits: test images must not be training images",
  "preprocessing": "resizing, cropping, and the mean and standard deviation of pixels",
  "weights": "the weights: which CLIP they are of, and whether the file is whole",
  "logit scale": "the logit scale in the weights: OpenAI's is 100",
  "precision": "config.clip.dtype: the targets were computed in float32",
  "regions": "the regions: the network and data set that they were made with",
  "prompt": "the prompt file: its CLIP, its number of vectors, the name's position",
  "optimizer": "the fields optim.*, batch_size and steps of the training",
  "sampling": "k and the sampler of the training",
  "correction": "the correction of the training's loss",
  "training data": "classes and images of the training",
  "seeds": "the seeds of the trainings: each must have its own",
  "training": "the course of the training: its loss and its data",
  "unknown": "the stage's table, from its first row that failed",
}


def finding(stage: str, kind: str, subject: str, sentence: str) -> Finding:
  """A finding with what to check first for its kind.

  Args:
    stage: one of `rows.STAGES`.
    kind: one of `KINDS`.
    subject: what failed.
    sentence: what was found.
  """
  return Finding(stage, kind, subject, sentence, KINDS[kind])
