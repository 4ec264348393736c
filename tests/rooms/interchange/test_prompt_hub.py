"""Prompts on the hub, against a hub on the loopback interface and the library's own
client."""

import json
import pathlib
import socket

import huggingface_hub
from huggingface_hub import constants
import numpy as np
import pytest
import yaml

from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from pomp_jax.rooms.interchange.prompt_hub import (
  HubError,
  HubWriteError,
  parse,
  push_prompt,
  results_of,
)
from tests.support.hub import TOKEN, point_at
from tests.support.prompt_files import CONTEXT

CONFIG = {
  "data": {
    "source": "folder",
    "dataset": "",
    "root": "/home/someone/pictures",
    "shots": 16,
  },
  "eval": {"template": "a photo of a {}."},
  "k": 64,
  "margin": 0.5,
  "seed": 1,
  "evaluate": {
    "own_sets": ["gs://bucket/folder/set", "0.5*/home/me/a + 0.5*b", {"root": "~/x"}]
  },
}
PROMPT = Prompt(CONTEXT, "openai/clip-vit-base-patch16", "middle", config=CONFIG)
COMMAND = (
  "python -m pomp_jax.main --config=configs/own.py:root=/home/someone/pictures,k=64"
)
RESULTS = {
  "job": "pretrain",
  "provenance": {"command": f"{COMMAND} --workdir=gs://bucket/runs/a"},
  "eval_images": {"base": 500, "novel": 300},
  "eval_classes": {"base": 20, "novel": 10},
  "eval": {
    "base": {"prompt": {"top1": 0.7435}, "hand_written": {"top1": 0.7}},
    "novel": {"prompt": {"top1": 0.512}, "class_name": {"top1": 0.4}},
  },
}


def _encoded(
  folder: pathlib.Path, prompt: Prompt = PROMPT, name: str = "prompt.npz"
) -> bytes:
  save_prompt(folder / name, prompt)
  return (folder / name).read_bytes()


def _refused(kind, call, *arguments) -> str:
  with pytest.raises(kind, match=r"^hf:[^\n]*$") as error:
    call(*arguments)
  assert type(error.value) is kind
  return str(error.value)


def test_a_prompt_goes_there_and_back(hub, tmp_path):
  url = push_prompt("hf:me/birds", PROMPT, "mit", RESULTS)
  assert url.startswith(f"{hub.url}/me/birds/commit/")
  assert set(hub.files["me/birds"]) == {"prompt.npz", "README.md"}
  assert len(hub.commits) == 1 and not hub.private
  for name in ("hf:me/birds", "hf:me/birds@main", "hf:me/birds/prompt.npz"):
    back = load_prompt(name)
    np.testing.assert_array_equal(back.context, CONTEXT)
    assert (back.clip_model, back.position) == (PROMPT.clip_model, "middle")
  # Of folders, which belong to the machine, the last name alone.
  assert back.config["data"] == CONFIG["data"] | {"root": "pictures"}
  assert back.config["evaluate"] == {
    "own_sets": ["set", "0.5*a + 0.5*b", {"root": "x"}]
  }
  # A local CLIP is no base model, and its folder is not told.
  push_prompt("hf:me/birds", Prompt(CONTEXT + 1, "/home/some/`|\nclip.pt"), "mit")
  card = hub.files["me/birds"]["README.md"].decode()
  assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
  assert "/home" not in card and "`???clip.pt`" in card and "## Results" not in card


def test_the_card_says_what_was_measured_on_what(hub):
  push_prompt("hf:me/birds", PROMPT, "mit", RESULTS)
  card = hub.files["me/birds"]["README.md"].decode()
  _, metadata, text = card.split("---\n", 2)
  found = yaml.safe_load(metadata)
  assert found["base_model"] == PROMPT.clip_model
  assert "| `base` | 500 | 20 | 74.4 | 70.0 |  |\n" in text
  assert "| `novel` | 300 | 10 | 51.2 |  | 40.0 |\n" in text
  assert "--config=configs/own.py:root=pictures,k=64 --workdir=a\n" in text
  assert "/home" not in card and "bucket" not in card
  assert "fixed margin `0.5`" in text
  # The library's own parser takes it, and the code in it can be compiled.
  assert huggingface_hub.ModelCard(card).data.license == "mit"
  code = text.split("```python\n")[1].split("```")[0]
  compile(code, "card", "exec")
  assert '"openai/clip-vit-base-patch16", "hf:me/birds"' in code


def test_results_are_of_the_run_that_learned_the_prompt(tmp_path):
  path = tmp_path / "prompt.npz"
  assert results_of(path, PROMPT) == {} == results_of("hf:me/birds", PROMPT)
  for config, results, expected in (
    (CONFIG, RESULTS, RESULTS),
    (CONFIG | {"seed": 2}, RESULTS, {}),
    (CONFIG, RESULTS | {"job": "export"}, {}),
  ):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert results_of(path, PROMPT) == expected
    # They are not those of the other checkpoint.
    assert results_of(tmp_path / "prompt_last.npz", PROMPT) == {}


