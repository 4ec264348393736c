"""The pages: links lead somewhere, fields and files that they name exist, and they stay short."""

import re
import shlex
import subprocess

import pytest

from pomp_jax.config import Settings
from pomp_jax.data.source import SourceError
from pomp_jax.files.prompt_file import PromptFileError
from pomp_jax.main import parse
from tests.support.processes import ROOT

_TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
# Without the page that is generated from the fields.
PAGES = [
  name for name in _TRACKED.stdout.split() if name.endswith(".md") and name != "docs/config.md"
]
FIELDS = set(Settings().flat())
GROUPS = {field.partition(".")[0] for field in FIELDS if "." in field}
# Ends of files, and modules, whose names look like a field of a group.
_ENDS = {"json", "npz", "npy", "safetensors", "py"}
_MODULES = {"data.images", "data.noun", "data.source", "prompt.learner"}


def text_of(page):
  return (ROOT / page).read_text()


def anchors(path):
  """GitHub's anchors of a page's headings."""
  headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
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
  assert [name for name in named if name not in FIELDS | GROUPS | _ENDS | _MODULES] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, tmp_path, monkeypatch):
  """Config, variant and fields of each command; files that it names may be missing."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "PICTURES" / "class").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  for block in re.findall(r"^```bash\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
    for line in block.replace("\\\n", "").splitlines():
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
  """Paths within the repository, and modules of commands; words in capitals stand for names."""
  folders = "pomp_jax|configs|tests|docs|launch"
  paths = re.findall(rf"(?<![\w/.])(?:{folders})/[a-z0-9_/]+\.[a-z]+\b", text_of(page))
  modules = re.findall(r"python -m ((?:pomp_jax|docs)\.[a-z0-9_.]+)", text_of(page))
  paths += [module.replace(".", "/") + ".py" for module in modules]
  assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_pages_are_short():
  counted = [name for name in PAGES if not name.startswith(("pomp_jax/", "launch/"))]
  assert sum(len(text_of(name).encode()) for name in counted) <= 130 * 1024
  assert len(text_of("README.md").encode()) <= 9 * 1024
