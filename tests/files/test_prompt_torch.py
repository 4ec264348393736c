"""Prompts in torch checkpoints: the published layout, and our own strings in it."""

import collections
import re
import sys

import numpy as np
import pytest
import torch

from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from tests.support.fuzzing import Malicious

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 8)).astype(np.float32)


def publish(path, ctx, **more):
  """A checkpoint as CoOp's trainer leaves it."""
  state = collections.OrderedDict(
    ctx=ctx, token_prefix=torch.zeros(3, 1, 8).half(), token_suffix=torch.zeros(3, 72, 8).half()
  )
  torch.save({"state_dict": state, "epoch": 5, "optimizer": None, "val_result": None} | more, path)
  return path


def refusal(path):
  with pytest.raises(PromptFileError) as caught:
    load_prompt(path)
  message = str(caught.value)
  assert "\n" not in message
  assert message.startswith(f"{path}: ")
  return message


@pytest.mark.parametrize("name", ["model.pth.tar-5", "no_suffix"])
def test_a_published_prompt(tmp_path, name):
  prompt = load_prompt(publish(tmp_path / name, torch.tensor(CONTEXT)))
  np.testing.assert_array_equal(prompt.context, CONTEXT)
  assert prompt.context.dtype == np.float32
  assert (prompt.clip_model, prompt.position, prompt.template) == ("unknown", "end", "{}.")
  assert prompt.config == {}


@pytest.mark.parametrize("name", ["ctx", "prefix_prompt"])
def test_the_prompt_of_a_segmentation_model(tmp_path, name):
  """A checkpoint as detectron2 saves POMP's and ZSSeg's models, with optimizer and scheduler."""
  backbone = torch.nn.Linear(3, 2)
  prompt = torch.nn.Module()
  setattr(prompt, name, torch.nn.Parameter(torch.tensor(CONTEXT)))
  prompt.register_buffer("start_signal", torch.zeros(1, 8).half())
  adapter = torch.nn.Module()
  adapter.prompt_learner = prompt
  model = torch.nn.ModuleDict({"backbone": backbone, "clip_adapter": adapter})
  optimizer = torch.optim.AdamW(model.parameters())
  (backbone(torch.ones(1, 3)).sum() + getattr(prompt, name).sum() * 0).backward()
  optimizer.step()
  scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer)
  before = getattr(prompt, name).detach().numpy().copy()
  path = tmp_path / "model_final.pth"
  state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
  torch.save({"model": model.state_dict(), "iteration": 59_999, **state}, path)
  stored = load_prompt(path)
  np.testing.assert_array_equal(stored.context, before)
  assert (stored.clip_model, stored.position, stored.template) == ("unknown", "end", "{}.")
  key = f"clip_adapter.prompt_learner.{name}"
  torch.save({"model": model.state_dict() | {key: 3}}, path)
  assert f"model['{key}'] is a int" in refusal(path)


def test_vectors_after_the_name_are_refused(tmp_path):
  names = [f"clip_adapter.prompt_learner.{part}_prompt" for part in ("prefix", "suffix")]
  torch.save({"model": dict.fromkeys(names, torch.tensor(CONTEXT))}, tmp_path / "a.pth")
  assert f"model['{names[1]}'] is present" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 8), (3, 4, 8)])
def test_any_float_type_and_any_strides(tmp_path, dtype, shape):
  generator = torch.Generator().manual_seed(1)
  axes = range(len(shape))[::-1]
  ctx = torch.randn(shape[::-1], generator=generator).to(dtype).permute(*axes)
  assert tuple(ctx.shape) == shape and not ctx.is_contiguous()
  prompt = load_prompt(publish(tmp_path / "model.pth.tar-5", torch.nn.Parameter(ctx)))
  np.testing.assert_array_equal(prompt.context, ctx.float().numpy())
  assert prompt.context.flags.c_contiguous and prompt.context.flags.writeable


def test_the_published_code_can_load_it(tmp_path):
  """As CoOp does: into a module with the buffers, not strictly."""

  class PromptLearner(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.ctx = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.float16))
      self.register_buffer("token_prefix", torch.ones(3, 1, 8))

  save_prompt(tmp_path / "model.pth.tar-5", Prompt(CONTEXT, "a/clip", config={"epochs": 5}))
  checkpoint = torch.load(tmp_path / "model.pth.tar-5", weights_only=True)
  learner = PromptLearner()
  done = learner.load_state_dict(checkpoint["state_dict"], strict=False)
  assert (done.missing_keys, done.unexpected_keys) == (["token_prefix"], [])
  assert checkpoint["epoch"] == 5
  np.testing.assert_array_equal(learner.ctx.detach().numpy(), CONTEXT.astype(np.float16))


