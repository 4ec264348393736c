"""Images of an evaluation that can't be read: left out, and bounded by `data.max_corrupt`."""

from collections.abc import Mapping
import logging

from pomp_jax import hosts
from pomp_jax.data.source import Source
from pomp_jax.errors import RunError

log = logging.getLogger(__name__)


class CorruptDataError(RunError, RuntimeError):
  """More images than allowed can't be read; one line that names one of them."""


class LeftOut:
  """The images of a source that an evaluation leaves out.

  Attributes:
    reasons: index of the image -> why it can't be read; the reason names its file.
  """

  def __init__(self, source: Source, max_corrupt: float):
    """Nothing is left out yet.

    Args:
      source: all images; the same list in every process.
      max_corrupt: share of them that may be unreadable. One image always may, unless this is 0.
    """
    self.reasons: dict[int, str] = {}
    self._n_images = len(source)
    self._allowed = max(1, int(max_corrupt * len(source))) if max_corrupt else 0

  def add(self, reasons: Mapping[int, str]) -> None:
    """Adds images that could not be read.

    Raises:
      CorruptDataError: with them there are more than allowed, or no image is left.
    """
    self.reasons |= reasons
    n_found = len(self.reasons)
    if n_found > self._allowed or (n_found and n_found == self._n_images):
      raise CorruptDataError(
        f"{n_found} of {self._n_images} images can't be read, {self._allowed} are allowed by"
        f" data.max_corrupt; the first: {self.reasons[min(self.reasons)]}"
      )

  def agree(self) -> None:
    """Adds what the other processes found, and warns once; all processes call it together.

    Raises:
      CorruptDataError: as `add`, in all of them.
      LostHostError: a process did not answer.
    """
    for _, found in hosts.gather(sorted(self.reasons.items()), "unreadable images"):
      self.add(dict(found))
    if self.reasons:
      log.warning(
        "%d of %d images can't be read and are LEFT OUT; the first: %s",
        *(len(self.reasons), self._n_images, self.reasons[min(self.reasons)]),
      )
