"""CoCoOp (Zhou et al., 2022, "Conditional Prompt Learning"): a context that depends on the image.

A small net turns the unit image feature into one vector, which is added to every context vector:
v_m(x) = v_m + h(f(x)), h = Linear(E, E/16), ReLU, Linear(E/16, D). So each image has class features
of its own: B times the text tower's work, and batches have to be small.
Shapes: B images of a draw, R classes that a device computes, M context vectors, D width, E
embedding.
"""

import dataclasses
from typing import Any

import jax

from pomp_jax.baselines.dense import dense, init_dense
from pomp_jax.clip.text import TextTower
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen, TextFeatures, available_rows, class_sequences
from pomp_jax.prompt.loss import normalize

# The hidden layer is the embedding's width divided by this.
_BOTTLENECK = 16


@dataclasses.dataclass(frozen=True)
class CoCoOpLearner:
  """{"context": [M,D], "meta_net": {"hidden": .., "shift": ..}}.

  Attributes:
    module: the context that all classes share, and its layout.
    text_tower: from `clip.text_tower`, with the same budget.
    embedding: E.
    token_budget: of one image's rows; see `prompt.learner.ContextLearner`.
  """

  module: PromptContext
  text_tower: TextTower
  embedding: int
  token_budget: int | None = None

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    context_key, hidden_key, shift_key = jax.random.split(key, 3)
    n_hidden = max(self.embedding // _BOTTLENECK, 1)
    return {
      **self.module.init(context_key, method=lambda m: m.context)["params"],
      "meta_net": {
        "hidden": init_dense(hidden_key, self.embedding, n_hidden),
        "shift": init_dense(shift_key, n_hidden, self.module.width),
      },
    }

  def text_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> TextFeatures:
    """See `Learner`; [R,B,E], for each image its own."""
    net = params["meta_net"]
    hidden_BxH = jax.nn.relu(dense(net["hidden"], normalize(image_features_BxE)))
    shift_BxD = dense(net["shift"], hidden_BxH)

    def of_one_image(shift_D):
      own = {"context": params["context"] + shift_D}
      sequences = class_sequences(self.module, own, frozen, class_ids_R)
      return self.text_tower(frozen.text, *sequences), sequences.lengths

    features_RxBxE, lengths_BxR = jax.vmap(of_one_image, out_axes=(1, 0))(shift_BxD)
    return TextFeatures(features_RxBxE, available_rows(lengths_BxR[0], self.token_budget))
