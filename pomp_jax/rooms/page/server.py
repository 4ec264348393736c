"""The server of the page: routes, limits, headers, connections.

No route takes a path of the server. Pages are HTML that works without the page's one
script. The headers tell the browser to run no other script and to load nothing from
other sites. One computation runs at a time, and a few wait.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import functools
import ipaddress
import logging
import pathlib
import secrets
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, abort, render_template, request, url_for
from PIL import Image
import waitress
from waitress.channel import HTTPChannel
from waitress.task import WSGITask
from werkzeug.exceptions import HTTPException

from pomp_jax.errors import InputError, RunError
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.terminal import printable, quoted
from pomp_jax.rooms.page import form, runs
from pomp_jax.rooms.page.comparison import Comparison
from pomp_jax.rooms.page.fields import Page
from pomp_jax.rooms.page.form import Example, FormError

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIB = 2**20
_FORM_BYTES = 2 * _MIB  # names and boxes of a form; 1,000 names of 1,000 letters fit
_THREADS = 8  # connections that are served at a time
# Limits: open connections, connections without a whole request, and seconds of silence.
_CONNECTIONS, _IDLE, _SILENCE = 200, 100, 30
_WAITING = 4  # computations that may wait
_SECURITY = {
  "Content-Security-Policy": (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
  ),
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-store",
}
# A report is a file of a run: it may show its own pictures and do nothing else.
_REPORT = (
  "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
  " frame-ancestors 'none'"
)


class BusyError(InputError):
  """Too many computations wait."""

  http_status = 503


Examples = Mapping[str, Sequence[Example]]  # tab -> its examples


class Shelf:
  """PNG files in memory by random keys.

  A browser can send the key of a picture instead of the picture itself.
  """

  def __init__(self, max_bytes: int = 64 * _MIB):
    """Starts empty; beyond `max_bytes` the least recently used pictures are dropped."""
    self._max_bytes, self._lock = max_bytes, threading.Lock()
    self._held: OrderedDict[str, bytes] = OrderedDict()
    self._fixed: dict[str, bytes] = {}

  def add(self, content: bytes, *, keep: bool = False) -> str:
    """Adds a PNG and returns its key, which can't be guessed.

    A picture that is added with `keep` is never dropped.
    """
    key = secrets.token_urlsafe(16)
    with self._lock:
      (self._fixed if keep else self._held)[key] = content
      while (
        sum(map(len, self._held.values())) > self._max_bytes and len(self._held) > 1
      ):
        self._held.popitem(last=False)
    return key

  def get(self, key: str) -> bytes | None:
    """Returns a picture; None if it was dropped or never added."""
    with self._lock:
      if key in self._held:
        self._held.move_to_end(key)
      return self._fixed.get(key) or self._held.get(key)


class Turns:
  """Lets one computation run at a time, and a few wait; after `close` none starts."""

  def __init__(self, waiting: int = _WAITING):
    self._places = threading.BoundedSemaphore(1 + waiting)
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def turn(self) -> Iterator[None]:
    """Waits until the `with` block may compute; BusyError if too many wait."""
    if not self._places.acquire(blocking=False):
      raise BusyError("the page is busy with other pictures; try again in a moment")
    try:
      with self._lock:
        yield
    finally:
      self._places.release()

  def close(self) -> None:
    """Waits for the running computation, and lets no other start."""
    self._lock.acquire()  # and never release it


def make_app(
  comparison: Comparison, fields: Page, turns: Turns, examples: Examples | None = None
) -> Flask:
  """Makes the application.

  Args:
    comparison: the CLIP with the prompts of the config.
    fields: limits and addresses of the page.
    turns: queue of computations.
    examples: examples for the tabs "classify" and "regions".
  """
  app = Flask(__name__, static_folder=None)
  app.config["MAX_CONTENT_LENGTH"] = int(fields.max_upload * _MIB) + _FORM_BYTES
  app.config["MAX_FORM_MEMORY_SIZE"] = _FORM_BYTES
  app.config["MAX_FORM_PARTS"] = 20
  app.jinja_env.trim_blocks = True
  app.jinja_env.lstrip_blocks = True

  page = _Page(comparison, fields, turns, examples or {})
  app.before_request(functools.partial(_check_origin, fields.host, fields.hosts))
  app.after_request(_secure)
  app.register_error_handler(Exception, page.fail)

  # Tabs with a form come first; "/" is the first tab.
  form_tabs = {"classify": "/"}
  if comparison.regions is not None:
    form_tabs["regions"] = "/regions"
  for tab, rule in form_tabs.items():
    app.add_url_rule(rule, tab, page.enter, methods=["GET", "POST"])
  tabs = {**form_tabs, "runs": "/runs", "reports": "/reports"}
  app.jinja_env.globals["tabs"] = tabs
  app.jinja_env.globals["limits"] = fields
  app.jinja_env.globals["longest"] = form.LONGEST

  for rule, view in (
    ("/picture/<key>", page.picture),
    ("/runs", page.run_list),
    ("/reports", page.run_list),
    ("/runs/<path:name>", page.run),
    ("/plots/<path:name>/<file>", page.plot),
    ("/report/<path:name>", page.report),
  ):
    app.add_url_rule(rule, view.__name__, view)

  for name, mimetype in (("style.css", "text/css"), ("page.js", "text/javascript")):
    content = pathlib.Path(app.root_path, "templates", name).read_text()
    answer = functools.partial(Response, content, mimetype=mimetype)
    app.add_url_rule(f"/{name}", name, answer)
  return app


class _Page:
  """The views. The shelf holds the pictures of the examples, each under a key."""

  def __init__(
    self, comparison: Comparison, limits: Page, turns: Turns, examples: Examples
  ):
    self._comparison = comparison
    self._limits = limits
    self._turns = turns
    self._root = pathlib.Path(limits.runs) if limits.runs else None
    self._shelf = Shelf()
    # tab -> key -> entered fields
    self._examples: dict[str, dict[str, dict[str, str]]] = {}
    for tab, examples_of_tab in examples.items():
      self._examples[tab] = {}
      for example in examples_of_tab:
        key = self._shelf.add(form.png_of(example.image), keep=True)
        self._examples[tab][key] = {
          "picture": key,
          "names": example.names,
          "boxes": example.boxes,
        }

  def enter(self) -> tuple[str, int]:
    """Shows a tab with a form; computes the answer to a sent form.

    An error of the input is a line on the page.
    """
    tab = request.endpoint or ""
    examples = self._examples.get(tab, {})
    offered = self._offered_runs()
    entered = dict.fromkeys(("picture", "names", "boxes", "templates"), "")
    entered |= next(iter(examples.values()), {})
    labels = [named.label for named in self._comparison.prompts]
    picked = {"prompt": labels, "run": []}
    comparison = self._comparison
    results: dict[str, Any] = {}
    error = ""
    status = 200
    if request.method == "POST":
      try:
        entered = {field: request.form.get(field, "") for field in entered}
        picked = {field: request.form.getlist(field) for field in picked}
        if not (any(picked.values()) or entered["templates"].strip()):
          picked["prompt"] = labels
        example = request.form.get("example", "")
        if example in examples:
          entered |= examples[example]
        else:
          image = self._image(entered)
          comparison = self._chosen(
            entered["templates"], offered, picked["prompt"], picked["run"]
          )
          names = form.read_names(entered["names"], self._limits.max_names)
          with self._turns.turn():
            results = self._compute(tab, comparison, image, names, entered["boxes"])
      except (InputError, RunError) as refusal:
        error = str(refusal)
        status = getattr(refusal, "http_status", 400)
    page = render_template(
      f"{tab}.html",
      tab=tab,
      error=error,
      entered=entered,
      examples=examples,
      own=self._comparison,
      prompts=comparison.prompts,
      picked=picked,
      found=results,
      offered=offered,
    )
    return page, status

  def _offered_runs(self) -> dict[str, runs.Run]:
    """Runs whose prompts can be chosen, without prompts that the page shows anyway."""
    known = ("", *self._comparison.files)
    offered = {}
    for name, run in runs.find_runs(self._root).items():
      if run.prompt not in known:
        offered[name] = run
    return offered

  def _compute(
    self,
    tab: str,
    comparison: Comparison,
    image: Image.Image,
    names: Sequence[str],
    boxes: str,
  ) -> dict[str, Any]:
    """Computes the results of a tab, as the tab's template takes them.

    For the tab "classify" the results are the likeliest names. For the tab "regions"
    they are a label map, the objects, or the names of boxes.
    """
    if tab == "classify":
      scales = comparison.scales(names)
      answers = comparison.classify(image, names)
      return {"answers": answers, "n_names": len(names), "scales": scales}
    regions = comparison.regions
    asked = comparison.asked(image, names)
    results: dict[str, Any] = {}
    match request.form.get("action"):
      case "segment":
        sheet = regions.segment(asked)
      case "find":
        sheet, results["objects"] = regions.find_objects(asked)
      case _:
        width, height = image.size
        sheet, scores = regions.name_boxes(asked, form.read_boxes(boxes, width, height))
        # `scores` has a list for each prompt, with one row for each box. Transpose it,
        # and get the answers of all prompts for each box.
        answers_of_boxes = [
          comparison.answers(names, rows) for rows in zip(*scores, strict=True)
        ]
        lines = form.lines_of(boxes)
        results["boxes"] = list(zip(lines, answers_of_boxes, strict=True))
    return {"sheet": self._shelf.add(sheet), **results}

  def _chosen(
    self,
    templates: str,
    offered: dict[str, runs.Run],
    labels: list[str],
    run_names: list[str],
  ) -> Comparison:
    """Returns the comparison under the prompts that a visitor has chosen.

    Args:
      templates: texts with a {} each, one a line.
      offered: runs with a prompt, by name.
      labels: labels of the page's own prompts.
      run_names: names of runs.

    Raises:
      FormError: a run is unknown, there are too many prompts, or a prompt is unusable.
    """
    for name in run_names:
      if name not in offered:
        raise FormError(f"prompts: there is no run {quoted(name)} with a prompt")
    distinct_runs = dict.fromkeys(run_names)
    # Show a text only once if it is also a chosen prompt of the page.
    texts = [text for text in form.read_templates(templates) if text not in labels]
    n_added = len(distinct_runs) + len(texts)
    if n_added > form.MAX_PROMPTS:
      expected = f"expected at most {form.MAX_PROMPTS} of runs and templates"
      raise FormError(f"prompts: got {n_added}, {expected}")

    prompts = [named for named in self._comparison.prompts if named.label in labels]
    prompts += [runs.read_prompt(offered[name]) for name in distinct_runs]
    prompts += [NamedPrompt(text, text) for text in texts]
    return self._comparison.under(prompts)

  def _image(self, entered: dict[str, str]) -> Image.Image:
    """Returns the uploaded picture, or else the picture of the key in the form.

    Args:
      entered: fields of the form. `picture` is the key of a picture on the shelf, or
        "". An uploaded picture is put on the shelf, and its key into `picture`.

    Raises:
      BusyError: too many computations wait.
      FormError: no picture was uploaded, and the shelf has none of this key.
      ImageError: the uploaded file is no picture.
    """
    upload = request.files.get("file")
    # Browsers send an empty file without a name if no file was chosen.
    if upload and upload.filename:
      with self._turns.turn():
        image = form.read_picture(upload.read())
      entered["picture"] = self._shelf.add(form.png_of(image))
      return image

    content = self._shelf.get(entered["picture"])
    if content is None:
      raise FormError("the picture: none given, or forgotten by now; choose a file")
    return form.read_picture(content)

  def picture(self, key: str) -> Response:
    return _png(self._shelf.get(key))

  def run_list(self) -> str:
    """Shows the tab Runs, or the tab Reports with only the runs that have a report."""
    tab = request.path.strip("/")
    found = [
      run for run in runs.find_runs(self._root).values() if run.report or tab == "runs"
    ]
    return render_template("runs.html", tab=tab, runs=found)

  def run(self, name: str) -> str:
    run = self._run(name)
    report, problems = runs.show(
      run, lambda file: url_for("plot", name=name, file=file)
    )
    tab = "reports" if run.report else "runs"
    return render_template(
      "run.html", tab=tab, run=run, report=report, problems=problems
    )

  def plot(self, name: str, file: str) -> Response:
    """Returns a plot of a run; draws CURVES up to the newest step of the training."""
    run = self._run(name)
    if file != runs.CURVES:
      return _png(runs.read_plot(run, file))
    with self._turns.turn():
      return _png(runs.curves(run))

  def report(self, name: str) -> Response:
    content = runs.read_file(self._run(name).path, "report.html")
    return Response(content or abort(404), headers={"Content-Security-Policy": _REPORT})

  def _run(self, name: str) -> runs.Run:
    return runs.find_runs(self._root).get(name) or abort(404)

  def fail(self, error: Exception) -> tuple[str, int]:
    """Shows any error as one line.

    The reason of an unexpected error is in the server's log.
    """
    if isinstance(error, HTTPException):
      status = error.code or 500
      text = f"the request can't be answered ({error.name})"
      if status == 404:
        text = "there is no such page, run or picture"
      elif status == 413:
        text = (
          f"the upload is too large: a picture may have {self._limits.max_upload:g} MiB"
          f" and all text {_FORM_BYTES // _MIB} MiB"
        )
    elif isinstance(error, InputError):
      status = getattr(error, "http_status", 400)
      text = str(error)
    else:
      status = 500
      text = "the computation failed; the server's log has the reason"
      log.error("%s %s: %r", request.method, request.path, error, exc_info=error)
    return render_template("error.html", tab="", error=text), status


def _check_origin(host: str, hosts: Collection[str]) -> None:
  """Checks that a request comes from the page itself, under a name of the page.

  Another site could let a name of its own lead to this machine (DNS rebinding), or send
  a form to the page. The names of the page are those of loopback and `hosts`. Unless
  `host` is a loopback name, this machine's name and any IP address are names of the
  page too.

  Args:
    host: `page.host`, the address that the page listens at.
    hosts: `page.hosts`, further names of the page.

  Raises:
    FormError: the request's name is not the page's.
    HTTPException: 400 for a malformed request, 403 for a form of another site.
  """
  origin = request.headers.get("Origin") or f"//{request.host}"
  try:
    name = urlsplit(f"//{request.host}").hostname or ""
    sender = urlsplit(origin).netloc
  except ValueError:
    abort(400)

  known_names = {*LOOPBACK, *hosts}
  if host not in LOOPBACK:
    known_names.add(socket.gethostname().lower())
    # Accept any IP address: DNS rebinding works only with names.
    with contextlib.suppress(ValueError):
      ipaddress.ip_address(name)
      known_names.add(name)
  if name not in known_names:
    raise FormError(
      f"this page does not answer to {printable(name, 80)!r}; page.hosts can name it"
    )
  if request.method == "POST" and sender != request.host:
    abort(403)


def _secure(response: Response) -> Response:
  for name, value in _SECURITY.items():
    response.headers.setdefault(name, value)
  return response


def _png(content: bytes | None) -> Response:
  return Response(content or abort(404), mimetype="image/png")


class _OnlyAnswer(WSGITask):
  """Answers the first request of a connection, and closes the connection.

  Further requests are ignored. To write a second answer, a thread would wait until the
  client has read some of the first answer.
  """

  def build_response_header(self) -> bytes:
    self.request.headers["CONNECTION"] = "close"
    return super().build_response_header()


class _Channel(HTTPChannel):
  task_class = _OnlyAnswer


@contextlib.contextmanager
def serving(app: Flask, listener: socket.socket, max_upload: float) -> Iterator[None]:
  """Context in which a thread serves the application.

  Every second the server closes the connections of `_channels_to_close`, so that
  clients cannot occupy all places.

  Args:
    app: the application.
    listener: socket that is bound already.
    max_upload: largest size of a picture, MiB; far larger requests are not read.
  """
  # Read an upload that is a little too large, so that the page can answer with its
  # limit.
  max_body = int(4 * max_upload * 2**20) + _FORM_BYTES
  server = waitress.create_server(
    app,
    sockets=[listener],
    threads=_THREADS,
    ident=None,
    connection_limit=_CONNECTIONS,
    channel_timeout=_SILENCE,
    cleanup_interval=1,
    asyncore_use_poll=True,
    max_request_body_size=max_body,
  )
  server.channel_class = _Channel

  def maintenance(now: float) -> None:
    """Closes connections; the server calls it every second in its own thread."""
    for channel in _channels_to_close(list(server.active_channels.values()), now):
      # Close at once: with `will_close` the server would wait until the client reads.
      channel.handle_close()

  server.maintenance = maintenance
  threading.Thread(target=server.run, name="page", daemon=True).start()
  try:
    yield
  finally:
    # Close the server in its own thread. Open connections end with the process.
    server.trigger.pull_trigger(server.close)


def _channels_to_close(channels: Sequence[Any], now: float) -> set[Any]:
  """Finds the connections that only take a place.

  These are the idle connections beyond the newest `_IDLE`, and the connections that
  were silent for `_SILENCE` seconds: slow uploads, and clients that do not read their
  answer. A silent connection stays open while its request is being computed.

  Args:
    channels: waitress's open connections.
    now: time in seconds since the epoch.
  """
  idle = [channel for channel in channels if not channel.requests]
  idle.sort(key=lambda channel: channel.creation_time, reverse=True)
  superfluous = set(idle[_IDLE:])
  for channel in channels:
    is_silent = now - channel.last_activity > _SILENCE
    is_computed = channel.requests and not channel.total_outbufs_len
    if is_silent and not is_computed:
      superfluous.add(channel)
  return superfluous
