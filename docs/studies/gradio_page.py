r"""The page in the browser built on Gradio, for docs.studies.attack_page to compare.

python -m docs.studies.gradio_page --port=8766 --runs=runs [--guarded] [--policy]

Needs Gradio (`pip install gradio`, which takes a release that fits the pins of
requirements.txt). Without `--guarded` Gradio's own options protect the page: a queue of
one and four that wait, limits on uploads, no paths, no analytics, no API. With it a
layer in front checks names, origins and routes, and connections that are silent for
30 s are closed. `--policy` sends the present page's Content-Security-Policy as well.
"""

import argparse
import contextlib
import html
import os
import pathlib
import signal
import tempfile
import threading
import time
from urllib.parse import urlsplit

import numpy as np

from pomp_jax.config import unpack
from pomp_jax.configs import page as page_config
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.rooms.page import form, runs
from pomp_jax.rooms.page import page as job
from pomp_jax.rooms.page.comparison import Comparison, shown_prompts
from pomp_jax.rooms.regions.on_page import RegionsOfPictures

# Settings of Gradio that are read while it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="gradio_page_")

import gradio as gr
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

WAITING = 4
SILENCE = 30
_MIB = 2**20
_FONTS = ("system-ui", "sans-serif")
# Routes that Gradio's own script asks for on this page.
_ROUTES = (
  "/assets/",
  "/static/",
  "/svelte/",
  "/theme.css",
  "/config",
  "/favicon.ico",
  "/manifest.json",
  "/gradio_api/file=/",
  "/gradio_api/heartbeat/",
  "/gradio_api/queue/",
  "/gradio_api/startup-events",
  "/gradio_api/upload",
)
POLICY = (
  "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self';"
  " form-action 'self'; base-uri 'none'; frame-ancestors 'none'; connect-src 'self'"
)


def build(comparison: Comparison, limits, examples) -> gr.Blocks:
  """Builds the tabs Classify, Regions and Runs on the room's own computation."""
  root = pathlib.Path(limits.runs) if limits.runs else None
  labels = [named.label for named in comparison.prompts]

  def entered(path: str | None, names: str):
    if path is None:
      raise gr.Error("the picture: none given")
    image = form.read_picture(pathlib.Path(path).read_bytes())
    return image, form.read_names(names, limits.max_names)

  def classify(path, names):
    try:
      image, names = entered(path, names)
      return [dict(best) for _, best in comparison.classify(image, names)]
    except InputError as error:
      raise gr.Error(html.escape(str(error))) from error

  def boxes(path, names, text):
    try:
      image, names = entered(path, names)
      boxes_Rx4 = form.read_boxes(text, *image.size)
      asked = comparison.asked(image, names)
      _, scores = comparison.regions.name_boxes(asked, boxes_Rx4)
    except InputError as error:
      raise gr.Error(html.escape(str(error))) from error
    pixels = np.asarray(image)
    corners = [tuple(map(int, box)) for box in boxes_Rx4]
    return [
      (pixels, list(zip(corners, [names[c] for c in rows.argmax(1)], strict=True)))
      for rows in scores
    ]

  def show(name):
    run = runs.find_runs(root).get(name)
    if run is None:
      raise gr.Error("there is no such run")
    text, problems = runs.show(run, lambda file: "")
    report = runs.read_file(run.path, "report.html") or b""
    quoted = html.escape(report.decode("utf-8", "replace"))
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in problems)
    return f'{lines}{text}<iframe sandbox srcdoc="{quoted}"></iframe>'

  # Files of visitors are deleted when they are 60 s old.
  with gr.Blocks(
    analytics_enabled=False, delete_cache=(10, 60), title="POMP"
  ) as blocks:
    for tab in ("Classify", "Regions"):
      with gr.Tab(tab), gr.Row():
        with gr.Column():
          picture = gr.Image(type="filepath", image_mode=None, sources=["upload"])
          names = gr.Textbox(label="Names", lines=8, max_length=form_bytes())
          fields = [picture, names]
          if tab == "Regions":
            fields.append(gr.Textbox(label="Boxes", lines=4))
          button = gr.Button(tab)
          shown = [
            [entry.image, entry.names, entry.boxes][: len(fields)]
            for entry in examples[tab.lower()]
          ]
          if shown:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="gradio_examples_"))
            for number, row in enumerate(shown):
              row[0].save(path := folder / f"{number}.png")
              row[0] = str(path)
            gr.Examples(shown, fields)
        with gr.Column():
          kind = gr.Label if tab == "Classify" else gr.AnnotatedImage
          outputs = [kind(label=label) for label in labels]
        button.click(
          classify if tab == "Classify" else boxes,
          fields,
          outputs,
          api_visibility="private",
          concurrency_id="one",
          concurrency_limit=1,
        )
    with gr.Tab("Runs"):
      chosen = gr.Dropdown(sorted(runs.find_runs(root)), value=None, label="Run")
      chosen.change(show, chosen, gr.HTML(), api_visibility="private")
  return blocks.queue(api_open=False, max_size=WAITING, default_concurrency_limit=1)


