"""Files of a MaskFormer: ZSSeg's checkpoints are read, safetensors of the same names
are written.

A checkpoint of detectron2 is a torch archive of `{"model": {name: tensor}, ..}`.
ZSSeg's has the network, the prompt (see `files.prompt_file`) and the whole CLIP. The
metadata `mask_former` of a file that is written here tells what shapes do not; other
files are taken to be as published.
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

from pomp_jax.clip import openai, weights
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
# Modules of the network, and where ZSSeg has them.
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
_KINDS = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_STACKED = ("q_proj", "k_proj", "v_proj")
_CLIP = "clip_adapter.clip_model."
# Metadata of our files: what shapes do not tell, here as of the published models.
_OURS = "mask_former"
_FACTS = {
  "n_heads": 8,
  "groups": 32,
  "backbone_groups": 0,
  "dilations": (1, 2, 4),
  "dropout": 0.1,
}
# Largest difference of a CLIP's numbers, as part of a tensor's largest: rounding of
# float16.
_TOLERANCE = 1e-3


class MaskFormerFile(NamedTuple):
  """Content of a file."""

  config: MaskFormerConfig
  params: Params  # float32, on the host
  trained_classes: tuple[str, ...] = ()  # empty if the file does not name them


def _source(path: weights.Parameter) -> weights.Source:
  """Name and place of a parameter in ZSSeg's checkpoint."""
  *module, kind = path
  # Flax wraps a convolution in a module of its own.
  if module and module[-1] == "conv":
    del module[-1]
  kind = _KINDS.get(kind, kind)
  name = ".".join([*module, kind])
  prefix = next(p for p in _PREFIXES if name == p or name.startswith(f"{p}."))
  if name == prefix:
    return weights.Source(_PREFIXES[prefix], as_is=True)
  n_replaced = prefix.count(".") + 1
  module = [_PREFIXES[prefix], *module[n_replaced:]]
  if module[-1] in _STACKED:
    # torch stacks the projections of queries, keys and values.
    attention = ".".join(module[:-1])
    part = _STACKED.index(module[-1])
    return weights.Source(f"{attention}.in_proj_{kind}", part=part)
  return weights.Source(".".join([*module, kind]))


ZSSEG = weights.Layout(_source, (), "MaskFormer of ZSSeg")


def read_mask_former(path: str | os.PathLike) -> MaskFormerFile:
  """Reads a checkpoint of ZSSeg with the backbone R101c, or a file written here.

  Nothing in the file is run.

  Raises:
    RegionError, ClipError: the file is missing or damaged, or has another network.
  """
  with weights.open_weights(path) as file:
    facts = _read_facts(file)
    # A checkpoint of ZSSeg has the prompt and CLIP as well.
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
  """The tensors of a layout that `read_params` reads as these parameters, by name."""
  tensors: dict[str, np.ndarray] = {}
  parts_of: dict[str, dict[int, np.ndarray]] = {}
  for path, leaf in flatten_dict(params).items():
    source = layout.source(path)
    # `stored_axes` leads from the file to the parameter; this is the way back.
    axes = np.argsort(weights.stored_axes(np.ndim(leaf), source))
    stored = np.transpose(leaf, axes)
    if source.part is None:
      tensors[source.key] = np.asarray(stored, order="C")
    else:
      parts_of.setdefault(source.key, {})[source.part] = stored
  for key, parts in parts_of.items():
    tensors[key] = np.concatenate([parts[0], parts[1], parts[2]])
  return tensors


