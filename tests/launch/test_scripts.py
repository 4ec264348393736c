"""The launchers as text, and the wheel."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

from pomp_jax import __version__
from tests.support.processes import ROOT

LAUNCH = ROOT / "launch"
BIN = pathlib.Path(sys.executable).parent
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())


def ran(*command, cwd=ROOT, **options):
  """A command that has ended, with its output."""
  return subprocess.run(
    command, cwd=cwd, capture_output=True, text=True, check=False, **options
  )


def test_shellcheck_and_hadolint_find_nothing():
  scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"]
  scripts += (ROOT / "tests" / "launch").glob("*.sh")
  assert len(scripts) >= 6
  # The second reads the file; no image is built here.
  for command in (["shellcheck", "-x", *scripts], ["hadolint", LAUNCH / "Dockerfile"]):
    done = ran(BIN / command[0], *command[1:])
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special_and_copies_what_exists():
  text = (LAUNCH / "Dockerfile").read_text()
  assert re.search(r"^FROM python:3\.13\.\d+-slim-\w+$", text, re.MULTILINE)
  assert text.index("USER 1000:1000") < text.index("ENTRYPOINT [")
  let_in = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
  copied = re.findall(r"^COPY (\S+)", text, re.MULTILINE)
  assert sorted(copied) == sorted(let_in)
  assert all((ROOT / name).exists() for name in copied)


def parsed(lines):
  """Specifiers by package, for this Python."""
  found = [Requirement(line) for line in lines]
  return {
    canonicalize_name(one.name): one.specifier
    for one in found
    if one.marker is None or one.marker.evaluate()
  }


def requirements(path):
  lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
  return parsed(filter(None, lines))


def extras(*names):
  found = TOML["project"]["optional-dependencies"]
  return parsed(line for name in names for line in found[name])


def test_the_image_pins_one_allowed_release_of_each_package():
  assert (
    "-c launch/constraints.txt -r requirements.txt"
    in (LAUNCH / "Dockerfile").read_text()
  )
  pinned = requirements(LAUNCH / "constraints.txt")
  assert all([one.operator for one in pin] == ["=="] for pin in pinned.values())
  for name, allowed in requirements(ROOT / "requirements.txt").items():
    (pin,) = pinned[name]
    assert pin.version in allowed, name


def test_an_installation_has_flax_clip_for_the_reference_tower():
  """By launch/demo.sh and by `pip install .`; transformers 5 has none."""
  allowed = requirements(ROOT / "requirements.txt")["transformers"]
  assert "4.57.6" in allowed and "5.0.0" not in allowed
  dynamic = TOML["tool"]["setuptools"]["dynamic"]
  assert dynamic["dependencies"] == {"file": ["requirements.txt"]}


def lower_bounds(required):
  return {
    name: next(one.version for one in allowed if one.operator == ">=")
    for name, allowed in required.items()
  }


def test_lowest_pins_the_lower_bounds():
  bounds = lower_bounds(
    requirements(ROOT / "requirements.txt") | extras("gcs", "s3", "page")
  )
  pinned = requirements(LAUNCH / "lowest.txt")
  assert {name: str(pin) for name, pin in pinned.items()} == {
    name: f"=={version}" for name, version in bounds.items()
  }
  assert "CONSTRAINTS=launch/lowest.txt" in (ROOT / ".ci" / "run").read_text()


_SLOW = pytest.mark.slow(
  "builds and installs the wheel; the tests above read pyproject.toml"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built without the network, from a copy of what git has or would add: a build
  leaves files."""
  copy, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  files = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
  for name in filter(None, files):
    if os.path.lexists(ROOT / name):
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
  pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
  (built,) = folder.glob("*.whl")
  return built


def pip(*arguments):
  done = ran(
    sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"
  )
  assert done.returncode == 0, done.stderr


@_SLOW
def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  folders = {name.split("/")[0] for name in names}
  assert folders == {"pomp_jax", f"pomp_jax-{__version__}.dist-info"}
  files = [path for path in (ROOT / "pomp_jax").rglob("*") if path.is_file()]
  expected = {
    str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts
  }
  expected |= {
    f"pomp_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")
  }
  assert {name for name in names if name.startswith("pomp_jax/")} == expected
  assert "pomp_jax/py.typed" in names


@_SLOW
def test_the_installed_command_runs_outside_of_the_repository(wheel, tmp_path):
  site, here = tmp_path / "site", tmp_path / "here"
  here.mkdir()
  pip("install", "--target", str(site), str(wheel))
  environ = os.environ | {"PYTHONPATH": str(site)}

  def pomp(*arguments):
    done = ran(sys.executable, site / "bin" / "pomp", *arguments, cwd=here, env=environ)
    assert str(ROOT) not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr

  # A config that imports others, from the wheel; its mistake is found after it is
  # loaded.
  status, out, err = pomp("--config=baselines", "--config.kk=3")
  assert (status, out) == (2, "") and "config.kk" in err and err.count("\n") == 1
  assert not list(here.iterdir())


def test_the_workflow_runs_what_is_there():
  jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
  commands = [
    step["run"].split()
    for job in jobs.values()
    for step in job["steps"]
    if "run" in step
  ]
  assert ["bash", ".ci/run"] in commands
  assert all((ROOT / script).is_file() for _, script, *_ in commands)
  pythons = jobs["first-tier"]["strategy"]["matrix"]["python"]
  supported = [line.rpartition(" ")[2] for line in TOML["project"]["classifiers"]]
  assert set(pythons) <= set(supported)
