"""A hub on the loopback interface: the endpoints that huggingface_hub's client calls."""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

TOKEN = "hf_of_the_tests"
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Hub:
  """Its repositories; tests read and change them."""

  # Content by `OWNER/NAME` and path in it, and repositories that only TOKEN may see.
  files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
  private: set[str] = dataclasses.field(default_factory=set)
  # Method and path of each request, and header of each commit.
  requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  commits: list[dict] = dataclasses.field(default_factory=list)
  invalid: str = ""  # its error for any metadata
  forbidden: bool = False  # whether TOKEN may not write
  down: bool = False  # whether every answer is 503
  url: str = ""


@contextlib.contextmanager
def local_hub(monkeypatch, cache: pathlib.Path) -> Iterator[Hub]:
  """Serves a hub without repositories, for the library's client, which gets TOKEN and a cache."""
  hub = Hub()
  handler = type("Handler", (_Handler,), {"hub": hub})
  with _Server(("127.0.0.1", 0), handler) as server:
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    point_at(monkeypatch, hub.url)
    yield hub
    _close_sessions()
    server.shutdown()
    thread.join()


def point_at(monkeypatch, url: str) -> None:
  """Makes the library's client ask another hub; it reads the environment when it is imported."""
  monkeypatch.setattr(constants, "ENDPOINT", url)
  template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
  for module in (constants, file_download):
    monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  _close_sessions()


def _close_sessions() -> None:
  """Closes the client's connections, which keep the settings that they were made with."""
  # Since version 1, and before.
  (getattr(_http, "close_session", None) or _http.reset_sessions)()


class _Server(http.server.ThreadingHTTPServer):
  # Connections that the client keeps open do not delay the end.
  block_on_close = False
  daemon_threads = True


class _Handler(http.server.BaseHTTPRequestHandler):
  hub: Hub
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def do_GET(self):
    path = self._path()
    if self.hub.down:
      return self._refuse(503)
    if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
      return self._info(match[1], match[2])
    if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
      return self._file(*match.groups())
    return self._refuse(404)

  do_HEAD = do_GET

  def do_POST(self):
    path, body = self._path(), self.rfile.read(int(self.headers["Content-Length"]))
    if not self._is_known():
      return self._refuse(401)
    if path == "/api/validate-yaml":
      errors = [{"message": self.hub.invalid}] if self.hub.invalid else []
      return self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)
    if self.hub.forbidden:
      return self._refuse(403)
    if path == "/api/repos/create":
      return self._create(json.loads(body))
    match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
    if not match or match[1] not in self.hub.files:
      return self._refuse(404, "RepoNotFound")
    if match[2] == "preupload":
      files = [
        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
        for file in json.loads(body)["files"]
      ]
      return self._answer({"files": files})
    return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

  def log_message(self, *_):
    pass

  def _path(self) -> str:
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.hub.requests.append((self.command, path))
    return path

  def _is_known(self) -> bool:
    return self.headers.get("Authorization") == f"Bearer {TOKEN}"

  def _refused(self, repository: str, revision: str | None) -> bool:
    hidden = repository in self.hub.private and not self._is_known()
    if hidden or repository not in self.hub.files:
      # The hub does not tell a stranger a private repository from one that is not there.
      self._refuse(404 if self._is_known() else 401, "RepoNotFound")
    elif revision not in (None, "main", SHA):
      self._refuse(404, "RevisionNotFound")
    else:
      return False
    return True

  def _info(self, repository: str, revision: str | None) -> None:
    if self._refused(repository, revision):
      return
    siblings = [{"rfilename": path} for path in self.hub.files[repository]]
    private = repository in self.hub.private
    self._answer({"id": repository, "sha": SHA, "private": private, "siblings": siblings})

  def _file(self, repository: str, revision: str, path: str) -> None:
    if self._refused(repository, revision):
      return
    content = self.hub.files[repository].get(path)
    if content is None:
      return self._refuse(404, "EntryNotFound")
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA}
    self._answer(content, headers=headers)

  def _create(self, wanted: dict) -> None:
    repository = f"{wanted['organization']}/{wanted['name']}"
    if repository in self.hub.files:
      return self._answer({"error": "exists", "url": f"{self.hub.url}/{repository}"}, 409)
    self.hub.files[repository] = {}
    # Before and since version 1 of the library.
    if wanted.get("private") or wanted.get("visibility") == "private":
      self.hub.private.add(repository)
    self._answer({"url": f"{self.hub.url}/{repository}"})

  def _commit(self, repository: str, lines: list[dict]) -> None:
    self.hub.commits.append(lines[0]["value"])
    for line in lines[1:]:
      assert line["key"] == "file" and line["value"]["encoding"] == "base64"
      content = base64.b64decode(line["value"]["content"])
      self.hub.files[repository][line["value"]["path"]] = content
    url = f"{self.hub.url}/{repository}/commit/{SHA}"
    self._answer({"commitUrl": url, "commitOid": SHA, "success": True})

  def _refuse(self, status: int, code: str = "") -> None:
    headers = {"X-Error-Code": code} if code else {}
    self._answer({"error": code or "refused"}, status, headers)

  def _answer(self, content, status: int = 200, headers: dict | None = None) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)
