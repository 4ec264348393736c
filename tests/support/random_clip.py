"""Small CLIPs with random weights and a byte-level tokenizer: files as HuggingFace writes them."""

from collections.abc import Sequence
import json
import pathlib

import flax
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast, FlaxCLIPModel
from transformers.models.clip.tokenization_clip import bytes_to_unicode

# A few merges, so that some words take one token and others many.
MERGES = (
  "t h",
  "th e</w>",
  "o f</w>",
  "a t</w>",
  "c at</w>",
  "d o",
  "do g</w>",
  "s t",
  "st a",
  "sta r</w>",
)


def write_random_clip(
  folder: pathlib.Path,
  *,
  hidden_act: str = "quick_gelu",
  legacy_eos: bool = False,
  text_width: int = 32,
  positions: int = 77,
  extra_tokens: Sequence[str] = (),
  seed: int = 0,
) -> CLIPModel:
  """Writes config, `flax_model.msgpack` and tokenizer; returns torch's model of the same weights.

  Args:
    folder: where to.
    hidden_act: `quick_gelu` (OpenAI) or `gelu`.
    legacy_eos: write eos_token_id=2, as configurations before transformers 4.31 do.
    text_width: D.
    positions: of the text tower.
    extra_tokens: words added to the vocabulary after EOT, so with ids above it.
    seed: of the weights.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = write_tokenizer(folder, extra_tokens)
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
  FlaxCLIPModel(config, _do_init=False).save_pretrained(folder, params=_flax_params(model))
  return model


def _flax_params(model: CLIPModel) -> dict:
  """The weights under Flax's names. HuggingFace's own conversion compiles for ten seconds."""
  flat = {}
  for name, tensor in model.state_dict().items():
    *module, kind = name.split(".")
    value = tensor.numpy()
    if kind == "weight" and module[-1] in ("token_embedding", "position_embedding"):
      kind = "embedding"
    elif kind == "weight" and value.ndim == 1:
      kind = "scale"
    elif kind == "weight":
      # Dense [out, in] to [in, out]; convolution [out, in, h, w] to [h, w, in, out].
      kind, value = "kernel", value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
    flat[(*module, kind)] = value
  return flax.traverse_util.unflatten_dict(flat)


def write_tokenizer(folder: pathlib.Path, extra_tokens: Sequence[str] = ()) -> CLIPTokenizerFast:
  """A CLIP tokenizer of bytes and a few merges, in HuggingFace's files."""
  letters = list(bytes_to_unicode().values())
  tokens = letters + [letter + "</w>" for letter in letters]
  tokens += ["".join(merge.split()) for merge in MERGES]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
  tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
  tokenizer.add_tokens(list(extra_tokens))
  tokenizer.save_pretrained(folder)
  return tokenizer
