"""The wheel: what is in it, and that its command runs outside of the repository."""

import os
import re
import subprocess
import sys
import zipfile

from packaging.requirements import Requirement
import pytest

from pomp_jax import __version__
from pomp_jax.config.packaged import packaged_configs
from tests.launch.test_scripts import ROOT

pytestmark = pytest.mark.slow("builds and installs the wheel; test_scripts.py reads pyproject.toml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built without the network, from a copy of what git has or would add: a build leaves files."""
  copy, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  files = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
  for name in filter(None, files):
    target = copy / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / name).is_symlink():
      target.symlink_to(os.readlink(ROOT / name))
    elif (ROOT / name).exists():
      target.write_bytes((ROOT / name).read_bytes())
  pip(["wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(copy)])
  (built,) = folder.glob("*.whl")
  return built


def pip(arguments):
  command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {name.split("/")[0] for name in names} == {
    "pomp_jax",
    f"pomp_jax-{__version__}.dist-info",
  }
  package = ROOT / "pomp_jax"
  expected = {
    str(path.relative_to(ROOT))
    for path in package.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  expected |= {f"pomp_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  assert {name for name in names if name.startswith("pomp_jax/")} == expected
  assert "pomp_jax/py.typed" in names


def test_the_installed_command_runs_outside_of_the_repository(wheel, tmp_path):
  site, here = tmp_path / "site", tmp_path / "here"
  here.mkdir()
  pip(["install", "--target", str(site), str(wheel)])
  environ = os.environ | {"PYTHONPATH": str(site)}

  def pomp(*arguments):
    command = [sys.executable, site / "bin" / "pomp", *arguments]
    done = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True)
    assert str(ROOT) not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr

  status, out, err = pomp("--version")
  assert (status, err) == (0, "") and out.startswith(f"pomp_jax {__version__} (")
  status, out, err = pomp("--help")
  assert (status, err) == (0, "")
  assert packaged_configs().keys() <= {line.strip().split(" ")[0] for line in out.splitlines()}
  # A config that imports others, from the wheel; its mistake is found after it is loaded.
  status, out, err = pomp("--config=baselines", "--config.kk=3")
  assert (status, out) == (2, "") and err.startswith("error: config.kk: ") and err.count("\n") == 1
  assert not list(here.iterdir())


def test_the_extras_and_the_dependencies(wheel):
  archive = zipfile.ZipFile(wheel)
  metadata = archive.read(f"pomp_jax-{__version__}.dist-info/METADATA").decode()
  lines = [line.partition(": ")[2] for line in metadata.splitlines() if "Requires-Dist: " in line]
  of_extras = {name: set() for name in ("", "gcs", "s3", "page", "wandb", "cuda13", "tpu")}
  for one in map(Requirement, lines):
    extra = re.search(r'extra == "(\w+)"', str(one.marker))
    of_extras[extra[1] if extra else ""].add("".join([one.name, *one.extras]))
  wanted = re.findall(r"^\w", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
  assert len(of_extras.pop("")) == len(wanted)
  assert of_extras == {
    "gcs": {"gcsfs"},
    "s3": {"s3fs"},
    "page": {"flask", "waitress"},
    "wandb": {"wandb"},
    "cuda13": {"jaxcuda13"},
    "tpu": {"jaxtpu"},
  }
  assert "entry_points.txt" in " ".join(archive.namelist())
