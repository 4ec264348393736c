"""CLIPs in HuggingFace's layout: weights of its torch and Flax models, config.json,
tokenizer."""

from transformers import CLIPConfig, CLIPTokenizerFast

from pomp_jax.clip.architecture import ClipConfig, ClipError
from pomp_jax.clip.tokens import MERGES_FILES, Tokenizer, read_bpe
from pomp_jax.clip.weights import FLAX_SUFFIX, Files, Layout, Parameter, Source, Weights
from pomp_jax.files.paths import local_copy
from pomp_jax.files.terminal import one_line

CONFIG = "config.json"  # without it, files of these names are another family's
WEIGHTS = (
  f"flax_model{FLAX_SUFFIX}",
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
)
# File, item and prefix of the names of the preprocessing's mean and std.
STATISTICS = ("preprocessor_config.json", "", "image_")
_TOKENIZER_FILES = (
  *("tokenizer.json", "vocab.json", "merges.txt"),
  *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


def layout(weights: Weights, config: ClipConfig) -> Layout:
  """The names in a file of weights, Flax's or torch's."""
  del config
  flax = lambda parameter: Source(".".join(parameter), as_is=True)
  return Layout(
    flax if weights.path.endswith(FLAX_SUFFIX) else _as_in_torch, ("position_ids",)
  )


def _as_in_torch(path: Parameter) -> Source:
  *module, kind = path
  weight = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
  return Source(".".join([*module, weight.get(kind, kind)]), as_is=kind == "embedding")


def read_config(
  files: Files, weights: Weights, activation: str, image_tower: bool
) -> ClipConfig:
  """Reads config.json; ClipError if it is missing, or no CLIP's.

  Args:
    files: files of the CLIP.
    weights: not used; other layouts infer sizes from their shapes.
    activation: `quick_gelu`, `gelu`, or `auto` for the checkpoint's.
    image_tower: not used; other layouts may have the text tower alone.
  """
  del weights, image_tower
  return _config(files, activation)


def check_config(files: Files, where: str, image_tower: bool) -> None:
  """Raises `read_config`'s ClipError before weights are downloaded.

  Args:
    files: files of the CLIP.
    where: not used; see `openai.check_config`.
    image_tower: not used; see `openai.check_config`.
  """
  del where, image_tower
  _config(files, "auto")


def _config(files: Files, activation: str) -> ClipConfig:
  file, where = files.find(CONFIG), files.source
  if file is None:
    raise ClipError(
      f"{where}: no {CONFIG}, expected beside weights in HuggingFace's layout"
    )
  try:
    config = CLIPConfig.from_pretrained(str(local_copy(file).parent))
  except Exception as error:  # the errors of transformers' checks share no base
    raise ClipError(f"{where}: {file.name} is no CLIP's ({one_line(error)})") from error
  if config.model_type != "clip":
    raise ClipError(f"{where}: model_type: got {config.model_type!r}, expected 'clip'")
  return config_of(config, activation)


def config_of(config: CLIPConfig, activation: str) -> ClipConfig:
  """The sizes by a configuration, with another activation if one is requested."""
  notes: tuple[str, ...] = ()
  text, vision = config.text_config, config.vision_config
  if activation not in ("auto", text.hidden_act):
    notes = (
      f"{activation} by config.clip.activation, instead of its own {text.hidden_act}",
    )
    text.hidden_act = vision.hidden_act = activation
  return ClipConfig(text, vision, config.projection_dim, notes)


def read_tokenizer(files: Files, config: ClipConfig) -> Tokenizer:
  """HuggingFace's tokenizer beside the weights, otherwise one from the merges."""
  own = files.find_first(_TOKENIZER_FILES[:2])
  if own is None:
    merges = files.find_first(MERGES_FILES)
    return read_bpe(merges, config.text_config.vocab_size, files.source)
  # From the hub, each file is downloaded when it is looked up; from a bucket, when it
  # is copied.
  for found in filter(None, map(files.find, _TOKENIZER_FILES)):
    local_copy(found)
  try:
    return CLIPTokenizerFast.from_pretrained(str(local_copy(own).parent))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise ClipError(
      f"{files.source}: {own.name} can't be read ({one_line(error)})"
    ) from error
