"""docs/gallery.md: a section for each job, commands that parse, lists of every file."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from pomp_jax.config import JOBS, validate
from pomp_jax.config.command_line import parse
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.support.processes import ROOT, environment

PATH = ROOT / "docs" / "gallery.md"
_BEFORE, *_PARTS = re.split(r"^## (.+)$", PATH.read_text(), flags=re.MULTILINE)
# Text of each section by its title, in the order of the page.
SECTIONS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))


def commands(text):
  """The command lines of its bash blocks; continued lines are joined."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return "".join(blocks).replace("\\\n", "").splitlines()


def job_arguments(text):
  """Arguments of each command that runs a job."""
  found = [shlex.split(line, comments=True) for line in commands(text)]
  return [words[1:] for words in found if words[0] == "pomp"]


def test_each_job_has_a_section():
  assert sorted(SECTIONS) == sorted([*JOBS, "dry_run"])


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with the configs, and with the files of earlier commands that a config must find."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  runs = tmp_path / "runs"
  (runs / "example_sets" / "known" / "test").mkdir(parents=True)
  (runs / "example_sets" / "known.txt").write_text("cat\ndog\n")
  for name in ("archive/names.json", "archive/fall11_whole.tar", "masks/masks.safetensors"):
    (runs / name).parent.mkdir(exist_ok=True)
    (runs / name).touch()
  (runs / "demo").mkdir()
  save_prompt(runs / "demo" / "prompt.npz", Prompt(np.zeros((4, 64), np.float32), "world", "end"))
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_section_run_its_job(title, here):
  jobs = []
  for arguments in job_arguments(SECTIONS[title]):
    config = parse(arguments).settings
    validate(config)
    jobs.append("dry_run" if config.dry_run else config.job)
  assert title in jobs


def forms(text):
  """Patterns of the files that the lists of a text name."""
  items = re.findall(r"^- (`.+?`)(?=: |$)", text, re.MULTILINE)
  # A star is within a part of the path, and a folder stands for all below it.
  names = re.findall("`(.+?)`", "".join(items))
  return [re.escape(name).replace(r"\*", "[^/]*") + ".+" * name.endswith("/") for name in names]


def problems(text, folder):
  """Files below a folder that are in no list, and entries of the section that fit no file."""
  files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
  missing = [form for form in forms(text) if not any(re.fullmatch(form, name) for name in files)]
  listed = "|".join([*forms(_BEFORE), *forms(text)])
  return missing + [name for name in files if not re.fullmatch(listed, name)]


# The commands that train for minutes leave the same files when they train for seconds.
TRAININGS = ("pretrain", "baselines", "ablate", "repeat")
SMALLER = {"steps": 4, "k": 16, "batch_size": 16, "data.n_classes": 300, "eval.images": 64}
SMALLER = "".join(f" --config.{field}={value}" for field, value in SMALLER.items())


@pytest.mark.slow("minutes: a process for each command of the page")
def test_the_commands_leave_the_listed_files(tmp_path):
  """All of the page but the one that serves until it is ended, in an empty folder."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  for title, text in [("", _BEFORE), *SECTIONS.items()]:
    for command in commands(text) if title != "page" else ():
      python = shlex.quote(sys.executable)
      line = re.sub("^python ", f"{python} ", command)
      line = re.sub("^pomp ", f"{python} -m pomp_jax.main ", line)
      line = ["bash", "-c", line + SMALLER * (title in TRAININGS)]
      subprocess.run(line, cwd=tmp_path, env=environment(1), check=True)
    if title not in ("", "page"):
      (folder,) = re.findall(r"--workdir=(\S+)", " ".join(job_arguments(text)[-1]))
      assert problems(text, tmp_path / folder) == [], title
