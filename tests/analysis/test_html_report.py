"""HTML reports: parsed, and an ablation's page in headless Chromium (on the path or $CHROMIUM)."""

import base64
import html.parser
import json
import subprocess

import numpy as np
from PIL import Image
import pytest

from pomp_jax.ablation.report import write_outcome
from pomp_jax.analysis.html_report import Grid, Section, write_report
from pomp_jax.files.run_folder import RunFolder, with_provenance
from tests.support.chromium import CHROMIUM, NONE
from tests.support.small_run import small_config

# What the browser sees, written into the page itself: it has no script of its own.
_PROBE = """
<script>
addEventListener("load", () => {
  const found = {
    tables: [...document.querySelectorAll("table")].map(table => ({
      head: [...table.querySelectorAll("th")].map(cell => cell.innerText),
      rows: [...table.querySelectorAll("tbody tr")].map(
        row => [...row.cells].map(cell => cell.innerText)),
      height: table.getBoundingClientRect().height,
    })),
    images: [...document.images].map(image => [image.complete, image.naturalWidth, image.width]),
    fetched: performance.getEntriesByType("resource").map(entry => entry.name),
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    folded: [...document.querySelectorAll("details")].map(details => {
      const closed = details.getBoundingClientRect().height;
      details.open = true;
      return [closed, details.getBoundingClientRect().height];
    }),
  };
  const probe = document.createElement("div");
  probe.id = "probe";
  probe.dataset.found = JSON.stringify(found);
  document.body.append(probe);
});
</script>
"""


def chromium(profile, *arguments):
  """Runs Chromium without a network and returns its output; skips the test without Chromium."""
  if CHROMIUM is None:
    pytest.skip(NONE)
  command = [
    *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", *arguments),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Run folder with the page of synthetic cells, one of which failed."""
  cells = []
  rng = np.random.default_rng(0)
  for k in (16, 64, 256, "all"):
    for correction in (None,) if k == "all" else ("log", "none"):
      for seed in range(3):
        values = {"k": k, "correction": correction, "seed": seed}
        cells.append(
          {
            "name": ", ".join(f"{field}={value}" for field, value in values.items()),
            "values": values,
            "top1": {split: rng.uniform(0.2, 0.3) for split in ("base", "novel", "shifted")},
            "by_hand": {
              split: {"hand_written": 0.25, "class_name": 0.22}
              for split in ("base", "novel", "shifted")
            },
            "seconds": rng.uniform(1, 2),
            "memory_mib": rng.uniform(10, 20),
            "error": None,
          }
        )
  cells[4] = cells[4] | {"error": "TrainingError: loss is nan at step 7"}
  run = RunFolder(tmp_path_factory.mktemp("report"))
  run.create()
  results = with_provenance({"cells": cells, "missing": []})
  write_outcome(small_config(job="ablate"), run, results)
  return run


@pytest.fixture(scope="module")
def seen(folder, tmp_path_factory):
  """What a browser finds on the page."""
  page = (folder.path / "report.html").read_text()
  probed = tmp_path_factory.mktemp("probe") / "page.html"
  probed.write_text(page.replace("</body>", f"{_PROBE}</body>"))
  dom = chromium(probed.parent / "profile", "--dump-dom", probed.as_uri())
  probe = _Probe()
  probe.feed(dom)
  return json.loads(probe.found)


class _Probe(html.parser.HTMLParser):
  found = ""

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if attributes.get("id") == "probe":
      self.found = attributes["data-found"]


def test_tables(seen):
  summary, by_hand, cells, failed, run, fields, versions = seen["tables"]
  assert summary["head"][:2] == ["k", "correction"]
  assert [row[0] for row in summary["rows"]] == ["16", "16", "64", "64", "256", "256", "all"]
  assert all("±" in row[summary["head"].index("novel top-1 (%)")] for row in summary["rows"])
  assert "(1 failed)" in summary["rows"][1][2]
  assert [row[0] for row in by_hand["rows"]] == ["hand-written prompt", "class name alone"]
  assert len(cells["rows"]) == 21
  assert failed["rows"] == [
    ["k=16, correction=none, seed=1", "TrainingError: loss is nan at step 7"]
  ]
  assert ["job", "ablate"] in run["rows"]
  assert ["data.n_classes", "300"] in fields["rows"]
  assert {"jax", "numpy"} <= {row[0] for row in versions["rows"]}
  assert all(table["height"] > 20 for table in seen["tables"])


def test_the_picture_is_drawn_and_nothing_is_fetched(seen):
  assert len(seen["images"]) == 1
  complete, natural_width, width = seen["images"][0]
  assert complete
  assert natural_width > 600
  assert 300 < width <= natural_width
  assert seen["fetched"] == []
  # The page does not scroll sideways.
  assert seen["wider"] == 0


def test_the_config_unfolds(seen):
  [(closed, opened)] = seen["folded"]
  assert opened > closed + 200


def test_the_screenshot_shows_the_plot(folder, tmp_path):
  page = (folder.path / "report.html").as_uri()
  shot = tmp_path / "shot.png"
  size = "--window-size=1280,2400"
  chromium(tmp_path / "profile", size, f"--screenshot={shot}", page)
  with Image.open(shot) as image:
    pixels = np.asarray(image.convert("RGB")).astype(int)
  assert pixels.shape[1] == 1280
  for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)):
    near = np.abs(pixels - np.array(colour)).max(-1) < 24
    assert near.sum() > 200


