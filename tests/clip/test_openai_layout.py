"""OpenAI's and open_clip's checkpoints against open_clip's own models, file by file."""

import json
import re
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
import pytest
import safetensors.torch
import torch

from pomp_jax.clip import weights
from pomp_jax.clip.architecture import ClipError, parameter_shapes
from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.clip.openai_layout import LAYOUT, read_config
from pomp_jax.clip.text import text_tower
from pomp_jax.clip.vision import image_tower
from pomp_jax.clip.weights import Files, Weights, check_weights
from tests.support.checks import assert_close
from tests.support.clips import PLAIN_TOWER, encode_texts, error_of
from tests.support.openai_clip import (
  RESNET,
  TEXTS,
  VIT,
  small_open_clip,
  torch_image_features,
  torch_text_features,
  write_merges,
  write_settings,
)


@pytest.fixture
def folder(tmp_path):
  """A folder with the tokenizer's merges."""
  write_merges(tmp_path)
  return tmp_path


def _images(size):
  return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def _assert_equal(clip: Clip, model, towers=("shared",)):
  images = _images(clip.image_size)
  found = jax.jit(image_tower(clip))(clip.vision_params, images)
  assert_close(found, torch_image_features(model, images, clip.mean, clip.std))
  rows = clip.tokenizer(TEXTS)["input_ids"]
  expected = torch_text_features(model, rows)
  for tower in towers:
    found = encode_texts(clip, TEXTS, text_tower(tower, clip.config.text_config))
    assert_close(found, expected)
  assert clip.logit_scale == pytest.approx(
    float(model.logit_scale.detach().exp()), rel=1e-6
  )


def _save(model, path):
  """Of a model, or of a state dict."""
  state = model if isinstance(model, dict) else model.state_dict()
  state = {name: tensor.contiguous() for name, tensor in state.items()}
  if path.suffix == ".safetensors":
    safetensors.torch.save_file(state, path)
  else:
    torch.save(state, path)
  return path


