"""A hook of mkdocs: files outside of docs/ that pages link to join the site.

GitHub shows the pages beside the code, so they link to `../README.md` or to a config.
mkdocs knows the files in docs/ alone. The hook copies each linked file of the
repository into the site, under `repository/`, and points the links there.

  mkdocs build --strict --config-file .mkdocs.yml
"""

import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = "repository"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
  """Adds the files that pages, and the pages that are added, link to."""
  waiting = [file for file in files if file.src_uri.endswith(".md")]
  while waiting:
    page = waiting.pop()
    for link in _LINK.findall(page.content_string):
      target = _target(page.src_uri, link)
      if files.get_file_from_path(_uri(target)) or not (ROOT / target).is_file():
        continue
      linked = File.generated(config, _uri(target), abs_src_path=str(ROOT / target))
      linked.inclusion = InclusionLevel.INCLUDED
      files.append(linked)
      if linked.src_uri.endswith(".md"):
        waiting.append(linked)
  return files


def on_page_markdown(
  markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Points links that lead out of docs/ to the copies in the site."""
  source = page.file.src_uri
  folder = os.path.dirname(source)

  def moved(match: re.Match) -> str:
    target = _target(source, match[1])
    return os.path.relpath(_uri(target), folder or ".")

  return _LINK.sub(moved, markdown)


def _target(page: str, link: str) -> str:
  """Returns the path in the repository that a page's link means."""
  if page.startswith(f"{_FOLDER}/"):
    folder = os.path.dirname(page.removeprefix(f"{_FOLDER}/"))
  else:
    folder = os.path.join("docs", os.path.dirname(page))
  return os.path.normpath(os.path.join(folder, link))


def _uri(target: str) -> str:
  """Returns the place in the site of a path in the repository."""
  if target.startswith("docs/"):
    return target.removeprefix("docs/")
  return f"{_FOLDER}/{target}"
