"""Layers of the image towers of timm's and open_clip's kinds.

A tower's parameters are a mapping from a tensor's name to the tensor, as torch stores
it: [out, in] kernels. A layer raises ValueError for a tensor of another shape than its
input and the others need, KeyError for a missing one. Shapes: B images of height H and
width W, T tokens, D and O widths, P side of a patch, G of a grid.
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
  """The tensor of a name and a shape; ValueError for another shape."""
  found = params[name]
  if found.shape != shape:
    raise ValueError(f"{name}: got shape {list(found.shape)}, expected {list(shape)}")
  return found


def dense(
  params: Tensors, name: str, rows: Float[Array, "... D"], bias: bool = True
) -> Float[Array, "... O"]:
  """A dense layer."""
  kernel_OxD = params[f"{name}.weight"]
  tensor(params, f"{name}.weight", kernel_OxD.shape[0], rows.shape[-1])
  out = rows @ kernel_OxD.T.astype(rows.dtype)
  if bias:
    out += tensor(params, f"{name}.bias", kernel_OxD.shape[0]).astype(rows.dtype)
  return out


def layer_norm(
  params: Tensors, name: str, rows: Float[Array, "... D"], epsilon: float
) -> Float[Array, "... D"]:
  """Layer norm in float32, its result in the type of the rows."""
  scale, bias = (
    tensor(params, f"{name}.{kind}", rows.shape[-1]) for kind in ("weight", "bias")
  )
  return packed.layer_norm(epsilon, rows.dtype, rows.astype(jnp.float32), scale, bias)


def patches(
  params: Tensors, name: str, pixels_BxHxWxC: Float[Array, "B H W C"], bias: bool = True
) -> Float[Array, "B H1 W1 D"]:
  """Embeds the patches of images, by a convolution whose stride is its size:
  [B,H/P,W/P,D]."""
  shape = params[f"{name}.weight"].shape
  width, side = shape[0], shape[-1]
  kernel = tensor(params, f"{name}.weight", width, pixels_BxHxWxC.shape[-1], side, side)
  out = convolution(pixels_BxHxWxC, kernel, (side, side), "VALID")
  return out + tensor(params, f"{name}.bias", width).astype(out.dtype) if bias else out


def convolution(
  x_BxHxWxC: Array,
  kernel: Array,
  strides: tuple[int, int],
  padding: str,
  n_groups: int = 1,
) -> Array:
  """A convolution by a kernel as torch stores it, [O, C / groups, P, P]."""
  return jax.lax.conv_general_dilated(
    x_BxHxWxC,
    kernel.astype(x_BxHxWxC.dtype),
    strides,
    padding,
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
    feature_group_count=n_groups,
  )


def count(params: Tensors, prefix: str) -> int:
  """Number of layers whose tensors' names start with a prefix and a number, from 0
  on."""
  numbers = {
    name[len(prefix) :].split(".")[0] for name in params if name.startswith(prefix)
  }
  return next(i for i in range(len(numbers) + 1) if str(i) not in numbers)
