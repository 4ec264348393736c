r"""What the page in the browser keeps under attack, beside one built on Gradio.

python -m docs.studies.attack_page today gradio guarded policy   # 5 minutes each

`today` is the job page; `gradio` is docs.studies.gradio_page with Gradio's own options,
and `guarded` the same with checks of names, origins, routes and silent connections in
front. `policy` adds the Content-Security-Policy of the present page, and is only opened
in Chromium. Each is started on a folder with one run, with 1,024 open files at most, and
attacked from this machine. Prints one line for each promise of docs/how-to/page.md.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit
import zlib

import numpy as np
from PIL import Image

_MIB = 2**20
_SILENCE = 45  # seconds that a client is silent
_NAMES = "red star on navy\nteal leaf on pink"
_BOUNDARY = "b0undary"


class Server:
  """A page in a process of its own."""

  def __init__(self, kind: str, folder: pathlib.Path):
    self.kind = kind
    with socket.create_server(("127.0.0.1", 0)) as free:
      self.port = free.getsockname()[1]
    self.cache = folder / "temporary"
    self.cache.mkdir()
    if kind == "today":
      command = ["-m", "pomp_jax.main", f"--config=page:runs={folder}/runs"]
      command.append(f"--config.page.port={self.port}")
    else:
      command = ["-m", "docs.studies.gradio_page", f"--port={self.port}"]
      command.append(f"--runs={folder}/runs")
      if kind in ("guarded", "policy"):
        command.append(f"--{kind}")
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    start = time.monotonic()
    with open(folder / "log", "w") as log:
      self.process = subprocess.Popen(
        [sys.executable, *command],
        preexec_fn=limit,
        stdout=log,
        stderr=log,
        env=os.environ | {"TMPDIR": str(self.cache)},
      )
    while self.get("/")[0] != 200:
      if self.process.poll() is not None:
        raise SystemExit((folder / "log").read_text())
      time.sleep(0.2)
    self.start_seconds = time.monotonic() - start

  def ask(self, method, path, body=b"", headers=None, seconds=60):
    """Status, headers and content of an answer; status 0 where none comes."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
    try:
      connection.request(method, path, body or None, headers or {})
      answer = connection.getresponse()
      return answer.status, dict(answer.getheaders()), answer.read()
    except (OSError, http.client.HTTPException):
      return 0, {}, b""
    finally:
      connection.close()

  def get(self, path, **headers):
    """As `ask`."""
    return self.ask("GET", path, headers=headers)

  def megabytes(self, name: str = "VmRSS") -> int:
    """Memory of the process, MiB."""
    text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) // 1024

  def files(self) -> str:
    """What lies in its temporary folder."""
    # Pictures of examples lie there from the start.
    paths = [p for p in self.cache.rglob("*") if p.is_file()]
    paths = [p for p in paths if "gradio_examples_" not in str(p)]
    size = sum(path.stat().st_size for path in paths)
    return f"{len(paths)} files, {size / _MIB:.1f} MiB"

  def upload(self, files: list[bytes], field="files", fields=None, **headers):
    """Posts files as a form does."""
    parts = []
    for name, text in (fields or {}).items():
      head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
      parts.append(head.encode() + text.encode() + b"\r\n")
    for content in files:
      head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}";'
        ' filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
      )
      parts.append(head.encode() + content + b"\r\n")
    body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
    path = "/" if self.kind == "today" else "/gradio_api/upload"
    return self.ask("POST", path, body, headers, 120)

  def join(self, path, session: str, **headers):
    """Asks Gradio to classify an uploaded picture."""
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    content = {"data": [picture, _NAMES], "fn_index": 1, "session_hash": session}
    headers.setdefault("Content-Type", "application/json")
    content = json.dumps(content).encode()
    return self.ask("POST", "/gradio_api/queue/join", content, headers)

  def classify(self, content: bytes, number: int = 0) -> str:
    """One of answer, busy, or why there is none."""
    if self.kind == "today":
      fields = {"names": _NAMES, "action": "classify"}
      status, _, page = self.upload([content], "file", fields)
      lines = re.findall(r'role="alert">(.*?)</p>', page.decode())
      if status == 503:
        return "busy"
      return "answer" if b"<progress" in page else f"{status} {lines[:1]}"
    status, _, paths = self.upload([content])
    if status != 200:
      return f"{status} {paths[:80]!r}"
    return self.result(json.loads(paths)[0], f"session{number}")

  def result(self, path: str, session: str) -> str:
    """The same of a picture at a path of Gradio's."""
    status, _, text = self.join(path, session)
    if status != 200:
      return "busy" if b"full" in text else f"{status} {text[:80]!r}"
    _, _, events = self.get(f"/gradio_api/queue/data?session_hash={session}")
    last = [
      line for line in events.decode().splitlines() if "process_completed" in line
    ]
    if not last:
      return "busy" if b"full" in events else f"no result: {events[-100:]!r}"
    event = json.loads(last[-1].removeprefix("data: "))
    return "answer" if event["success"] else f"refused: {event['output'].get('error')}"


