"""Calibration of a prompt's probabilities, the field `calibration` of a prompt file.

A calibration belongs to one CLIP and one list of classes. Its temperature has no
meaning for another CLIP or another list.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from pomp_jax.files.pieces import fingerprint

# Kinds of sets with a stated coverage. `pooled` has one threshold for all classes,
# `classwise` also has a threshold for each class with enough images, and `raps` are
# regularised adaptive prediction sets.
SETS = ("pooled", "classwise", "raps")
_DIGEST = 16  # hexadecimal digits
ACCEPTED = (
  "a JSON object of numbers, digests and thresholds, as the job calibrate writes it"
)


def classes_digest(names: Sequence[str]) -> str:
  """Digest of class names in the order of their labels."""
  return fingerprint([json.dumps(list(names), ensure_ascii=True)])[:_DIGEST]


@dataclasses.dataclass(frozen=True)
class Sets:
  """Thresholds for sets of names that contain the right name with a stated coverage.

  A class is in the set of a picture if the score of the class is at most the threshold.
  The score is 1 - p, where p is the probability of the class. For `raps` the score is
  the summed probability of all classes that are at least as likely, plus `penalty` for
  each rank after the first `free_ranks`.
  """

  kind: str  # one of SETS
  coverage: float  # share of pictures whose set holds the right name
  threshold: float
  # label -> threshold, for the classes of `classwise` that have their own threshold
  of_class: Mapping[int, float] = dataclasses.field(default_factory=dict)
  penalty: float = 0.0
  free_ranks: int = 0


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A temperature, a floor and sets that depend on it, and the origin of all three."""

  temperature: float  # logits are divided by it
  n_images: int  # validation images that the temperature was fitted to
  n_classes: int
  classes: str  # `classes_digest` of the names
  clip_model: str  # name of the CLIP, for messages
  clip: str  # `Encoder.clip_digest`
  # If the likeliest class has a probability below the floor, the answer is "none of the
  # classes". None if there were too few right answers for the stated error.
  floor: float | None = None
  error: float | None = None  # largest share of right answers that the floor rejects
  n_right: int = 0  # number of right answers from which the floor was computed
  sets: Sets | None = None

  def to_json(self) -> str:
    """Formats the calibration as the field `calibration` of a prompt file."""
    return json.dumps(dataclasses.asdict(self), allow_nan=False)


def calibration_from_json(text: str) -> Calibration:
  """Parses the field `calibration` of a prompt file.

  Raises:
    ValueError: the text is not what `Calibration.to_json` writes.
  """
  try:
    stored = json.loads(text)
    sets = stored.pop("sets")
    if sets is not None:
      sets["of_class"] = {int(key): value for key, value in sets["of_class"].items()}
      sets = Sets(**sets)
    calibration = Calibration(**stored, sets=sets)
    _check(calibration)
  except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
    raise ValueError(f"not a calibration: {error}") from error
  return calibration


def _check(calibration: Calibration) -> None:
  """Raises ValueError for a value of a wrong type or outside its range."""
  _check_range("temperature", calibration.temperature, 0, math.inf)
  for name in ("n_images", "n_classes", "n_right"):
    count = getattr(calibration, name)
    if type(count) is not int or count < 0:  # `isinstance` would accept True
      raise ValueError(f"{name} is {count!r}")
  for name in ("classes", "clip_model", "clip"):
    text = getattr(calibration, name)
    if not isinstance(text, str):
      raise ValueError(f"{name} is {text!r}")
  if calibration.floor is not None:
    _check_range("floor", calibration.floor, 0, 1)
    _check_range("error", calibration.error, 0, 1)
  if calibration.sets is not None:
    _check_sets(calibration.sets, calibration.n_classes)


def _check_sets(sets: Sets, n_classes: int) -> None:
  if sets.kind not in SETS:
    raise ValueError(f"sets are {sets.kind!r}")
  _check_range("coverage", sets.coverage, 0, 1)
  if type(sets.free_ranks) is not int:
    raise ValueError(f"free_ranks is {sets.free_ranks!r}")
  for value in (sets.threshold, sets.penalty, *sets.of_class.values()):
    _check_range("a threshold", value, -1, math.inf)
  if any(not 0 <= label < n_classes for label in sets.of_class):
    raise ValueError("a threshold is that of a class that does not exist")


def _check_range(name: str, value: Any, low: float | int, high: float | int) -> None:
  """Raises ValueError unless a value is a finite number in (low, high]."""
  is_number = type(value) in (int, float) and math.isfinite(value)
  if not is_number or not low < value <= high:
    raise ValueError(f"{name} is {value!r}")