def test_without_a_network_the_cache_serves(hub, tmp_path, monkeypatch):
  hub.files["me/birds"] = {"prompt.npz": _encoded(tmp_path)}
  load_prompt("hf:me/birds")
  hub.down = True
  hub.requests.clear()
  np.testing.assert_array_equal(load_prompt("hf:me/birds").context, CONTEXT)
  assert "503" in _refused(HubError, load_prompt, "hf:me/fish")
  _refused(HubError, push_prompt, "hf:me/birds", PROMPT, "mit")
  # Each asks once: the library alone would retry for many seconds.
  assert len(hub.requests) == 3
  with socket.socket() as taken:  # nobody listens there
    taken.bind(("127.0.0.1", 0))
    point_at(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
  np.testing.assert_array_equal(load_prompt("hf:me/birds").context, CONTEXT)
  for name in ("hf:me/fish", "hf:me/birds/other.npz", "hf:me/birds@v1"):
    assert "not in the cache" in _refused(HubError, load_prompt, name)
  _refused(HubError, push_prompt, "hf:me/birds", PROMPT, "mit")


@pytest.mark.parametrize(
  "name",
  [
    *(
      "hf:",
      "hf:birds",
      "hf://me/birds",
      "hf:me/birds@",
      "hf:me/..",
      "hf:me/birds@../x",
    ),
    *(
      "hf:me/birds/../../x.npz",
      "hf:me/birds/.x.npz",
      "hf:me/birds/model.pth",
      "hf:mé/birds",
    ),
    "hf:me/birds/a\n.npz",
  ],
)
def test_names_that_are_none(hub, name):
  with pytest.raises(HubError, match=r"^hf:[^\n]* expected hf:OWNER/NAME"):
    load_prompt(name)
  assert not hub.requests
  assert parse("hf:me/birds") == ("me/birds", None, "prompt.npz")
  parts = parse(pathlib.Path("hf:me/b.1@v1.0/a/m_16.safetensors"))
  assert parts == ("me/b.1", "v1.0", "a/m_16.safetensors")


def test_what_the_hub_does_not_give(hub, tmp_path, monkeypatch):
  encoded = _encoded(tmp_path)
  hub.files["me/birds"] = {"16.npz": encoded, "model.pth": b"", "m.npz": encoded}
  assert "no prompt.npz in the repository; there are: 16.npz, m.npz" in _refused(
    HubError, load_prompt, "hf:me/birds"
  )
  assert "no such revision" in _refused(HubError, load_prompt, "hf:me/birds@v2/16.npz")
  assert "no such repository" in _refused(HubError, load_prompt, "hf:me/fish")
  hub.private.add("me/birds")
  load_prompt("hf:me/birds/16.npz")
  monkeypatch.setenv("HF_TOKEN", "hf_of_another")
  # It may have become private since; what is in the cache is not given either.
  assert "HF_TOKEN" in _refused(HubError, load_prompt, "hf:me/birds/16.npz")


def test_files_on_the_hub_that_are_no_prompts(hub, tmp_path):
  encoded = _encoded(tmp_path)
  torch_file = _encoded(tmp_path, name="a.pth")
  hub.files["me/birds"] = {"cut.npz": encoded[:200], "torch.npz": torch_file}
  _refused(PromptFileError, load_prompt, "hf:me/birds/cut.npz")
  assert "a torch checkpoint" in _refused(
    PromptFileError, load_prompt, "hf:me/birds/torch.npz"
  )
  hub.files["me/birds"]["a.safetensors"] = _encoded(tmp_path, name="a.safetensors")
  np.testing.assert_array_equal(
    load_prompt("hf:me/birds/a.safetensors").context, CONTEXT
  )


def test_uploads_that_fail_leave_nothing(hub, monkeypatch):
  def refused(kind, name="hf:me/birds", prompt=PROMPT, private=False):
    return _refused(kind, push_prompt, name, prompt, "mit", None, private)

  with pytest.raises(PromptFileError, match="not finite"):
    push_prompt("hf:me/birds", Prompt(CONTEXT * np.nan, "a/clip"), "mit")
  for name in ("hf:me", "hf:me/birds@v1", "hf:me/birds/prompt.npz"):
    assert "expected hf:OWNER/NAME" in refused(HubError, name)
  with pytest.raises(PromptFileError, match="push_prompt"):
    save_prompt("hf:me/birds", PROMPT)
  hub.forbidden = True
  assert "403" in refused(HubWriteError)
  assert not hub.files
  hub.forbidden, hub.invalid = False, "license: unknown"
  assert "license: unknown" in refused(HubWriteError)
  hub.invalid = ""
  assert "is public" in refused(HubError, private=True)
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
  monkeypatch.delenv("HF_TOKEN")
  assert "HF_TOKEN" in refused(HubError)
  monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
  assert "401" in refused(HubError, "hf:me/fish")
  assert not hub.commits
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  push_prompt("hf:me/fish", PROMPT, "mit", private=True)
  assert hub.private == {"me/fish"} and len(hub.commits) == 1
