"""CLIPs of other families, each against its original of open_clip and timm with
random weights."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import HFTokenizer
import pytest
import safetensors.torch
import timm
import tokenizers
from tokenizers.models import Unigram
import torch
from transformers import BertTokenizerFast, CLIPTextConfig, PreTrainedTokenizerFast

from docs.generators.clips_page import page
from pomp_jax.clip.eva import SiglipConfig
from pomp_jax.clip.image_towers import MODELS
from pomp_jax.clip.load import load_clip
from pomp_jax.clip.open_clip import named_clip, tables, unread
from pomp_jax.clip.text import token_table
from pomp_jax.clip.tokens import (
  FileTokenizer,
  TokenizeError,
  check_token_counts,
  tokenize,
)
from pomp_jax.clip.vision import image_tower
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.encoder import Encoder, rounded_up
from pomp_jax.errors import InputError
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import class_sequences
from tests.support.checks import assert_close
from tests.support.clips import MERGES, error_of, randomise
from tests.support.openai_clip import write_merges
from tests.support.processes import ROOT

NAMES = (
  "cat",
  "teddy bear",
  "Bell's \u201cvireo\u201d x",
  "naïve & caf\u00e9, 12 o'clock!",
)
# More tokens than any of these towers has positions.
LONG = " ".join(NAMES[1] + letter for letter in "abcdefgh")
EMBEDDING = 24
_BPE = {"vocab_size": 512 + len(MERGES) + 2, "context_length": 48}
_SMALL = {"width": 32, "heads": 4, "layers": 2}
_SIGLIP = {
  **{
    "context_length": 48,
    "vocab_size": 300,
    "no_causal_mask": True,
    "proj_bias": True,
  },
  **{"pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
  **{"hf_tokenizer_name": "none", "tokenizer_kwargs": {"clean": "canonicalize"}},
}
_CLIPA = {
  **{
    "context_length": 48,
    "vocab_size": 400,
    "no_causal_mask": True,
    "pool_type": "last",
  },
  **{"hf_tokenizer_name": "none", "tokenizer_kwargs": {"strip_sep_token": True}},
}
# A table so long that it stays in its file, as MetaCLIP 2's of 901,629 rows.
_META = {"context_length": 48, "vocab_size": 100_001, "hf_tokenizer_name": "none"}
_META |= {"pool_type": "eos", "eos_id": 2}
_CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]}


@dataclasses.dataclass
class Original:
  """How a model differs from open_clip's of that name: its depth and widths."""

  vision: dict[str, Any]
  text: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(_BPE))
  timm: dict[str, Any] = dataclasses.field(default_factory=dict)
  custom: bool = True
  quick_gelu: bool = False


def _timm(name, size, pool, proj=None):
  return {
    "timm_model_name": name,
    "image_size": size,
    "timm_pool": pool,
    "timm_proj": proj,
  }


def _vit(n_heads, width=8):
  return {"depth": 2, "embed_dim": n_heads * width, "num_heads": n_heads}


