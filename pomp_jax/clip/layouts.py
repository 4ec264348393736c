"""Layouts of torch's files: the tensor and the axes of each parameter of FlaxCLIP's tree.

Two layouts: HuggingFace's own (`model.safetensors`) and OpenAI's, which open_clip kept. torch
stores a dense layer's kernel as [out, in] and a convolution's as [out, in, height, width].
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from pomp_jax.clip.architecture import OPENAI_FACTS, ClipError, Shapes
from pomp_jax.files.weights import Weights

Path = tuple[str, ...]


class Source(NamedTuple):
  """The tensor of a parameter.

  Attributes:
    key: the tensor's name.
    part: index of a third of its first axis; None for all of it.
    as_is: whether the matrix is stored as [in, out] already.
  """

  key: str
  part: int | None = None
  as_is: bool = False


class Layout(NamedTuple):
  """A project's names of the weights.

  Attributes:
    source: function from a parameter's path in the tree to its source.
    other: endings of the names of tensors that are no weights.
  """

  source: Callable[[Path], Source]
  other: tuple[str, ...]


def _huggingface_source(path: Path) -> Source:
  *module, kind = path
  weight = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
  return Source(".".join([*module, weight.get(kind, kind)]))


_OUTER = {
  ("text_model", "embeddings", "token_embedding", "embedding"): Source("token_embedding.weight"),
  ("text_model", "embeddings", "position_embedding", "embedding"): Source("positional_embedding"),
  ("text_projection", "kernel"): Source("text_projection", as_is=True),
  ("logit_scale",): Source("logit_scale"),
  ("vision_model", "embeddings", "class_embedding"): Source("visual.class_embedding"),
  ("vision_model", "embeddings", "patch_embedding", "kernel"): Source("visual.conv1.weight"),
  ("vision_model", "embeddings", "position_embedding", "embedding"): Source(
    "visual.positional_embedding"
  ),
  ("visual_projection", "kernel"): Source("visual.proj", as_is=True),
}
_NORMS: dict[Path, str] = {
  ("text_model", "final_layer_norm"): "ln_final",
  ("vision_model", "pre_layrnorm"): "visual.ln_pre",
  ("vision_model", "post_layernorm"): "visual.ln_post",
}
_IN_LAYER = {
  "layer_norm1": "ln_1",
  "layer_norm2": "ln_2",
  "self_attn.out_proj": "attn.out_proj",
  "mlp.fc1": "mlp.c_fc",
  "mlp.fc2": "mlp.c_proj",
}
_STACKED = ("q_proj", "k_proj", "v_proj")
_RESNET = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _openai_source(path: Path) -> Source:
  *module, kind = path
  weight = "bias" if kind == "bias" else "weight"
  if path in _OUTER:
    return _OUTER[path]
  if tuple(module) in _NORMS:
    return Source(f"{_NORMS[tuple(module)]}.{weight}")
  if module[1] == "encoder":
    tower = "transformer" if module[0] == "text_model" else "visual.transformer"
    layer, within = f"{tower}.resblocks.{module[3]}", module[4:]
    if within[-1] in _STACKED:
      return Source(f"{layer}.attn.in_proj_{weight}", part=_STACKED.index(within[-1]))
    return Source(f"{layer}.{_IN_LAYER['.'.join(within)]}.{weight}")
  # The ResNet's modules have OpenAI's names in `clip.resnet` too.
  return Source(".".join(["visual", *module[1:], _RESNET.get(kind, kind)]))


HUGGINGFACE = Layout(_huggingface_source, ("position_ids",))
OPENAI = Layout(_openai_source, ("attn_mask", "num_batches_tracked", *OPENAI_FACTS))


def check_weights(found: Shapes, shapes: dict[str, Any], layout: Layout, where: str) -> None:
  """Checks names and shapes of a file's tensors against the parameters, without reading any.

  Args:
    found: shapes of the tensors, by name.
    shapes: shapes of the parameters, as a tree.
    layout: layout of the file.
    where: the file, for messages.

  Raises:
    ClipError: a tensor that is missing, of another shape, or of no parameter.
  """
  needed = {}
  for path, shape in flatten_dict(shapes).items():
    source = layout.source(path)
    needed[source.key] = _stored_shape(tuple(shape), source)
  missing = needed.keys() - found
  if missing:
    raise ClipError(f"{where}: {_some(missing)} missing, expected in such a CLIP")
  unknown = {name for name in found.keys() - needed if not name.endswith(layout.other)}
  if unknown:
    raise ClipError(f"{where}: {_some(unknown)} unexpected in such a CLIP")
  for key, shape in sorted(needed.items()):
    if found[key] != shape:
      raise ClipError(f"{where}: {key}: got shape {list(found[key])}, expected {list(shape)}")


def read_params(weights: Weights, shapes: dict[str, Any], layout: Layout) -> dict[str, Any]:
  """Reads the parameters as HuggingFace FlaxCLIP's tree, float32, on the host.

  Args:
    weights: a file that `check_weights` accepts.
    shapes: shapes of the parameters, as a tree.
    layout: layout of the file.

  Raises:
    WeightsError: an unreadable tensor.
  """
  return unflatten_dict(
    {path: _arranged(weights, layout.source(path)) for path in flatten_dict(shapes)}
  )


def _arranged(weights: Weights, source: Source) -> np.ndarray:
  stored = weights.read(source.key)
  if source.part is not None:
    stored = np.split(stored, 3)[source.part]
  if stored.ndim == 2 and not source.as_is and not _is_table(source.key):
    stored = stored.T
  elif stored.ndim == 4:
    stored = stored.transpose(2, 3, 1, 0)
  return np.asarray(stored, order="C")


def _stored_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
  """A parameter's shape in the file: the inverse of `_arranged`."""
  if len(shape) == 2 and not source.as_is and not _is_table(source.key):
    shape = shape[::-1]
  elif len(shape) == 4:
    shape = (shape[3], shape[2], shape[0], shape[1])
  return (3 * shape[0], *shape[1:]) if source.part is not None else shape


def _is_table(key: str) -> bool:
  """Whether the tensor is an embedding, and not a dense layer's kernel."""
  return key.removesuffix(".weight").endswith("embedding")


def _some(names: Iterable[str]) -> str:
  first, *others = sorted(names)
  return f"{first} and {len(others)} more are" if others else f"{first} is"
