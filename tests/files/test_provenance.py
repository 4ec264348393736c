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


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_the_commit_is_that_of_the_checkout(checkout):
  head = git(checkout, "rev-parse", "HEAD")
  assert len(head) == 40 and provenance.commit() == head


@needs_git
@pytest.mark.parametrize(
  ("file", "differs"),
  [("pomp_jax/main.py", True), ("README.md", False), ("pomp_jax/untracked.py", False)],
)
def test_a_changed_file_of_the_package_shows(checkout, file, differs):
  (checkout / file).write_text("changed = 1\n")
  assert provenance.commit() == git(checkout, "rev-parse", "HEAD") + "+" * differs


@needs_git
def test_the_commit_stays_while_the_checkout_changes(checkout):
  before = provenance.commit()
  (checkout / "pomp_jax/main.py").write_text("changed = 1\n")
  commit_all(checkout)
  assert provenance.commit() == before != git(checkout, "rev-parse", "HEAD")


@needs_git
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


def test_a_command_is_one_that_a_shell_runs(monkeypatch):
  main = str(pathlib.Path(pomp_jax.__file__).parent / "main.py")
  text = provenance.command([main, "--workdir=a b", "--config.eval.template=a {}'s $photo."])
  words = ["python", "-m", "pomp_jax.main", "--workdir=a b"]
  assert shlex.split(text) == [*words, "--config.eval.template=a {}'s $photo."]
  assert provenance.command(["/usr/bin/pomp", "--workdir=a"]) == "/usr/bin/pomp --workdir=a"


def test_a_result_says_where_it_comes_from(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/usr/bin/pomp", "--workdir=a b"])
  before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  folder = RunFolder(tmp_path)
  results = {"job": "predict", "top1": 0.5}
  folder.write_results(results)
  stored = read_json(folder.results)
  found = stored.pop("provenance")
  assert stored == results == folder.read_results()
  assert found["command"] == "/usr/bin/pomp '--workdir=a b'"
  assert found["versions"]["python"] == platform.python_version()
  for name in ("jax", "jaxlib", "flax", "numpy", "transformers"):
    assert found["versions"][name] == importlib.metadata.version(name)
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


def test_a_missing_library_has_no_version(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance, "_LIBRARIES", ("jax", "no-such-library"))
  versions = provenance.provenance()["versions"]
  assert versions["no-such-library"] is None and versions["jax"]


def test_results_that_are_none(tmp_path):
  folder = RunFolder(tmp_path)
  assert folder.read_results() is None
  folder.results.write_text("[]")
  with pytest.raises(RunFolderError, match=r"results\.json: not a JSON object"):
    folder.read_results()
