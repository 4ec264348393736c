"""MaskFormer with class embeddings: masks of an image, each with a vector in a CLIP's
space.

ZSSeg's network (Xu et al., 2022, arXiv:2112.14757). A query's class is the row of a
class matrix with the highest cosine to its vector; a learned vector of "no object" is
one more row. Any names can therefore be the classes. Shapes: B images of H x W pixels,
h x w at stride 4, Q queries, J layers, D width, E embedding, N classes, *X any axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from pomp_jax.clip.precision import precision_of
from pomp_jax.rooms.regions.mask_former.backbone import (
  STRIDE,
  DeepLabResNet,
  SmallBackbone,
)
from pomp_jax.rooms.regions.mask_former.decoders import (
  Mlp,
  PixelDecoder,
  TransformerDecoder,
)
from pomp_jax.rooms.regions.mask_former.sizes import MaskFormerConfig, ResNetSizes

Params = dict[str, Any]

LOGIT_SCALE = 100.0  # ZSSeg's factor on cosines
MASK_STRIDE = 4  # side of a mask's pixel, in pixels of the image
# Mean and deviation of ImageNet's channels, 0..255, RGB, as detectron2 has them.
_MEAN = (123.675, 116.280, 103.530)
_DEVIATION = (58.395, 57.120, 57.375)


class MaskFormerOutput(NamedTuple):
  """Outputs of the network in float32; its vectors are not normalised."""

  masks_JxBxQxhxw: Float[Array, "J B Q h w"]  # logits of each query's mask at stride 4
  embeddings_JxBxQxE: Float[Array, "J B Q E"]
  non_object_E: Float[Array, " E"]


class MaskFormer(nn.Module):
  """Maps normalised pixels to masks and embeddings; parameters stay float32 for any
  compute type."""

  config: MaskFormerConfig
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    pixels_BxHxWx3: Float[Array, "B H W 3"],
    all_layers: bool = False,
    train: bool = False,
  ) -> MaskFormerOutput:
    """Masks and embeddings of the network.

    Args:
      pixels_BxHxWx3: pixels of `normalized_pixels`.
      all_layers: whether to return all decoder layers, for auxiliary losses; False: the
        last layer alone, J = 1.
      train: whether to apply dropout, from the random stream "dropout".
    """
    config = self.config
    backbone: Any = SmallBackbone
    if isinstance(config.backbone, ResNetSizes):
      backbone = DeepLabResNet
    maps = backbone(config.backbone, self.dtype, name="backbone")(pixels_BxHxWx3)
    pixel_decoder = PixelDecoder(config, self.dtype, name="pixel_decoder")
    features_BxhxwxD = pixel_decoder(maps)
    decoder = TransformerDecoder(config, self.dtype, name="transformer_decoder")
    queries_JxBxQxD = decoder(maps[-1], train)
    if not all_layers:
      queries_JxBxQxD = queries_JxBxQxD[-1:]
    # A query's mask is its product with the features of each pixel.
    mask_widths = (config.width, config.width, config.mask_width)
    mask_mlp = Mlp(mask_widths, self.dtype, name="mask_embed")
    masks_JxBxQxhxw = jnp.einsum(
      "jbqd,bhwd->jbqhw",
      mask_mlp(queries_JxBxQxD),
      features_BxhxwxD,
      preferred_element_type=jnp.float32,
    )
    class_widths = (config.embedding_mlp, config.embedding)
    class_mlp = Mlp(class_widths, self.dtype, name="class_embed")
    embeddings_JxBxQxE = class_mlp(queries_JxBxQxD).astype(jnp.float32)
    spread = nn.initializers.normal(config.embedding**-0.5)
    non_object_1xE = self.param("non_object", spread, (1, config.embedding))
    return MaskFormerOutput(masks_JxBxQxhxw, embeddings_JxBxQxE, non_object_1xE[0])


def mask_predictor(config: MaskFormerConfig, dtype: Any = jnp.float32) -> Callable:
  """Builds the function that predicts masks and embeddings, for jit.

  As in detectron2, positions are relative to the padded sides. The results therefore
  equal the published ones if H and W are an image's own sides, rounded up to multiples
  of 32.

  Args:
    config: sizes of the network.
    dtype: type to compute in.

  Returns:
    `(params, images_BxHxWx3, sizes_Bx2) -> masks_BxQxhxw, embeddings_BxQxE` of the last
    decoder layer. An image is uint8, in the upper left corner of [H,W], and `sizes_Bx2`
    has its height and width. All other pixels are padding, up to the next multiples of
    32.
  """
  dtype, products = precision_of(dtype)
  model = MaskFormer(config, dtype)

  def predict(
    params: Params,
    images_BxHxWx3: UInt8[Array | np.ndarray, "B H W 3"],
    sizes_Bx2: Int[Array | np.ndarray, "B 2"] | None,
  ) -> tuple[Float[Array, "B Q h w"], Float[Array, "B Q E"]]:
    pixels = normalized_pixels(images_BxHxWx3, sizes_Bx2)
    output: Any = model.apply({"params": params}, pixels)
    return output.masks_JxBxQxhxw[-1], output.embeddings_JxBxQxE[-1]

  return jax.default_matmul_precision(products)(predict)


def class_logits(
  embeddings: Float[Array | np.ndarray, "*X E"],
  classes_NxE: Float[Array | np.ndarray, "N E"],
  non_object_E: Float[Array | np.ndarray, " E"] | None,
  scale: float = LOGIT_SCALE,
) -> Float[Array, "*X _"]:
  """Scaled cosines to each class and, in a last column, to "no object".

  Args:
    embeddings: rows of any norm.
    classes_NxE: class vectors of any norm.
    non_object_E: vector of "no object"; None: without the last column.
    scale: factor of the cosines.

  Returns:
    Logits [*X,N], or [*X,N+1] with the column of "no object".
  """
  vectors = classes_NxE
  if non_object_E is not None:
    vectors = jnp.concatenate([classes_NxE, non_object_E[None]])
  # Multiply in float32: the scale would enlarge the rounding of TF32 or bfloat16.
  with jax.default_matmul_precision("highest"):
    return scale * unit(embeddings) @ unit(vectors).T


def normalized_pixels(
  images_BxHxWx3: UInt8[Array | np.ndarray, "B H W 3"],
  sizes_Bx2: Int[Array | np.ndarray, "B 2"] | None = None,
) -> Float[Array, "B _ _ 3"]:
  """Normalises images by ImageNet's mean and deviation, as detectron2 does.

  Padding is 0, the mean colour.

  Args:
    images_BxHxWx3: images, each in the upper left corner of its [H,W].
    sizes_Bx2: height and width of each image; pixels outside of them become padding.
      None: every image fills its [H,W].

  Returns:
    The network's input, whose sides are padded to multiples of 32.
  """
  _, height, width, _ = images_BxHxWx3.shape
  colours = jnp.asarray(images_BxHxWx3, jnp.float32)
  pixels_BxHxWx3 = (colours - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
  if sizes_Bx2 is not None:
    sizes_Bx2 = jnp.asarray(sizes_Bx2)
    is_row_BxH = jnp.arange(height) < sizes_Bx2[:, :1]
    is_column_BxW = jnp.arange(width) < sizes_Bx2[:, 1:]
    is_inside_BxHxW = is_row_BxH[:, :, None] & is_column_BxW[:, None]
    pixels_BxHxWx3 = jnp.where(is_inside_BxHxW[..., None], pixels_BxHxWx3, 0)
  rows_below = -height % STRIDE
  columns_right = -width % STRIDE
  padding = ((0, 0), (0, rows_below), (0, columns_right), (0, 0))
  return jnp.pad(pixels_BxHxWx3, padding)


def parameter_shapes(config: MaskFormerConfig) -> Params:
  """The shape of each parameter, as a tree; computes no parameter."""
  pixels = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32)
  variables = jax.eval_shape(MaskFormer(config).init, jax.random.key(0), pixels)
  return jax.tree.map(jnp.shape, variables["params"])


def parameter_groups(params: Params) -> Params:
  """Names the group of each parameter; the optimizer treats each group differently.

  Args:
    params: tree of the network's parameters. Only its paths are read, so its leaves may
      be placeholders.

  Returns:
    A tree with the same paths and a name at each: `frozen` for a batch norm,
    `backbone`, or `heads`.
  """
  leaves = flatten_dict(params)
  # Only a batch norm has a variance among its parameters.
  batch_norms = {path[:-1] for path in leaves if path[-1] == "var"}
  groups = {}
  for path in leaves:
    if path[:-1] in batch_norms:
      groups[path] = "frozen"
    elif path[0] == "backbone":
      groups[path] = "backbone"
    else:
      groups[path] = "heads"
  return unflatten_dict(groups)


def unit(rows: Float[Array | np.ndarray, "*X E"]) -> Float[Array, "*X E"]:
  """Scales rows to norm 1; a row of zeros stays zeros."""
  norms = jnp.linalg.norm(rows.astype(jnp.float32), axis=-1, keepdims=True)
  return jnp.divide(rows, jnp.maximum(norms, 1e-12))
