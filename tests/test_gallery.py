"""docs/gallery.md: a section for each job, commands that parse, and tables that list every file."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys

from absl import flags
import numpy as np
import pytest

from pomp_jax.config import JOBS, unpack, validate
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.support.command_line import parse
from tests.support.processes import ROOT, environment

PATH = ROOT / "docs" / "gallery.md"
_FIRST, *_PARTS = re.split(r"^## (.+)$", PATH.read_text(), flags=re.MULTILINE)
# Text of each section by its title, in the order of the page.
SECTIONS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))


def commands(text):
  """The command lines of its bash blocks, continued lines joined."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return [line for line in "".join(blocks).replace("\\\n", "").splitlines() if line]


def job_arguments(text):
  """Arguments of each command that runs a job."""
  found = [shlex.split(command, comments=True) for command in commands(text)]
  return [words[3:] for words in found if words[:3] == ["python", "-m", "pomp_jax.main"]]


def problems(text, folder):
  """Files below a folder that the table lacks, and entries of the table that fit no file.

  The first column of the table `| file | content |` has glob patterns; a folder ends in /.
  """
  table = text.partition("| file | content |\n| --- | --- |\n")[2].partition("\n\n")[0]
  cells = [row.split("|")[1] for row in table.splitlines()]
  files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
  missing, fitted = [], set()
  for pattern in [name for cell in cells for name in re.findall("`(.+?)`", cell)]:
    fits = {name for name in files if _fits(name, pattern)}
    fitted |= fits
    if not fits:
      missing.append(f"{pattern}: no such file")
  return missing + [f"{name}: not listed" for name in sorted(files - fitted)]


def _fits(name, pattern):
  """Whether a file's path is of a pattern part by part, or lies in a folder of the pattern."""
  names, patterns = name.split("/"), pattern.rstrip("/").split("/")
  if pattern.endswith("/"):
    names = names[: len(patterns)] if len(names) > len(patterns) else []
  return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def test_each_job_has_a_section_and_pictures_exist_and_are_small():
  assert sorted(SECTIONS) == sorted([*JOBS, "dry_run"])
  pictures = re.findall(r"!\[.+?\]\((.+?)\)", PATH.read_text())
  assert pictures
  for name in pictures:
    assert (PATH.parent / name).stat().st_size <= 100_000, name


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


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_section_run_its_job(title, here):
  jobs = []
  for arguments in job_arguments(SECTIONS[title]):
    parse(*arguments)
    config = unpack(flags.FLAGS.config)
    validate(config)
    jobs.append("dry_run" if config.dry_run else config.job)
  assert title in jobs


@pytest.mark.slow("every job of the page, one after the other")
def test_the_commands_leave_the_listed_files(tmp_path):
  """All of the page, in its order, in an empty folder."""
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  for title, text in {"": _FIRST, **SECTIONS}.items():
    if title == "page":  # it serves until it is ended
      continue
    for command in commands(text):
      done = subprocess.run(
        ["bash", "-c", command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)],
        cwd=tmp_path,
        env=environment(1),
        capture_output=True,
        text=True,
      )
      assert done.returncode == 0, f"{command}\n{done.stderr}"
    if title:
      [folder] = re.findall(r"--workdir=(\S+)", " ".join(job_arguments(text)[-1]))
      assert problems(text, tmp_path / folder) == [], title
