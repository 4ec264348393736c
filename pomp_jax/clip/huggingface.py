"""CLIPs in HuggingFace's layout: weights of the torch and Flax models, config.json and
tokenizer."""

from transformers import CLIPConfig, CLIPTokenizerFast

from pomp_jax.clip.architecture import ClipConfig, ClipError
from pomp_jax.clip.tokens import MERGES_FILES, Tokenizer, read_bpe
from pomp_jax.clip.weights import (
  FLAX_SUFFIX,
  Files,
  Layout,
  Parameter,
  PreprocessingSettings,
  Source,
  Weights,
)
from pomp_jax.files.paths import local_copy
from pomp_jax.files.terminal import one_line

# Without this file, `clip.load` does not look for the weights below.
CONFIG = "config.json"
WEIGHTS = (
  f"flax_model{FLAX_SUFFIX}",
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
)
PREPROCESSING = PreprocessingSettings(
  file_name="preprocessor_config.json", item="", prefix="image_"
)
# A tokenizer has one of these files.
_VOCABULARIES = ("tokenizer.json", "vocab.json")
# A tokenizer may have these files as well.
_BESIDE_VOCABULARY = (
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)


def layout(weights: Weights, config: ClipConfig) -> Layout:
  """Returns the layout of a file of weights, Flax's or torch's.

  Args:
    weights: file of weights; the ending of its name decides.
    config: not used; `openai_layout.layout` reads it.
  """
  del config
  source = _as_in_torch
  if weights.path.endswith(FLAX_SUFFIX):
    source = _as_in_flax
  return Layout(source, other=("position_ids",))


def _as_in_flax(path: Parameter) -> Source:
  return Source(".".join(path), as_is=True)


def _as_in_torch(path: Parameter) -> Source:
  """Source in a torch file, where kernels, scales and embeddings are named "weight"."""
  *modules, kind = path
  if kind in ("kernel", "scale", "embedding"):
    name = ".".join([*modules, "weight"])
  else:
    name = ".".join(path)
  return Source(name, as_is=kind == "embedding")


def read_config(
  files: Files, weights: Weights, activation: str, image_tower: bool
) -> ClipConfig:
  """Reads config.json, which has all sizes.

  Args:
    files: files of the CLIP.
    weights: not used; other layouts infer sizes from their shapes.
    activation: `quick_gelu`, `gelu`, or `auto` for the checkpoint's.
    image_tower: not used; other layouts can be read without an image tower.

  Raises:
    ClipError: config.json is missing, or is not a CLIP's.
  """
  del weights, image_tower
  return config_of(_config(files), activation)


def check_config(files: Files, where: str, image_tower: bool) -> None:
  """Checks config.json before weights are downloaded.

  Args:
    files: files of the CLIP.
    where: not used; `openai_layout.check_config` reads it.
    image_tower: not used; `openai_layout.check_config` reads it.

  Raises:
    ClipError: config.json is missing, or is not a CLIP's.
  """
  del where, image_tower
  _config(files)


def _config(files: Files) -> CLIPConfig:
  """Reads the configuration in config.json.

  Raises:
    ClipError: the file is missing, or is not a CLIP's.
  """
  file = files.find(CONFIG)
  if file is None:
    raise ClipError(
      f"{files.source}: no {CONFIG}, expected beside weights in HuggingFace's layout"
    )
  folder = local_copy(file).parent
  try:
    config = CLIPConfig.from_pretrained(str(folder))
  except Exception as error:  # errors of transformers' checks share no base class
    reason = one_line(error)
    raise ClipError(f"{files.source}: {file.name} is no CLIP's ({reason})") from error
  if config.model_type != "clip":
    raise ClipError(
      f"{files.source}: model_type: got {config.model_type!r}, expected 'clip'"
    )
  return config


def config_of(config: CLIPConfig, activation: str) -> ClipConfig:
  """Sizes of HuggingFace's configuration, with another activation if requested."""
  text = config.text_config
  vision = config.vision_config
  if activation in ("auto", text.hidden_act):
    return ClipConfig(text, vision, config.projection_dim)
  note = f"{activation} by config.clip.activation, instead of its own {text.hidden_act}"
  text.hidden_act = activation
  vision.hidden_act = activation
  return ClipConfig(text, vision, config.projection_dim, notes=(note,))


def read_tokenizer(files: Files, config: ClipConfig) -> Tokenizer:
  """Reads HuggingFace's tokenizer, or builds CLIP's from the merges without one.

  Args:
    files: files of the CLIP.
    config: sizes; a tokenizer from merges must have as many tokens.

  Raises:
    ClipError: neither is beside the weights, or it can't be read.
  """
  vocabulary = files.find_first(_VOCABULARIES)
  if vocabulary is None:
    merges = files.find_first(MERGES_FILES)
    return read_bpe(merges, config.text_config.vocab_size, files.source)
  # transformers reads a local folder, so bring all files there: `find` downloads a file
  # from the hub, and `local_copy` from a bucket.
  for name in (*_VOCABULARIES, *_BESIDE_VOCABULARY):
    file = files.find(name)
    if file is not None:
      local_copy(file)
  folder = local_copy(vocabulary).parent
  try:
    return CLIPTokenizerFast.from_pretrained(str(folder))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    reason = one_line(error)
    raise ClipError(
      f"{files.source}: {vocabulary.name} can't be read ({reason})"
    ) from error