class Page(html.parser.HTMLParser):
  """Collects what a page holds."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.images, self.text = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag == "img":
      self.images.append(dict(attributes))

  def handle_data(self, data):
    self.text.append(data.strip())


def test_the_page_holds_all_and_needs_nothing(tmp_path):
  Image.new("RGB", (3, 2), "red").save(tmp_path / "plot.png")
  table = Grid(("k", "novel <top-1>"), [("16", "52.1 ± 0.3"), ("64", "55.0 ± 0.2")], ["", "best"])
  sections = [
    Section("Means", "Over <3> seeds & more.", table=table),
    Section("Plot", picture=tmp_path / "plot.png", caption='a "plot"'),
    Section("Command", code="python -m pomp_jax.main --config=<x>", folded=True),
  ]
  write_report(tmp_path / "report.html", "An <ablation>", sections, {"jax": "0.10.2"})
  text = (tmp_path / "report.html").read_text()
  page = Page(text)
  for expected in (
    "An <ablation>",
    "novel <top-1>",
    "52.1 ± 0.3",
    "Over <3> seeds & more.",
    "0.10.2",
  ):
    assert expected in page.text
  assert page.tags.count("table") == 2
  assert page.images[0]["alt"] == 'a "plot"'
  kind, data = page.images[0]["src"].split(",")
  assert kind == "data:image/png;base64"
  assert base64.b64decode(data) == (tmp_path / "plot.png").read_bytes()
  assert not {"script", "link", "iframe"} & set(page.tags)
  assert "http" not in text


def test_words_stand_on_the_left_and_figures_on_the_right(tmp_path):
  columns = ("prompt", "group", "seconds", "novel mIoU_plain")
  rows = [
    ("a", "base", "1.5", "50.0 ± 0.1"),
    ("b", "-", "not reached", "+3.0"),
    ("c", "x", "2", "-"),
  ]
  sections = [
    Section("Figures", table=Grid(columns, rows)),
    Section("Facts", table=Grid((), [("images", "400"), ("CLIP", "world"), ("classes", "2")])),
  ]
  write_report(tmp_path / "report.html", "Tables", sections, {"jax": "0.10.2"})
  text = (tmp_path / "report.html").read_text()
  assert '<td class="words">base</td><td>1.5</td><td>50.0 ± 0.1</td>' in text
  assert '<td class="words">-</td><td>not reached</td><td>+3.0</td>' in text
  assert '<th class="words">group</th><th>seconds</th>' in text
  assert '<td class="words">400</td>' in text and '<td class="words">world</td>' in text
  # A long heading may break.
  assert "novel mIoU_<wbr>plain" in text
