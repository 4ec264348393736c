"""Object stores on this machine, emulators of Google's and Amazon's, with faults to
order."""

from collections.abc import Callable, Iterator
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.parse

from etils.epath import backend
import fsspec
import pytest
import urllib3
import werkzeug

import pomp_jax.files.paths  # noqa: F401  (registers the clients)
from tests.support.local_server import served
from tests.support.processes import reserved_port

SCHEMES = ("gs", "s3")
BUCKET = "bucket"

_NAME = re.compile(rb'"name": "([^"]+)"')
_GOOGLE = (
  "import threading\n"
  "from gcp_storage_emulator.server import create_server\n"
  "create_server('127.0.0.1', {port}, in_memory=True, default_bucket='{bucket}').start()\n"
  "threading.Event().wait()\n"
)
_AMAZON = "from moto.server import main\nmain(['-H', '127.0.0.1', '-p', '{port}'])\n"
# Answers are sent at once, and not when the client has confirmed their headers, 40 ms
# later.
_AT_ONCE = "import socketserver; socketserver.StreamRequestHandler.disable_nagle_algorithm = True\n"
# Headers of one connection, or of this server.
_NOT_PASSED_ON = {"transfer-encoding", "connection", "server", "date"}


class Store(contextlib.ExitStack):
  """A store in a process of its own with one bucket, behind a proxy that can answer in
  its place.

  Attributes:
    environ: variables that lead the clients to it.
    faults: number of requests that the proxy answered.
    before: called with method and path before each answer.
  """

  def __init__(self, scheme: str):
    super().__init__()
    self.scheme, self.faults = scheme, 0
    self._status, self._until = 0, 0.0
    self.before: Callable[[str, str], None] = lambda method, path: None
    port = self.enter_context(reserved_port())
    program = {"gs": _GOOGLE, "s3": _AMAZON}[scheme].format(port=port, bucket=BUCKET)
    process = subprocess.Popen(
      [sys.executable, "-c", _AT_ONCE + program],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    self.callback(process.wait)
    self.callback(process.kill)
    # Google's emulator takes one connection at a time, and resets others.
    self._store = urllib3.HTTPConnectionPool(
      "127.0.0.1", port, maxsize=1, block=True, timeout=60
    )
    started = urllib3.Retry(600, backoff_factor=0.1, backoff_max=0.1)
    self._store.request("GET", "/", retries=started)
    address = self.enter_context(served(self._answer))
    if scheme == "gs":
      # The variables of the package's client, Orbax's and ArrayRecord's.
      names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
      self.environ = dict.fromkeys([*names, "CLOUD_STORAGE_EMULATOR_ENDPOINT"], address)
    else:
      self.environ = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
      self.environ |= {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
      self._send("PUT", f"/{BUCKET}")

  def url(self, name: str) -> str:
    """URL of an object or a folder of the bucket."""
    return f"{self.scheme}://{BUCKET}/{name}"

  def fail(self, status: int, seconds: float = 1e9) -> None:
    """Answers all requests with a status from now on."""
    self._status, self._until = status, time.monotonic() + seconds

  def recover(self) -> None:
    self._until = 0.0

  @werkzeug.Request.application
  def _answer(self, request: werkzeug.Request) -> werkzeug.Response:
    body, path = request.get_data(), request.environ["REQUEST_URI"]
    # A multipart upload has its object's name in the body.
    name = (
      _NAME.search(body[:1000])
      if request.args.get("uploadType") == "multipart"
      else None
    )
    self.before(request.method, f"{path}&name={name[1].decode()}" if name else path)
    if time.monotonic() < self._until:
      self.faults += 1
      return werkzeug.Response(self._error(), self._status)
    sent = {
      k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"
    }
    status, headers, content = self._forward(request, path, body, sent)
    headers = [(k, v) for k, v in headers if k.lower() not in _NOT_PASSED_ON]
    # Bytes set their length; an answer to HEAD keeps the store's.
    return werkzeug.Response(
      [] if request.method == "HEAD" else content, status, headers
    )

  def _forward(
    self, request: werkzeug.Request, path: str, body: bytes, headers: dict[str, str]
  ) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of the store's own answer."""
    query, described = request.args, path.partition("?")[0].removeprefix("/download")
    # The emulator takes a return that ends an object for a part of the boundary's line.
    if body.endswith(end := b"\r\n--==0==--"):
      body = body.removesuffix(end) + b"\r" + end
      headers["Content-Length"] = str(len(body))
    # Google's own store obeys this condition, which the emulator does not.
    if "ifGenerationMatch" in query:
      if request.method == "POST":
        name = query.get("name") or _NAME.search(body)[1].decode()
        described = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
      if self._generation(described) != query["ifGenerationMatch"]:
        return 412, [], b""
    answer = self._send(request.method, path, body, headers)
    answered, content = list(answer.headers.items()), answer.data
    # Google's own store names the object's version beside its content.
    if request.method == "GET" and query.get("alt") == "media" and self.scheme == "gs":
      answered.append(("x-goog-generation", self._generation(described)))
    # Google's own store lists the names of a range, and TensorStore ends the process
    # over others.
    if "startOffset" in query and answer.status == 200:
      first, last = query["startOffset"], query.get("endOffset", "\uffff")
      listed = json.loads(content)
      items = [item for item in listed.get("items", []) if first <= item["name"] < last]
      content = json.dumps(listed | {"items": items}).encode()
    return answer.status, answered, content

  def _generation(self, path: str) -> str:
    """Generation of an object; 0: there is none."""
    answer = self._send("GET", path)
    return answer.json()["generation"] if answer.status == 200 else "0"

  def _send(
    self, method: str, path: str, body: bytes = b"", headers: dict | None = None
  ):
    return self._store.urlopen(
      method, path, body, headers, retries=False, redirect=False, decode_content=False
    )

  def _error(self) -> bytes:
    if self.scheme == "gs":
      return b'{"error": {"code": %d, "message": "ordered"}}' % self._status
    code = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown"}.get(
      self._status, "Ordered"
    )
    return b"<Error><Code>%s</Code><Message>ordered</Message></Error>" % code.encode()


@contextlib.contextmanager
def running(*schemes: str) -> Iterator[dict[str, Store]]:
  """Stores by scheme, to which the clients of this process and its children are led."""
  # Clients of this process may be connected to an earlier store.
  for scheme in ("gcs", "s3"):
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
  backend._FileSystemSpecBackend._get_filesystem.cache_clear()
  found: dict[str, Store] = {}
  with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
    for scheme in schemes:
      found[scheme] = stack.enter_context(Store(scheme))
      for name, value in found[scheme].environ.items():
        patch.setenv(name, value)
    yield found
