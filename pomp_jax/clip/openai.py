"""CLIPs in OpenAI's layout, which open_clip kept: names of the weights, sizes by their
shapes.

The shapes give all sizes but the number of heads and the activation.
`open_clip_config.json` beside the weights has both. Without it they are assumed to be
the usual ones of the two projects.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.architecture import ClipConfig, ClipError, Shapes
from pomp_jax.clip.families import ImageTowerConfig, NoImageTower, family_of
from pomp_jax.clip.layers import count
from pomp_jax.clip.open_clip import CONFIG, check_agreement, model_settings
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.tokens import MERGES_FILES, FileTokenizer, Tokenizer, read_bpe
from pomp_jax.clip.weights import Files, Layout, Parameter, Source, Weights
from pomp_jax.files.paths import local_copy
from pomp_jax.files.terminal import one_line

WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
)
# File, item and prefix of the names of the preprocessing's mean and std.
STATISTICS = (CONFIG, "preprocess_cfg", "")

# Tensors that only OpenAI's own state dicts have beside the weights.
_FACTS = ("input_resolution", "context_length", "vocab_size")

# Heads are 64 wide, except in open_clip's H/14, g/14, bigG/14 and e/14.
_HEAD_WIDTH = 64
_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_WIDEST_OF_OPENAI = 1024

# Parts of FlaxCLIP's names, and OpenAI's in their place, in this order. The ResNet's
# modules have OpenAI's names in `clip.resnet` too, but for items of lists.
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


def _source(path: Parameter) -> Source:
  name = ".".join(path)
  for ours, theirs in _NAMES.items():
    name = name.replace(ours, theirs)
  name = re.sub(r"(layer\d|downsample)_", r"\1.", name)
  if "encoder" in path and path[-2] in _STACKED:
    stacked = name.replace(f"{path[-2]}.", "in_proj_")
    return Source(stacked, part=_STACKED.index(path[-2]))
  as_is = ("embedding", "token_embedding.weight", "text_projection", "visual.proj")
  return Source(name, as_is=name.endswith(as_is))


LAYOUT = Layout(_source, ("attn_mask", "num_batches_tracked", *_FACTS))


def layout(weights: Weights, config: ClipConfig) -> Layout:
  """The names in a file, with the variations of open_clip that its tensors tell."""
  tower, prefix = config.vision_config, _text_prefix(weights.shapes)
  biased = f"{prefix}text_projection.bias" in weights.shapes

  def source(path: Parameter) -> Source:
    if path[0] == "vision_model" and isinstance(tower, ImageTowerConfig):
      return Source(tower.prefix + path[1], as_is=True)
    found = _source(path)
    if biased and path == ("text_projection", "kernel"):  # torch's dense layer
      found = Source("text_projection.weight")
    return (
      found._replace(key=prefix + found.key) if path[0].startswith("text") else found
    )

  return LAYOUT._replace(source=source)


def _text_prefix(shapes: Shapes) -> str:
  """In front of the text tower's names, where it is a module of its own."""
  return "text." if "text.token_embedding.weight" in shapes else ""


def read_tokenizer(files: Files, config: ClipConfig) -> Tokenizer:
  """A tokenizer from the merges beside the weights, or the one that open_clip names
  instead.

  ClipError if it is missing or can't be read.
  """
  settings = ((files.json(CONFIG) or {}).get("model_cfg") or {}).get("text_cfg", {})
  name = settings.get("hf_tokenizer_name")
  if not name:
    merges = files.find_first(MERGES_FILES)
    return read_bpe(merges, config.text_config.vocab_size, files.source)
  own = files.find("tokenizer.json") or Files(name).find("tokenizer.json")
  if own is None:
    expected = f"tokenizer.json beside the weights, or in {name}"
    raise ClipError(f"{files.source}: no tokenizer, expected {expected}")
  try:
    return FileTokenizer(
      str(local_copy(own).parent), **settings.get("tokenizer_kwargs", {})
    )
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise ClipError(
      f"{files.source}: {own.name} can't be read ({one_line(error)})"
    ) from error


def check_config(files: Files, where: str, image_tower: bool) -> None:
  """Raises ClipError by open_clip_config.json, if there is one, before weights are
  downloaded.

  Args:
    files: files of the CLIP.
    where: name of the CLIP, for messages.
    image_tower: whether the image tower is read too.
  """
  open_clip = files.json(CONFIG)
  if open_clip is not None:
    model_settings(open_clip, where, image_tower)


