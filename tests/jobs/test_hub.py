"""Prompts by other names than a file's: a run's folder, and the hub; uploaded by `export`."""

import json

import numpy as np
import pytest

from pomp_jax.clip import load_clip
from pomp_jax.config import validate
from pomp_jax.evaluate import export
from pomp_jax.evaluate.classify import open_prompt
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.files.hub import HubError
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from pomp_jax.files.prompt_hub import results_of
from pomp_jax.rooms.analysis import gradient_bias
from pomp_jax.train.methods import initial_context
from tests.support.small_run import small_config

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
CONFIG = {"seed": 3, "data": {"source": "world"}}


@pytest.fixture
def trained(tmp_path):
  """A run's folder with its prompt."""
  folder = tmp_path / "trained"
  folder.mkdir()
  save_prompt(folder / "prompt.npz", Prompt(CONTEXT, "world", config=CONFIG))
  return folder


def settings(prompt, **changes):
  changes = {"prompt": str(prompt), "hub": "hf:me/a", "license": "mit"} | changes
  return small_config(job="export", **{f"export.{name}": value for name, value in changes.items()})


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_every_reader_of_prompt_files(hub, trained, place):
  hub.files["me/a"] = {"prompt.npz": (trained / "prompt.npz").read_bytes()}
  name = "hf:me/a" if place == "hub" else str(trained)
  (named,) = read_prompts((name,), "evaluate.prompts")
  assert named.label == (name if place == "hub" else trained.name)
  of_bias, bank = gradient_bias._load(name)
  assert bank is None
  for found in (load_prompt(name), open_prompt(name), named.prompt, of_bias):
    np.testing.assert_array_equal(found.context, CONTEXT)
  config = small_config(**{"prompt.init": name, "prompt.m": 4})
  np.testing.assert_array_equal(initial_context(config, load_clip("world"), 300), CONTEXT)
  for job in ("export", "predict"):
    fields = {f"{job}.prompt": name, f"{job}.names": "imagenet1k", "predict.images": str(trained)}
    validate(small_config(job=job, **fields))


def test_a_folder_without_a_prompt_is_an_error_and_no_words(trained):
  (trained / "prompt.npz").unlink()
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    load_prompt(trained)
  config = small_config(**{"prompt.init": str(trained), "prompt.m": 4})
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    initial_context(config, load_clip("world"), 300)


def test_export_uploads_the_prompt_with_the_figures_of_its_run(hub, trained, tmp_path, capsys):
  (trained / "config.json").write_text(json.dumps(CONFIG))
  results = {"job": "pretrain", "eval": {"novel": {"prompt": {"top1": 0.587}}}}
  results |= {"eval_images": {"novel": 30}, "eval_classes": {"novel": 7}}
  (trained / "results.json").write_text(json.dumps(results))
  # Of the folder as of the file in it.
  for prompt in (trained, trained / "prompt.npz"):
    assert results_of(str(prompt), load_prompt(prompt)) == results
  config = settings(trained / "prompt.npz", private=True)
  validate(config)
  export.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists() and not hub.files
  export.run(config, str(tmp_path / "run"))
  assert hub.private == {"me/a"}
  for name, content in hub.files["me/a"].items():
    assert (tmp_path / "run" / name).read_bytes() == content
  card = hub.files["me/a"]["README.md"].decode()
  assert "| `novel` | 30 | 7 | 58.7 |" in card and "license: mit" in card
  written = json.loads((tmp_path / "run" / "results.json").read_text())
  assert written["url"] in capsys.readouterr().out
  np.testing.assert_array_equal(load_prompt("hf:me/a").context, CONTEXT)


def test_what_the_hub_refuses_is_found_before_anything_is_written(hub, trained, tmp_path):
  hub.down = True
  for changes in ({}, {"prompt": "hf:me/a"}, {"hub": "hf:me/a@v1"}):
    config = settings(**{"prompt": trained} | changes)
    validate(config)
    with pytest.raises(HubError, match=r"^hf:me/a[^\n]*$"):
      export.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
