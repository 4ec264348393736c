"""The server of the page: routes, limits, headers. It has no route that takes a path of the server.

Pages are HTML that works without its one script. The browser is told to run no other and to load
nothing from elsewhere. One computation runs at a time, and a few wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
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
from werkzeug.exceptions import HTTPException

from pomp_jax.errors import InputError, RunError
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.terminal import printable, quoted
from pomp_jax.rooms.page import runs
from pomp_jax.rooms.page.comparison import Comparison
from pomp_jax.rooms.page.fields import Page
from pomp_jax.rooms.page.form import (
  LONGEST,
  MAX_PROMPTS,
  Example,
  FormError,
  lines_of,
  png_of,
  read_boxes,
  read_names,
  read_picture,
  read_templates,
)

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIB = 2**20
# Names and boxes of a form; 1,000 names of 1,000 letters fit.
FORM_BYTES = 2 * _MIB
_WAITING = 4  # computations
_TEMPLATES = pathlib.Path(__file__).parent / "templates"
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
  "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
)


class BusyError(InputError):
  """Too many computations wait."""


class Shelf:
  """PNG files in memory by random keys, so that the browser can send the key of one again."""

  def __init__(self, max_bytes: int = 64 * _MIB):
    """Starts empty; beyond `max_bytes` the picture that was used longest ago is dropped."""
    self._max_bytes = max_bytes
    self._held: OrderedDict[str, bytes] = OrderedDict()
    self._fixed: dict[str, bytes] = {}
    self._lock = threading.Lock()

  def add(self, content: bytes, *, keep: bool = False) -> str:
    """Adds a PNG and returns its key, which can't be guessed; `keep`: it is never dropped."""
    key = secrets.token_urlsafe(16)
    with self._lock:
      (self._fixed if keep else self._held)[key] = content
      while sum(map(len, self._held.values())) > self._max_bytes and len(self._held) > 1:
        self._held.popitem(last=False)
    return key

  def get(self, key: str) -> bytes | None:
    """Returns a picture; None if it was dropped or never there."""
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
    """Waits for the others, and computes; BusyError if too many wait."""
    if not self._places.acquire(blocking=False):
      raise BusyError("the page is busy with other pictures; try again in a moment")
    try:
      with self._lock:
        yield
    finally:
      self._places.release()

  def close(self) -> None:
    """Waits for the computation that runs, and starts no other."""
    self._lock.acquire()


def make_app(
  comparison: Comparison,
  fields: Page,
  turns: Turns,
  *,
  pictures: tuple[Example, ...] = (),
  scenes: tuple[Example, ...] = (),
) -> Flask:
  """Makes the application, with `pictures` as examples to classify, and `scenes` of regions."""
  app = Flask(__name__, static_folder=None)
  app.config["MAX_CONTENT_LENGTH"] = int(fields.max_upload * _MIB) + FORM_BYTES
  app.config["MAX_FORM_MEMORY_SIZE"] = FORM_BYTES
  app.config["MAX_FORM_PARTS"] = 20
  app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
  page = _Page(comparison, fields, turns, {"classify": pictures, "regions": scenes})
  app.before_request(functools.partial(_check_origin, fields.host, fields.hosts))
  app.after_request(_secure)
  app.register_error_handler(Exception, page.fail)
  tabs = {"classify": "/", "regions": "/regions", "runs": "/runs", "reports": "/reports"}
  if comparison.regions is None:
    del tabs["regions"]
  app.jinja_env.globals["tabs"] = tabs
  for tab in tabs.keys() & {"classify", "regions"}:
    app.add_url_rule(tabs[tab], tab, getattr(page, tab), methods=["GET", "POST"])
  for rule, view in (
    ("/picture/<key>", page.picture),
    ("/runs", page.run_list),
    ("/reports", page.report_list),
    ("/runs/<path:name>", page.run),
    ("/curves/<path:name>", page.curves),
    ("/plots/<path:name>/<file>", page.plot),
    ("/report/<path:name>", page.report),
  ):
    app.add_url_rule(rule, view.__name__, view)
  for name, kind in (("style.css", "text/css"), ("page.js", "text/javascript")):
    content = (_TEMPLATES / name).read_text()
    app.add_url_rule(f"/{name}", name, functools.partial(Response, content, mimetype=kind))
  return app


