"""The task `certain` of `predict`: calibrated names of pictures, a node of a tree, or
none of the names.

The task needs a prompt that the job `calibrate` wrote for the names and CLIP in use.

Shapes: B images, N classes, S classes of a subset, k likeliest names, n nodes.
"""

from collections.abc import Iterable, Mapping, Sequence
import logging
from typing import Any, NamedTuple

import jax
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.config import fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Data, Predict
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.calibrated import REQUIRED, CalibrationError, Scale
from pomp_jax.evaluate.classifier import Classifier, open_prompt
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.predict import OpenTask, Rows, Task, square_pictures
from pomp_jax.files.calibration import Calibration
from pomp_jax.files.paths import Path
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.certainty import depth, heads, promises
from pomp_jax.rooms.certainty.fields import UNDER, Certain
from pomp_jax.rooms.certainty.trees import ClassTree, load_class_tree

log = logging.getLogger(__name__)

NONE = "none of these"


class Answer(NamedTuple):
  """The answer to one picture."""

  text: str  # a name, `NONE`, or a path of the tree
  names: list[tuple[str, float]]  # likeliest names and their probabilities, best first
  in_set: list[bool] | None  # whether each of `names` is in the set; None without sets
  best: float  # probability of the likeliest name


class CertainPictures(Task):
  """Answers a picture with its names, a node of a tree, or none of the names."""

  batch = 64
  columns = ("name", "probability", "in_set", "answer")

  def __init__(self, settings: Predict, data: Data, clip: fields.Clip):
    """Reads the names, the tree and the subset."""
    super().__init__(settings, data, clip)
    self._certain = settings.of(Certain)
    self._all_names = load_class_list(self.names).names
    self._tree: ClassTree | None = None
    if self._certain.tree:
      self._tree = load_class_tree(self._certain.tree, self._all_names, self.names)
    self._kept = subset_of(self._certain.subset, self._all_names, self._tree)

  def check(self, files: Mapping[str, Path]) -> None:
    super().check(files)
    prompt = open_prompt(self._settings.prompt, "predict.prompt")
    stored = prompt.calibration if isinstance(prompt, Prompt) else None
    if stored is None:
      raise CalibrationError(
        f"{self._settings.prompt}: has no temperature and no floor; expected a prompt"
        " that the job calibrate wrote, from validation images"
      )
    use = self._settings.calibration
    expected = "auto or required where predict.task=certain"
    require(use != "never", "predict.calibration", use, expected)

  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> OpenTask:
    """See `Task.open`."""
    settings = self._settings
    classifier = Classifier(encoder, settings.prompt, self.names, calibration=REQUIRED)
    assert classifier.class_features is not None
    head = Answers(
      classifier.class_features,
      self._all_names,
      scale=classifier.scale,
      settings=self._certain,
      tree=self._tree,
      kept=self._kept,
    )
    model_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(encoder.clip.params))
    facts = {
      "n_classes": len(self._all_names),
      "probabilities": head.note,
      "size": heads.size_line(head.rows, model_bytes),
      "answers": head.rule,
    }
    log.info("probabilities: %s", head.note)
    log.info("%s", facts["size"])
    pictures = square_pictures(files, encoder, self._upright, self.batch)

    def answers(block: Sequence[int]) -> Iterable[tuple[int, Answer]]:
      pixels = np.stack([pictures[row] for row in block])
      features_BxE = encoder.image_features(pixels)
      check_finite(features_BxE, "images")
      return zip(block, head.of(features_BxE, settings.top), strict=True)

    return OpenTask(pictures, facts, answers, self._rows)

  def _rows(self, row: int, answer: Answer) -> Rows:
    """A row for each of the likeliest names; the first alone has the answer."""
    rows = []
    for rank, (name, probability) in enumerate(answer.names):
      in_set = None if answer.in_set is None else answer.in_set[rank]
      text = answer.text if rank == 0 else ""
      values = (name, probability, in_set, text)
      rows.append(dict(zip(self.columns, values, strict=True)))
    return rows

  def text(self, row: Mapping[str, Any]) -> str:
    """See `Task.text`."""
    name = f"{row['name']} {100 * row['probability']:.1f}%"
    return f"{row['answer']} | {name}" if row["answer"] else name


