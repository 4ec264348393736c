"""Which temperature a prompt's probabilities have, and what is said of them."""

from collections.abc import Sequence
import logging
from typing import NamedTuple

from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import AnyPrompt
from pomp_jax.files.calibration import Calibration, classes_digest
from pomp_jax.files.prompt_file import Prompt

log = logging.getLogger(__name__)

# Use of a stored temperature: where it fits, always (else an error), or never.
AUTO, REQUIRED, NEVER = "auto", "required", "never"
USES = (AUTO, REQUIRED, NEVER)


class CalibrationError(InputError, ValueError):
  """A calibration that is missing or another CLIP's or class list's; one line."""


class Scale(NamedTuple):
  """Factor on cosines before a softmax, and where it comes from."""

  logit_scale: float  # the CLIP's, divided by the temperature if there is one
  calibration: Calibration | None  # None where none is used
  note: str  # what is said beside the probabilities


def scale_of(
  encoder: Encoder,
  prompt: AnyPrompt,
  names: Sequence[str],
  use: str = AUTO,
  where: str = "the prompt",
) -> Scale:
  """Chooses the factor on the cosines of a prompt with some names.

  Args:
    encoder: the CLIP in use.
    prompt: what the class vectors come from; a learned prompt may hold a temperature.
    names: the N classes in the order of their labels.
    use: one of `USES`. `auto` takes a temperature that fits, and warns of one of
      another class list.
    where: what messages call the prompt.

  Raises:
    CalibrationError: a temperature of another CLIP, or with `required` none that fits.
  """
  plain = encoder.clip.logit_scale
  stored = prompt.calibration if isinstance(prompt, Prompt) else None
  if use == NEVER or stored is None:
    if use == REQUIRED:
      raise CalibrationError(
        f"{where}: has no temperature; expected a prompt that the job calibrate wrote"
      )
    return Scale(plain, None, "not calibrated")
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
    return Scale(plain, None, "not calibrated: the temperature is of other classes")
  note = (
    f"calibrated: temperature {stored.temperature:.3g}"
    f" from {stored.n_images:,} validation images"
  )
  return Scale(plain / stored.temperature, stored, note)
