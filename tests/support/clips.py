"""Small CLIPs with random weights as HuggingFace writes them, and oracles of any
CLIP."""

from collections.abc import Mapping, Sequence
import dataclasses
import gzip
import json
import math
import pathlib
import shutil
from typing import Any

from flax import serialization
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel
import torch
import transformers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

from pomp_jax import world
from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.clip.text import TextTower, text_tower, token_embeddings
from pomp_jax.clip.tokens import tokenize
from pomp_jax.evaluate.opening import clip_config
from pomp_jax.files.prompt_file import Prompt

HAS_FLAX_CLIP = int(transformers.__version__.split(".")[0]) < 5
needs_flax_clip = pytest.mark.skipif(
  not HAS_FLAX_CLIP, reason="transformers 5 has no Flax models"
)
# The text towers, to run a test with each.
TOWERS: tuple = ("shared", pytest.param("reference", marks=needs_flax_clip))
# The text tower of tests of other parts: all positions of all classes, where it exists.
PLAIN_TOWER = "reference" if HAS_FLAX_CLIP else "shared"
# A few merges, so that some words take one token and others many.
MERGES = (
  *("t h", "th e</w>", "o f</w>", "a t</w>", "c at</w>"),
  *("d o", "do g</w>", "s t", "st a", "sta r</w>"),
)


def write_random_clip(
  folder: pathlib.Path,
  *,
  hidden_act: str = "quick_gelu",
  legacy_eos: bool = False,
  text_width: int = 32,
  positions: int = 77,
  extra_tokens: Sequence[str] = (),
  vision: Mapping[str, int] | None = None,
  seed: int = 0,
) -> CLIPModel:
  """Writes config, `flax_model.msgpack` and tokenizer; returns torch's model of the
  same weights.

  `legacy_eos` writes eos_token_id=2, as configurations before transformers 4.31 do.
  Words of `extra_tokens` get ids above EOT. `vision` changes sizes of the vision tower.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = _tokenizer_of(folder, MERGES)
  tokenizer.add_tokens(list(extra_tokens))
  tokenizer.save_pretrained(folder)
  tower = {"hidden_act": hidden_act, "num_hidden_layers": 3, "num_attention_heads": 4}
  config = CLIPConfig(
    text_config={
      **tower,
      "vocab_size": len(tokenizer),
      "hidden_size": text_width,
      "intermediate_size": 4 * text_width,
      "max_position_embeddings": positions,
      "bos_token_id": tokenizer.bos_token_id,
      "eos_token_id": 2 if legacy_eos else tokenizer.eos_token_id,
      "pad_token_id": tokenizer.eos_token_id,
    },
    vision_config={
      **tower,
      "hidden_size": 48,
      "intermediate_size": 96,
      "image_size": 32,
      "patch_size": 8,
      **(vision or {}),
    },
    projection_dim=24,
  )
  torch.manual_seed(seed)
  model = CLIPModel(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      # HuggingFace's initial scale leaves every text nearly the same; spread them out.
      if parameter.ndim > 1:
        parameter.copy_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.25)
      elif "bias" in name:
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.logit_scale.fill_(2.0)
  model.save_pretrained(folder)
  # HuggingFace's own conversion compiles for ten seconds.
  params = jax.device_get(load_clip(str(folder)).params)
  (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(params))
  (folder / "model.safetensors").unlink()
  return model


def _tokenizer_of(folder: pathlib.Path, merges: Sequence[str]) -> CLIPTokenizerFast:
  """Writes `vocab.json` and `merges.txt`, and reads them."""
  # The letters of the 256 bytes: visible ones of Latin-1, then stand-ins (Radford et
  # al., 2019).
  letters = sorted(ByteLevel.alphabet())
  tokens = [*letters, *(letter + "</w>" for letter in letters)]
  tokens += ["".join(merge.split()) for merge in merges] + [
    "<|startoftext|>",
    "<|endoftext|>",
  ]
  (folder / "vocab.json").write_text(
    json.dumps({token: i for i, token in enumerate(tokens)})
  )
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Draws all weights and statistics, so that none is 0 or 1 and activations keep
  their scale."""
  generator = torch.Generator().manual_seed(seed)

  def normal(tensor, deviation, mean=0.0):
    tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))

  with torch.no_grad():
    for name, tensor in model.state_dict().items():
      if name.endswith("running_var"):
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
      elif tensor.ndim == 1:
        normal(tensor, 0.1, mean=1.0 if name.endswith("weight") else 0.0)
      elif "queries_embedder" in name:
        normal(tensor, 1.0)
      elif tensor.ndim:
        normal(tensor, (2 / tensor[0].numel()) ** 0.5)
  return model


