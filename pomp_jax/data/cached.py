"""Views of images whose features were computed before: looked up, not computed.

Shapes: B images, V views an image, E embedding.
"""

import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from pomp_jax.data.views import Augmentation
from pomp_jax.files.feature_blocks import FeatureBlocks


@dataclasses.dataclass(frozen=True)
class CachedViews:
  """What `data.loader` takes to fetch features by.

  Attributes:
    blocks: features of every view that the augmentation shows.
    augmentation: which views an epoch shows.
  """

  blocks: FeatureBlocks
  augmentation: Augmentation

  def __call__(
    self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
  ) -> tuple[Float[np.ndarray, "B V E"], Bool[np.ndarray, " B"]]:
    """Features of the views of some images in some epochs, and which images could be read.

    Raises:
      DamagedBlockError: a block is missing or damaged.
    """
    features = self.blocks.read(indices, self.augmentation.versions(epochs))
    return features, ~np.isnan(features[:, 0, 0])
