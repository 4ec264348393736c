"""Files of a MaskFormer: reads ZSSeg's checkpoints, and writes safetensors with the
same tensor names.

A checkpoint of detectron2 is a torch archive of `{"model": {name: tensor}, ..}`.
ZSSeg's checkpoints hold the network, the prompt (see `files.prompt_file`) and the whole
CLIP. Files that are written here have the metadata `mask_former`, with the sizes that
shapes do not tell. For other files the published sizes are assumed.
"""

from collections.abc import Callable, Iterable, Mapping
import json
import os
from typing import Any, BinaryIO, NamedTuple
import zlib

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import safetensors.numpy

from pomp_jax.clip import openai_layout, weights
from pomp_jax.clip.architecture import Shapes
from pomp_jax.clip.load import Clip
from pomp_jax.rooms.regions.mask_former.model import Params, parameter_shapes
from pomp_jax.rooms.regions.mask_former.sizes import (
  MaskFormerConfig,
  ResNetSizes,
  SmallSizes,
)
from pomp_jax.rooms.regions.region_errors import RegionError, refuse

_PREDICTOR = "sem_seg_head.predictor"
# Modules of the network, and their names in ZSSeg's checkpoints. The first prefix that
# fits counts, so a module stands before its parent.
_PREFIXES = {
  "backbone": "backbone",
  "pixel_decoder": "sem_seg_head.pixel_decoder",
  "transformer_decoder.query_embed": f"{_PREDICTOR}.query_embed.weight",
  "transformer_decoder.input_proj": f"{_PREDICTOR}.input_proj",
  "transformer_decoder": f"{_PREDICTOR}.transformer.decoder",
  "mask_embed": f"{_PREDICTOR}.mask_embed.layers",
  "class_embed": f"{_PREDICTOR}.class_embed.layers",
  "non_object": "clip_adapter.non_object_embedding",
}
# torch's names of the kinds of parameters, where Flax has other names.
_KINDS = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
# Projections that torch stacks in one matrix, in its order.
_STACKED = ("q_proj", "k_proj", "v_proj")
_CLIP = "clip_adapter.clip_model."  # prefix of the CLIP's tensors
# Field of our files' metadata, and the facts in it that shapes do not tell, with the
# values of the published models.
_OURS = "mask_former"
_FACTS = {
  "n_heads": 8,
  "groups": 32,
  "backbone_groups": 0,
  "dilations": (1, 2, 4),
  "dropout": 0.1,
}
# Largest accepted difference between two CLIPs' values, relative to the largest value
# of a tensor. It allows for the rounding of float16.
_TOLERANCE = 1e-3


class MaskFormerFile(NamedTuple):
  """Content of a file."""

  config: MaskFormerConfig
  params: Params  # float32, on the host
  trained_classes: tuple[str, ...] = ()  # empty if the file does not name them


def _source(path: weights.Parameter) -> weights.Source:
  """Name and place of a parameter in ZSSeg's checkpoint."""
  *modules, kind = path
  # `NormConv` wraps its convolution in a module `conv`, which ZSSeg lacks.
  if modules and modules[-1] == "conv":
    del modules[-1]
  name = ".".join([*modules, _KINDS.get(kind, kind)])
  for prefix, published in _PREFIXES.items():
    if name == prefix:
      return weights.Source(published, as_is=True)
    if name.startswith(f"{prefix}."):
      return _stacked_or_whole(published + name.removeprefix(prefix))
  raise KeyError(f"{name}: no module of the network")


def _stacked_or_whole(name: str) -> weights.Source:
  """Source of a parameter whose name is ZSSeg's, but for stacked projections."""
  module, kind = name.rsplit(".", 1)
  attention, _, projection = module.rpartition(".")
  if projection not in _STACKED:
    return weights.Source(name)
  part = _STACKED.index(projection)
  return weights.Source(f"{attention}.in_proj_{kind}", part=part)


ZSSEG = weights.Layout(_source, (), "MaskFormer of ZSSeg")