def png(width: int, height: int, seed: int = 0) -> bytes:
  """A picture of noise."""
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def bomb(side: int) -> bytes:
  """A PNG of one colour with `side` squared pixels, some kilobytes."""
  compress = zlib.compressobj(9)
  row = b"\0" + bytes(3 * side)
  content = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()

  def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check

  size = side.to_bytes(4, "big")
  header = size + size + b"\x08\x02\0\0\0"
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def answers(server: Server) -> str:
  """Seconds until the page answers, the slowest of five, and until it classifies."""
  seconds, statuses = [], []
  for _ in range(5):
    start = time.monotonic()
    statuses.append(server.ask("GET", "/", seconds=20)[0])
    seconds.append(time.monotonic() - start)
  if set(statuses) != {200}:
    return f"no answer: statuses {statuses} after {max(seconds):.1f} s"
  start = time.monotonic()
  found = server.classify(png(60, 50, 7), 99)
  return f"page {max(seconds):.2f} s, {found} {time.monotonic() - start:.1f} s"


def silent(server: Server, number: int, sent: bytes) -> str:
  """Whether the page answers beside silent connections, and how many it closes."""
  with contextlib.ExitStack() as stack:
    for _ in range(number):
      connection = stack.enter_context(socket.socket())
      connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      connection.settimeout(5)
      with contextlib.suppress(OSError):
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(sent)
    time.sleep(1)
    found = answers(server)
    time.sleep(_SILENCE)
    held = held_by(server)
    return f"{found}; after {_SILENCE} s of silence it holds {held} of {number}"


def held_by(server: Server) -> int:
  """Connections that the process holds, by its open descriptors.

  A client that reads nothing doesn't see the end of a connection, so it is not asked.
  """
  lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
  rows = [line.split() for line in lines]
  port = f"{server.port:04X}"
  established = {
    row[9] for row in rows if row[1].endswith(f":{port}") and row[3] != "0A"
  }
  held = set()
  for descriptor in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir():
    with contextlib.suppress(OSError):
      held.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
  return len(established & held)


def reads(server: Server, folder: pathlib.Path) -> str:
  """Files of the server that a path of a request reaches."""
  texts = [f"{folder}/secret.txt", "/etc/passwd", f"{folder}/runs/demo/config.json"]
  texts += [f"{folder}/runs/demo/results.json", "/proc/self/environ"]
  routes = ["/gradio_api/file=", "/file=", "/file/", "/gradio_api/file/", "/static/"]
  routes += ["/assets/", "/svelte/", "/runs/", "/report/", "/plots/demo/", "/picture/"]
  found = []
  for text in texts:
    up = "../" * 12 + text.strip("/")
    for form in (text, up, up.replace("/", "%2f"), f"//{text}", "file://" + text):
      for route in routes:
        status, _, content = server.get(route + form)
        if b"root:" in content or b"a secret" in content or b"PATH=" in content:
          found.append(f"{status} {route}{form}")
  return f"{len(found)} of {5 * len(texts) * len(routes)} {found[:2]}"


def others(server: Server) -> str:
  """Whether a stranger who has a picture can tell that it was uploaded."""
  content = png(40, 30, 3)
  server.classify(content, 50)
  digest = hashlib.sha256(content).hexdigest()
  if server.kind == "today":
    return f"status {server.get(f'/picture/{digest}')[0]}"
  [folder] = server.cache.glob("gradio_page_*")
  return f"status {server.get(f'/gradio_api/file={folder}/{digest}/a.png')[0]}"


def fetches(server: Server) -> str:
  """What happens to an address in place of a picture."""
  if server.kind == "today":
    return "no field takes one"
  asked = []
  with socket.create_server(("127.0.0.1", 0)) as listener:
    listener.settimeout(3)

    def wait():
      with contextlib.suppress(OSError):
        asked.append(listener.accept())

    thread = threading.Thread(target=wait)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    found = server.result(url, "session60")
    thread.join()
  status, headers, _ = server.get("/gradio_api/file=http://evil.example/")
  location = headers.get("location", "-")
  return f"fetched {len(asked)}, {found[:60]}; file=URL: {status}, location {location}"


def busy(server: Server) -> str:
  """What eight that come at once are told."""
  found, content = [], png(800, 700)

  def ask(number):
    found.append(server.classify(content, 100 + number))

  threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  counts = {text[:60]: found.count(text) for text in found}
  return ", ".join(f"{number} {text}" for text, number in counts.items())


def browser(server: Server) -> str:
  """What Chromium loads, from where, what it refuses, and how wide the page is."""
  from playwright import sync_api

  path = os.environ.get("CHROMIUM") or shutil.which("chromium")
  sizes, hosts, refused, widths = [], set(), [], []
  with sync_api.sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    for width in (360, 1400):
      tab = chromium.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark"
      )
      tab.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
      tab.on("requestfinished", lambda request: sizes.append(request.sizes()))
      tab.on("console", lambda message: refused.append(message.text))
      tab.goto(f"http://127.0.0.1:{server.port}/", wait_until="load")
      tab.wait_for_timeout(8000)
      root = "document.documentElement"
      widths.append(tab.evaluate(f"{root}.scrollWidth"))
      text = tab.inner_text("body")
      if directory := os.environ.get("SCREENSHOTS"):
        tab.screenshot(path=f"{directory}/{server.kind}_{width}.png", full_page=True)
      tab.close()
    chromium.close()
  policy = [text for text in refused if "Content Security Policy" in text]
  loaded = sum(size["responseBodySize"] for size in sizes) / 2
  elsewhere = sorted(hosts - {"", f"127.0.0.1:{server.port}"})
  return (
    f"{len(sizes) // 2} requests, {loaded / 1024:,.0f} KiB, elsewhere {elsewhere}, "
    f"{len(policy)} refused by policy, widths {widths}, "
    f"{'works' if 'Names' in text else 'shows no form'}"
  )


