"""A hub on the loopback interface: the endpoints that huggingface_hub's client
calls."""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from typing import NoReturn

import flask
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from tests.support.local_server import served

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
  """Serves a hub without repositories, for the library's client, which gets TOKEN
  and a cache."""
  hub = Hub()
  with served(_app(hub)) as hub.url:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    point_at(monkeypatch, hub.url)
    yield hub
    _close_sessions()


def point_at(monkeypatch, url: str) -> None:
  """Makes the library's client ask another hub; it reads the environment when it is
  imported."""
  monkeypatch.setattr(constants, "ENDPOINT", url)
  template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
  for module in (constants, file_download):
    monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  _close_sessions()


def _close_sessions() -> None:
  """Closes the client's connections, which keep the settings that they were made
  with."""
  # Since version 1, and before.
  (getattr(_http, "close_session", None) or _http.reset_sessions)()


def _app(hub: Hub) -> flask.Flask:
  app, request = flask.Flask("hub"), flask.request

  def refuse(status: int, code: str = "refused") -> NoReturn:
    flask.abort(flask.make_response({"error": code}, status, {"X-Error-Code": code}))

  def is_known() -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"

  def files_of(repository: str, revision: str) -> dict[str, bytes]:
    if repository not in hub.files or (repository in hub.private and not is_known()):
      # The hub does not tell a stranger a private repository from one that is not
      # there.
      refuse(404 if is_known() else 401, "RepoNotFound")
    if revision not in ("main", SHA):
      refuse(404, "RevisionNotFound")
    return hub.files[repository]

  @app.before_request
  def before():
    hub.requests.append((request.method, request.path))
    if hub.down:
      refuse(503)
    if request.method == "POST" and not is_known():
      refuse(401)
    if (
      request.method == "POST"
      and hub.forbidden
      and request.path != "/api/validate-yaml"
    ):
      refuse(403)

  @app.get("/api/models/<path:repository>", defaults={"revision": "main"})
  @app.get("/api/models/<path:repository>/revision/<revision>")
  def info(repository, revision):
    siblings = [{"rfilename": path} for path in files_of(repository, revision)]
    private = repository in hub.private
    return {"id": repository, "sha": SHA, "private": private, "siblings": siblings}

  @app.get("/<path:repository>/resolve/<revision>/<path:path>")
  def file(repository, revision, path):
    content = files_of(repository, revision).get(path)
    if content is None:
      refuse(404, "EntryNotFound")
    return content, {
      "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
      "X-Repo-Commit": SHA,
    }

  @app.post("/api/validate-yaml")
  def validate():
    errors = [{"message": hub.invalid}] if hub.invalid else []
    return {"errors": errors, "warnings": []}, 400 if errors else 200

  @app.post("/api/repos/create")
  def create():
    wanted = request.json
    repository = f"{wanted['organization']}/{wanted['name']}"
    answer = {"url": f"{hub.url}/{repository}"}
    if repository in hub.files:
      return answer | {"error": "exists"}, 409
    hub.files[repository] = {}
    # Before and since version 1 of the library.
    if wanted.get("private") or wanted.get("visibility") == "private":
      hub.private.add(repository)
    return answer

  @app.post("/api/models/<path:repository>/preupload/<revision>")
  def preupload(repository, revision):
    files_of(repository, revision)
    as_is = {"uploadMode": "regular", "shouldIgnore": False}
    return {"files": [{"path": file["path"]} | as_is for file in request.json["files"]]}

  @app.post("/api/models/<path:repository>/commit/<revision>")
  def commit(repository, revision):
    header, *lines = (json.loads(line)["value"] for line in request.data.splitlines())
    for line in lines:
      content = base64.b64decode(line["content"], validate=True)
      files_of(repository, revision)[line["path"]] = content
    hub.commits.append(header)
    url = f"{hub.url}/{repository}/commit/{SHA}"
    return {"commitUrl": url, "commitOid": SHA, "success": True}

  return app