def encode_texts(
  clip: Clip, texts: Sequence[str], tower: TextTower | None = None
) -> Float[Array, "N E"]:
  """Encodes plain sentences: a prompt without context whose class name is the sentence.

  Not normalised, as HuggingFace's `get_text_features` returns them; by the shared tower
  by default.
  """
  tower = tower or text_tower("shared", clip.config.text_config)
  ids_NxL, lengths_N = tokenize(texts, clip.tokenizer, clip.config.text_config)
  suffix_NxLxD = token_embeddings(clip.params, ids_NxL)
  prefix_1xD = clip.sos_embedding
  return jax.jit(tower)(clip.text_params, prefix_1xD, suffix_NxLxD, lengths_N)


def clip_tokenizer(folder: pathlib.Path):
  """Builds CLIPTokenizerFast from the merges of open_clip_torch; skips the test
  without them."""
  package = pathlib.Path(pytest.importorskip("open_clip").__file__).parent
  file = package / "bpe_simple_vocab_16e6.txt.gz"
  lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
  return _tokenizer_of(folder, lines[1 : 49152 - 256 - 2 + 1])


def words_as_prompt(clip: Clip, words: str, **fields) -> Prompt:
  """A learned prompt whose context is the embeddings of these words."""
  ids = clip.tokenizer(words, add_special_tokens=False)["input_ids"]
  embeddings = token_embeddings(clip.params, np.array(ids, np.int32))
  return Prompt(np.asarray(embeddings), "random", **fields)


def huggingface_outputs(
  clip: Clip, model: CLIPModel, images: np.ndarray, texts: Sequence[str]
):
  """HuggingFace's outputs for uint8 images, channels last, and texts."""
  tokens = clip.tokenizer(list(texts), return_tensors="pt", padding=True)
  pixels = (images / 255 - np.array(clip.mean)) / np.array(clip.std)
  with torch.no_grad():
    return model(
      **tokens, pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)).float()
    )


def pooled(output):
  """The features that HuggingFace's `get_*_features` returns; from transformers 5 on
  with more."""
  return getattr(output, "pooler_output", output)


def error_of(source, readers=(load_clip, clip_config)) -> str:
  """Asserts that every reader raises ClipError, and returns its one line, the same
  for all."""
  for read in readers:
    with pytest.raises(ClipError) as error:
      read(str(source))
    message = str(error.value)
    assert "\n" not in message
    assert str(source) in message
  return message


def with_kernel(clip: Clip, part: str, kernel: np.ndarray) -> Clip:
  """Returns the CLIP with another projection."""
  return dataclasses.replace(clip, params=clip.params | {part: {"kernel": kernel}})


def with_logit_scale(clip: pathlib.Path, scale: float) -> pathlib.Path:
  """Sets the logit scale of a stored CLIP, a factor of the cosine; returns its
  folder."""
  file = clip / "flax_model.msgpack"
  params = serialization.msgpack_restore(file.read_bytes())
  params["logit_scale"] = np.array(math.log(scale), np.float32)
  file.write_bytes(serialization.msgpack_serialize(params))
  return clip


def write_fewer_layers(folder: pathlib.Path, layers: int) -> str:
  """Writes the world's CLIP with its first layers alone; returns its folder."""
  shutil.copytree(world.CLIP_PATH, folder)
  config = json.loads((folder / "config.json").read_text())
  for tower in ("text_config", "vision_config"):
    config[tower]["num_hidden_layers"] = layers
  (folder / "config.json").write_text(json.dumps(config))
  weights = folder / "flax_model.msgpack"
  params = serialization.msgpack_restore(weights.read_bytes())
  for tower in ("text_model", "vision_model"):
    for layer in range(layers, 3):
      del params[tower]["encoder"]["layers"][str(layer)]
  weights.write_bytes(serialization.msgpack_serialize(params))
  return str(folder)


def reference_tower(config: Any, dtype: Any = jnp.float32) -> TextTower:
  """Builds the reference text tower; skips the test under transformers 5."""
  if not HAS_FLAX_CLIP:
    pytest.skip("transformers 5 has no Flax models")
  return text_tower("reference", config, dtype)