def _assert_same_weights(clip: Clip, model, folder):
  """As those of the model's safetensors file, which the first test holds against its
  features."""
  expected = load_clip(str(_save(model, folder / "expected.safetensors")))
  assert jax.tree.structure(clip.params) == jax.tree.structure(expected.params)
  jax.tree.map(np.testing.assert_array_equal, clip.params, expected.params)
  assert {leaf.dtype for leaf in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_file_has_the_features_of_open_clips_model(folder, vision, caplog):
  model = small_open_clip(vision)
  path = _save(model, folder / "clip.safetensors")
  with caplog.at_level("WARNING"):
    clip = load_clip(str(path))
  assert "quick_gelu ASSUMED" in caplog.text
  assert clip.name == str(path)
  _assert_equal(clip, model, {PLAIN_TOWER, "shared"})
  for name in ("clip.pt", "clip.bin"):
    _assert_same_weights(load_clip(str(_save(model, folder / name))), model, folder)


@pytest.mark.parametrize(
  "vision, quick_gelu",
  [(VIT | {"head_width": 32}, False), (RESNET, True)],
  ids=["vit", "resnet"],
)
def test_a_folder_of_open_clips(folder, vision, quick_gelu, caplog):
  """Activation, heads and channel statistics are those of open_clip_config.json."""
  model = small_open_clip(vision, quick_gelu)
  write_settings(folder, vision, quick_gelu)
  names = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
  path = _save(model, folder / names[quick_gelu])
  with caplog.at_level("INFO"):
    clip = load_clip(str(folder))
  assert (
    f"{'quick_gelu' if quick_gelu else 'gelu'} by open_clip_config.json" in caplog.text
  )
  assert clip.mean == (0.4, 0.5, 0.6)
  _assert_equal(clip, model)
  assert load_clip(str(path)).settings == clip.settings


def test_the_activation_asked_for_overrules(folder, caplog):
  model = small_open_clip(VIT, quick_gelu=False)
  path = _save(model, folder / "clip.pt")
  with caplog.at_level("INFO"):
    clip = load_clip(str(path), activation="gelu")
  assert "gelu by config.clip.activation" in caplog.text
  _assert_equal(clip, model)
  assert clip.settings != load_clip(str(path)).settings


def test_a_training_checkpoint_of_open_clips(folder):
  model = small_open_clip(VIT, quick_gelu=False)
  write_settings(folder, VIT, quick_gelu=False)
  optimizer = torch.optim.AdamW(model.parameters())
  state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
  path = folder / "epoch_5.pt"
  torch.save(
    {"epoch": 5, "state_dict": state, "optimizer": optimizer.state_dict()}, path
  )
  _assert_same_weights(load_clip(str(path)), model, folder)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_torchscript_archive_is_read_without_its_code(folder, vision):
  """As OpenAI's own files are: the module traced, stored in float16, its sizes as
  buffers."""
  model = small_open_clip(vision).half().float()
  size = vision["image_size"]
  for name, value in {
    "input_resolution": size,
    "context_length": 32,
    "vocab_size": 524,
  }.items():
    delattr(model, name) if hasattr(model, name) else None
    model.register_buffer(name, torch.tensor(value))
  inputs = (torch.zeros(1, 3, size, size), torch.zeros(1, 32, dtype=torch.int64))
  traced = torch.jit.trace(model, inputs, check_trace=False).half()
  torch.jit.save(traced, folder / "ViT.pt")
  clip = load_clip(str(folder / "ViT.pt"))
  _assert_same_weights(clip, model, folder)
  assert clip.config.notes == ("quick_gelu, as in all of OpenAI's own checkpoints",)


@pytest.mark.parametrize(
  "name",
  [
    "RN50",
    "RN50x64",
    "ViT-B-32",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-g-14",
    "ViT-bigG-14",
    "ViT-e-14",
  ],
)
def test_names_and_shapes_of_the_true_sizes(name):
  """From open_clip's own settings of them; no weight is allocated."""
  settings = open_clip.get_model_config(name)
  vision, text = (
    CLIPVisionCfg(**settings["vision_cfg"]),
    CLIPTextCfg(**settings["text_cfg"]),
  )
  with torch.device("meta"):
    model = open_clip.CLIP(settings["embed_dim"], vision, text)
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  files = mock.Mock(spec=Files, **{"json.return_value": None})
  meta = Weights(name, shapes, np.zeros)
  config = read_config(files, meta, "auto", True)
  check_weights(shapes, parameter_shapes(config), LAYOUT, name)
  assert config.text_config.num_attention_heads == text.heads
  assert config.vision_config.image_size == vision.image_size
  heads = (
    vision.width * 32 if name.startswith("RN") else vision.width
  ) // vision.head_width
  assert config.vision_config.num_attention_heads == heads
  assert config.text_config.hidden_act == (
    "gelu" if name.startswith(("ViT-H", "ViT-g", "ViT-bigG", "ViT-e")) else "quick_gelu"
  )
  # Their settings and ours contradict each other nowhere.
  files.json.return_value = {"model_cfg": settings}
  assert read_config(files, meta, "auto", True).text_config.hidden_act == "gelu"


def test_a_resnet_in_bfloat16_is_within_its_error_of_float32(folder):
  clip = load_clip(str(_save(small_open_clip(RESNET), folder / "clip.pt")))
  images = _images(64)
  exact = jax.jit(image_tower(clip))(clip.vision_params, images)
  rounded = jax.jit(image_tower(clip, jnp.bfloat16))(clip.vision_params, images)
  assert rounded.dtype == jnp.float32
  assert_close(rounded, exact, 0.05)


@pytest.fixture(params=[VIT, RESNET], ids=["vit", "resnet"])
def vision(request):
  return request.param


@pytest.fixture
def state(vision):
  return small_open_clip(vision).state_dict()


def test_a_model_that_is_no_clip(folder):
  expected = "no token_embedding.weight, expected a CLIP in OpenAI's or open_clip's layout (found "
  path = _save(torch.nn.Linear(3, 2).state_dict(), folder / "clip.safetensors")
  assert f"{expected}2 tensors" in error_of(path)


_KEY = "transformer.resblocks.1.attn.in_proj_weight"


@pytest.mark.parametrize(
  "key, change, found",
  [
    ("ln_final.bias", None, "ln_final.bias is missing"),
    (
      _KEY,
      lambda tensor: tensor[:128].clone(),
      f"{_KEY}: got shape [128, 64], expected [192, 64]",
    ),
    (
      "token_embedding.weight",
      lambda _: torch.zeros(524),
      "got shape [524], expected 2 axes",
    ),
    ("visual.positional_embedding", lambda _: torch.zeros(16, 128), "got 16 rows"),
  ],
)
def test_tensors_that_are_missing_too_many_or_of_another_shape(
  folder, key, change, found
):
  state = small_open_clip(VIT).state_dict()
  old = state.pop(key, None)
  if change:
    state[key] = change(old)
  message = error_of(_save(state, folder / "clip.safetensors"))
  assert key in message and found in message


@pytest.mark.parametrize(
  "changes, found",
  [
    ({"model_cfg__embed_dim": 32}, "model_cfg.embed_dim: got 32, expected 24"),
    ({"text_cfg__layers": 12}, "text_cfg.layers: got 12, expected 2"),
    ({"text_cfg__heads": "1"}, "text_cfg.heads: got '1'"),
    ({"vision_cfg__image_size": 224}, "vision_cfg.image_size: got 224"),
    ({"vision_cfg__head_width": 48}, "expected a multiple of its heads' width 48"),
    ({"vision_cfg__timm_model_name": "vit"}, "its image tower is timm's vit"),
    ({"text_cfg__pool_type": "last"}, "text_cfg.pool_type: got 'last'"),
    ({"model_cfg__vision_cfg": None}, "no vision_cfg"),
  ],
)
def test_settings_that_contradict_the_weights_or_are_unknown(
  folder, vision, state, changes, found
):
  write_settings(folder, vision, quick_gelu=True, **changes)
  assert found in error_of(_save(state, folder / "clip.safetensors"))


@pytest.mark.parametrize(
  "changes", [None, {"model_cfg": 3}, {"preprocess_cfg": {"mean": [0.5]}}]
)
def test_settings_that_are_none(folder, changes):
  """Cut off, of another type, and with channel statistics that are none."""
  write_settings(folder, VIT, quick_gelu=True)
  file = folder / "open_clip_config.json"
  file.write_text(
    json.dumps(json.loads(file.read_text()) | changes) if changes else "{"
  )
  found = ": not a preprocessor" if "preprocess_cfg" in (changes or ()) else ""
  with pytest.raises(ClipError, match=f"open_clip_config.json{found}"):
    load_clip(str(_save(small_open_clip(VIT), folder / "clip.pt")))


def test_weights_of_another_vocabulary(folder, state):
  (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
  path = _save(state, folder / "clip.safetensors")
  with pytest.raises(ClipError, match="merges.txt: .* 515 tokens, expected 524"):
    load_clip(str(path))


@pytest.mark.parametrize(
  ("name", "reason", "text_is_read"),
  [
    ("coca_ViT-B-32/laion2b_s13b_b90k", "CoCa", False),
    ("roberta-ViT-B-32/laion2b_s12b_b32k", "roberta-base", False),
    ("MobileCLIP-S1/datacompdr", "fastvit_mci1 and its text tower", False),
    ("MobileCLIP-B/datacompdr", "vit_base_mci_224", True),
    ("ViTamin-B/datacomp1b", "vitamin_base_224", True),
    ("ViT-SO400M-16-SigLIP-i18n-256/webli", "no projection", False),
  ],
)
def test_open_clips_other_models_are_refused_before_a_download(
  name, reason, text_is_read, folder, monkeypatch
):
  for name_of_client in ("HfApi", "hf_hub_download"):
    monkeypatch.setattr(
      weights, name_of_client, lambda *_, **__: pytest.fail("asked the hub")
    )
  message = error_of(f"open_clip:{name}")
  assert reason in message and len(message) < 300
  # No table of settings, and no list of towers.
  assert not re.search(r"[{}\[\]]|eva02", message)
  assert ("clip.image_tower=False" in message) == text_is_read
  # Beside weights of one's own too.
  settings = open_clip.get_model_config(name.partition("/")[0])
  (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
  _save(small_open_clip(VIT).state_dict(), folder / "open_clip_model.safetensors")
  assert reason in error_of(folder)


def test_another_model_in_huggingfaces_layout_is_refused_before_a_download(
  tmp_path, monkeypatch
):
  file = tmp_path / "config.json"
  file.write_text(json.dumps({"model_type": "siglip"}))
  downloads = []

  class Hub:
    def model_info(self, repository, timeout):
      names = ("config.json", "model.safetensors")
      return SimpleNamespace(
        siblings=[SimpleNamespace(rfilename=name) for name in names]
      )

  def download(repository, name, local_files_only):
    downloads.append(name)
    return str(file)

  monkeypatch.setattr(weights, "HfApi", Hub)
  monkeypatch.setattr(weights, "hf_hub_download", download)
  assert "model_type: got 'siglip'" in error_of("google/siglip-base")
  assert set(downloads) == {"config.json"}
