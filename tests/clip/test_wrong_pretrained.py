"""Files in OpenAI's layout that are of another architecture, damaged or at odds with themselves."""

import json

import open_clip
import pytest
import safetensors.torch
import torch

from pomp_jax.clip import ClipError, load_clip
from tests.support.clips import error_of
from tests.support.openai_clip import RESNET, VIT, small_open_clip, write_merges, write_settings


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=["vit", "resnet"])
def vision(request):
  return request.param


@pytest.fixture(scope="module")
def state(vision):
  return {
    name: tensor.contiguous() for name, tensor in small_open_clip(vision).state_dict().items()
  }


@pytest.fixture
def folder(tmp_path):
  write_merges(tmp_path)
  return tmp_path


def _saved(folder, state):
  path = folder / "clip.safetensors"
  safetensors.torch.save_file(state, path)
  return path


def test_a_model_that_is_no_clip(folder, state):
  expected = "no token_embedding.weight, expected a CLIP in OpenAI's or open_clip's layout (found "
  path = _saved(folder, torch.nn.Linear(3, 2).state_dict())
  assert f"{expected}2 tensors" in error_of(path)
  # CoCa and SigLIP have their text tower's names behind a prefix.
  coca = {name if name.startswith("visual.") else f"text.{name}": state[name] for name in state}
  assert expected in error_of(_saved(folder, coca))


_KEY = "transformer.resblocks.1.attn.in_proj_weight"


@pytest.mark.parametrize(
  "key, change, found",
  [
    ("ln_final.bias", None, "ln_final.bias is missing"),
    # SigLIP's loss has this one.
    ("logit_bias", lambda _: torch.zeros(()), "logit_bias is unexpected"),
    (_KEY, lambda tensor: tensor[:128].clone(), f"{_KEY}: got shape [128, 64], expected [192, 64]"),
    ("token_embedding.weight", lambda _: torch.zeros(524), "got shape [524], expected 2 axes"),
  ],
)
def test_tensors_that_are_missing_too_many_or_of_another_shape(folder, state, key, change, found):
  state = dict(state)
  old = state.pop(key, None)
  if change:
    state[key] = change(old)
  message = error_of(_saved(folder, state))
  assert key in message and found in message


def test_a_vit_whose_patches_are_no_square(folder):
  state = small_open_clip(VIT).state_dict()
  path = _saved(folder, state | {"visual.positional_embedding": torch.zeros(16, 128)})
  assert "visual.positional_embedding: got 16 rows" in error_of(path)


@pytest.mark.parametrize(
  "changes, found",
  [
    ({"model_cfg__embed_dim": 32}, "model_cfg.embed_dim: got 32, expected 24"),
    ({"text_cfg__layers": 12}, "text_cfg.layers: got 12, expected 2"),
    ({"text_cfg__heads": 3}, "text_cfg.heads: got 3"),
    ({"text_cfg__heads": "1"}, "text_cfg.heads: got '1'"),
    ({"vision_cfg__image_size": 224}, "vision_cfg.image_size: got 224"),
    ({"vision_cfg__head_width": 48}, "expected a multiple of its heads' width 48"),
    ({"vision_cfg__timm_model_name": "vit"}, "vision_cfg.timm_model_name: got 'vit'"),
    ({"text_cfg__hf_model_name": "bert"}, "text_cfg.hf_model_name: got 'bert'"),
    ({"text_cfg__pool_type": "last"}, "text_cfg.pool_type: got 'last'"),
    ({"model_cfg__vision_cfg": None}, "no vision_cfg"),
  ],
)
def test_settings_that_the_weights_contradict_or_nobody_here_does(
  folder, vision, state, changes, found
):
  write_settings(folder, vision, quick_gelu=True, **changes)
  assert found in error_of(_saved(folder, state))


@pytest.mark.parametrize(
  "text",
  ["", "{", "[]", '"x"', '{"model_cfg": 3}'],
)
def test_settings_that_are_none(folder, state, text):
  (folder / "open_clip_config.json").write_text(text)
  with pytest.raises(ClipError, match="open_clip_config.json"):
    load_clip(str(_saved(folder, state)))


def test_channel_statistics_that_are_none(folder):
  write_settings(folder, VIT, quick_gelu=True)
  file = folder / "open_clip_config.json"
  settings = json.loads(file.read_text()) | {"preprocess_cfg": {"mean": [0.5]}}
  file.write_text(json.dumps(settings))
  with pytest.raises(ClipError, match="open_clip_config.json: not a preprocessor"):
    load_clip(str(_saved(folder, small_open_clip(VIT).state_dict())))


def test_weights_of_another_vocabulary(folder, state):
  (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
  path = _saved(folder, state)
  with pytest.raises(ClipError, match="merges.txt: .* 515 tokens, expected 524"):
    load_clip(str(path))


@pytest.mark.parametrize(
  "name", ["coca_ViT-B-32", "ViT-B-16-SigLIP", "convnext_base", "EVA02-B-16"]
)
def test_open_clips_other_models_are_refused_by_their_settings(folder, state, name):
  settings = open_clip.get_model_config(name)
  (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
  assert "expected a CLIP without it" in error_of(_saved(folder, state))
