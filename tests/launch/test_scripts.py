"""The launchers as text: linted, short, explained."""

import pathlib
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

from pomp_jax.files.paths import LIBRARIES

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
BIN = pathlib.Path(sys.executable).parent
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def test_shellcheck_finds_nothing():
  scripts = [*SCRIPTS, ROOT / ".ci" / "run", *(ROOT / "tests" / "launch").glob("*.sh")]
  names = [str(script.relative_to(ROOT)) for script in scripts]
  assert len(names) >= 6
  done = subprocess.run(
    [BIN / "shellcheck", "-x", *names], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_is_the_comment_at_the_top(script, tmp_path):
  """From any folder, and without running or writing anything."""
  done = subprocess.run(
    ["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")
  lines = script.read_text().splitlines()
  first = next(line for line in lines if not line.startswith("#!"))
  assert done.stdout.splitlines()[0] == first.removeprefix("# ")
  assert "shellcheck" not in done.stdout and "SBATCH" not in done.stdout
  assert not list(tmp_path.iterdir())


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


def requirements(path):
  """What a requirement file asks of this Python."""
  lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
  found = [Requirement(line) for line in lines if line]
  return {
    canonicalize_name(one.name): one.specifier
    for one in found
    if one.marker is None or one.marker.evaluate()
  }


def test_the_image_pins_one_allowed_release_of_each_package():
  assert "-c launch/constraints.txt -r requirements.txt" in (LAUNCH / "Dockerfile").read_text()
  pinned = requirements(LAUNCH / "constraints.txt")
  assert all([one.operator for one in pin] == ["=="] for pin in pinned.values())
  for name, allowed in requirements(ROOT / "requirements.txt").items():
    (pin,) = pinned[name]
    assert pin.version in allowed, name


def extras(*names):
  """What extras of the package ask for."""
  found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  needed = [Requirement(line) for name in names for line in found[name]]
  return {canonicalize_name(one.name): one.specifier for one in needed}


def test_the_wheel_takes_every_kind_of_file_of_the_package():
  """Without building it: test_package.py does."""
  tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
  files = [path for path in (ROOT / "pomp_jax").rglob("*") if path.is_file()]
  kinds = {path.name if path.name == "py.typed" else f"*{path.suffix}" for path in files}
  assert kinds - {"*.py", "*.pyc"} <= set(tool["package-data"]["*"])


def lower_bounds(required):
  return {
    name: next(one.version for one in allowed if one.operator == ">=")
    for name, allowed in required.items()
  }


def test_lowest_pins_the_lower_bounds():
  bounds = lower_bounds(requirements(ROOT / "requirements.txt") | extras("gcs", "s3", "page"))
  pinned = requirements(LAUNCH / "lowest.txt")
  assert {name: str(pin) for name, pin in pinned.items()} == {
    name: f"=={version}" for name, version in bounds.items()
  }
  assert "CONSTRAINTS=launch/lowest.txt" in (ROOT / ".ci" / "run").read_text()


def test_an_older_client_of_buckets_than_the_extras_allow_is_an_error():
  assert dict(LIBRARIES.values()) == lower_bounds(extras("gcs", "s3"))


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=lambda file: file.name)
def test_a_launcher_is_short_and_stands_in_the_table(file):
  if file.suffix != ".txt":
    lines = file.read_text().splitlines()
    assert len(lines) <= (120 if file.suffix == ".md" else 100)
    assert file.suffix == ".md" or max(map(len, lines)) <= 100
  if file.name not in ("README.md", "venv.sh"):
    assert f"[`{file.name}`]" in (LAUNCH / "README.md").read_text()
