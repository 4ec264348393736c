"""docs/gallery.md: a section for each job, commands that parse, and tables that list every file."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pomp_jax import main as main_module
from pomp_jax.config import JOBS, unpack, validate
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.support import gallery
from tests.support.command_line import parse
from tests.support.processes import ROOT, environment

SECTIONS = gallery.sections()
TITLES = [title for title in SECTIONS if title]


def test_each_job_has_a_section():
  assert sorted(TITLES) == sorted([*JOBS, "dry_run"])


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with the configs, and with the files of earlier commands that a config must find."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  runs = tmp_path / "runs"
  (runs / "example_sets" / "known" / "test").mkdir(parents=True)
  (runs / "example_sets" / "known.txt").write_text("cat\ndog\n")
  for name in ("archive/names.json", "archive/fall11_whole.tar", "masks/masks.pth"):
    (runs / name).parent.mkdir(exist_ok=True)
    (runs / name).touch()
  (runs / "demo").mkdir()
  save_prompt(runs / "demo" / "prompt.npz", Prompt(np.zeros((4, 64), np.float32), "world", "end"))
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("title", TITLES)
def test_the_commands_of_a_section_run_its_job(title, here):
  jobs = []
  for arguments in gallery.job_arguments(SECTIONS[title]):
    parse(*arguments)
    config = unpack(main_module._CONFIG.value)
    validate(config)
    jobs.append("dry_run" if config.dry_run else config.job)
  assert title in jobs


def test_pictures_exist_and_are_small():
  found = re.findall(r"!\[.+?\]\((.+?)\)", gallery.PATH.read_text())
  assert found
  for name in found:
    assert (gallery.PATH.parent / name).stat().st_size <= 100_000, name


@pytest.mark.parametrize(
  ("files", "expected"),
  [
    (["results.json", "a/1.json", "b/c/d.txt"], []),
    (["results.json", "a/1.json", "b/c/d.txt", "a/b/2.json"], ["a/b/2.json: not listed"]),
    (["results.json", "a/1.json", "a/2.txt"], ["b/: no such file", "a/2.txt: not listed"]),
    (["results.json", "b/1.json"], ["a/*.json: no such file"]),
  ],
)
def test_problems_of_a_table(tmp_path, files, expected):
  """The check that the others rely on, on folders with one file too many and too few."""
  table = "text\n\n| file | content |\n| --- | --- |\n"
  table += "| `results.json`, `a/*.json` | `x` |\n| `b/` | y |\n\nmore\n"
  for name in files:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert gallery.problems(table, tmp_path) == expected


@pytest.mark.long
def test_the_commands_leave_the_listed_files(tmp_path):
  """All of the page, in its order, in an empty folder."""
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  for title, text in SECTIONS.items():
    if title == "page":  # it serves until it is ended
      continue
    for command in gallery.commands(text):
      done = subprocess.run(
        ["bash", "-c", command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)],
        cwd=tmp_path,
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
      )
      assert done.returncode == 0, f"{command}\n{done.stderr}"
    if title:
      folder = workdir(gallery.job_arguments(text)[-1])
      assert gallery.problems(text, tmp_path / folder) == [], title


def workdir(arguments: list[str]) -> pathlib.Path:
  """The folder of a job's command."""
  (folder,) = (word.partition("=")[2] for word in arguments if word.startswith("--workdir="))
  return pathlib.Path(folder)
