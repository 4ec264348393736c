"""Images that can't be read: they are skipped and counted, and too many are an error."""

from collections.abc import Iterable, Mapping
import dataclasses
import logging

from pomp_jax import hosts
from pomp_jax.data.source import Labelled
from pomp_jax.errors import RunError

log = logging.getLogger(__name__)


class CorruptDataError(RunError, RuntimeError):
  """More unreadable images than allowed; the message is one line that names one."""


def name_of(source: Labelled, index: int) -> str:
  """Name of an image for messages."""
  return source.where(index) if hasattr(source, "where") else f"image {index}"


@dataclasses.dataclass
class SkippedImages:
  """Unreadable images of a source that are skipped, each with a reason.

  At most a share `max_corrupt` of the images may be unreadable. Any share above 0
  allows at least one image.
  """

  source: Labelled
  max_corrupt: float
  # index of each image -> reason, which names the file
  reasons: dict[int, str] = dataclasses.field(default_factory=dict)

  def add(self, reasons: Mapping[int, str]) -> None:
    """Adds unreadable images; CorruptDataError if there are more than allowed, or if no
    readable image is left."""
    self.reasons |= reasons
    n_found = len(self.reasons)
    n_images = len(self.source)
    n_allowed = 0
    if self.max_corrupt:
      n_allowed = max(1, int(self.max_corrupt * n_images))
    if n_found > n_allowed or n_found == n_images > 0:
      counts = f"{n_found} of {n_images} images can't be read, {n_allowed} are allowed"
      raise CorruptDataError(f"{counts} by data.max_corrupt; {self._first()}")

  def note(self, indices: Iterable[int]) -> None:
    """Adds unreadable images without reasons; their names are stored as reasons."""
    self.add({index: name_of(self.source, index) for index in indices})

  def gather(self) -> None:
    """Adds the unreadable images of the other processes and warns once; all processes
    call it together."""
    for _, found in hosts.gather(sorted(self.reasons.items()), "unreadable images"):
      self.add(dict(found))
    if self.reasons:
      log.warning(
        "%d of %d images can't be read and are SKIPPED; %s",
        len(self.reasons),
        len(self.source),
        self._first(),
      )

  def _first(self) -> str:
    return f"the first: {self.reasons[min(self.reasons)]}"
