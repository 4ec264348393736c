"""CLIPs in OpenAI's layout, which open_clip also uses: names of the weights, and sizes
from the shapes of the weights.

The shapes give all sizes except the number of heads. They do not tell the activation
either. `open_clip_config.json` beside the weights has both. Without this file, the
usual heads and activation of the two projects are assumed.
"""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.architecture import ClipConfig, ClipError, Shapes
from pomp_jax.clip.image_towers import ImageTowerConfig, NoImageTower, family_of
from pomp_jax.clip.layers import count
from pomp_jax.clip.open_clip import CONFIG, check_agreement, model_settings
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.tokens import MERGES_FILES, FileTokenizer, Tokenizer, read_bpe
from pomp_jax.clip.weights import (
  Files,
  Layout,
  Parameter,
  PreprocessingSettings,
  Source,
  Weights,
)
from pomp_jax.files.paths import local_copy
from pomp_jax.files.terminal import one_line

WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
)
PREPROCESSING = PreprocessingSettings(
  file_name=CONFIG, item="preprocess_cfg", prefix=""
)

# Tensors that are no weights, and that only OpenAI's own state dicts have.
_ONLY_IN_OPENAIS_FILES = ("input_resolution", "context_length", "vocab_size")

# Heads are 64 wide, except in open_clip's H/14, g/14, bigG/14 and e/14.
_HEAD_WIDTH = 64
_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_WIDEST_OF_OPENAI = 1024

# Parts of FlaxCLIP's names -> OpenAI's names for them, replaced in this order. Modules
# in `clip.resnet` already have OpenAI's names, except for "_" before an item of a list.
_NAMES = {
  "text_model.embeddings.token_embedding.embedding": "token_embedding.weight",
  "text_model.embeddings.position_embedding.embedding": "positional_embedding",
  "text_model.final_layer_norm": "ln_final",
  "text_model.encoder.layers": "transformer.resblocks",
  "text_projection.kernel": "text_projection",
  "visual_projection.kernel": "visual.proj",
  "vision_model.embeddings.class_embedding": "visual.class_embedding",
  "vision_model.embeddings.position_embedding.embedding": "visual.positional_embedding",
  "vision_model.embeddings.patch_embedding": "visual.conv1",
  "vision_model.pre_layrnorm": "visual.ln_pre",
  "vision_model.post_layernorm": "visual.ln_post",
  "vision_model.encoder.layers": "visual.transformer.resblocks",
  "vision_model.": "visual.",
  "layer_norm1": "ln_1",
  "layer_norm2": "ln_2",
  "self_attn.": "attn.",
  "mlp.fc1": "mlp.c_fc",
  "mlp.fc2": "mlp.c_proj",
  ".kernel": ".weight",
  ".scale": ".weight",
  ".mean": ".running_mean",
  ".var": ".running_var",
}
_STACKED = ("q_proj", "k_proj", "v_proj")
# Endings of the names of tensors that are not transposed: tables, and bare matrices.
_NOT_TRANSPOSED = (
  "embedding",
  "token_embedding.weight",
  "text_projection",
  "visual.proj",
)


def _source(path: Parameter) -> Source:
  """Source of a parameter in OpenAI's own layout.

  OpenAI stacks the kernels of queries, keys and values into one tensor, and their
  biases into another.
  """
  name = ".".join(path)
  for ours, theirs in _NAMES.items():
    name = name.replace(ours, theirs)
  name = re.sub(r"(layer\d|downsample)_", r"\1.", name)
  module = path[-2] if len(path) > 1 else ""
  if "encoder" in path and module in _STACKED:
    stacked = name.replace(f"{module}.", "in_proj_")
    return Source(stacked, part=_STACKED.index(module))
  return Source(name, as_is=name.endswith(_NOT_TRANSPOSED))


LAYOUT = Layout(_source, ("attn_mask", "num_batches_tracked", *_ONLY_IN_OPENAIS_FILES))


