"""Configs by name: rule, list and folder of the run, and the CLIP that a finished
prompt brings."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pomp_jax import __version__
from pomp_jax.config import defaults, unpack
from pomp_jax.config.command_line import FOLDER, packaged_configs, parse, summary
from pomp_jax.configs import evaluate, export, predict
from pomp_jax.files.prompt_file import (
  UNKNOWN_CLIP,
  Prompt,
  PromptFileError,
  save_prompt,
)
from tests.support.processes import environment

DEMO, ROOT = str(FOLDER / "demo.py"), FOLDER.parent.parent


def test_each_packaged_config_has_get_config_and_the_others_have_not():
  for file in FOLDER.glob("*.py"):
    module = importlib.import_module(f"pomp_jax.configs.{file.stem}")
    assert hasattr(module, "get_config") == (file.stem in packaged_configs())
    # which is the package's name in no wheel
    assert "from configs" not in file.read_text()
    assert summary(file) == " ".join(module.__doc__.split("\n\n")[0].split()) != ""


@pytest.mark.parametrize("config", ["demo:k=16", f"{DEMO}:k=16", "mine.py"])
def test_a_name_is_the_packaged_file_and_its_folder_is_in_runs(
  config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(pathlib.Path(DEMO).read_text())
  options = parse([f"--config={config}"])
  assert options.workdir == f"runs/{'mine' if config == 'mine.py' else 'demo'}"
  assert options.settings.k == (16 if ":" in config else 1000)
  assert parse(["--config", config, "--workdir=here"]).workdir == "here"


@pytest.mark.parametrize("argument, n_images", [("", 0), (":detect.n_images=3", 3)])
def test_a_job_without_a_file_of_its_name_has_the_defaults_of_its_fields(
  argument, n_images
):
  options = parse([f"--config=propose{argument}"])
  assert options.settings == defaults("propose").replace({"detect.n_images": n_images})
  assert options.workdir == "runs/propose" and "propose" not in packaged_configs()


def test_overrides_in_their_three_forms():
  overrides = ["--config.k=16", "--config.prompt.m", "8", "--config.dry_run"]
  settings = parse(["--config=demo", *overrides]).settings
  assert (settings.k, settings.prompt.m, settings.dry_run) == (16, 8, "here")


# `pomp`, which ends with status 9 if the library is imported.
_WITHOUT = """
import atexit, os, sys
from pomp_jax.command import run
atexit.register(lambda: "{}" in sys.modules and os._exit(9))
run()
"""


@pytest.mark.parametrize(
  ("command", "expected"),
  [
    (["-m", "pomp_jax.main", "--version"], f"pomp_jax {__version__} (jax "),
    (["-c", _WITHOUT.format("jax"), "--version"], f"pomp_jax {__version__} (jax "),
    # transformers would import it where it is installed, which takes longer than all
    # else.
    (["-c", _WITHOUT.format("torch"), "--help"], "Runs the job"),
  ],
)
def test_version_and_help_of_a_process(command, expected, tmp_path):
  environ = environment(1)
  del environ["USE_TORCH"]
  options = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True}
  done = subprocess.run([sys.executable, *command], **options)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(expected)
  assert not list(tmp_path.iterdir())


VIT_B16 = "openai/clip-vit-base-patch16"
PROMPT = Prompt(np.full((4, 8), 0.5, np.float32), "laion/some-clip")


def clip_of(module, argument):
  return unpack(module.get_config(argument)).clip.model


@pytest.mark.parametrize("module", [predict, export])
def test_a_prompt_behind_the_colon_brings_its_clip(module, tmp_path):
  files = tmp_path
  (files / "run").mkdir()
  save_prompt(files / "run/prompt.npz", PROMPT)
  save_prompt(
    files / "model.pth.tar", dataclasses.replace(PROMPT, clip_model=UNKNOWN_CLIP)
  )
  (files / "bad.npz").write_bytes(b"PK")
  for argument, expected in (
    (f"prompt={files}/run/prompt.npz", "laion/some-clip"),
    (f"prompt={files}/run", "laion/some-clip"),
    (f"prompt={files}/run,clip=world", "world"),
    (f"clip=world,prompt={files}/model.pth.tar", "world"),
    (f"prompt={files}/model.pth.tar", VIT_B16),
    ("prompt=a {}.", VIT_B16),
    ("prompt=0.5*ensemble + 0.5*a {}.", VIT_B16),
    (f"prompt=0.5*ensemble + 0.5*{files}/run", "laion/some-clip"),
    ("", VIT_B16),
  ):
    assert clip_of(module, argument) == expected
  with pytest.raises(PromptFileError, match=r"bad\.npz"):
    module.get_config(f"prompt={files}/bad.npz")


def test_suites_of_photographs_are_evaluated_on_the_published_clip():
  assert clip_of(evaluate, "suite=fourteen,root=DATA") == VIT_B16
  assert clip_of(evaluate, "suite=fourteen,root=DATA,clip=world") == "world"
  assert clip_of(evaluate, "suite=world") == clip_of(evaluate, "") == "world"
  assert (
    clip_of(evaluate, "sets_file=sets.toml,clip=laion/some-clip") == "laion/some-clip"
  )


def test_another_job_of_a_file_gets_the_fields_that_the_file_has_for_it():
  """The job is on the command line, the fields are in the file."""
  prepare = parse(["--config=imagenet21k_vit_b16", "--config.job=prepare"]).settings
  found = prepare.prepare
  expected = ("imagenet21k", "imagenet21k_p_w21", 16, 50)
  assert (found.dataset, found.names, found.shots, found.held_out) == expected