@pytest.mark.parametrize(
  ("value", "parts"),
  [
    ([1], ["the checkpoint is a list", "'state_dict'"]),
    (torch.zeros(2), ["the checkpoint is a StoredTensor"]),
    ({"model": {}, "epoch": 1}, ["the checkpoint['state_dict'] is missing", "epoch, model"]),
    ({"state_dict": 3}, ["state_dict is a int"]),
    ({"state_dict": {"token_prefix": torch.zeros(2)}}, ["['ctx'] is missing", "token_prefix"]),
    ({"state_dict": {"ctx": "a photo of a"}}, ["state_dict['ctx'] is a str", "[N, M, D]"]),
    ({"state_dict": {"ctx": np.zeros((4, 8))}}, ["state_dict['ctx'] is an object numpy"]),
    ({"state_dict": {"ctx": torch.zeros(8)}}, ["context is float32 [8]"]),
    ({"state_dict": {"ctx": torch.zeros(1, 2, 3, 4)}}, ["context is float32 [1, 2, 3, 4]"]),
    ({"state_dict": {"ctx": torch.zeros(4, 8).long()}}, ["is int64 [4, 8]", "float"]),
    ({"state_dict": {"ctx": torch.zeros(4, 8).cfloat()}}, ["of type ComplexFloatStorage"]),
    ({"state_dict": {"ctx": torch.full((4, 8), torch.nan)}}, ["not finite in 32 of 32"]),
    ({"state_dict": {"ctx": torch.full((4, 8), 1e300, dtype=torch.float64)}}, ["not finite in 32"]),
    ({"state_dict": {"ctx": torch.zeros(0, 8)}}, ["context is float32 [0, 8]"]),
  ],
)
def test_a_bad_checkpoint_is_refused_by_field(tmp_path, value, parts):
  torch.save(value, tmp_path / "a.pth.tar")
  message = refusal(tmp_path / "a.pth.tar")
  for part in parts:
    assert part in message


@pytest.mark.parametrize(
  ("ours", "part"),
  [
    (3, "pomp_jax is a int"),
    ({}, "format_version is missing"),
    ({"format_version": "1"}, "format_version is '1'"),
    ({"format_version": 2}, "format_version is 2; accepted: 1"),
    ({"position": 1}, "position is a int"),
    ({"position": "left"}, "position is 'left'"),
    ({"config": "[1]"}, "config is a list"),
    ({"config": "{"}, "config is not JSON"),
  ],
)
def test_bad_strings_of_ours(tmp_path, ours, part):
  good = {"clip_model": "a", "position": "end", "template": "{}.", "config": "{}"}
  if isinstance(ours, dict) and ours:
    ours = good | {"format_version": 1} | ours
  publish(tmp_path / "a.pth", torch.tensor(CONTEXT), pomp_jax=ours)
  assert part in refusal(tmp_path / "a.pth")


def test_the_old_format_is_refused_in_words(tmp_path):
  path = tmp_path / "a.pth.tar"
  torch.save(
    {"state_dict": {"ctx": torch.tensor(CONTEXT)}}, path, _use_new_zipfile_serialization=False
  )
  assert "torch's old format" in refusal(path)


def test_nothing_is_run(tmp_path):
  trace = tmp_path / "trace"
  path = publish(tmp_path / "a.pth.tar", torch.tensor(CONTEXT), hook=Malicious(trace))
  assert re.search(r"refused for the name _?io\.open", refusal(path))
  assert not trace.exists()


def test_a_huge_claim_takes_no_memory(tmp_path):
  """A view of 2^40 rows, all of them the same 8 numbers."""
  claim = torch.zeros(8).expand(2**40, 8)
  torch.save({"state_dict": {"ctx": claim}}, tmp_path / "a.pth")
  assert f"state_dict['ctx'] is of shape [{2**40}, 8]" in refusal(tmp_path / "a.pth")


def test_torch_is_not_needed(tmp_path, monkeypatch):
  path = publish(tmp_path / "model.pth.tar-5", torch.tensor(CONTEXT))
  monkeypatch.setitem(sys.modules, "torch", None)  # to import it is an ImportError now
  prompt = load_prompt(path)
  save_prompt(tmp_path / "a.pth", prompt)
  np.testing.assert_array_equal(load_prompt(tmp_path / "a.pth").context, CONTEXT)
