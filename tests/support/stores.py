"""Object stores on this machine, emulators of Google's and Amazon's, with faults to order."""

from collections.abc import Callable, Iterator
import contextlib
import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

from etils.epath import backend
import fsspec

import pomp_jax.files.paths  # noqa: F401  (registers the clients)

SCHEMES = ("gs", "s3")
BUCKET = "bucket"

_NAME = re.compile(rb'"name": "([^"]+)"')
# Answers are sent at once, and not when the client has confirmed their headers, 40 ms later.
_AT_ONCE = "import socketserver; socketserver.StreamRequestHandler.disable_nagle_algorithm = True\n"
_GOOGLE = (
  "import threading\n"
  "from gcp_storage_emulator.server import create_server\n"
  "create_server('127.0.0.1', {port}, in_memory=True, default_bucket='{bucket}').start()\n"
  "threading.Event().wait()\n"
)
# Headers of one connection, or of this server.
_NOT_PASSED_ON = {"content-length", "transfer-encoding", "connection", "server", "date"}
_AMAZON = "from moto.server import main\nmain(['-H', '127.0.0.1', '-p', '{port}'])\n"


class Store:
  """A store in a process of its own, behind a proxy that can answer in its place.

  Attributes:
    scheme: "gs" or "s3".
    environ: variables that lead the clients to it.
    requests: number of requests so far.
    faults: number of requests that the proxy answered.
    before: called with method and path before each answer.
  """

  def __init__(self, scheme: str):
    """Starts the store with one empty bucket."""
    self.scheme, self.requests, self.faults = scheme, 0, 0
    self._status, self._until = 0, 0.0
    self.before: Callable[[str, str], None] = lambda method, path: None
    self._port, self._one_at_a_time = _free_port(), threading.Lock()
    program = {"gs": _GOOGLE, "s3": _AMAZON}[scheme].format(port=self._port, bucket=BUCKET)
    self._process = subprocess.Popen(
      [sys.executable, "-c", _AT_ONCE + program],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    _wait_for(self._port)
    self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
    self._proxy.daemon_threads = True
    self._proxy.handle_error = lambda *_: None  # clients that end their connections
    threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{self._proxy.server_port}"
    self.environ = (
      {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax's client
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord's
      }
      if scheme == "gs"
      else {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
      }
    )
    if scheme == "s3":
      self.forward("PUT", f"/{BUCKET}", b"", {})

  def url(self, name: str) -> str:
    """URL of an object or a folder of the bucket."""
    return f"{self.scheme}://{BUCKET}/{name}"

  def fail(self, status: int, seconds: float = 1e9) -> None:
    """Answers all requests with a status from now on."""
    self._status, self._until = status, time.monotonic() + seconds

  def recover(self) -> None:
    """Ends `fail`."""
    self._until = 0.0

  def fault(self, method: str, path: str) -> int:
    """Status to answer the next request with; 0: none."""
    self.requests += 1
    self.before(method, path)
    failing = time.monotonic() < self._until
    self.faults += failing
    return self._status if failing else 0

  def forward(
    self, method: str, path: str, body: bytes, headers: dict[str, str]
  ) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of the store's own answer."""
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(url.query)
    # Google's own store obeys this condition, which the emulator does not.
    if "ifGenerationMatch" in query:
      described = url.path.removeprefix("/download")
      if method == "POST":
        name = (query.get("name") or [_NAME.findall(body)[0].decode()])[0]
        described = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
      if [self._generation(described)] != query["ifGenerationMatch"]:
        return 412, [], b""
    status, answered, content = self._send(method, path, body, headers)
    # Google's own store names the object's version beside its content.
    if method == "GET" and query.get("alt") == ["media"] and self.scheme == "gs":
      answered.append(("x-goog-generation", self._generation(url.path.removeprefix("/download"))))
    # Google's own store lists the names of a range, and TensorStore ends the process over others.
    if "startOffset" in query and status == 200:
      first, last = query["startOffset"][0], query.get("endOffset", ["\uffff"])[0]
      listed = json.loads(content)
      items = [item for item in listed.get("items", []) if first <= item["name"] < last]
      content = json.dumps(listed | {"items": items}).encode()
    return status, answered, content

  def _generation(self, path: str) -> str:
    """Generation of an object; 0: there is none."""
    status, _, content = self._send("GET", path, b"", {})
    return json.loads(content)["generation"] if status == 200 else "0"

  def _send(
    self, method: str, path: str, body: bytes, headers: dict[str, str]
  ) -> tuple[int, list[tuple[str, str]], bytes]:
    # Google's emulator takes one connection at a time, and resets others.
    with self._one_at_a_time:
      connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
      try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
      finally:
        connection.close()

  def close(self) -> None:
    """Ends it."""
    self._proxy.shutdown()
    self._proxy.server_close()
    self._process.kill()
    self._process.wait()


def _handler(store: Store) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
      pass

    def _answer(self) -> None:
      body = self._body()
      # A multipart upload has its object's name in the body.
      name = _NAME.search(body[:1000]) if "uploadType=multipart" in self.path else None
      path = f"{self.path}&name={name[1].decode()}" if name else self.path
      if status := store.fault(self.command, path):
        headers, content = [], _error(store.scheme, status)
      else:
        sent = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        status, headers, content = store.forward(self.command, self.path, body, sent)
      self.send_response(status)
      length = str(len(content))
      for name, value in headers:
        if name.lower() == "content-length" and self.command == "HEAD":
          length = value
        if name.lower() not in _NOT_PASSED_ON:
          self.send_header(name, value)
      self.send_header("Content-Length", length)
      self.end_headers()
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if self.command != "HEAD":
          self.wfile.write(content)

    def _body(self) -> bytes:
      if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))
      parts = []
      while size := int(self.rfile.readline().split(b";")[0], 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(parts)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _answer

  return Handler


def _error(scheme: str, status: int) -> bytes:
  if scheme == "gs":
    return b'{"error": {"code": %d, "message": "ordered"}}' % status
  code = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown"}.get(status, "Ordered")
  return b"<Error><Code>%s</Code><Message>ordered</Message></Error>" % code.encode()


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def _wait_for(port: int) -> None:
  for _ in range(600):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
      return
    time.sleep(0.1)
  raise TimeoutError(f"no store listens at port {port}")


def _forget_clients() -> None:
  """Drops clients of this process that are connected to an earlier store."""
  for scheme in ("gcs", "s3"):
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
  backend._FileSystemSpecBackend._get_filesystem.cache_clear()


@contextlib.contextmanager
def running(*schemes: str) -> Iterator[dict[str, Store]]:
  """Stores by scheme, to which the clients of this process and its children are led."""
  found: dict[str, Store] = {}
  before = dict(os.environ)
  _forget_clients()
  try:
    for scheme in schemes:
      found[scheme] = Store(scheme)
      os.environ.update(found[scheme].environ)
    yield found
  finally:
    for store in found.values():
      store.close()
    for name in set(os.environ) - set(before):
      del os.environ[name]
    os.environ.update(before)
