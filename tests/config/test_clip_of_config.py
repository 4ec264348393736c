"""The CLIP that configs of finished prompts choose: the prompt's own, else the published ones'."""

import dataclasses

import numpy as np
import pytest

from pomp_jax.config import unpack
from pomp_jax.configs import evaluate, export, predict
from pomp_jax.files.prompt_file import UNKNOWN_CLIP, Prompt, PromptFileError, save_prompt

VIT_B16 = "openai/clip-vit-base-patch16"
PROMPT = Prompt(np.full((4, 8), 0.5, np.float32), "laion/some-clip")


def clip_of(module, argument):
  return unpack(module.get_config(argument)).clip.model


@pytest.mark.parametrize("module", [predict, export])
def test_a_prompt_behind_the_colon_brings_its_clip(module, tmp_path):
  files = tmp_path
  (files / "run").mkdir()
  save_prompt(files / "run/prompt.npz", PROMPT)
  save_prompt(files / "model.pth.tar", dataclasses.replace(PROMPT, clip_model=UNKNOWN_CLIP))
  (files / "bad.npz").write_bytes(b"PK")
  for argument, expected in (
    (f"prompt={files}/run/prompt.npz", "laion/some-clip"),
    (f"prompt={files}/run", "laion/some-clip"),
    (f"prompt={files}/run,clip=world", "world"),
    (f"clip=world,prompt={files}/model.pth.tar", "world"),
    (f"prompt={files}/model.pth.tar", VIT_B16),
    ("prompt=a {}.", VIT_B16),
    ("", VIT_B16),
  ):
    assert clip_of(module, argument) == expected
  with pytest.raises(PromptFileError, match=r"bad\.npz"):
    module.get_config(f"prompt={files}/bad.npz")


def test_suites_of_photographs_are_evaluated_on_the_published_clip():
  assert clip_of(evaluate, "suite=fourteen,root=DATA") == VIT_B16
  assert clip_of(evaluate, "suite=fourteen,root=DATA,clip=world") == "world"
  assert clip_of(evaluate, "suite=world") == clip_of(evaluate, "") == "world"
  assert clip_of(evaluate, "sets_file=sets.toml,clip=laion/some-clip") == "laion/some-clip"