def layout(weights: Weights, config: ClipConfig) -> Layout:
  """Returns the layout of a file of weights, with open_clip's variations.

  Args:
    weights: file of weights; its names tell the variation of the text tower.
    config: sizes; towers of `clip.image_towers` keep the names of their tensors.
  """
  vision = config.vision_config
  text_prefix = _text_prefix(weights.shapes)
  projection_is_dense = f"{text_prefix}text_projection.bias" in weights.shapes

  def source(path: Parameter) -> Source:
    if path[0] == "vision_model" and isinstance(vision, ImageTowerConfig):
      return Source(vision.prefix + path[1], as_is=True)
    tensor = _source(path)
    if path == ("text_projection", "kernel") and projection_is_dense:
      # OpenAI's projection is a bare matrix; here it is torch's dense layer.
      tensor = Source("text_projection.weight")
    if path[0].startswith("text"):
      tensor = tensor._replace(key=text_prefix + tensor.key)
    return tensor

  return LAYOUT._replace(source=source)


def _text_prefix(shapes: Shapes) -> str:
  """Start of the names of the text tower's tensors: "text." if the tower is a module of
  its own, otherwise empty."""
  return "text." if "text.token_embedding.weight" in shapes else ""


def read_tokenizer(files: Files, config: ClipConfig) -> Tokenizer:
  """Reads the tokenizer that open_clip_config.json names, or CLIP's from the merges.

  Args:
    files: files of the CLIP.
    config: sizes; a tokenizer from merges must have as many tokens.

  Raises:
    ClipError: the tokenizer is missing or can't be read.
  """
  settings = _text_settings(files)
  repository = settings.get("hf_tokenizer_name")
  if not repository:
    merges = files.find_first(MERGES_FILES)
    return read_bpe(merges, config.text_config.vocab_size, files.source)
  file = files.find("tokenizer.json")
  if file is None:
    file = Files(repository).find("tokenizer.json")
  if file is None:
    raise ClipError(
      f"{files.source}: no tokenizer, expected tokenizer.json beside the weights, or in"
      f" {repository}"
    )
  folder = local_copy(file).parent
  try:
    return FileTokenizer(str(folder), **settings.get("tokenizer_kwargs", {}))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    reason = one_line(error)
    raise ClipError(f"{files.source}: {file.name} can't be read ({reason})") from error


def _text_settings(files: Files) -> Mapping[str, Any]:
  """`text_cfg` of open_clip_config.json; empty without the file."""
  open_clip = files.json(CONFIG) or {}
  model = open_clip.get("model_cfg") or {}
  return model.get("text_cfg", {})


def check_config(files: Files, where: str, image_tower: bool) -> None:
  """Checks open_clip_config.json, if there is one, before weights are downloaded.

  Args:
    files: files of the CLIP.
    where: name of the CLIP, for messages.
    image_tower: whether the image tower is read too.

  Raises:
    ClipError: no tower here implements the CLIP.
  """
  open_clip = files.json(CONFIG)
  if open_clip is None:
    return
  model_settings(open_clip, where, image_tower)


def read_config(
  files: Files, weights: Weights, activation: str, image_tower: bool
) -> ClipConfig:
  """Infers the sizes of weights in OpenAI's and open_clip's layout from their shapes.

  Args:
    files: files of the CLIP; open_clip_config.json tells what the shapes don't.
    weights: weights, whose shapes give the sizes.
    activation: `quick_gelu`, `gelu`, or `auto`: the activation that
      open_clip_config.json tells, or else the usual one.
    image_tower: whether the image tower is read too.

  Raises:
    ClipError: the shapes are no CLIP's, or open_clip_config.json contradicts them.
  """
  shapes = weights.shapes
  where = weights.path
  open_clip = files.json(CONFIG)
  model: dict[str, Any] = {}
  if open_clip is not None:
    model = model_settings(open_clip, where, image_tower)
  choice = _activation(shapes, activation, model)
  text = _text(shapes, choice.name, model.get("text_cfg", {}), where)
  notes = [choice.note]

  vision_settings = model.get("vision_cfg", {})
  head_width = vision_settings.get("head_width")
  vision: Any = NoImageTower()
  if image_tower:
    vision = family_of(vision_settings, vision_settings.get("width", 0))
    if vision is None and "visual.layer1.0.conv1.weight" in shapes:
      vision = _resnet(shapes, head_width or _HEAD_WIDTH, where)
    elif vision is None:
      vision = _vit(shapes, head_width, choice.name, where, notes)
  config = ClipConfig(text, vision, text.projection_dim, tuple(notes))
  check_agreement(config, model, where)
  return config


