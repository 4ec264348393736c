"""The page in Chromium, driven by Playwright: pictures, names, regions, runs, bad input."""

import os
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.page import server

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("waitress")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CHROMIUM = next(filter(None, [os.environ.get("CHROMIUM"), *map(shutil.which, _BROWSERS)]), None)
pytestmark = [
  pytest.mark.slow("Chromium; test_server.py has Flask's client in its place"),
  pytest.mark.skipif(CHROMIUM is None, reason=f"none of {_BROWSERS} on the path, no $CHROMIUM"),
]

NAMES = ["<img src=x onerror=alert(1)>", "red star on navy", "teal leaf on pink"]


@pytest.fixture
def tab(made):
  """A tab of 1200 pixels; fails if it asks another host, complains, or opens a dialog."""
  listener = server.listen("127.0.0.1", 0)
  address = f"http://127.0.0.1:{listener.getsockname()[1]}"
  with server.serving(made[0], listener, 1.0), sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield from watched(browser.new_page(viewport={"width": 1200, "height": 900}), address)
    browser.close()


def watched(page, address):
  """Yields the tab at the address; checks afterwards that it asked and reported nothing else."""
  page.set_default_timeout(300_000)
  asked, complaints = [], []
  page.on("request", lambda request: asked.append(request.url))
  page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on(
    "console",
    # The browser reports the status of an error's line, and that a report's script was blocked.
    lambda text: (
      complaints.append(text.text)
      if text.type == "error" and not re.search("status of 4|^Blocked script", text.text)
      else None
    ),
  )
  page.goto(address)
  yield page
  assert {re.match(r"https?://[^/]+|data:", url)[0] for url in asked} <= {address, "data:"}
  assert complaints == []
  # No page scrolls sideways.
  wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
  assert page.evaluate(wider) == 0


def test_a_picture_regions_and_a_run(tab, tmp_path):
  source = world.source("novel", n_images=1)
  Image.fromarray(source.images(np.arange(1))[0]).save(tmp_path / "picture.png")
  tab.set_input_files("#file", tmp_path / "picture.png")
  tab.fill("#names", "\n".join(NAMES))
  tab.click("button.main")
  # Three prompts, two names each; test_server.py holds their probabilities.
  sync_api.expect(tab.locator(".bar")).to_have_count(6)
  # The picture stays for other names.
  tab.fill("#names", "\n".join(NAMES[:2]))
  tab.click("button.main")
  assert tab.locator(".picture").evaluate("image => image.naturalWidth") == 40
  assert tab.locator("[role=alert]").count() == 0

  tab.click("nav >> text=Regions")
  tab.click(".examples button >> nth=1")
  for button in ("Name the boxes", "Segment"):
    tab.click(f"text={button}")
    assert tab.locator("img.plot").evaluate("image => image.complete && image.naturalWidth") > 900

  tab.click("nav >> text=Reports")
  tab.click("main a")
  assert tab.locator("h1").inner_text() == "demo <b>"
  # The report's script has not run.
  assert tab.frame_locator("iframe").locator("body").inner_text() == ""
