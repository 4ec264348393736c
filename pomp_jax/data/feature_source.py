"""Images of which another program has computed the features: a source without pixels.

Shapes: n images, B images of one call, E embedding.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from pomp_jax.data.source import StoredImages


class FeatureSource(StoredImages):
  """Labelled images whose features are known, and whose pixels are not."""

  storage: Any  # `FeatureRows` of the room data_sets

  @property
  def checksums(self) -> np.ndarray:
    """Checksum of the features of each image."""
    return self.storage.checksums_n[self._rows]

  def features(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B E"]:
    """Features as the image tower gave them, not normalised; NaN for an unreadable image."""
    return self.storage.features(self._rows[indices])

  def views(
    self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
  ) -> tuple[Float[np.ndarray, "B 1 E"], Bool[np.ndarray, " B"]]:
    """Features as views for `Loader`, the same in all epochs, and which images were readable."""
    found_BxE = self.features(indices)
    return found_BxE[:, None], ~np.isnan(found_BxE[:, 0])