def attack(kind: str) -> dict[str, str]:
  """Starts a page, attacks it and ends it; an outcome for each promise."""
  with tempfile.TemporaryDirectory(prefix="attack_page_") as name:
    folder = pathlib.Path(name)
    run = folder / "runs" / "demo"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"job": "pretrain", "note": "a secret"}')
    (run / "report.html").write_text("<script>steal()</script>")
    (folder / "secret.txt").write_text("a secret")
    server = Server(kind, folder)
    try:
      return _attacked(server, folder)
    finally:
      server.process.kill()


def _attacked(server: Server, folder: pathlib.Path) -> dict[str, str]:
  found = {}

  def note(promise: str, outcome: str):
    found[promise] = outcome
    print(f"{server.kind} | {promise} | {outcome}", flush=True)

  note("start", f"{server.start_seconds:.0f} s, {server.megabytes()} MiB")
  start = time.monotonic()
  if server.kind == "policy":
    note("in a browser", browser(server))
    return found
  first = server.classify(png(60, 50))
  note("first answer", f"{first}, {time.monotonic() - start:.1f} s")
  note("written by one answer", server.files())
  note("in a browser", browser(server))
  status, headers, page = server.get("/")
  note("policy of scripts", headers.get("Content-Security-Policy", "none")[:40])
  evil = {"Host": "evil.example"}
  note("foreign Host", f"{server.get('/', **evil)[0]}")
  sent = server.upload([png(9, 9, 1)], Origin="http://evil.example")
  note("foreign form uploads", f"{sent[0]}")
  if server.kind != "today":
    path = json.loads(server.upload([png(9, 9, 2)])[2])[0]
    headers = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    status, headers, text = server.join(path, "session70", **headers)
    note("foreign form computes", f"{status} {text[:60]!r}")
  note("paths", reads(server, folder))
  note("uploads of others", others(server))
  note("addresses in place of a file", fetches(server))
  note("twelve at once", busy(server))

  before = server.megabytes("VmHWM")
  outcomes = [server.classify(bomb(side), 200 + side) for side in (9000, 13000, 30000)]
  note("bombs of 81, 169, 900 megapixels", "; ".join(text[:90] for text in outcomes))
  note("peak memory by bombs", f"+{server.megabytes('VmHWM') - before} MiB")
  large = np.random.default_rng(0).bytes(13 * _MIB)
  field = "file" if server.kind == "today" else "files"
  note("upload of 13 MiB", f"{server.upload([large], field)[0]}")
  nine = [large[: 9 * _MIB - number] for number in range(30)]
  before = server.megabytes()
  status = server.upload(nine, field)[0]
  note("30 files of 9 MiB in a form", f"{status}, left {server.files()}")
  note("memory by them", f"+{server.megabytes() - before} MiB")
  time.sleep(75)
  note("files 75 s later", server.files())

  route = b"/" if server.kind == "today" else b"/gradio_api/upload"
  upload = (
    b"POST " + route + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
  )
  upload += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
  upload += b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx'
  note("300 idle connections", silent(server, 300, b""))
  note("99 slow uploads", silent(server, 99, upload))
  assets = re.findall(rb'(?:src|href)="([^"]+\.(?:js|css))"', page)
  paths = ["/" + asset.decode().lstrip("./") for asset in assets]
  asset = max(paths, key=lambda path: len(server.get(path)[2])).encode()
  request = b"GET " + asset + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
  note("30 that read nothing", silent(server, 30, 300 * request))
  note("1,100 idle connections", silent(server, 1100, b""))
  note("memory at the end", f"{server.megabytes()} MiB")
  start = time.monotonic()
  server.process.send_signal(signal.SIGTERM)
  with contextlib.suppress(subprocess.TimeoutExpired):
    server.process.wait(60)
  ended = f"status {server.process.returncode}, {time.monotonic() - start:.1f} s"
  note("SIGTERM", f"{ended}, left {server.files()}")
  return found


def main() -> None:
  """Prints a table: promise, and the outcome of each server."""
  # This process holds more connections than a server may.
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
  outcomes = [attack(kind) for kind in sys.argv[1:]]
  print("| promise |", " | ".join(sys.argv[1:]), "|")
  for promise in dict.fromkeys(name for found in outcomes for name in found):
    cells = (found.get(promise, "-") for found in outcomes)
    print("|", promise, "|", " | ".join(cells), "|")


if __name__ == "__main__":
  main()
