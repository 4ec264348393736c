"""A run's folder stands for its prompt wherever a prompt file may be named."""

import json

import numpy as np
import pytest

from pomp_jax.clip import load_clip
from pomp_jax.config import ConfigError, validate
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from pomp_jax.files.prompt_hub import results_of
from pomp_jax.inference.classify import open_prompt
from pomp_jax.inference.named_prompts import read_prompts
from pomp_jax.jobs import export, gradient_bias
from pomp_jax.train.methods import initial_context
from tests.support.small_run import small_config

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
CONFIG = {"seed": 3, "data": {"source": "world"}}


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "trained"
  folder.mkdir()
  save_prompt(folder / "prompt.npz", Prompt(CONTEXT, "world", config=CONFIG))
  return folder


def test_every_reader_of_prompt_files(folder):
  name = str(folder)
  (named,) = read_prompts([name], "evaluate.prompts")
  assert named.label == name
  prompt, bank = gradient_bias._load(name)
  assert bank is None
  for found in (load_prompt(name), load_prompt(folder), open_prompt(name), named.prompt, prompt):
    np.testing.assert_array_equal(found.context, CONTEXT)
  config = small_config(**{"prompt.init": name, "prompt.m": 4})
  np.testing.assert_array_equal(initial_context(config, load_clip("world"), 300), CONTEXT)


def test_the_figures_of_the_run_go_with_it(folder):
  results = {"job": "pretrain", "eval": {"novel": {}}}
  (folder / "results.json").write_text(json.dumps(results))
  (folder / "config.json").write_text(json.dumps(CONFIG))
  assert results_of(str(folder), load_prompt(folder)) == results


@pytest.mark.parametrize("job", ["export", "predict"])
def test_a_field_of_a_job(folder, tmp_path, job):
  fields = {f"{job}.prompt": str(folder)}
  if job == "predict":
    fields |= {"predict.images": str(tmp_path), "predict.names": "imagenet1k"}
  config = small_config(job=job, **fields)
  validate(config)
  (folder / "prompt.npz").unlink()
  with pytest.raises(ConfigError, match=rf"{job}\.prompt: .* prompt\.npz"):
    validate(config)


def test_export(folder, tmp_path):
  config = small_config(
    job="export", **{"export.prompt": str(folder), "export.format": "safetensors"}
  )
  export.check(config, str(tmp_path / "run"))
  assert export.run(config, str(tmp_path / "run"))["prompt"] == str(folder)
  np.testing.assert_array_equal(load_prompt(tmp_path / "run/prompt.safetensors").context, CONTEXT)


def test_a_folder_without_a_prompt_is_an_error_and_no_words(tmp_path):
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    load_prompt(tmp_path)
  config = small_config(**{"prompt.init": str(tmp_path), "prompt.m": 4})
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    initial_context(config, load_clip("world"), 300)
