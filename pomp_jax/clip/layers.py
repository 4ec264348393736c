"""Layers of the image towers from timm and open_clip.

A tower's parameters are a mapping from a tensor's name to the tensor, as torch stores
it: [out, in] kernels. A layer raises KeyError for a missing tensor, and ValueError for
a tensor whose shape does not fit the input and the other tensors.

Shapes: B images of height H and width W (H1 and W1 after a convolution) with C
channels, T tokens, D and O widths, P side of a patch or a kernel, G side of a grid of
patches.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.clip import packed

Tensors = Mapping[str, Any]
gelu = functools.partial(jax.nn.gelu, approximate=False)


def tensor(params: Tensors, name: str, *shape: int) -> Any:
  """Returns a tensor, after a check of its shape.

  Args:
    params: tensors by name.
    name: name of the tensor.
    *shape: shape that the tensor must have.

  Raises:
    KeyError: no tensor has this name.
    ValueError: the tensor has another shape.
  """
  values = params[name]
  if values.shape != shape:
    raise ValueError(f"{name}: got shape {list(values.shape)}, expected {list(shape)}")
  return values


def dense(
  params: Tensors, name: str, rows: Float[Array, "... D"], bias: bool = True
) -> Float[Array, "... O"]:
  """Computes a dense layer, in the type of the rows.

  Args:
    params: tensors by name, with `NAME.weight` [O,D] and `NAME.bias` [O].
    name: name of the layer.
    rows: input.
    bias: whether the layer has a bias.
  """
  kernel_OxD = params[f"{name}.weight"]
  n_out = kernel_OxD.shape[0]
  tensor(params, f"{name}.weight", n_out, rows.shape[-1])
  out = rows @ kernel_OxD.T.astype(rows.dtype)
  if bias:
    out += tensor(params, f"{name}.bias", n_out).astype(rows.dtype)
  return out


def layer_norm(
  params: Tensors, name: str, rows: Float[Array, "... D"], epsilon: float
) -> Float[Array, "... D"]:
  """Computes a layer norm in float32; the result has the type of the rows.

  Args:
    params: tensors by name, with `NAME.weight` and `NAME.bias` [D].
    name: name of the layer.
    rows: input.
    epsilon: number added to the variance.
  """
  width = rows.shape[-1]
  scale_D = tensor(params, f"{name}.weight", width)
  bias_D = tensor(params, f"{name}.bias", width)
  exact = rows.astype(jnp.float32)
  return packed.layer_norm(epsilon, rows.dtype, exact, scale_D, bias_D)


def patches(
  params: Tensors, name: str, pixels_BxHxWxC: Float[Array, "B H W C"], bias: bool = True
) -> Float[Array, "B H1 W1 D"]:
  """Embeds the patches of images, by a convolution whose stride is the kernel's side.

  Args:
    params: tensors by name, with `NAME.weight` [D,C,P,P] and `NAME.bias` [D].
    name: name of the layer.
    pixels_BxHxWxC: images or features on a grid.
    bias: whether the layer has a bias.

  Returns:
    Embeddings [B,H/P,W/P,D].
  """
  shape = params[f"{name}.weight"].shape
  width = shape[0]
  side = shape[-1]
  channels = pixels_BxHxWxC.shape[-1]
  kernel = tensor(params, f"{name}.weight", width, channels, side, side)
  out = convolution(pixels_BxHxWxC, kernel, (side, side), "VALID")
  if bias:
    out = out + tensor(params, f"{name}.bias", width).astype(out.dtype)
  return out


def convolution(
  x_BxHxWxC: Array,
  kernel_OxIxPxP: Array,
  strides: tuple[int, int],
  padding: str,
  n_groups: int = 1,
) -> Float[Array, "B H1 W1 O"]:
  """Convolves with a kernel as torch stores it, in the type of the input.

  Args:
    x_BxHxWxC: images or features on a grid.
    kernel_OxIxPxP: kernel from the I = C / n_groups channels of a group to O channels.
    strides: steps of the kernel, downwards and to the right.
    padding: "VALID" or "SAME".
    n_groups: number of groups of channels; each group is convolved separately.
  """
  layouts = ("NHWC", "OIHW", "NHWC")  # of input, kernel and result
  return jax.lax.conv_general_dilated(
    x_BxHxWxC,
    kernel_OxIxPxP.astype(x_BxHxWxC.dtype),
    window_strides=strides,
    padding=padding,
    dimension_numbers=layouts,
    feature_group_count=n_groups,
  )


def count(params: Tensors, prefix: str) -> int:
  """Counts layers 0, 1, .. by names of tensors: the prefix, the number of the layer."""
  numbers = set()
  for name in params:
    if name.startswith(prefix):
      numbers.add(name.removeprefix(prefix).split(".")[0])
  n_layers = 0
  while str(n_layers) in numbers:
    n_layers += 1
  return n_layers
