"""Configs by name: the rule, the list, and the folder of the run."""

import importlib
import os
import subprocess
import sys

from absl import flags
import pytest

from pomp_jax import __version__
from pomp_jax import main as main_module
from pomp_jax.config.packaged import FOLDER, packaged_configs, summary, with_file
from tests.support.command_line import parse

DEMO = str(FOLDER / "demo.py")


def test_each_packaged_config_has_get_config_and_the_others_have_not():
  for file in FOLDER.glob("*.py"):
    module = importlib.import_module(f"pomp_jax.configs.{file.stem}")
    assert hasattr(module, "get_config") == (file.stem in packaged_configs())
    assert "from configs" not in file.read_text()  # which is the package's name in no wheel
    assert summary(file) == module.__doc__.partition("\n")[0] != ""


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (["--config=demo"], [f"--config={DEMO}"]),
    (["-config", "demo:k=16,m=4"], ["-config", f"{DEMO}:k=16,m=4"]),
    ([f"--config={DEMO}:k=16"], [f"--config={DEMO}:k=16"]),
    (["--config=mine.py"], ["--config=mine.py"]),
    (["--config"], ["--config"]),
    (["--config.job=demo", "--workdir=demo"], ["--config.job=demo", "--workdir=demo"]),
  ],
)
def test_a_name_is_the_packaged_file_and_a_path_stays(given, expected):
  assert with_file(["pomp", *given]) == ["pomp", *expected]


def test_the_folder_of_a_run_without_workdir():
  for config in ("demo:k=16", DEMO):
    parse(f"--config={config}")
    assert flags.FLAGS.workdir == main_module._default_workdir() == "runs/demo"
  parse("--config=demo", "--workdir=here")
  assert flags.FLAGS.workdir == "here"


@pytest.mark.parametrize(
  ("command", "expected"),
  [
    (["-m", "pomp_jax.main", "--version"], f"pomp_jax {__version__} (jax "),
    (["-c", "from pomp_jax.command import run; run()", "--help"], "Runs the job"),  # `pomp`
  ],
)
def test_version_and_help_of_a_process(tmp_path, command, expected):
  done = subprocess.run(
    [sys.executable, *command],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith(expected)
  assert not list(tmp_path.iterdir())


def test_the_version_needs_no_jax():
  code = "import sys, pomp_jax.command as c; c.version(); sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent.parent).returncode == 0
