"""What a validation says of a prompt's probabilities, as a prompt file holds it.

It belongs to one CLIP and one list of classes: a temperature of others would be a
number without a meaning.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from pomp_jax.files.pieces import fingerprint

# Kinds of sets with a stated coverage: one threshold for all classes, one for each
# class with enough images, and regularised adaptive sets (RAPS).
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
  """Sets of names that contain the right one with a stated coverage.

  A class is in the set of a picture if its score is at most the threshold. The score is
  1 - p, with p the probability of the class. Of `raps` it is the probability of all
  classes at least as likely, and `penalty` for each rank below `free_ranks`.
  """

  kind: str  # one of SETS
  coverage: float  # share of pictures whose set holds the right name
  threshold: float
  # label -> threshold of a class that has one of its own, of `classwise`
  of_class: Mapping[int, float] = dataclasses.field(default_factory=dict)
  penalty: float = 0.0
  free_ranks: int = 0


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A temperature and what stands on it, with where they come from."""

  temperature: float  # logits are divided by it
  n_images: int  # validation images that the temperature was fitted to
  n_classes: int
  classes: str  # `classes_digest` of the names
  clip_model: str  # name of the CLIP, for messages
  clip: str  # `Encoder.clip_digest`
  # An answer below this probability is none of the classes; None where there were too
  # few images for the stated error.
  floor: float | None = None
  error: float | None = None  # share of right answers that the floor refuses at most
  n_right: int = 0  # right answers that the floor comes from
  sets: Sets | None = None

  def to_json(self) -> str:
    """The field `calibration` of a prompt file."""
    return json.dumps(dataclasses.asdict(self), allow_nan=False)


def calibration_from_json(text: str) -> Calibration:
  """Reads the field of a prompt file.

  Raises:
    ValueError: another content than `Calibration.to_json` writes.
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
  """Raises ValueError for a value of another type or range."""
  _check_range("temperature", calibration.temperature, 0, math.inf)
  for name in ("n_images", "n_classes", "n_right"):
    count = getattr(calibration, name)
    if type(count) is not int or count < 0:
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
  """Raises ValueError for what is no finite number above `low`, at most `high`."""
  is_number = type(value) in (int, float) and math.isfinite(value)
  if not is_number or not low < value <= high:
    raise ValueError(f"{name} is {value!r}")
