"""The page in Chromium, driven by Playwright: pictures, names, regions, runs, bad
input."""

import os
import re
import shutil
import socket

from PIL import Image
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
server = pytest.importorskip("pomp_jax.rooms.page.server", exc_type=ImportError)
_BROWSERS = (
  "chromium",
  "chromium-browser",
  "google-chrome",
  "chrome",
  "chrome-headless-shell",
)
CHROMIUM = next(
  filter(None, [os.environ.get("CHROMIUM"), *map(shutil.which, _BROWSERS)]), None
)
pytestmark = [
  pytest.mark.slow("Chromium; test_server.py has Flask's client in its place"),
  pytest.mark.skipif(
    CHROMIUM is None, reason=f"none of {_BROWSERS} on the path, no $CHROMIUM"
  ),
]

NAMES = ["<img src=x onerror=alert(1)>", "red star on navy", "teal leaf on pink"]


@pytest.fixture
def tab(made):
  """A dark tab of 360 pixels; fails if it asks another host, complains, or opens a
  dialog."""
  listener = socket.create_server(("127.0.0.1", 0))
  address = f"http://127.0.0.1:{listener.getsockname()[1]}"
  asked, complaints = [], []

  def read(message):
    # The browser reports the status of an error's line, and that a report's script was
    # blocked.
    if message.type == "error" and not re.search(
      "status of 4|^Blocked script", message.text
    ):
      complaints.append(message.text)

  sync_api.expect.set_options(timeout=300_000)
  with server.serving(made[0], listener, 1.0), sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
    page.set_default_timeout(300_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on(
      "dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss())
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", read)
    page.goto(address)
    yield page
    browser.close()
  hosts = {re.match(r"(blob:)?https?://[^/]+|data:", url)[0] for url in asked}
  assert hosts <= {address, "data:", f"blob:{address}"} and complaints == []


def fits(tab):
  """The page does not scroll sideways, and is dark."""
  root = "document.documentElement"
  assert tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
  background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
  assert max(map(int, re.findall(r"\d+", background))) < 64


# Sends a picture as a user's paste or drop does.
SEND = """async (kind) => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20});
  const blob = await new Promise((take) => canvas.toBlob(take));
  const data = new DataTransfer();
  data.items.add(new File([blob], kind + ".png", {type: "image/png"}));
  const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
    : new DragEvent("drop", {dataTransfer: data, bubbles: true});
  document.querySelector(".lead").dispatchEvent(event);
}"""
SHOWN = (
  "image => image.decode().then(() => [image.src.slice(0, 5), image.naturalWidth])"
)
# Remembers over the navigation what is seen while the server computes.
BUSY = """() => addEventListener("submit", () => setTimeout(() => sessionStorage.busy = [
  document.querySelector("[role=status]").hidden, document.querySelector("button.main").disabled
]))"""


def test_the_page_in_a_browser(tab, tmp_path):
  shown = tab.locator(".drop img")
  Image.new("RGB", (40, 10)).save(tmp_path / "picture.png")
  tab.set_input_files("#file", tmp_path / "picture.png")
  assert shown.evaluate(SHOWN) == ["blob:", 40]
  for kind in ("paste", "drop"):
    tab.evaluate(SEND, kind)
    sync_api.expect(tab.locator(".drop p")).to_contain_text(f"{kind}.png")
    assert shown.evaluate(SHOWN) == ["blob:", 30]
  tab.fill("#names", "\n".join(NAMES))
  tab.uncheck("input[name=prompt] >> nth=0")
  tab.click("summary")
  tab.check("input[name=run][value^=demo]")
  tab.fill("#templates", "the {}!")
  fits(tab)
  tab.evaluate(BUSY)
  tab.click("button.main")
  sync_api.expect(tab.locator(".card")).to_have_count(4)
  assert tab.evaluate("sessionStorage.busy") == "false,true"
  assert (
    shown.evaluate(SHOWN)[1] == 30 and not tab.locator("[role=status]").is_visible()
  )
  fits(tab)
  (tmp_path / "large.png").write_bytes(bytes(2**21))  # told before it is sent
  tab.set_input_files("#file", tmp_path / "large.png")
  assert not tab.locator("#file").evaluate("input => input.validity.valid")

  tab.click("nav >> text=Regions")
  tab.click(".examples button >> nth=1")
  for button in ("Name the boxes", "Segment"):
    tab.click(f"text={button}")
    assert (
      tab.locator("img.plot").evaluate("image => image.complete && image.naturalWidth")
      > 900
    )

  tab.click("nav >> text=Reports")
  tab.click("main a")
  assert tab.locator("h1").inner_text() == "demo <b>"
  fits(tab)
  tab.click("text=report.html")
  assert tab.locator("body").inner_text() == ""  # its script has not run