ORIGINALS = {
  "eva01_g": Original(_timm("eva_giant_patch14_224", 224, "token"), timm=_vit(16)),
  "eva02_b": Original(
    _timm("eva02_base_patch16_clip_224", 224, "token"), timm=_vit(12)
  ),
  "eva02_l_336": Original(
    _timm("eva02_large_patch14_clip_336", 336, "token"), timm=_vit(16)
  ),
  "eva02_e": Original(
    _timm("eva02_enormous_patch14_clip_224", 224, "token"), timm=_vit(16)
  ),
  "pe_b": Original(_timm("vit_pe_core_base_patch16_224", 224, "map"), timm=_vit(12)),
  "pe_g": Original(
    _timm("vit_pe_core_gigantic_patch14_448", 448, "map"), timm=_vit(16)
  ),
  "siglip_b": Original(
    _timm("vit_base_patch16_siglip_224", 224, "map", "none"), _SIGLIP, _vit(12, 2)
  ),
  "siglip2_so400m": Original(
    _timm("vit_so400m_patch16_siglip_256", 256, "map", "none"),
    _SIGLIP | {"act_kwargs": {"approximate": "tanh"}},
    {"depth": 2, "embed_dim": 32, "num_heads": 16, "mlp_ratio": 3.7362},
  ),
  "convnext_base": Original(
    _timm("convnext_base", 64, "", "linear"), timm=_CONVNEXT, custom=False
  ),
  "convnext_xxlarge": Original(
    _timm("convnext_xxlarge", 64, "", "mlp"), timm=_CONVNEXT, custom=False
  ),
  "clipa": Original(
    {"image_size": 28, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14}
    | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    _CLIPA,
    custom=False,
  ),
  "metaclip2": Original(
    {"image_size": 28, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
    _META,
    custom=False,
    quick_gelu=True,
  ),
  # No released one: CLIP's own tokens under a full text tower.
  "bidirectional_bpe": Original(
    {"image_size": 28, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
    _BPE | {"no_causal_mask": True, "pool_type": "last"},
    custom=False,
  ),
}


def small_model(original, monkeypatch):
  """The torch model; SigLIP's width is its embedding."""
  with monkeypatch.context() as patched:
    create = timm.create_model
    patched.setattr(
      timm, "create_model", lambda *a, **k: create(*a, **(k | original.timm))
    )
    kind = open_clip.CustomTextCLIP if original.custom else open_clip.CLIP
    bias = {"init_logit_bias": -10.0} if original.text.get("proj_bias") else {}
    model = kind(
      original.timm["embed_dim"] if bias else EMBEDDING,
      CLIPVisionCfg(**original.vision),
      CLIPTextCfg(**(_SMALL | original.text)),
      quick_gelu=original.quick_gelu,
      **bias,
    )
  return randomise(model).eval()


def _write_tokenizer(folder, original, texts):
  """Small tokenizers of the three kinds; SigLIP's pads with its end token."""
  kind = original.text["pool_type"] if "hf_tokenizer_name" in original.text else "bpe"
  if kind == "bpe":
    write_merges(folder)
  elif "strip_sep_token" in original.text.get("tokenizer_kwargs", {}):
    letters = sorted(
      {letter for text in texts for letter in text.lower() if not letter.isspace()}
    )
    words = [
      "[PAD]",
      "[UNK]",
      "[CLS]",
      "[SEP]",
      "[MASK]",
      *letters,
      *(f"##{x}" for x in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(words[:400]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
  else:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁"]
    letters = sorted({letter for text in texts for letter in text} | {"."})
    pieces += [x for x in letters if x not in pieces and not x.isspace()][
      : 300 - len(pieces)
    ]
    tokenizer = tokenizers.Tokenizer(
      Unigram([(x, -1.0 - i) for i, x in enumerate(pieces)], 3)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    template = "$A </s>" if kind == "last" else "<s> $A </s>"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single=template, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    pad = "</s>" if kind == "last" else "<pad>"
    PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, eos_token="</s>", pad_token=pad, unk_token="<unk>"
    ).save_pretrained(folder)


def write_checkpoint(original, model, folder, texts=NAMES):
  """Writes the checkpoint in the layout of open_clip's repositories."""
  state = {name: x.contiguous().clone() for name, x in model.state_dict().items()}
  safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
  config = {
    "embed_dim": original.timm["embed_dim"]
    if "proj_bias" in original.text
    else EMBEDDING,
    "vision_cfg": original.vision,
    "text_cfg": _SMALL | original.text,
    "custom_text": original.custom,
  }
  if original.quick_gelu:
    config["quick_gelu"] = True
  squash = {"resize_mode": "squash", "interpolation": "bilinear"}
  settings = {
    "model_cfg": config,
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.4] * 3} | squash,
  }
  (folder / "open_clip_config.json").write_text(json.dumps(settings))
  _write_tokenizer(folder, original, texts)


def _torch_text(model, sequences):
  """Features of embedded sequences, whose feature is read at a position: [(rows
  [S,D], at)]."""
  tower = getattr(model, "text", model)
  rows = torch.stack([rows for rows, _ in sequences]) + tower.positional_embedding
  mask = tower.attn_mask
  hidden = tower.ln_final(tower.transformer(rows, attn_mask=mask))
  read = torch.stack([hidden[i, at] for i, (_, at) in enumerate(sequences)])
  projection = tower.text_projection
  return (
    projection(read) if isinstance(projection, torch.nn.Linear) else read @ projection
  )


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_family_is_its_original(name, tmp_path, monkeypatch):
  original = ORIGINALS[name]
  torch.manual_seed(0)
  model = small_model(original, monkeypatch)
  write_checkpoint(original, model, tmp_path)
  clip = load_clip(str(tmp_path))
  assert clip.squash and clip.bilinear

  size = clip.image_size
  images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
  pixels = torch.tensor(((images / 255 - 0.5) / 0.4).transpose(0, 3, 1, 2)).float()
  with torch.no_grad():
    expected = model.encode_image(pixels).numpy()
  found = jax.jit(image_tower(clip))(clip.vision_params, images)
  assert_close(found, expected, 1e-4)

  # Text features of sentences by open_clip's own tokens, and through the learned
  # context.
  encoder = Encoder(clip)
  n_positions, texts = (
    clip.positions,
    [f"a photo of a {one}." for one in (*NAMES, LONG)],
  )
  if "hf_tokenizer_name" in original.text:
    kwargs = original.text.get("tokenizer_kwargs", {})
    tokens = HFTokenizer(str(tmp_path), context_length=n_positions, **kwargs)(texts)
  else:
    rows = clip.tokenizer(texts)["input_ids"]
    tokens = torch.zeros(len(rows), n_positions, dtype=torch.long)
    for i, row in enumerate(rows):
      row = row if len(row) <= n_positions else [*row[: n_positions - 1], row[-1]]
      tokens[i, : len(row)] = torch.tensor(row)
  with torch.no_grad():
    expected = model.encode_text(tokens).numpy()
  names = [text.removesuffix(".") for text in texts]
  assert_close(
    encoder.class_features(names, "{}.", unit=False, cut=True), expected, 1e-5
  )

  n_vectors = 3
  context = 0.1 * np.random.default_rng(1).standard_normal((n_vectors, 32)).astype(
    np.float32
  )
  learned = torch.tensor(context, requires_grad=True)
  tower = getattr(model, "text", model)
  classes = encoder.vocabulary(list(NAMES), n_vectors)
  start = torch.tensor(np.asarray(clip.sos_embedding))
  sequences = []
  for ids, length in zip(classes.ids, classes.lengths, strict=True):
    own = tower.token_embedding(torch.tensor(ids[:length], dtype=torch.long))
    rows = torch.cat([start, learned, own])
    padding = torch.zeros(n_positions - len(rows), 32)
    sequences.append((torch.cat([rows, padding]), len(rows) - 1))
  expected = _torch_text(model, sequences)
  cotangent = (
    np.random.default_rng(2).standard_normal(tuple(expected.shape)).astype(np.float32)
  )
  (torch.sin(expected) * torch.tensor(cotangent)).sum().backward()

  module = PromptContext(n_vectors, 32)
  tower_of = encoder.text_tower()

  def loss(context):
    params, frozen = {"context": context}, encoder.frozen(classes)
    rows = class_sequences(module, params, frozen, jnp.arange(len(NAMES)))
    features = tower_of(frozen.text, *rows)
    return jnp.sum(jnp.sin(features) * cotangent), features

  gradient, found = jax.grad(loss, has_aux=True)(jnp.asarray(context))
  assert_close(found, expected.detach().numpy(), 1e-5)
  assert_close(gradient, learned.grad.numpy(), 1e-5)
  n_rows = len(token_table(encoder.frozen(classes).text))
  used = rounded_up(len(np.unique(classes.ids)), 1024)
  assert n_rows == (used if name == "metaclip2" else clip.config.text_config.vocab_size)


def _timm_row(name):
  """What `eva.MODELS` and `convnext.MODELS` say of a tower, read from timm's, which has
  no memory.

  `timm_proj` is open_clip's, which has no projection for SigLIP's towers alone.
  """
  with torch.device("meta"):
    if name.startswith("convnext"):
      model = timm.create_model(name, depths=[1, 1, 1, 1])
      norms = [
        layer for layer in model.modules() if "LayerNorm" in type(layer).__name__
      ]
      return {"epsilon": {norm.eps for norm in norms}}
    model = timm.create_model(name, depth=1)
  block, pool, rope = model.blocks[0], model.attn_pool, getattr(model, "rope", None)
  norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm)]
  return {
    "image_size": model.default_cfg["input_size"][-1],
    "num_attention_heads": block.attn.num_heads,
    "rope_grid": rope.ref_feat_shape[0] if rope else 0,
    "rope_offset": rope.grid_offset if rope else 0.0,
    "rope_x_first": rope is not None and rope.grid_indexing == "xy",
    "post_norm": type(block).__name__ == "EvaBlockPostNorm",
    "epsilon": {norm.eps for norm in norms},
    "pooling_heads": pool.num_heads if pool else 0,
    "projects": "siglip" not in name,
    "tanh": type(block.mlp.act).__name__ == "GELUTanh",
  }


def test_each_row_of_the_towers_is_timms():
  for name, tower in MODELS.items():
    expected, row = _timm_row(name), dataclasses.asdict(tower)
    found = row | {"epsilon": {tower.epsilon}}
    assert {field: found[field] for field in expected} == expected, name
    assert isinstance(tower, SiglipConfig) == ("siglip" in name), name
  assert len(MODELS) == 33


@pytest.mark.parametrize("name", ["siglip_b", "clipa", "metaclip2"])
def test_tokens_are_open_clips(name, tmp_path):
  original = ORIGINALS[name]
  names = load_class_list("imagenet21k").names[::22][:990]
  odd = [
    "Bell’s vireo_x",
    "a  b\tc",
    "&amp;lt;tag&gt;",
    "ﬁne Ｗide",
    "Ünïcode…",
    "5'7\"",
    "_",
    "x.",
  ]
  texts = [f"{one}." for one in (*names, *odd)]
  _write_tokenizer(tmp_path, original, texts)
  kwargs = original.text.get("tokenizer_kwargs", {})
  found = FileTokenizer(str(tmp_path), **kwargs)(texts)["input_ids"]
  expected = HFTokenizer(str(tmp_path), context_length=200, **kwargs)(texts).numpy()
  for row, padded in zip(found, expected, strict=True):
    assert row == padded[: len(row)].tolist()
    # The rest is padding alone.
    assert len(set(padded[len(row) :].tolist())) <= 1


@pytest.mark.parametrize("name", ["siglip_b", "clipa", "metaclip2"])
def test_a_long_text_is_cut_where_open_clip_cuts_it(name, tmp_path):
  """CLIPA's last position, where its feature is read, is never a word's."""
  original = ORIGINALS[name]
  lemmas = load_class_list("imagenet21k").names[::220]
  n_positions = 32
  texts = [f"a photo of a {' '.join(lemmas[i : i + 1 + i % 4])}." for i in range(96)]
  _write_tokenizer(tmp_path, original, texts)
  kwargs = original.text.get("tokenizer_kwargs", {})
  tokenizer = FileTokenizer(str(tmp_path), **kwargs)
  start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
  config = CLIPTextConfig(max_position_embeddings=n_positions, eos_token_id=None)
  budget = n_positions - len(start)
  found = tokenize(texts, tokenizer, config, budget, cut=True)
  expected = HFTokenizer(str(tmp_path), context_length=n_positions, **kwargs)(
    texts
  ).tolist()
  for ids, length, row in zip(*found, expected, strict=True):
    padding = [tokenizer.pad_token_id] * (budget - length)
    assert [*start, *ids[:length].tolist(), *padding] == row
    # So the last is no word: `prompt.init` takes all before it.
    assert ids[length - 1] == tokenizer.eos_token_id
  n_long = sum(len(row) > n_positions for row in tokenizer(texts)["input_ids"])
  assert 50 < n_long < len(texts)
  with pytest.raises(TokenizeError, match=f"expected at most {budget}"):
    tokenize(texts, tokenizer, config, budget)
  # The check that tokenizes few texts refuses the same ones: sentencepiece begins with
  # a token.
  refused = {tokenize: [], check_token_counts: []}
  for check, lengths in refused.items():
    for n_letters in range(budget - 4, budget + 2):
      try:
        check(["b", "b" * n_letters], tokenizer, config, budget)
      except TokenizeError:
        lengths.append(n_letters)
  assert refused[tokenize] == refused[check_token_counts] != []


@pytest.mark.parametrize(("name", "token"), [("clipa", "[SEP]"), ("metaclip2", "</s>")])
def test_the_text_of_a_special_token_is_refused(name, token, tmp_path):
  """Both tokenizers read it as the end of the text, wherever it stands."""
  original = ORIGINALS[name]
  _write_tokenizer(tmp_path, original, [token, "a cat."])
  kwargs = original.text.get("tokenizer_kwargs", {})
  tokenizer = FileTokenizer(str(tmp_path), **kwargs)
  config = CLIPTextConfig(max_position_embeddings=32, eos_token_id=None)
  hidden = token.replace("<", "&lt;").replace("[", "［")
  for text in (f"a{token}b", f"a {hidden} b"):
    for check in (tokenize, check_token_counts):
      with pytest.raises(TokenizeError) as error:
        check(["a cat.", text], tokenizer, config, 30)
      assert repr(text) in str(error.value) and "\n" not in str(error.value)
  # As open_clip's for the same letters without the brackets.
  plain = ["a sep b", "a /s b"]
  rows = tokenizer(plain)["input_ids"]
  expected = HFTokenizer(str(tmp_path), context_length=30, **kwargs)(plain).tolist()
  assert [row[: len(found)] for row, found in zip(expected, rows, strict=True)] == rows


@pytest.mark.parametrize("name", ORIGINALS)
def test_hostile_files_are_one_line(name, tmp_path, monkeypatch):
  original = ORIGINALS[name]
  write_checkpoint(original, small_model(original, monkeypatch), tmp_path)
  path = tmp_path / "open_clip_model.safetensors"
  state = safetensors.torch.load_file(path)
  damages = (lambda x: x[:-1].contiguous(), lambda x: x[None], None)
  tensors = sorted(name for name in state if state[name].ndim)
  for changed, damage in zip(tensors[:: len(tensors) // 4], damages * 2, strict=False):
    others = {key: tensor for key, tensor in state.items() if key != changed}
    damaged = {changed: damage(state[changed])} if damage else {}
    safetensors.torch.save_file(others | damaged, path)
    error_of(tmp_path)
  safetensors.torch.save_file(state | {"visual.extra": torch.zeros(2)}, path)
  assert "visual.extra" in error_of(tmp_path)


def test_the_text_tower_alone(tmp_path, monkeypatch):
  original = ORIGINALS["eva02_b"]
  model = small_model(original, monkeypatch)
  original = dataclasses.replace(
    original, vision=_timm("vitamin_large_224", 224, "", "linear")
  )
  write_checkpoint(original, model, tmp_path)
  assert "vitamin_large_224" in error_of(tmp_path)
  clip = load_clip(str(tmp_path), image_tower=False)
  assert not clip.vision_params and "no image tower" in clip.config.describe()
  rows = clip.tokenizer(["a cat."])["input_ids"]
  encoder = Encoder(clip)
  found = encoder.class_features(["a cat"], "{}.", unit=False)
  padded = torch.zeros(1, clip.positions, dtype=torch.long)
  padded[0, : len(rows[0])] = torch.tensor(rows[0])
  with torch.no_grad():
    expected = model.encode_text(padded).numpy()
  assert_close(found, expected, 1e-5)
  with pytest.raises(InputError, match="clip.image_tower"):
    encoder.image_features(np.zeros((1, 8, 8, 3), np.uint8))


def test_names_of_open_clip(tmp_path):
  named = named_clip("open_clip:ViT-H-14-378-quickgelu/dfn5b")
  assert named.source == "apple/DFN5B-CLIP-ViT-H-14-378" and named.settings
  assert named.settings["model_cfg"]["quick_gelu"]
  # The tag decides: these weights were trained with QuickGELU.
  assert named_clip("open_clip:ViT-L-14/metaclip_fullcc").settings["model_cfg"][
    "quick_gelu"
  ]
  assert named_clip("hf-hub:timm/ViT-B-16-SigLIP").source == "timm/ViT-B-16-SigLIP"
  assert named_clip(f"open_clip:ViT-B-32/openai:{tmp_path}").source == str(tmp_path)
  with pytest.raises(InputError, match="dfn5b"):
    named_clip("open_clip:ViT-H-14-378-quickgelu/none")
  for model, row in tables().items():
    assert row["model_cfg"] == open_clip.get_model_config(model)
    for tag, facts in row["tags"].items():
      published = open_clip.get_pretrained_cfg(model, tag)
      assert facts["hub"] == published["hf_hub"]
      for key in ("mean", "std", "interpolation", "resize_mode"):
        if key in facts:
          expected = published[key]
          assert facts[key] == (
            list(expected) if isinstance(expected, tuple) else expected
          )


def test_the_page_of_open_clips_table():
  text = page()
  assert (ROOT / "docs/reference/clips.md").read_text() == text, (
    "docs.generators.clips_page > docs/reference/clips.md"
  )
  assert "20 of the best 20, 47 of the best 50, 110 of all 121" in text
  refused = text.partition("**Not read**")[2].partition("**Activation.**")[0]
  for model, row in tables().items():
    assert (f"`{model}`" in refused) == bool(unread(row["model_cfg"])), model
  assert "`MobileCLIP-S1`" in refused and "`ViTamin-S`" in refused and "i18n" in refused