def _text(
  shapes: Shapes, activation: str, settings: Mapping[str, Any], where: str
) -> CLIPTextConfig:
  """Infers the sizes of the text tower.

  Args:
    shapes: shapes of the weights.
    activation: activation of the MLPs.
    settings: `text_cfg` of open_clip_config.json; empty without the file.
    where: name of the file, for messages.
  """
  prefix = _text_prefix(shapes)
  n_tokens, width = _shape(shapes, f"{prefix}token_embedding.weight", 2, where)
  n_positions, _ = _shape(shapes, f"{prefix}positional_embedding", 2, where)
  if f"{prefix}text_projection.bias" in shapes:
    # A dense layer of torch: [out, in].
    embedding, _ = _shape(shapes, f"{prefix}text_projection.weight", 2, where)
  else:
    _, embedding = _shape(shapes, f"{prefix}text_projection", 2, where)
  n_heads = settings.get("heads")
  if not n_heads:
    n_heads = _heads(width, _HEAD_WIDTH, "text", where)
  if settings.get("act_kwargs"):  # `open_clip` accepts only approximate GELU
    activation = "gelu_pytorch_tanh"
  # CLIP's vocabulary ends with SOS and EOT. Texts of another tokenizer end with the
  # token whose feature is read, so no EOT id is needed.
  sos_id = n_tokens - 2
  eot_id = n_tokens - 1
  ends_by_position = bool(settings.get("hf_tokenizer_name"))
  return CLIPTextConfig(
    **_transformer(shapes, f"{prefix}transformer", width, where),
    vocab_size=n_tokens,
    max_position_embeddings=n_positions,
    num_attention_heads=n_heads,
    hidden_act=activation,
    projection_dim=embedding,
    layer_norm_eps=settings.get("norm_kwargs", {}).get("eps", 1e-5),
    bos_token_id=sos_id,
    eos_token_id=None if ends_by_position else eot_id,
    pad_token_id=eot_id,
    bidirectional=bool(settings.get("no_causal_mask")),
  )


def _shape(shapes: Shapes, name: str, n_axes: int, where: str) -> tuple[int, ...]:
  """Returns the shape of a tensor; ClipError if it is missing or has other axes.

  Args:
    shapes: shapes of the weights.
    name: name of the tensor.
    n_axes: number of axes that the tensor must have; no axis may have length 0.
    where: name of the file, for messages.
  """
  if name not in shapes:
    examples = ", ".join(sorted(shapes)[:5])
    raise ClipError(
      f"{where}: no {name}, expected a CLIP in OpenAI's or open_clip's layout (found"
      f" {len(shapes)} tensors: {examples}, ..)"
    )
  shape = shapes[name]
  has_empty_axis = 0 in shape
  if len(shape) != n_axes or has_empty_axis:
    raise ClipError(f"{where}: {name}: got shape {list(shape)}, expected {n_axes} axes")
  return shape


def _transformer(shapes: Shapes, prefix: str, width: int, where: str) -> dict[str, int]:
  """Infers the sizes of either tower's transformer, under HuggingFace's names."""
  layers = count(shapes, f"{prefix}.resblocks.")
  mlp, _ = _shape(shapes, f"{prefix}.resblocks.0.mlp.c_fc.weight", 2, where)
  return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}


