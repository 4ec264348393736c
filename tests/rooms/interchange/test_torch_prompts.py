"""Prompts in torch checkpoints: the published layouts, and our strings."""

import collections
import sys

import numpy as np
import pytest
import torch

from pomp_jax.files.prompt_file import (
  Prompt,
  PromptFileError,
  is_prompt_file,
  load_prompt,
  save_prompt,
)
from tests.support.prompt_files import CONTEXT, refusal


def publish(path, ctx):
  """A checkpoint as CoOp's trainer leaves it, with a whole scheduler, which torch
  alone refuses."""
  state = collections.OrderedDict(
    ctx=ctx,
    token_prefix=torch.zeros(3, 1, 8).half(),
    token_suffix=torch.zeros(3, 72, 8).half(),
  )
  optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
  # A warm-up keeps its successor in its state.
  successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
  states = {"optimizer": optimizer.state_dict(), "scheduler": {"successor": successor}}
  torch.save({"state_dict": state, "epoch": 5, "val_result": None, **states}, path)
  return path


@pytest.mark.parametrize("name", ["model.pth.tar-5", "no_suffix"])
def test_a_published_prompt_without_torch(tmp_path, name, monkeypatch):
  path = publish(tmp_path / name, torch.tensor(CONTEXT))
  monkeypatch.setitem(sys.modules, "torch", None)  # to import it is an ImportError now
  prompt = load_prompt(path)
  np.testing.assert_array_equal(prompt.context, CONTEXT, strict=True)
  assert (prompt.clip_model, prompt.position) == ("unknown", "end")
  assert prompt.config == {}
  with pytest.raises(PromptFileError, match=r"pip install 'pomp-jax\[torch\]'"):
    save_prompt(tmp_path / "a.pth", prompt)
  assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
  ("place", "key"),
  [
    ("model", "clip_adapter.prompt_learner.ctx"),
    ("model", "clip_adapter.prompt_learner.prefix_prompt"),
    ("state_dict", "prompt_learner.ctx"),
    ("state_dict", "module.prompt_learner.ctx"),
    ("", "prompt_learner.ctx"),
  ],
)
def test_the_prompt_of_a_whole_model(tmp_path, place, key):
  """As detectron2 saves POMP's and ZSSeg's models, or forks of CoOp theirs."""
  model = {
    "backbone.weight": torch.ones(2, 3),
    key: torch.tensor(CONTEXT),
    f"{key}.start_signal": torch.zeros(1, 8).half(),
  }
  path = tmp_path / "model_final.pth"
  whole = {place: collections.OrderedDict(model), "iteration": 59_999}
  torch.save(whole if place else model, path)
  stored = load_prompt(path)
  np.testing.assert_array_equal(stored.context, CONTEXT)
  assert (stored.clip_model, stored.position) == ("unknown", "end")
  for wrong, part in (
    ({key: 3}, f"{place}['{key}'] is a int"),
    ({"ctx": 3}, "one context"),
  ):
    model |= wrong
    torch.save({place: model} if place else model, path)
    assert part in refusal(path)


def test_the_folder_of_a_dassl_trainer(tmp_path):
  """OUTPUT or its prompt_learner: the best, else what `checkpoint` names, else the
  newest."""
  folder = tmp_path / "prompt_learner"
  folder.mkdir()
  for epoch in (5, 10, 50):
    publish(folder / f"model.pth.tar-{epoch}", torch.full((4, 8), float(epoch)))
  read = lambda path: load_prompt(path).context[0, 0]
  assert is_prompt_file(tmp_path) and read(tmp_path) == read(folder) == 50
  for name, epoch in {"model.pth.tar-10": 10, "../../model.pth.tar-5": 50}.items():
    (folder / "checkpoint").write_text(f"{name}\n")
    assert read(tmp_path) == read(folder) == epoch
  publish(folder / "model-best.pth.tar", torch.full((4, 8), 7.0))
  assert read(tmp_path) == 7
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "a/clip"))
  np.testing.assert_array_equal(load_prompt(tmp_path).context, CONTEXT)


def test_the_published_code_can_load_it(tmp_path):
  class PromptLearner(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.ctx = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.float16))
      self.register_buffer("token_prefix", torch.ones(3, 1, 8))

  path = tmp_path / "model.pth.tar-5"
  save_prompt(path, Prompt(CONTEXT, "a/clip", config={"epochs": 5}))
  checkpoint = torch.load(path, weights_only=True)
  learner = PromptLearner()
  done = learner.load_state_dict(checkpoint["state_dict"], strict=False)
  assert (done.missing_keys, done.unexpected_keys) == (["token_prefix"], [])
  assert checkpoint["epoch"] == 5
  np.testing.assert_array_equal(
    learner.ctx.detach().numpy(), CONTEXT.astype(np.float16)
  )


CHECKPOINT = {"state_dict": {"ctx": torch.tensor(CONTEXT)}}


@pytest.mark.parametrize(
  ("value", "parts"),
  [
    ([1], ["the checkpoint is a list", "'state_dict'"]),
    (
      {"model": {}, "epoch": 1},
      ["the checkpoint['state_dict'] is missing", "epoch, model"],
    ),
    (
      {
        "model": {
          f"a.prompt_learner.{k}_prompt": torch.ones(4, 8) for k in ("prefix", "suffix")
        }
      },
      ["model['a.prompt_learner.suffix_prompt'] is present"],
    ),
    (
      {"state_dict": {"token_prefix": torch.zeros(2)}},
      ["['ctx'] is missing", "token_prefix"],
    ),
    (
      {"state_dict": {"ctx": "a photo of a"}},
      ["state_dict['ctx'] is a str", "[N, M, D]"],
    ),
    ({"state_dict": {"ctx": torch.zeros(4, 8).long()}}, ["is int64 [4, 8]", "float"]),
    (
      {"state_dict": {"ctx": torch.full((4, 8), 1e300, dtype=torch.float64)}},
      ["not finite"],
    ),
    ({**CHECKPOINT, "pomp_jax": 3}, ["pomp_jax is a int"]),
    ({**CHECKPOINT, "pomp_jax": {}}, ["format_version is missing"]),
  ],
)
def test_a_bad_checkpoint_is_refused_by_field(tmp_path, value, parts):
  path = tmp_path / "a.pth.tar"
  torch.save(value, path)
  assert path.stat().st_size < 4096
  message = refusal(path)
  assert all(part in message for part in parts), message
