"""A report of a job, parsed: its tables, headings, images, links, and tags that stay
open."""

from collections.abc import Mapping, Sequence
import html.parser
import pathlib
import re
from typing import Any, NamedTuple
import urllib.parse

from PIL import Image

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.report.run_report import finish_run
from tests.support.small_run import small_config

PATHS = ("/data/runs/one/prompt.npz", "/data/runs/two/prompt.npz")

# A name that a page must escape.
AWKWARD = "a <b>&\"photo\"</b> of a {}.<script>alert('1')</script>"


class Page(html.parser.HTMLParser):
  """Tables, headings, images, links and open tags of a page."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.headings, self.images, self.links = [], [], [], []
    self.tags, self.open, self.text = set(), [], ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.add(tag)
    if tag not in ("meta", "img", "br", "wbr"):
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")
    elif tag in ("h1", "h2"):
      self.headings.append("")
    elif tag == "img":
      self.images.append(attributes)
    elif tag == "a":
      self.links.append(attributes["href"])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
    if {"td", "th"} & set(self.open[-2:]):
      self.tables[-1][-1][-1] += data
    elif self.open and self.open[-1] in ("h1", "h2"):
      self.headings[-1] += data

  def table(self, *columns):
    """Rows of the one table with these first columns."""
    [found] = [
      table for table in self.tables if tuple(table[0][: len(columns)]) == columns
    ]
    return found[1:]


class Case(NamedTuple):
  """A report of a job, and what is on it."""

  job: str
  results: Mapping[str, Any]
  plots: Sequence[str]
  # The heading, and tables: the first cells of the head and of each row. "..": number
  # of others. FOLDER is the name of the run's folder.
  expected: str
  facts: Mapping[str, str] = {}  # rows of two cells
  text: str = ""  # a sentence


def page_of(
  job: str, path: pathlib.Path, results: Mapping[str, Any], **changes: Any
) -> Page:
  """The page of a run, with the plots that are in its folder."""
  config = small_config(job=job, **changes)
  finish_run(RunFolder(path), config.to_dict(), {"job": job} | results)
  return Page((path / "report.html").read_text())


def check_page(case: Case, path: pathlib.Path) -> Page:
  """Renders the report; every figure is on it, it is whole, and it fetches nothing."""
  (path / "plots").mkdir(exist_ok=True)
  for name in case.plots:
    if not (path / "plots" / name).exists():
      Image.new("RGB", (3, 2), "red").save(path / "plots" / name)
  parsed = page_of(case.job, path, case.results, **{"eval.template": AWKWARD})
  _check_figures(
    case._replace(expected=case.expected.replace("FOLDER", path.name)), parsed
  )
  for name, mark in (("results.md", "| --- |"), ("results.tex", r"\begin{tabular}")):
    assert mark in (path / name).read_text()
  text = (path / "report.html").read_text()
  assert parsed.open == []
  assert not parsed.tags & {"script", "link", "iframe", "b"}
  assert len(parsed.images) == len(case.plots)
  for image in parsed.images:
    assert image["src"].startswith("data:image/png;base64,") and image["alt"]
  assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
  assert not any(urllib.parse.urlparse(link).scheme for link in parsed.links)
  assert "results.json" in parsed.links
  rows = {row[0]: row[1] for table in parsed.tables for row in table if len(row) == 2}
  assert rows["job"] == case.job
  assert rows["date"].endswith("UTC")
  assert rows["data.n_classes"] == "300"
  assert rows.get("eval.template", AWKWARD) == AWKWARD  # segment reads none
  assert "Command" in parsed.headings and "Config" in parsed.headings
  return parsed


def _check_figures(case: Case, parsed: Page) -> None:
  heading, *tables = case.expected.replace("AWKWARD", AWKWARD).split("\n\n")
  assert re.search(heading, parsed.headings[0])
  lines_of = [[" | ".join([*row, ""]) for row in table] for table in parsed.tables]
  for head, *expected in map(str.splitlines, tables):
    found = [
      row
      for lines in lines_of
      if lines[0].startswith(f"{head} | ")
      for row in lines[1:]
    ]
    if expected[-1].startswith(".."):
      n_others = int(expected.pop().removeprefix(".. "))
      assert len(found) == len(expected) + n_others
      del found[len(expected) :]
    for row, own in zip(found, expected, strict=True):
      assert row.startswith(f"{own} | ")
  assert set(case.facts.items()) <= {
    tuple(row) for table in parsed.tables for row in table
  }
  assert case.text in parsed.text