class _Page:
  """The views. The shelf holds the pictures of the examples, which have a key each."""

  def __init__(
    self,
    comparison: Comparison,
    limits: Page,
    turns: Turns,
    examples: Mapping[str, tuple[Example, ...]],
  ):
    self._comparison, self._limits, self._turns = comparison, limits, turns
    self._root = pathlib.Path(limits.runs) if limits.runs else None
    self._shelf = Shelf()
    self._examples: dict[str, dict[str, dict[str, str]]] = {}  # tab -> key -> entered fields
    for tab, own in examples.items():
      keys = [self._shelf.add(png_of(one.image), keep=True) for one in own]
      self._examples[tab] = {
        key: {"picture": key, "names": one.names, "boxes": one.boxes}
        for key, one in zip(keys, own, strict=True)
      }

  def classify(self) -> tuple[str, int]:
    """The tab Classify: a picture and names."""

    def compute(comparison, image, names, _):
      return {"answers": comparison.classify(image, names), "n_names": len(names)}

    return self._form("classify", compute)

  def regions(self) -> tuple[str, int]:
    """The tab Regions: a label map, objects, or names of given boxes."""

    def compute(comparison, image, names, entered):
      action, more = request.form.get("action"), {}
      if action == "segment":
        sheet = comparison.segment(image, names)
      elif action == "find":
        sheet, more["objects"] = comparison.find_objects(image, names)
      else:
        boxes_Rx4 = read_boxes(entered["boxes"], *image.size)
        sheet, rows = comparison.name_boxes(image, names, boxes_Rx4)
        more["boxes"] = list(zip(lines_of(entered["boxes"]), rows, strict=True))
      return {"sheet": self._shelf.add(sheet), **more}

    return self._form("regions", compute)

  def _form(self, tab: str, compute: Callable[..., dict[str, Any]]) -> tuple[str, int]:
    """Reads the form, computes, and shows both; bad input is a line above what was entered."""
    examples, error, status = self._examples[tab], "", 200
    found: dict[str, Any] = {}
    comparison = self._comparison
    # Runs whose prompts can be chosen: those that are not on the page anyway.
    known = ("", *comparison.files)
    offered = {name: run for name, run in self._runs().items() if run.prompt not in known}
    entered = dict.fromkeys(("picture", "names", "boxes", "templates"), "")
    entered |= next(iter(examples.values()), {})
    labels = [named.label for named in comparison.prompts]
    picked = {"prompt": labels, "run": []}
    if request.method == "POST":
      try:
        entered = {field: request.form.get(field, "") for field in entered}
        picked = {field: request.form.getlist(field) for field in picked}
        if not (any(picked.values()) or entered["templates"].strip()):
          picked["prompt"] = labels
        if (key := request.form.get("example", "")) in examples:
          entered |= examples[key]
        else:
          image = self._image(entered)
          comparison = self._chosen(entered["templates"], offered, **picked)
          names = read_names(entered["names"], self._limits.max_names)
          with self._turns.turn():
            found = compute(comparison, image, names, entered)
      except (InputError, RunError) as refused:
        error, status = str(refused), _status_of(refused)
    fields: dict[str, Any] = {"tab": tab, "error": error, "entered": entered, "examples": examples}
    fields |= {"own": self._comparison, "prompts": comparison.prompts, "picked": picked}
    fields |= {"found": found, "limits": self._limits, "offered": offered}
    fields |= {"longest": LONGEST, "regions": comparison.regions}
    return render_template(f"{tab}.html", **fields), status

  def _chosen(
    self, templates: str, offered: dict[str, runs.Run], prompt: list[str], run: list[str]
  ) -> Comparison:
    """The comparison under some of its own prompts, and those of runs and texts."""
    if unknown := [name for name in run if name not in offered]:
      raise FormError(f"prompts: there is no run {quoted(unknown[0])} with a prompt")
    texts = [text for text in read_templates(templates) if text not in prompt]
    if len(names := dict.fromkeys(run)) + len(texts) > MAX_PROMPTS:
      expected = f"expected at most {MAX_PROMPTS} of runs and templates"
      raise FormError(f"prompts: got {len(names) + len(texts)}, {expected}")
    own = [named for named in self._comparison.prompts if named.label in prompt]
    learned = [runs.read_prompt(offered[name]) for name in names]
    return self._comparison.under([*own, *learned, *(NamedPrompt(text, text) for text in texts)])

  def _image(self, entered: dict[str, str]) -> Image.Image:
    """The uploaded picture, or the one whose key the form has; `entered` gets its key."""
    upload = request.files.get("file")
    if upload and upload.filename:
      with self._turns.turn():
        image = read_picture(upload.read())
      entered["picture"] = self._shelf.add(png_of(image))
      return image
    content = self._shelf.get(entered["picture"])
    if content is None:
      raise FormError("the picture: none given, or forgotten by now; choose a file")
    return read_picture(content)

  def picture(self, key: str) -> Response:
    """A picture that the page itself has drawn or encoded."""
    return _png(self._shelf.get(key))

  def run_list(self) -> str:
    """The tab Runs."""
    return render_template("runs.html", tab="runs", runs=self._runs().values())

  def report_list(self) -> str:
    """The tab Reports: runs with a report."""
    found = [run for run in self._runs().values() if run.report]
    return render_template("runs.html", tab="reports", runs=found)

  def run(self, name: str) -> str:
    """One run: its state and its report."""
    run = self._run(name)
    plot = functools.partial(url_for, "plot", name=name)
    curves = {runs.CURVES: url_for("curves", name=name)}
    report, problems = runs.show(run, lambda file: curves.get(file) or plot(file=file))
    tab = "reports" if run.report else "runs"
    return render_template("run.html", tab=tab, run=run, report=report, problems=problems)

  def curves(self, name: str) -> Response:
    """Curves of a training."""
    run = self._run(name)
    with self._turns.turn():
      return _png(runs.curves(run))

  def plot(self, name: str, file: str) -> Response:
    """A plot of a run."""
    return _png(runs.read_plot(self._run(name), file))

  def report(self, name: str) -> Response:
    """The report of a run."""
    content = runs.read_file(self._run(name).path, "report.html")
    return Response(content or abort(404), headers={"Content-Security-Policy": _REPORT})

  def _runs(self) -> dict[str, runs.Run]:
    return runs.find_runs(self._root)

  def _run(self, name: str) -> runs.Run:
    return self._runs().get(name) or abort(404)

  def fail(self, error: Exception) -> tuple[str, int]:
    """Shows any error as one line; the reason of an unexpected one is in the server's log."""
    if isinstance(error, HTTPException):
      status = error.code or 500
      lines = {
        404: "there is no such page, run or picture",
        413: f"the upload is too large: a picture may have {self._limits.max_upload:g} MiB"
        f" and all text {FORM_BYTES // _MIB} MiB",
      }
      text = lines.get(status, f"the request can't be answered ({error.name})")
    elif isinstance(error, InputError):
      status, text = _status_of(error), str(error)
    else:
      status, text = 500, "the computation failed; the server's log has the reason"
      log.error("%s %s: %r", request.method, request.path, error, exc_info=error)
    return render_template("error.html", tab="", error=text), status


def _status_of(error: Exception) -> int:
  return 503 if isinstance(error, BusyError) else 400


def _check_origin(host: str, hosts: Collection[str]) -> None:
  """Refuses requests that another site has sent, or under a name that is not the page's.

  No other site can reach the page by a name of its own. Loopback names and `hosts` are the page's;
  so are addresses and this machine's name, unless `host` is a loopback one.
  """
  origin = request.headers.get("Origin") or f"//{request.host}"
  try:
    name, sender = urlsplit(f"//{request.host}").hostname or "", urlsplit(origin).netloc
  except ValueError:
    abort(400)
  own = {*LOOPBACK, *hosts}
  if host not in LOOPBACK:
    own.add(socket.gethostname().lower())
    with contextlib.suppress(ValueError):
      ipaddress.ip_address(name)
      own.add(name)  # an address, which no other site can make its own
  if name not in own:
    raise FormError(f"this page does not answer to {printable(name, 80)!r}; page.hosts can name it")
  if request.method == "POST" and sender != request.host:
    abort(403)


def _secure(response: Response) -> Response:
  for name, value in _SECURITY.items():
    response.headers.setdefault(name, value)
  return response


def _png(content: bytes | None) -> Response:
  return Response(content or abort(404), mimetype="image/png")
