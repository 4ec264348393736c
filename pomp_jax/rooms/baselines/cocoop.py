"""CoCoOp (Zhou et al., 2022, "Conditional Prompt Learning"): a context that depends on
the image.

A small net h maps the unit feature f(x) of an image x to one vector, which is added to
every context vector v_m: v_m(x) = v_m + h(f(x)), h = Linear(E, E/16), ReLU,
Linear(E/16, D). Each image has its own class features, so the text tower does B times
the work, and batches must be small. Shapes: B images of a draw, R classes of a device,
M context vectors, D width, E embedding, H hidden width of the net, I and O widths of a
linear layer.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.config.fields import Clip, Prompt
from pomp_jax.encoder import Encoder
from pomp_jax.prompt.learner import (
  ContextLearner,
  Frozen,
  Learner,
  TextFeatures,
  class_sequences,
)
from pomp_jax.prompt.loss import normalize
from pomp_jax.rooms.baselines.learner_accuracy import Baseline

# Embedding width divided by hidden width.
_BOTTLENECK = 16


@dataclasses.dataclass(frozen=True)
class CoCoOpLearner(Learner):
  """Learns {"context": [M,D], "meta_net": {"hidden": .., "shift": ..}}."""

  plain: ContextLearner  # the context, and the token budget of one image
  embedding: int

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    context_key, hidden_key, shift_key = jax.random.split(key, 3)
    n_hidden = max(self.embedding // _BOTTLENECK, 1)
    return {
      **self.plain.init(context_key),
      "meta_net": {
        "hidden": init_dense(hidden_key, self.embedding, n_hidden),
        "shift": init_dense(shift_key, n_hidden, self.plain.module.width),
      },
    }

  def text_features(
    self,
    params: Any,
    frozen: Frozen,
    class_ids_R: jax.Array,
    image_features_BxE: jax.Array,
  ) -> TextFeatures:
    """Computes the class features [R,B,E], which differ between images; see `Learner`.

    Args:
      params: context and meta-net.
      frozen: text tower and tokens.
      class_ids_R: ids of the classes of this device.
      image_features_BxE: features of the images, which shift the context.
    """
    net = params["meta_net"]
    hidden_BxH = jax.nn.relu(dense(net["hidden"], normalize(image_features_BxE)))
    shift_BxD = dense(net["shift"], hidden_BxH)

    def of_one_image(
      shift_D: Float[Array, " D"],
    ) -> tuple[Float[Array, "R E"], Int32[Array, " R"]]:
      shifted = {"context": params["context"] + shift_D}
      sequences = class_sequences(self.plain.module, shifted, frozen, class_ids_R)
      return self.plain.text_tower(frozen.text, *sequences), sequences.lengths

    features_RxBxE, lengths_BxR = jax.vmap(of_one_image, out_axes=(1, 0))(shift_BxD)
    # The lengths of the sequences are equal for all images: take the first image's.
    return TextFeatures(features_RxBxE, self.plain.available(lengths_BxR[0]))


def init_dense(key: jax.Array, n_in: int, n_out: int) -> dict[str, jax.Array]:
  """Draws a dense layer as PyTorch does: uniformly within +- 1 / sqrt(n_in).

  Args:
    key: random key.
    n_in: width of the input.
    n_out: width of the output.

  Returns:
    {"kernel": [n_in, n_out], "bias": [n_out]}, float32.
  """
  kernel_key, bias_key = jax.random.split(key)
  bound = n_in**-0.5
  kernel = jax.random.uniform(kernel_key, (n_in, n_out), minval=-bound, maxval=bound)
  bias = jax.random.uniform(bias_key, (n_out,), minval=-bound, maxval=bound)
  return {"kernel": kernel, "bias": bias}


def dense(
  params: dict[str, jax.Array], x: Float[Array, "... I"]
) -> Float[Array, "... O"]:
  """Applies a linear layer: x @ kernel + bias."""
  product = jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
  return product + params["bias"]


class CoCoOp(Baseline):
  """CoCoOp as a method of a training."""

  per_image_text = True

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: Clip
  ) -> CoCoOpLearner:
    """Builds the learner of the context and of the meta-net, see `Pomp`.

    Args:
      plain: POMP's learner, whose context the meta-net shifts.
      encoder: the CLIP, from whose image features the meta-net computes the shift.
      prompt: fields of the prompt, not read.
      clip: fields of the CLIP, not read.
    """
    embedding_width = encoder.clip.config.projection_dim
    return CoCoOpLearner(plain, embedding_width)
