"""Prompts on the hub in jobs: as input wherever a file may be named, and uploaded by `export`."""

import json

import numpy as np
import pytest

from pomp_jax.clip import load_clip
from pomp_jax.config import ConfigError, validate
from pomp_jax.files.hub import HubError
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.inference.classify import open_prompt
from pomp_jax.inference.named_prompts import read_prompts
from pomp_jax.jobs import export
from pomp_jax.train.methods import initial_context
from tests.support.hub import local_hub
from tests.support.small_run import small_config

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  with local_hub(monkeypatch, tmp_path / "cache") as hub:
    yield hub


def settings(folder, **changes):
  changes = {"prompt": str(folder / "prompt.npz"), "hub": "hf:me/a", "license": "mit"} | changes
  return small_config(job="export", **{f"export.{name}": value for name, value in changes.items()})


def test_export_uploads_the_prompt_with_the_figures_of_its_run(hub, tmp_path, capsys):
  run = tmp_path / "trained"
  run.mkdir()
  config = {"seed": 3, "data": {"source": "world"}}
  save_prompt(run / "prompt.npz", Prompt(CONTEXT, "world", config=config))
  (run / "config.json").write_text(json.dumps(config))
  scores = {"prompt": {"top1": 0.587}}
  results = {"job": "pretrain", "eval": {"novel": scores}, "eval_images": {"novel": 30}}
  (run / "results.json").write_text(json.dumps(results | {"eval_classes": {"novel": 7}}))
  wanted = settings(run, private=True)
  validate(wanted)
  export.check(wanted, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists() and not hub.files
  export.run(wanted, str(tmp_path / "run"))
  assert hub.private == {"me/a"}
  for name, content in hub.files["me/a"].items():
    assert (tmp_path / "run" / name).read_bytes() == content
  card = hub.files["me/a"]["README.md"].decode()
  assert "| `novel` | 30 | 7 | 58.7 |" in card and "license: mit" in card
  written = json.loads((tmp_path / "run" / "results.json").read_text())
  assert written["url"] in capsys.readouterr().out
  np.testing.assert_array_equal(load_prompt("hf:me/a").context, CONTEXT)


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"hub": "me/a"}, "hub"),
    ({"license": ""}, "license"),
    ({"license": "The MIT licence"}, "license"),
    ({"format": "pth"}, "format"),
    ({"output": "a.npz"}, "output"),
  ],
)
def test_bad_fields(tmp_path, changes, field):
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "world"))
  with pytest.raises(ConfigError, match=rf"^config\.export\.{field}: [^\n]*$"):
    validate(settings(tmp_path, **changes))


def test_what_the_hub_refuses_is_found_before_anything_is_written(hub, tmp_path):
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "world"))
  hub.down = True
  for changes in ({}, {"prompt": "hf:me/a"}, {"hub": "hf:me/a@v1"}):
    wanted = settings(tmp_path, **changes)
    validate(wanted)
    with pytest.raises(HubError, match=r"^hf:me/a[^\n]*$"):
      export.check(wanted, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_prompt_on_the_hub_is_named_as_a_file_is(hub, tmp_path):
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "world"))
  hub.files["me/a"] = {"prompt.npz": (tmp_path / "prompt.npz").read_bytes()}
  [named] = read_prompts(("hf:me/a",), "evaluate.prompts")
  assert named.label == "hf:me/a"
  config = small_config(**{"prompt.init": "hf:me/a", "prompt.m": 4})
  clip = load_clip("world")
  for context in (
    named.prompt.context,
    open_prompt("hf:me/a").context,
    initial_context(config, clip, 9),
  ):
    np.testing.assert_array_equal(context, CONTEXT)
  for job in ("predict", "export"):
    names = str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("cat")
    fields = {f"{job}.prompt": "hf:me/a", f"{job}.names": names, "predict.images": str(tmp_path)}
    validate(small_config(job=job, **fields))
