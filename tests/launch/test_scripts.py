"""The launchers as text: linted, short, explained."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
BIN = pathlib.Path(sys.executable).parent
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def test_shellcheck_finds_nothing():
  scripts = [*SCRIPTS, *(ROOT / "tests" / "launch").glob("*.sh")]
  names = [str(script.relative_to(ROOT)) for script in scripts]
  assert len(names) >= 6
  done = subprocess.run(
    [BIN / "shellcheck", "-x", *names], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing():
  """It reads the file; no image is built here."""
  done = subprocess.run(
    [BIN / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special_and_copies_what_exists():
  text = (LAUNCH / "Dockerfile").read_text()
  assert re.search(r"^FROM python:3\.13\.\d+-slim-\w+$", text, re.MULTILINE)
  assert text.index("USER 1000:1000") < text.index("ENTRYPOINT [")
  let_in = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
  copied = re.findall(r"^COPY (\S+)", text, re.MULTILINE)
  assert sorted(copied) == sorted(let_in)
  assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=lambda file: file.name)
def test_a_launcher_is_short_and_stands_in_the_table(file):
  assert len(file.read_text().splitlines()) <= 100
  if file.name not in ("README.md", "venv.sh"):
    assert f"[`{file.name}`]" in (LAUNCH / "README.md").read_text()
