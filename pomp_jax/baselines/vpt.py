"""VPT (Jia et al., 2022): learned tokens in the vision tower, fixed text features.

VPT-shallow adds tokens before the first layer, VPT-deep new ones before each of J layers. VPT
trains on pixels: it can't use features of a frozen image tower.

Shapes: B images of a draw, R classes of a device, J layers, V tokens in each, D width of the vision
tower, E embedding.
"""

import dataclasses
from typing import Any

import jax

from pomp_jax.clip import TextTower
from pomp_jax.clip.vision import PromptedImageTower, prompted_image_tower
from pomp_jax.config import Settings
from pomp_jax.encoder import Encoder
from pomp_jax.prompt.context import INIT_STDDEV, PromptContext
from pomp_jax.prompt.learner import Frozen, TextFeatures


@dataclasses.dataclass(frozen=True)
class VPTLearner:
  """{"visual": [J,V,D]}, from N(0, 0.02^2); text features are `Frozen.classes`.

  Attributes:
    image_tower: tower of `clip.prompted_image_tower`.
    width: width D of the vision tower.
    n_tokens: tokens V in each layer.
    depth: layers J; 1 is VPT-shallow, all layers VPT-deep.
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
    """See `Learner`; a look-up."""
    del params, image_features_BxE
    return TextFeatures(frozen.classes[class_ids_R])


def make_learner(
  config: Settings,
  encoder: Encoder,
  module: PromptContext,
  text_tower: TextTower,
  token_budget: int | None,
) -> VPTLearner:
  """Builds the learner of a run; see `train.methods.make_learner`."""
  del module, text_tower, token_budget
  tower = prompted_image_tower(encoder.clip, config.clip.dtype, config.clip.image_chunk)
  width, depth = encoder.clip.config.vision_config.hidden_size, config.prompt.depth
  return VPTLearner(tower, width, config.prompt.visual_tokens, depth)