class Answers:
  """Answers to images, from class vectors with a temperature."""

  def __init__(
    self,
    features_NxE: Float[np.ndarray, "N E"],
    names: Sequence[str],
    *,
    scale: Scale,
    settings: Certain,
    tree: ClassTree | None = None,
    kept: Int[np.ndarray, " S"] | None = None,
  ):
    """Rounds the rows, and writes the note on the probabilities.

    Args:
      features_NxE: unit features of all classes.
      names: names of all classes.
      scale: factor on cosines, and the calibration.
      settings: type of the rows, and least probability of a node.
      tree: tree above all classes; None for names alone.
      kept: labels of a subset, over which probabilities are renormalised; None for all.
    """
    self.rows = heads.rows_of(features_NxE, settings.rows)
    self._names, self._tree, self._kept = names, tree, kept
    self._scale, self._least = scale.logit_scale, settings.least
    self.note = scale.note
    self._calibration: Calibration | None = scale.calibration
    if kept is not None:
      self.note += (
        f"; renormalised over {len(kept):,} of {len(names):,} names,"
        " for which floor and sets promise nothing"
      )
      self._calibration = None
    if settings.rows != "float32":
      self.note += f"; {settings.rows} rows"

  def of(self, features_BxE: Float[np.ndarray, "B E"], top: int) -> list[Answer]:
    """Computes an answer to each image.

    Args:
      features_BxE: unit features of the images.
      top: largest number of names in an answer.
    """
    # Only trees and adaptive sets need the probabilities of all classes.
    if self._tree is None and not self._adaptive:
      return self._of_best(features_BxE, top)
    probability_BxN = self._probabilities(features_BxE)
    answers = []
    for probability_N in probability_BxN:
      order_k = np.argsort(-probability_N, kind="stable")[:top]
      # Drop classes outside of the subset, whose probability is 0.
      labels_k = order_k[probability_N[order_k] > 0]
      answer = self._answer(labels_k, probability_N[labels_k], probability_N)
      answers.append(answer)
    if self._tree is not None:
      answers = self._with_depth(answers, probability_BxN)
    return answers

  def _of_best(self, features_BxE: Float[np.ndarray, "B E"], top: int) -> list[Answer]:
    """Answers from the likeliest classes, without the probabilities of all classes."""
    rows = self.rows if self._kept is None else self.rows.part(self._kept)
    best = heads.top_k(features_BxE, rows, self._scale, top)
    labels_Bxk = best.labels if self._kept is None else self._kept[best.labels]
    answers = []
    for labels_k, probability_k in zip(labels_Bxk, best.probabilities, strict=True):
      answers.append(self._answer(labels_k, probability_k))
    return answers

  @property
  def rule(self) -> str:
    """A sentence that says what an answer is."""
    parts = []
    if self._calibration is not None and self._calibration.floor is not None:
      floor = f"{100 * self._calibration.floor:.2f}%"
      parts.append(f'"{NONE}" where the likeliest name has less than {floor}')
    if self._tree is None:
      parts.append("the likeliest name")
    else:
      least = f"{100 * self._least:g}%"
      parts.append(
        f"the deepest node of the tree that has {least} or more; ? stands for what"
        " is less sure"
      )
    return ", otherwise ".join(parts)

  @property
  def _adaptive(self) -> bool:
    """Whether a set depends on the probabilities of all classes."""
    sets = self._calibration.sets if self._calibration else None
    return sets is not None and sets.kind == "raps"

  def _probabilities(
    self, features_BxE: Float[np.ndarray, "B E"]
  ) -> Float[np.ndarray, "B N"]:
    """Probabilities of all classes, 0 outside of a subset."""
    if self._kept is None:
      return heads.probabilities(features_BxE, self.rows, self._scale)
    rows = self.rows.part(self._kept)
    probability_BxS = heads.probabilities(features_BxE, rows, self._scale)
    probability_BxN = np.zeros((len(features_BxE), len(self.rows)), np.float32)
    probability_BxN[:, self._kept] = probability_BxS
    return probability_BxN

  def _answer(
    self,
    labels_k: Int[np.ndarray, " k"],
    probability_k: Float[np.ndarray, " k"],
    probability_N: Float[np.ndarray, " N"] | None = None,
  ) -> Answer:
    names = [self._names[label] for label in labels_k]
    probabilities = [float(probability) for probability in probability_k]
    best = probabilities[0]
    text = names[0]
    calibration = self._calibration
    in_set = None
    if calibration is not None:
      if calibration.floor is not None and best < calibration.floor:
        text = NONE
      in_set = self._in_set(labels_k, probability_k, probability_N)
    pairs = list(zip(names, probabilities, strict=True))
    return Answer(text, pairs, in_set, best)

  def _in_set(
    self,
    labels_k: Int[np.ndarray, " k"],
    probability_k: Float[np.ndarray, " k"],
    probability_N: Float[np.ndarray, " N"] | None,
  ) -> list[bool] | None:
    """Whether each of the likeliest names is in the set."""
    assert self._calibration is not None
    sets = self._calibration.sets
    if sets is None:
      return None
    if sets.kind == "raps":
      assert probability_N is not None
      return np.isin(labels_k, promises.members(sets, probability_N)).tolist()
    least = [1 - sets.of_class.get(int(one), sets.threshold) for one in labels_k]
    return (probability_k >= np.array(least)).tolist()

  def _with_depth(
    self, answers: list[Answer], probability_BxN: Float[np.ndarray, "B N"]
  ) -> list[Answer]:
    """Replaces the text of each answer by a path of the tree, except for `NONE`."""
    assert self._tree is not None
    deep = depth.answers(self._tree, probability_BxN, self._least)
    with_paths = []
    for row, answer in enumerate(answers):
      if answer.text != NONE:
        (sums_n,) = np.asarray(self._tree.probabilities(probability_BxN[[row]]))
        path = depth.text_of(self._tree, int(deep.nodes[row]), sums_n)
        answer = answer._replace(text=path)
      with_paths.append(answer)
    return with_paths


def subset_of(
  subset: str, names: Sequence[str], tree: ClassTree | None
) -> Int[np.ndarray, " S"] | None:
  """Labels of the classes of a subset, ascending; None for all classes.

  Args:
    subset: class list or file, `under:NODE` of the tree, or nothing.
    names: names of all classes.
    tree: tree above all classes, or None.

  Raises:
    ConfigError: the subset is empty, or has a name that is not in `names`.
    TreeError: no node with classes, or several, have the name of `under:NODE`.
  """
  if not subset:
    return None
  if subset.startswith(UNDER):
    assert tree is not None
    return tree.below(subset.removeprefix(UNDER), "certain.subset")
  wanted = load_class_list(subset).names
  label_of = {name: label for label, name in enumerate(names)}
  missing = [name for name in wanted if name not in label_of]
  expected = f"some of the {len(names):,} names"
  require(wanted, "certain.subset", subset, f"{expected}, not an empty list")
  if missing:
    first = f"{len(missing)} of {len(wanted)} are none of them, such as {missing[0]!r}"
    require(False, "certain.subset", subset, f"{expected}; {first}")
  return np.unique([label_of[name] for name in wanted])