def form_bytes() -> int:
  """Letters of a field, at most."""
  return 2 * _MIB


class Guard:
  """Answers under the page's own names, to its own forms, and on its own routes."""

  def __init__(self, app, policy: str = ""):
    self._app, self._policy = app, policy

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = {
      name.lower(): value.decode("latin-1") for name, value in scope["headers"]
    }
    host = headers.get(b"host", "")
    sender = urlsplit(headers.get(b"origin", f"//{host}")).netloc
    status = 0
    if (urlsplit(f"//{host}").hostname or "") not in ("127.0.0.1", "localhost", "::1"):
      status = 400
    elif scope["method"] not in ("GET", "HEAD") and sender != host:
      status = 403
    elif scope["path"] != "/" and not scope["path"].startswith(_ROUTES):
      status = 404

    async def send_with_policy(message):
      if message["type"] == "http.response.start" and self._policy:
        policy = (b"content-security-policy", self._policy.encode())
        message["headers"] = [*message["headers"], policy]
      await send(message)

    if status:
      await send({"type": "http.response.start", "status": status, "headers": []})
      await send({"type": "http.response.body", "body": b"refused"})
    else:
      await self._app(scope, receive, send_with_policy)


class Timed(H11Protocol):
  """Closes a connection whose client is silent, and the oldest idle of too many."""

  def connection_made(self, transport):
    super().connection_made(transport)
    self._last = time.monotonic()
    waiting = [other for other in self.connections if other.waits()]
    if len(waiting) > 100:
      min(waiting, key=lambda other: other._last).transport.abort()
    self._look()

  def data_received(self, data):
    self._last = time.monotonic()
    super().data_received(data)

  def waits(self) -> bool:
    """Whether the client has something to send or to read."""
    unread = self.transport.get_write_buffer_size() > 0
    cycle = self.cycle
    return unread or cycle is None or cycle.response_complete or cycle.more_body

  def _look(self):
    if self.transport.is_closing():
      return
    if not self.waits():
      self._last = time.monotonic()
    if time.monotonic() - self._last > SILENCE:
      self.transport.abort()
    else:
      self.loop.call_later(1, self._look)


def main() -> None:
  """Serves until SIGINT or SIGTERM."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--port", type=int, default=8766)
  parser.add_argument("--runs", default="")
  parser.add_argument("--guarded", action="store_true")
  parser.add_argument("--policy", action="store_true")
  flags = parser.parse_args()
  config = unpack(page_config.get_config(f"runs={flags.runs}" if flags.runs else ""))
  prompts = shown_prompts(read_prompts(config.page.prompts, "page.prompts"))
  encoder = opening.open_encoder(config.clip)
  regions = RegionsOfPictures(encoder, config.clip, config.page)
  comparison = Comparison(encoder, prompts, config.page.top, regions)
  examples = {"classify": job._pictures(), "regions": job._scenes()}
  blocks = build(comparison, config.page, examples)
  options = {
    "max_file_size": int(config.page.max_upload * _MIB),
    "allowed_paths": [],
    "theme": gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "enable_monitoring": False,
    "footer_links": [],
    "show_error": False,
  }
  stop = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
  print("cache", os.environ["GRADIO_TEMP_DIR"], gr.__version__, flush=True)
  if flags.guarded or flags.policy:
    import fastapi

    app = gr.mount_gradio_app(fastapi.FastAPI(openapi_url=None), blocks, "/", **options)
    served = uvicorn.Server(
      uvicorn.Config(
        Guard(app, POLICY if flags.policy else ""),
        port=flags.port,
        http=Timed,
        log_level="warning",
        timeout_graceful_shutdown=5,
      )
    )
    served.install_signal_handlers = lambda: None
    served.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=served.run)
    thread.start()
    stop.wait()
    served.should_exit = True
    thread.join()
  else:
    blocks.launch(
      server_port=flags.port, prevent_thread_lock=True, quiet=True, **options
    )
    stop.wait()
    blocks.close()


if __name__ == "__main__":
  main()
