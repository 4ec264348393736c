"""Where a result comes from, and that results are compared without it."""

import datetime
import importlib.metadata
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys

import jax
import pytest

import pomp_jax
from pomp_jax.files import provenance
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A repository of three files, the package one of its folders."""
  if shutil.which("git") is None:
    pytest.skip("git is not installed")
  for name in ("pomp_jax/__init__.py", "pomp_jax/main.py", "README.md"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
  git(tmp_path, "init", "--quiet")
  commit_all(tmp_path)
  monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "pomp_jax")
  provenance.commit.cache_clear()
  yield tmp_path
  provenance.commit.cache_clear()


def git(folder, *arguments):
  options = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
  done = subprocess.run(
    ["git", "-C", str(folder), *options, *arguments], capture_output=True, text=True, check=True
  )
  return done.stdout.strip()


def commit_all(folder):
  git(folder, "add", "--all")
  git(folder, "commit", "--quiet", "--message", "files")


@pytest.mark.parametrize(
  ("file", "differs"),
  [
    (None, False),
    ("pomp_jax/main.py", True),
    ("README.md", False),
    ("pomp_jax/untracked.py", False),
  ],
)
def test_the_commit_is_that_of_the_checkout(checkout, file, differs):
  """A changed file of the package shows, and the answer stays while the checkout changes."""
  if file:
    (checkout / file).write_text("changed = 1\n")
  head = git(checkout, "rev-parse", "HEAD")
  assert len(head) == 40 and provenance.commit() == head + "+" * differs
  (checkout / "pomp_jax/main.py").write_text("changed = 2\n")
  commit_all(checkout)
  assert git(checkout, "rev-parse", "HEAD") != head
  assert provenance.commit() == head + "+" * differs


def test_a_repository_around_an_installed_package_is_not_its_own(checkout, monkeypatch):
  (checkout / ".gitignore").write_text("venv\n")
  commit_all(checkout)
  installed = checkout / "venv" / "pomp_jax"
  shutil.copytree(checkout / "pomp_jax", installed)
  monkeypatch.setattr(provenance, "_PACKAGE", installed)
  assert provenance.commit() is None


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 10)])
def test_without_git(checkout, monkeypatch, error):
  def fail(*_, **__):
    raise error

  monkeypatch.setattr(subprocess, "run", fail)
  assert provenance.commit() is None


def test_a_command_is_one_that_a_shell_runs():
  main = str(pathlib.Path(pomp_jax.__file__).parent / "main.py")
  text = provenance.command([main, "--workdir=a b", "--config.eval.template=a {}'s $photo."])
  words = ["python", "-m", "pomp_jax.main", "--workdir=a b"]
  assert shlex.split(text) == [*words, "--config.eval.template=a {}'s $photo."]
  assert provenance.command(["/usr/bin/pomp", "--workdir=a"]) == "/usr/bin/pomp --workdir=a"


def test_a_result_says_where_it_comes_from(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/usr/bin/pomp", "--workdir=a b"])
  libraries = ("jax", "jaxlib", "flax", "numpy", "transformers", "no-such-library")
  assert {*libraries[:-1]} <= {*provenance._LIBRARIES}
  monkeypatch.setattr(provenance, "_LIBRARIES", libraries)
  before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  folder = RunFolder(tmp_path)
  assert folder.read_results() is None
  results = {"job": "predict", "top1": 0.5}
  folder.write_results(results)
  stored = read_json(folder.results)
  found = stored.pop("provenance")
  assert stored == results == folder.read_results()
  assert found["command"] == "/usr/bin/pomp '--workdir=a b'"
  versions = {name: importlib.metadata.version(name) for name in libraries[:-1]}
  versions |= {"no-such-library": None, "python": platform.python_version()}
  assert found["versions"].items() >= versions.items()
  device = jax.devices()[0]
  assert found["devices"] == {
    "platform": device.platform,
    "kind": device.device_kind,
    "number": jax.device_count(),
    "processes": 1,
  }
  date = datetime.datetime.fromisoformat(found["date"])
  assert date.utcoffset() == datetime.timedelta(0)
  assert before <= date <= datetime.datetime.now(datetime.UTC)
  folder.results.write_text("[]")
  with pytest.raises(RunFolderError, match=r"results\.json: not a JSON object"):
    folder.read_results()
