"""Chooses the temperature of a prompt's probabilities, and the note beside them."""

from collections.abc import Sequence
import logging
from typing import NamedTuple

from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import AnyPrompt
from pomp_jax.files.calibration import Calibration, classes_digest
from pomp_jax.files.prompt_file import Prompt

log = logging.getLogger(__name__)

# Use of a stored temperature: if it fits, always (an error if none fits), or never.
AUTO, REQUIRED, NEVER = "auto", "required", "never"
USES = (AUTO, REQUIRED, NEVER)


class CalibrationError(InputError, ValueError):
  """A calibration is missing, or belongs to another CLIP or class list; the message is
  one line."""


class Scale(NamedTuple):
  """Factor on cosines before a softmax, and where it comes from."""

  logit_scale: float  # the CLIP's, divided by the temperature if there is one
  calibration: Calibration | None  # None if no temperature is used
  note: str  # note that is shown beside the probabilities


def scale_of(
  encoder: Encoder,
  prompt: AnyPrompt,
  names: Sequence[str],
  use: str = AUTO,
  where: str = "the prompt",
) -> Scale:
  """Chooses the factor on the cosines of images with classes under a prompt.

  Args:
    encoder: the CLIP in use.
    prompt: prompt of the class vectors; a learned prompt may hold a temperature.
    names: the N classes in the order of their labels.
    use: one of `USES`. `auto` uses the stored temperature if it fits, and warns if it
      belongs to another class list.
    where: name of the prompt in messages.

  Raises:
    CalibrationError: the temperature belongs to another CLIP, or `required` finds none
      that fits.
  """
  clips_scale = encoder.clip.logit_scale
  stored = prompt.calibration if isinstance(prompt, Prompt) else None
  if use == NEVER or stored is None:
    if use == REQUIRED:
      raise CalibrationError(
        f"{where}: has no temperature; expected a prompt that the job calibrate wrote"
      )
    return Scale(clips_scale, None, "not calibrated")
  if stored.clip != encoder.clip_digest:
    raise CalibrationError(
      f"{where}: its temperature is of the CLIP {stored.clip_model!r} ({stored.clip}),"
      f" but {encoder.clip.name!r} ({encoder.clip_digest}) is in use; expected that"
      " CLIP, or calibration=never"
    )
  if stored.classes != classes_digest(names):
    problem = (
      f"{where}: its temperature is of another list of {stored.n_classes:,} classes"
      f" ({stored.classes}) than these {len(names):,} ({classes_digest(names)})"
    )
    if use == REQUIRED:
      raise CalibrationError(f"{problem}; expected that list")
    log.warning("%s; the probabilities are not calibrated", problem)
    return Scale(
      clips_scale, None, "not calibrated: the temperature is of other classes"
    )
  note = (
    f"calibrated: temperature {stored.temperature:.3g}"
    f" from {stored.n_images:,} validation images"
  )
  return Scale(clips_scale / stored.temperature, stored, note)