def read_config(
  files: Files, weights: Weights, activation: str, image_tower: bool
) -> ClipConfig:
  """Infers the sizes of weights in OpenAI's and open_clip's layout from their shapes.

  The activation `auto` is that of open_clip_config.json, or else the assumed one;
  without `image_tower` only the text tower is read. ClipError: no such CLIP, or the
  JSON contradicts it.

  Args:
    files: files of the CLIP.
    weights: weights, whose shapes give the sizes.
    activation: `quick_gelu`, `gelu` or `auto`.
    image_tower: whether the image tower is read too.
  """
  shapes, where, open_clip = weights.shapes, weights.path, files.json(CONFIG)
  model = model_settings(open_clip, where, image_tower) if open_clip is not None else {}
  vision_settings, text_settings = (
    model.get("vision_cfg", {}),
    model.get("text_cfg", {}),
  )
  prefix = _text_prefix(shapes)
  n_tokens, width = _shape(shapes, f"{prefix}token_embedding.weight", 2, where)
  n_positions, _ = _shape(shapes, f"{prefix}positional_embedding", 2, where)
  if f"{prefix}text_projection.bias" in shapes:  # torch's dense layer
    embedding, _ = _shape(shapes, f"{prefix}text_projection.weight", 2, where)
  else:
    _, embedding = _shape(shapes, f"{prefix}text_projection", 2, where)
  n_heads = text_settings.get("heads") or _heads(width, _HEAD_WIDTH, "text", where)
  hidden_act, note = _activation(shapes, activation, model)
  notes = [note]
  text = CLIPTextConfig(
    **_transformer(shapes, f"{prefix}transformer", width, where),
    vocab_size=n_tokens,
    max_position_embeddings=n_positions,
    num_attention_heads=n_heads,
    hidden_act="gelu_pytorch_tanh" if text_settings.get("act_kwargs") else hidden_act,
    projection_dim=embedding,
    layer_norm_eps=text_settings.get("norm_kwargs", {}).get("eps", 1e-5),
    bos_token_id=n_tokens - 2,
    # Other tokenizers than CLIP's end a text with the token whose feature is read.
    eos_token_id=None if text_settings.get("hf_tokenizer_name") else n_tokens - 1,
    pad_token_id=n_tokens - 1,
    bidirectional=bool(text_settings.get("no_causal_mask")),
  )
  head_width = vision_settings.get("head_width")
  if not image_tower:
    vision: Any = NoImageTower()
  elif family := family_of(vision_settings, vision_settings.get("width", 0)):
    vision = family
  elif "visual.layer1.0.conv1.weight" in shapes:
    vision = _resnet(shapes, head_width or _HEAD_WIDTH, where)
  else:
    vision = _vit(shapes, head_width, hidden_act, where, notes)
  config = ClipConfig(text, vision, embedding, tuple(notes))
  check_agreement(config, model, where)
  return config


def _shape(shapes: Shapes, name: str, n_axes: int, where: str) -> tuple[int, ...]:
  if name not in shapes:
    some = ", ".join(sorted(shapes)[:5])
    raise ClipError(
      f"{where}: no {name}, expected a CLIP in OpenAI's or open_clip's layout (found"
      f" {len(shapes)} tensors: {some}, ..)"
    )
  shape = shapes[name]
  if len(shape) != n_axes or 0 in shape:
    raise ClipError(f"{where}: {name}: got shape {list(shape)}, expected {n_axes} axes")
  return shape


def _transformer(shapes: Shapes, prefix: str, width: int, where: str) -> dict[str, int]:
  """Sizes of either tower's transformer, under HuggingFace's names."""
  layers = count(shapes, f"{prefix}.resblocks.")
  mlp, _ = _shape(shapes, f"{prefix}.resblocks.0.mlp.c_fc.weight", 2, where)
  return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}


def _vit(
  shapes: Shapes, head_width: int | None, hidden_act: str, where: str, notes: list[str]
) -> CLIPVisionConfig:
  width, _, patch, _ = _shape(shapes, "visual.conv1.weight", 4, where)
  n_positions, _ = _shape(shapes, "visual.positional_embedding", 2, where)
  side = math.isqrt(n_positions - 1)
  if side**2 != n_positions - 1 or not side:
    raise ClipError(
      f"{where}: visual.positional_embedding: got {n_positions} rows, expected one for the class"
      " and a square number of patches"
    )
  if head_width is None:
    head_width = _WIDE_HEADS.get(width, _HEAD_WIDTH)
    if head_width != _HEAD_WIDTH:
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
  width, *_ = _shape(shapes, "visual.layer1.0.conv1.weight", 4, where)
  n_positions, channels = _shape(
    shapes, "visual.attnpool.positional_embedding", 2, where
  )
  embedding, _ = _shape(shapes, "visual.attnpool.c_proj.weight", 2, where)
  return ResNetConfig(
    layers=tuple(count(shapes, f"visual.layer{stage}.") for stage in range(1, 5)),
    width=width,
    num_attention_heads=_heads(channels, head_width, "image", where),
    # The stem and three of the stages halve it: 32 pixels a position.
    image_size=32 * math.isqrt(max(n_positions - 1, 0)),
    projection_dim=embedding,
  )


def _heads(width: int, head_width: int, tower: str, where: str) -> int:
  if width % head_width:
    raise ClipError(
      f"{where}: the {tower} tower's width: got {width}, expected a multiple of its heads' width"
      f" {head_width} (open_clip_config.json beside the weights can set another)"
    )
  return width // head_width


def _activation(
  shapes: Shapes, activation: str, model: Mapping[str, Any]
) -> tuple[str, str]:
  """The MLPs' activation: requested, from open_clip_config.json, or assumed; and a
  note on it."""
  if activation != "auto":
    return activation, f"{activation} by config.clip.activation"
  if model:
    found = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return found, f"{found} by open_clip_config.json"
  if any(name in shapes for name in _FACTS):
    return "quick_gelu", "quick_gelu, as in all of OpenAI's own checkpoints"
  width = shapes.get("visual.conv1.weight", (0,))[0]
  found, why = (
    "quick_gelu",
    "as in OpenAI's CLIPs; most that open_clip trained have gelu",
  )
  if width > _WIDEST_OF_OPENAI:
    found, why = "gelu", f"OpenAI has no image tower of width {width}"
  remedy = (
    "set config.clip.activation, or put an open_clip_config.json beside the weights"
  )
  return found, f"{found} ASSUMED, {why}; {remedy}"
