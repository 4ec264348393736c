"""The pages: links, fields, files and commands that they name, and the gallery."""

import re
import shlex
import subprocess
import sys

from mkdocs.commands.build import build
from mkdocs.config import load_config
import numpy as np
import pytest

from pomp_jax.config import JOBS, fields_of, validate
from pomp_jax.config.command_line import parse
from pomp_jax.data.source import SourceError
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from tests.support.processes import ROOT, environment

_TRACKED = subprocess.check_output(
  ["git", "ls-files", "*.md"], cwd=ROOT, text=True
).split()
# Without the pages that are generated: the fields, and open_clip's table.
PAGES = [
  name
  for name in _TRACKED
  if name not in ("docs/reference/config.md", "docs/reference/clips.md")
]
GROUPS = {field.partition(".")[0] for field in fields_of() if "." in field}
# Ends of files, and modules, whose names look like a field of a group.
_ENDS = {"json", "npz", "npy", "safetensors", "py"}
_MODULES = {"data.images", "data.noun", "data.source", "prompt.learner"}


def text_of(page):
  return (ROOT / page).read_text()


def commands(text):
  """The command lines of its bash blocks; continued lines are joined."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return "".join(blocks).replace("\\\n", "").splitlines()


def anchors(path):
  """GitHub's anchors of a page's headings."""
  headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
  }


@pytest.mark.parametrize("page", [*PAGES, "docs/start/pomp.ipynb"])
def test_links_lead_somewhere(page):
  for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
    if not link.startswith(("http:", "https:")):
      path, _, anchor = link.partition("#")
      target = (ROOT / page).parent / path if path else ROOT / page
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_fields_exist(page):
  """`--config.FIELD` of commands, and `config.FIELD` or `group.FIELD` in code."""
  text = text_of(page)
  named = re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)?)", text)
  named += re.findall(r"`config\.([a-z_]+(?:\.[a-z_0-9]+)?)(?=[`=])", text)
  for group, name in re.findall(r"`([a-z_]+)\.([a-z_0-9]+)(?=[`=])", text):
    named += [f"{group}.{name}"] * (group in GROUPS and name not in _ENDS)
  assert [
    name for name in named if name not in {*fields_of()} | GROUPS | _ENDS | _MODULES
  ] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, tmp_path, monkeypatch):
  """Config, variant and fields of each command; files that it names may be missing."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "PICTURES" / "class").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  for line in commands(text_of(page)):
    words = shlex.split(line, comments=True)
    starts = [words.index(word) for word in ("pomp", "pomp_jax.main") if word in words]
    # `$` and words in capitals stand for configs.
    if starts and not re.search(r"--config=(X|CONFIG|.*\$)", line):
      try:
        parse(words[starts[0] + 1 :])
      except (PromptFileError, SourceError) as error:
        assert "missing" in str(error) or "no images" in str(error)


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
  """Paths within the repository, and modules of commands; words in capitals stand
  for names."""
  folders = "pomp_jax|configs|tests|docs|launch"
  paths = re.findall(rf"(?<![\w/.])(?:{folders})/[a-z0-9_/]+\.[a-z]+\b", text_of(page))
  modules = re.findall(r"python -m ((?:pomp_jax|docs)\.[a-z0-9_.]+)", text_of(page))
  paths += [module.replace(".", "/") + ".py" for module in modules]
  assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_room_has_a_row_and_a_page():
  row = re.compile(r"^\| `(\w+)` \| .+ \| ([a-z_/-]+\.md) \|$", re.MULTILINE)
  rows = row.findall(text_of("CONTRIBUTING.md"))
  rooms = {path.parent.name for path in ROOT.glob("pomp_jax/rooms/*/__init__.py")}
  assert sorted(name for name, _ in rows) == sorted(rooms)
  for _, page in rows:
    assert (ROOT / "docs" / page).exists()


def test_the_pages_build_as_a_site(tmp_path, caplog):
  """mkdocs finds each link and anchor, those to files outside of docs/ too."""
  config = load_config(str(ROOT / ".mkdocs.yml"), strict=True, site_dir=str(tmp_path))
  build(config)  # raises Abort where it warned
  assert [record for record in caplog.records if record.levelname == "WARNING"] == []
  pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
  assert {"index.html", "start/own_images/index.html"} <= pages
  assert "repository/launch/index.html" in pages


_BEFORE, *_PARTS = re.split(
  r"^## (.+)$", text_of("docs/reference/gallery.md"), flags=re.MULTILINE
)
# Text of each section of the gallery by its title, in the order of the page.
SECTIONS = dict(zip(_PARTS[::2], _PARTS[1::2], strict=True))


def job_arguments(text):
  """Arguments of each command that runs a job."""
  found = [shlex.split(line, comments=True) for line in commands(text)]
  return [words[1:] for words in found if words[0] == "pomp"]


def test_each_job_with_a_config_has_a_section():
  """A job without one needs no more than `--config=JOB`, and `--help` describes it."""
  configs = "".join(
    path.read_text() for path in sorted((ROOT / "configs").glob("*.py"))
  )
  named = {job for job in JOBS if re.search(rf'(base|with_jobs)\(.*"{job}"', configs)}
  assert {*SECTIONS} == {*named, "pretrain", "dry_run"}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_section_run_its_job(title, tmp_path, monkeypatch):
  """In a folder with the configs, and with the files of earlier commands that they
  must find."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  runs = tmp_path / "runs"
  (runs / "example_sets" / "known" / "test").mkdir(parents=True)
  (runs / "example_sets" / "known.txt").write_text("cat\ndog\n")
  for name in (
    "archive/names.json",
    "archive/fall11_whole.tar",
    "masks/masks.safetensors",
  ):
    (runs / name).parent.mkdir(exist_ok=True)
    (runs / name).touch()
  (runs / "demo").mkdir()
  save_prompt(
    runs / "demo" / "prompt.npz", Prompt(np.zeros((4, 64), np.float32), "world", "end")
  )
  monkeypatch.chdir(tmp_path)
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
  return [
    re.escape(name).replace(r"\*", "[^/]*") + ".+" * name.endswith("/")
    for name in names
  ]


def problems(text, folder):
  """Files below a folder that are in no list, and entries of the section that fit no
  file."""
  files = [
    str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
  ]
  missing = [
    form for form in forms(text) if not any(re.fullmatch(form, name) for name in files)
  ]
  listed = "|".join([*forms(_BEFORE), *forms(text)])
  return missing + [name for name in files if not re.fullmatch(listed, name)]


# The commands that train for minutes leave the same files when they train for seconds.
TRAININGS = ("pretrain", "baselines", "ablate", "repeat")
SMALLER = {
  "steps": 4,
  "k": 16,
  "batch_size": 16,
  "data.n_classes": 300,
  "eval.images": 64,
}
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