def read_mask_former(path: str | os.PathLike) -> MaskFormerFile:
  """Reads a checkpoint of ZSSeg with the backbone R101c, or a file written here.

  No code in the file is run.

  Raises:
    RegionError, ClipError: the file is missing or damaged, or has another network.
  """
  with weights.open_weights(path) as file:
    facts = _read_facts(file)
    # Skip the prompt and the CLIP, which a checkpoint of ZSSeg holds too.
    shapes_in_file = {}
    for name, shape in file.shapes.items():
      is_of_network = name.startswith(("backbone.", "sem_seg_head."))
      if is_of_network or name == _PREFIXES["non_object"]:
        shapes_in_file[name] = shape
    config = _config_of(shapes_in_file, facts, file.path)
    try:
      shapes = parameter_shapes(config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
      refuse(
        path,
        "the network",
        f"of no such sizes ({error})",
        "sizes that divide each other",
      )
    weights.check_weights(shapes_in_file, shapes, ZSSEG, file.path)
    params = weights.read_params(file, shapes, ZSSEG)
  return MaskFormerFile(config, params, facts["trained_classes"])


def stored_tensors(
  params: dict[str, Any], layout: weights.Layout
) -> dict[str, np.ndarray]:
  """Tensors by name, from which `read_params` reads these parameters in this layout."""
  tensors: dict[str, np.ndarray] = {}
  parts_of: dict[str, dict[int, np.ndarray]] = {}
  for path, leaf in flatten_dict(params).items():
    source = layout.source(path)
    # `stored_axes` leads from the file to the parameter; its argsort leads back.
    axes = np.argsort(weights.stored_axes(np.ndim(leaf), source))
    stored = np.transpose(leaf, axes)
    if source.part is None:
      tensors[source.key] = np.asarray(stored, order="C")
    else:
      parts_of.setdefault(source.key, {})[source.part] = stored
  # A tensor with parts is a stack of three: query, key and value.
  for key, parts in parts_of.items():
    tensors[key] = np.concatenate([parts[0], parts[1], parts[2]])
  return tensors


def write_mask_former(
  file: BinaryIO, content: MaskFormerFile, context: np.ndarray | None = None
) -> None:
  """Writes a safetensors file; equal contents make equal bytes.

  ZSSeg's code, which keeps its own CLIP, loads the tensors of a network with R101c
  after `torch.save({"model": safetensors.torch.load_file(path)}, "masks.pth")`.

  Args:
    file: open file.
    content: network to write.
    context: M context vectors [M,D] of the prompt that the network was trained with.
      `load_prompt` reads them from the file.
  """
  tensors = stored_tensors(jax.device_get(content.params), ZSSEG)
  if context is not None:
    tensors["clip_adapter.prompt_learner.ctx"] = np.asarray(context, np.float32)
  # The library writes an array's memory without regard to strides, so make each array
  # contiguous.
  tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
  config = content.config
  # ResNetSizes has no `groups` and SmallSizes no `dilations`: write published values.
  facts = {
    "n_heads": config.n_heads,
    "groups": config.groups,
    "backbone_groups": getattr(config.backbone, "groups", _FACTS["backbone_groups"]),
    "dilations": getattr(config.backbone, "dilations", _FACTS["dilations"]),
    "dropout": config.dropout,
    "trained_classes": tuple(content.trained_classes),
  }
  checksum = _checksum(facts, tensors, tensors.__getitem__)
  # Write one item, since the library writes several in any order.
  metadata = {_OURS: json.dumps({**facts, "crc32": checksum})}
  file.write(safetensors.numpy.save(tensors, metadata))


def _checksum(
  facts: Mapping[str, Any], names: Iterable[str], read: Callable[[str], np.ndarray]
) -> int:
  """CRC-32 of facts and tensors with their names; safetensors has no checksum."""
  checksum = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
  for name in sorted(names):
    tensor = read(name)
    checksum = zlib.crc32(f"{name} {tensor.shape}".encode(), checksum)
    checksum = zlib.crc32(np.ascontiguousarray(tensor, "<f4").tobytes(), checksum)
  return checksum


def check_clip(path: str | os.PathLike, clip: Clip) -> None:
  """Compares the CLIP in a checkpoint with the configured CLIP.

  In our files, which hold no CLIP, only the width of the embeddings is compared.

  Raises:
    RegionError: the width differs, or a tensor by more than the rounding of float16.
  """
  with weights.open_weights(path) as file:
    null_name = _PREFIXES["non_object"]
    shape = file.shapes.get(null_name)
    expected = (1, clip.config.projection_dim)
    if shape != expected:
      refuse(path, null_name, f"of shape {shape}", f"{expected}, of {clip.name}")
    if not any(name.startswith(_CLIP) for name in file.shapes):
      return
    accepted = f"as in {clip.name}, config.clip.model"
    for key, values in sorted(
      stored_tensors(clip.params, openai_layout.LAYOUT).items()
    ):
      name = _CLIP + key
      shape = file.shapes.get(name)
      if shape != values.shape:
        refuse(path, name, f"of shape {shape}", accepted)
      difference = np.abs(file.read(name) - values).max(initial=0)
      largest = max(np.abs(values).max(initial=0), 1e-6)
      # `not <=` instead of `>`, so that NaN counts as a difference.
      if not difference <= _TOLERANCE * largest:
        refuse(path, name, f"other by up to {difference:.3g}", accepted)


def _read_facts(file: weights.Weights) -> dict[str, Any]:
  """Reads what the shapes of a network do not tell: `_FACTS` and the trained classes.

  For a published file, which has no metadata, these are the published values and no
  classes.

  Raises:
    RegionError: the metadata is unreadable, of another program, or damaged.
  """
  stored = file.text.get(_OURS)
  if stored is None:
    # Other metadata with JSON is another program's. Do not guess the sizes of its
    # network.
    if any(text.startswith("{") for text in file.text.values()):
      fields = ", ".join(file.text)
      refuse(file.path, "the metadata", f"of {fields}", f"{_OURS}, or none")
    return {**_FACTS, "trained_classes": ()}

  try:
    facts = json.loads(stored)
    checksum = facts.pop("crc32", None)
    # The checksum is optional.
    if checksum is not None and checksum != _checksum(facts, file.shapes, file.read):
      actual = f"{checksum}, not that of the rest"
      refuse(file.path, "crc32", actual, "an undamaged file")
    facts["dilations"] = tuple(facts["dilations"])
    facts["trained_classes"] = tuple(facts["trained_classes"])
    unknown = sorted(facts.keys() - _FACTS.keys() - {"trained_classes"})
    if unknown:
      raise ValueError(f"unknown {', '.join(unknown)}")
    if not all(isinstance(name, str) for name in facts["trained_classes"]):
      raise ValueError("a class without a name")
  except RegionError:
    raise
  # `json` and the lines above raise these errors for JSON of another form.
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    refuse(file.path, _OURS, f"unreadable ({error})", "the JSON that is written here")
  return {**_FACTS, **facts}


def _config_of(
  shapes: Shapes, facts: Mapping[str, Any], where: str
) -> MaskFormerConfig:
  """Infers a network's sizes from its tensors.

  Only tensors that tell a size are checked. `check_weights` finds all others that are
  missing or superfluous.

  Args:
    shapes: shape of each tensor of the network, by ZSSeg's names.
    facts: what shapes do not tell, see `_FACTS`.
    where: file, for messages.

  Raises:
    RegionError: a tensor that tells a size is missing, lacks the axis, or is empty.
  """

  def size(name: str, axis: int = 0) -> int:
    """Length of an axis of a tensor."""
    shape = shapes.get(name, ())
    if len(shape) <= axis or 0 in shape:
      accepted = "a MaskFormer of ZSSeg with the backbone R101c, or one written here"
      refuse(where, name, f"of shape {shapes.get(name)}", accepted)
    return shape[axis]

  def count(name: str) -> int:
    """Counts the tensors named with 0, 1, .. in place of {}, up to the first gap."""
    n_tensors = 0
    while name.format(n_tensors) in shapes:
      n_tensors += 1
    return n_tensors

  stages = ("backbone.res2", "backbone.res3", "backbone.res4", "backbone.res5")
  backbone: SmallSizes | ResNetSizes
  if facts["backbone_groups"]:
    channels = tuple(size(f"{stage}.weight") for stage in stages)
    backbone = SmallSizes(channels, facts["backbone_groups"])
  else:
    n_blocks = tuple(count(stage + ".{}.conv1.weight") for stage in stages)
    backbone = ResNetSizes(
      layers=n_blocks,
      width=size("backbone.res2.0.conv1.weight"),
      stem=size("backbone.stem.conv3.weight"),
      dilations=facts["dilations"],
    )

  mlp_of_layer = _PREFIXES["transformer_decoder"] + ".layers.{}.linear1.weight"
  return MaskFormerConfig(
    embedding=size(_PREFIXES["non_object"], axis=1),
    backbone=backbone,
    width=size(f"{_PREDICTOR}.input_proj.weight"),
    mask_width=size("sem_seg_head.pixel_decoder.mask_features.weight"),
    groups=facts["groups"],
    n_queries=size(f"{_PREDICTOR}.query_embed.weight"),
    n_layers=count(mlp_of_layer),
    n_heads=facts["n_heads"],
    mlp=size(mlp_of_layer.format(0)),
    embedding_mlp=size(f"{_PREDICTOR}.class_embed.layers.0.weight"),
    dropout=facts["dropout"],
  )
