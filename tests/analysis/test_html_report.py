"""HTML reports: what sections become, and an ablation's page in headless Chromium."""

import base64

from PIL import Image
import pytest

from pomp_jax.analysis.html_report import Grid, Section, write_report
from tests.analysis.test_reports import ablation_page, ablation_results
from tests.support.chromium import CHROMIUM, NONE
from tests.support.report_page import Page


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
  for expected in ("An <ablation>", "novel <top-1>", "Over <3> seeds & more.", "--config=<x>"):
    assert expected in page.text
  assert page.tables == [
    [["k", "novel <top-1>"], ["16", "52.1 ± 0.3"], ["64", "55.0 ± 0.2"]],
    [["jax", "0.10.2"]],
  ]
  assert page.images[0]["alt"] == 'a "plot"'
  kind, data = page.images[0]["src"].split(",")
  assert kind == "data:image/png;base64"
  assert base64.b64decode(data) == (tmp_path / "plot.png").read_bytes()
  assert not {"script", "link", "iframe"} & page.tags
  assert "http" not in text


@pytest.mark.slow("Chromium")
@pytest.mark.skipif(CHROMIUM is None, reason=NONE)
def test_a_page_in_chromium(tmp_path):
  """The plot is drawn, nothing is fetched or wider than the page, the config unfolds."""
  sync_api = pytest.importorskip("playwright.sync_api")
  ablation_page(tmp_path, ablation_results())
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 2400})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    complete, natural_width, width = page.evaluate(
      "[document.images[0].complete, document.images[0].naturalWidth, document.images[0].width]"
    )
    assert complete and natural_width > 600 and 300 < width <= natural_width
    assert {url.partition(":")[0] for url in asked[1:]} <= {"data"}
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    closed = page.locator("details").bounding_box()["height"]
    page.locator("summary").click()
    assert page.locator("details").bounding_box()["height"] > closed + 200
    browser.close()