def _vit(
  shapes: Shapes, head_width: int | None, hidden_act: str, where: str, notes: list[str]
) -> CLIPVisionConfig:
  """Infers the sizes of OpenAI's ViT.

  Args:
    shapes: shapes of the weights.
    head_width: width of a head; None for the usual width of a head in such a tower.
    hidden_act: activation of the MLPs.
    where: name of the file, for messages.
    notes: notes for the log; one is added if heads are assumed to be wider than usual.
  """
  width, _, patch, _ = _shape(shapes, "visual.conv1.weight", 4, where)
  n_positions, _ = _shape(shapes, "visual.positional_embedding", 2, where)
  n_patches = n_positions - 1  # beside the class token
  side = math.isqrt(n_patches)
  if side == 0 or side**2 != n_patches:
    raise ClipError(
      f"{where}: visual.positional_embedding: got {n_positions} rows, expected one for"
      " the class and a square number of patches"
    )
  if head_width is None:
    head_width = _HEAD_WIDTH
    if width in _WIDE_HEADS:
      head_width = _WIDE_HEADS[width]
      notes.append(
        f"image heads {head_width} wide, as in open_clip's towers of width {width}"
      )
  return CLIPVisionConfig(
    **_transformer(shapes, "visual.transformer", width, where),
    num_attention_heads=_heads(width, head_width, "image", where),
    image_size=side * patch,
    patch_size=patch,
    hidden_act=hidden_act,
  )


def _resnet(shapes: Shapes, head_width: int, where: str) -> ResNetConfig:
  """Infers the sizes of OpenAI's ResNet.

  Args:
    shapes: shapes of the weights.
    head_width: width of the attention pooling's heads.
    where: name of the file, for messages.
  """
  width, *_ = _shape(shapes, "visual.layer1.0.conv1.weight", 4, where)
  n_positions, channels = _shape(
    shapes, "visual.attnpool.positional_embedding", 2, where
  )
  embedding, _ = _shape(shapes, "visual.attnpool.c_proj.weight", 2, where)
  n_blocks = tuple(count(shapes, f"visual.layer{stage}.") for stage in range(1, 5))
  # The first position belongs to the mean. The stem halves the image twice, and three
  # stages halve it once each, so a position is 32 pixels wide.
  side = math.isqrt(max(n_positions - 1, 0))
  return ResNetConfig(
    layers=n_blocks,
    width=width,
    num_attention_heads=_heads(channels, head_width, "image", where),
    image_size=32 * side,
    projection_dim=embedding,
  )


def _heads(width: int, head_width: int, tower: str, where: str) -> int:
  """Number of heads; ClipError if the heads' width does not divide the tower's."""
  if width % head_width:
    raise ClipError(
      f"{where}: the {tower} tower's width: got {width}, expected a multiple of its"
      f" heads' width {head_width} (open_clip_config.json beside the weights can set"
      " another)"
    )
  return width // head_width


class _Activation(NamedTuple):
  """The activation of the MLPs."""

  name: str  # `quick_gelu` or `gelu`
  note: str  # reason for the activation, for the log


def _activation(
  shapes: Shapes, activation: str, model: Mapping[str, Any]
) -> _Activation:
  """Chooses the MLPs' activation: the requested, the configured or the usual one.

  Args:
    shapes: shapes of the weights.
    activation: `quick_gelu` or `gelu`; `auto` requests none.
    model: `model_cfg` of open_clip_config.json; empty without the file.
  """
  if activation != "auto":
    return _Activation(activation, f"{activation} by config.clip.activation")
  if model:
    name = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return _Activation(name, f"{name} by open_clip_config.json")
  is_openais_file = any(name in shapes for name in _ONLY_IN_OPENAIS_FILES)
  if is_openais_file:
    return _Activation(
      "quick_gelu", "quick_gelu, as in all of OpenAI's own checkpoints"
    )

  # Nothing in the file tells the activation. "ASSUMED" in the note makes the log warn.
  image_width = shapes.get("visual.conv1.weight", (0,))[0]
  if image_width > _WIDEST_OF_OPENAI:
    name = "gelu"
    why = f"OpenAI has no image tower of width {image_width}"
  else:
    name = "quick_gelu"
    why = "as in OpenAI's CLIPs; most that open_clip trained have gelu"
  remedy = (
    "set config.clip.activation, or put an open_clip_config.json beside the weights"
  )
  return _Activation(name, f"{name} ASSUMED, {why}; {remedy}")
