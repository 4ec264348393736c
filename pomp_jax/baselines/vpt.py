"""VPT (Jia et al., 2022): learned tokens among an image's own, the text side as it is.

Shallow: before the first layer alone. Deep: new ones before each of J layers. It learns from
pixels: features of a frozen image tower are of no use to it.
Shapes: B images of a draw, R classes that a device computes, J layers, V tokens in each, D width
of the vision tower, E embedding.
"""

import dataclasses
from typing import Any

import jax

from pomp_jax.clip.prompted_vision import PromptedImageTower
from pomp_jax.prompt.context import INIT_STDDEV
from pomp_jax.prompt.learner import Frozen, TextFeatures


@dataclasses.dataclass(frozen=True)
class VPTLearner:
  """{"visual": [J,V,D]}, from N(0, 0.02^2); text features are `Frozen.classes`.

  Attributes:
    image_tower: from `clip.prompted_image_tower`.
    width: D of the vision tower.
    n_tokens: V.
    depth: J; 1 is VPT-shallow, the tower's layers VPT-deep.
  """

  image_tower: PromptedImageTower
  width: int
  n_tokens: int
  depth: int

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    shape = (self.depth, self.n_tokens, self.width)
    return {"visual": INIT_STDDEV * jax.random.normal(key, shape)}

  def image_features(self, params: Any, frozen: Frozen, images_B: jax.Array) -> jax.Array:
    """See `ImageLearner`."""
    return self.image_tower(frozen.image, images_B, params["visual"])

  def text_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> TextFeatures:
    """See `Learner`; looked up."""
    del params, image_features_BxE
    return TextFeatures(frozen.classes[class_ids_R])
