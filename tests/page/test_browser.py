"""The page in Chromium, driven by Playwright: pictures, names, regions, runs, bad input."""

import re

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.inference.classify import Classifier
from pomp_jax.page import server
from tests.support.chromium import CHROMIUM, NONE

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("waitress")
pytestmark = [
  pytest.mark.slow("Chromium; test_server.py has Flask's client in its place"),
  pytest.mark.skipif(CHROMIUM is None, reason=NONE),
]

NAMES = ["<img src=x onerror=alert(1)>", "red star on navy", "teal leaf on pink"]


@pytest.fixture(scope="module")
def address(made):
  """The application, served."""
  listener = server.listen("127.0.0.1", 0)
  with server.serving(made[0], listener, 1.0):
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def browser():
  """Chromium without a window."""
  with sync_api.sync_playwright() as playwright:
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield found
    found.close()


@pytest.fixture
def tab(browser, address):
  """A tab of 1200 pixels; fails if it asks another host, complains, or opens a dialog."""
  page = browser.new_page(viewport={"width": 1200, "height": 900})
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
  page.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  """A picture file of the world, and its name."""
  source = world.source("novel", n_images=1)
  path = tmp_path_factory.mktemp("pictures") / "picture.png"
  Image.fromarray(source.images(np.arange(1))[0]).save(path)
  return path, source.names[source.labels[0]]


def test_bars_of_an_own_picture_and_own_names(tab, made, picture, tmp_path):
  path, name = picture
  names = [*NAMES, name]
  tab.set_input_files("#file", path)
  tab.fill("#names", "\n".join(names))
  tab.click("button.main")
  config = made[1]._config
  expected = [
    best
    for prompt in config.page.prompts
    for best in Classifier("world", prompt, names).predict(path, top=config.page.top)
  ]
  bars = tab.locator(".bar")
  sync_api.expect(bars).to_have_count(len(expected))
  assert [bar.locator("span").first.inner_text() for bar in bars.all()] == [n for n, _ in expected]
  values = [float(bar.locator("progress").get_attribute("value")) for bar in bars.all()]
  np.testing.assert_allclose(values, [p for _, p in expected], atol=1e-3)
  # The best bar of each prompt has the accent's colour, along its value.
  tab.screenshot(path=tmp_path / "shot.png", full_page=True)
  pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
  accent = np.abs(pixels - [0x00, 0x72, 0xB2]).max(-1) < 8
  for index in range(0, len(expected), config.page.top):
    box = bars.nth(index).locator("progress").bounding_box()
    drawn = accent[int(box["y"] + box["height"] / 2), int(box["x"]) : int(box["x"] + box["width"])]
    assert abs(drawn.mean() - values[index]) < 0.05
  # The picture stays for other names.
  tab.fill("#names", "\n".join(names[:2]))
  tab.click("button.main")
  assert tab.locator(".picture").evaluate("image => image.naturalWidth") == 40
  assert tab.locator("[role=alert]").count() == 0


def test_regions(tab):
  tab.click("nav >> text=Regions")
  tab.click(".examples button >> nth=1")
  assert len(tab.input_value("#boxes").split("\n")) >= 3
  for button in ("Name the boxes", "Segment"):
    tab.click(f"text={button}")
    assert tab.locator("img.plot").evaluate("image => image.complete && image.naturalWidth") > 900


def test_a_run_with_its_report(tab):
  tab.click("nav >> text=Reports")
  tab.click("main a")
  assert tab.locator("h1").inner_text() == "demo <b>"
  assert tab.locator("nav [aria-current]").inner_text() == "Reports"
  for plot in tab.locator("img.plot").all():
    plot.scroll_into_view_if_needed()
    assert plot.evaluate("async image => (await image.decode(), image.naturalWidth)") > 0
  # The report's script has not run.
  assert tab.frame_locator("iframe").locator("body").inner_text() == ""