def write_mask_former(
  file: BinaryIO, content: MaskFormerFile, context: np.ndarray | None = None
) -> None:
  """Writes a safetensors file; equal content makes equal bytes.

  ZSSeg's code, which keeps its own CLIP, loads the tensors of a network with R101c
  after `torch.save({"model": safetensors.torch.load_file(path)}, "masks.pth")`.

  Args:
    file: open file.
    content: network to write.
    context: prompt [M,D] that the network was trained with, read by `load_prompt`.
  """
  tensors = stored_tensors(jax.device_get(content.params), ZSSEG)
  if context is not None:
    tensors["clip_adapter.prompt_learner.ctx"] = np.asarray(context, np.float32)
  # The library writes an array's memory, whatever its strides.
  tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
  config = content.config
  facts = {
    "n_heads": config.n_heads,
    "groups": config.groups,
    "backbone_groups": getattr(config.backbone, "groups", _FACTS["backbone_groups"]),
    "dilations": getattr(config.backbone, "dilations", _FACTS["dilations"]),
    "dropout": config.dropout,
    "trained_classes": tuple(content.trained_classes),
  }
  checksum = _checksum(facts, tensors, tensors.__getitem__)
  # One item: the library writes several in any order.
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
  """Compares the CLIP in a checkpoint with the configured one; our files have none.

  Raises:
    RegionError: a tensor differs by more than the rounding of float16.
  """
  with weights.open_weights(path) as file:
    null = _PREFIXES["non_object"]
    shape = file.shapes.get(null)
    expected = (1, clip.config.projection_dim)
    if shape != expected:
      refuse(path, null, f"of shape {shape}", f"{expected}, of {clip.name}")
    if not any(name.startswith(_CLIP) for name in file.shapes):
      return
    accepted = f"as in {clip.name}, config.clip.model"
    for key, values in sorted(stored_tensors(clip.params, openai.LAYOUT).items()):
      name = _CLIP + key
      shape = file.shapes.get(name)
      if shape != values.shape:
        refuse(path, name, f"of shape {shape}", accepted)
      difference = np.abs(file.read(name) - values).max(initial=0)
      largest = max(np.abs(values).max(initial=0), 1e-6)
      # Not <=, so that NaN differs.
      if not difference <= _TOLERANCE * largest:
        refuse(path, name, f"other by up to {difference:.3g}", accepted)


def _read_facts(file: weights.Weights) -> dict[str, Any]:
  """Reads what the shapes of a network do not tell: see `_FACTS`, and its classes.

  A published file has no metadata, and gets the published values without classes.

  Raises:
    RegionError: the metadata is unreadable, of another program, or damaged.
  """
  stored = file.text.get(_OURS)
  if stored is None:
    # JSON in other metadata is of another program, whose sizes would be guessed.
    if any(text.startswith("{") for text in file.text.values()):
      fields = ", ".join(file.text)
      refuse(file.path, "the metadata", f"of {fields}", f"{_OURS}, or none")
    return {**_FACTS, "trained_classes": ()}

  try:
    facts = json.loads(stored)
    checksum = facts.pop("crc32", None)
    # A file without a checksum is read too.
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
  # What `json` and the lines above raise for JSON of another form.
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    refuse(file.path, _OURS, f"unreadable ({error})", "the JSON that is written here")
  return {**_FACTS, **facts}


def _config_of(
  shapes: Shapes, facts: Mapping[str, Any], where: str
) -> MaskFormerConfig:
  """Infers a network's sizes from its tensors.

  Tensors that are missing or superfluous beside these are left to `check_weights`.

  Args:
    shapes: shape of each tensor of the network, by ZSSeg's names.
    facts: what shapes do not tell, see `_FACTS`.
    where: file, for messages.

  Raises:
    RegionError: a tensor that tells a size is missing, or has an axis less, or an empty
      one.
  """

  def size(name: str, axis: int = 0) -> int:
    """Length of an axis of a tensor."""
    shape = shapes.get(name, ())
    if len(shape) <= axis or 0 in shape:
      accepted = "a MaskFormer of ZSSeg with the backbone R101c, or one written here"
      refuse(where, name, f"of shape {shapes.get(name)}", accepted)
    return shape[axis]

  def count(name: str) -> int:
    """How many of the names with 0, 1, .. in the place of {} are there in a row."""
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
