"""docs/gallery.md: a section for each job, and commands that parse."""

import re
import shlex

from absl import flags
import numpy as np
import pytest

from pomp_jax.config import JOBS, unpack, validate
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.support.command_line import parse
from tests.support.processes import ROOT

PATH = ROOT / "docs" / "gallery.md"
_, *_PARTS = re.split(r"^## (.+)$", PATH.read_text(), flags=re.MULTILINE)
# Text of each section by its title, in the order of the page.
SECTIONS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))


def job_arguments(text):
  """Arguments of each command of its bash blocks that runs a job; continued lines are joined."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  lines = "".join(blocks).replace("\\\n", "").splitlines()
  found = [shlex.split(line, comments=True) for line in lines]
  return [words[3:] for words in found if words[:3] == ["python", "-m", "pomp_jax.main"]]


def test_each_job_has_a_section():
  assert sorted(SECTIONS) == sorted([*JOBS, "dry_run"])


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
