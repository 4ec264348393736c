"""The server: answers, lines for bad input, headers, and what it must never give
away."""

import contextlib
import html
import io
import queue
import re
import socket
import threading
import time
from unittest import mock
import urllib.request

import numpy as np
from PIL import Image
import pytest

from pomp_jax.evaluate import opening
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.files.calibration import Calibration, classes_digest
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.rooms.page import server
from pomp_jax.rooms.page.fields import Page
from tests.rooms.page.conftest import MAX_NAMES
from tests.rooms.page.test_form import encoded, noise
from tests.rooms.page.test_runs import NO_CLIP, write_run

NAMES = "red star on navy\nteal leaf on pink\n<script>alert(1)</script>"


@pytest.fixture
def client(made):
  return made[0].test_client()


def post(client, path="/", image=None, **fields):
  content = encoded(noise(50, 40)) if image is None else image
  fields = {"names": NAMES, "action": "classify"} | fields
  if content:
    fields["file"] = (io.BytesIO(content), "../../etc/passwd.png")
  return client.post(path, data=fields)


def line_of(answer):
  """The one line of an error; checks that nothing else is told."""
  text = answer.data.decode()
  assert "Traceback" not in text and "pomp_jax/" not in text and "/tmp/" not in text
  [line] = re.findall(r'role="alert">(.*?)</p>', text)
  return html.unescape(line)


def test_names_and_probabilities_are_the_classifiers(made, client):
  """Under the page's prompts, and under the ones chosen: a run's and a typed one."""
  prompts = made[3].page.prompts
  _check_answers(made, post(client), prompts)
  answer = post(client, prompt=prompts[2], run="demo <b>", templates="the {}!\n")
  _check_answers(made, answer, (prompts[2], f"{made[2]}/runs/demo <b>", "the {}!"))
  assert re.findall("<h2>(.*?)</h2>", answer.data.decode()) == [
    "{}.",
    "demo &lt;b&gt;",
    "the {}!",
  ]
  checked = re.findall(r'name="(\w+)" value="([^"]+)" checked', answer.data.decode())
  assert checked == [("prompt", "{}."), ("run", "demo &lt;b&gt;")]


def _check_answers(made, answer, prompts):
  assert answer.status_code == 200
  line = r'<span title="([^"]*)">.*?</span><span>([\d.]+)%</span>'
  names, percents = zip(*re.findall(line, answer.data.decode()), strict=True)
  encoder, expected = opening.open_encoder(made[3].clip), []
  for prompt in prompts:
    classifier = Classifier(encoder, prompt, NAMES.split("\n"))
    expected += classifier.predict(np.asarray(noise(50, 40)), top=2)
  assert list(map(html.unescape, names)) == [name for name, _ in expected]
  percents = np.array(percents, float)
  np.testing.assert_allclose(percents, [100 * p for _, p in expected], atol=0.06)


@pytest.mark.parametrize(("floor", "is_none"), [(0.9999, True), (1e-6, False)])
def test_an_answer_below_the_floor_is_none_of_these(made, client, floor, is_none):
  """With the temperature of these names, which the first prompt of the page has."""
  encoder = opening.open_encoder(made[3].clip)
  names = NAMES.split("\n")
  stored = Calibration(
    temperature=50.0,
    n_images=100,
    n_classes=len(names),
    classes=classes_digest(names),
    clip_model="world",
    clip=encoder.clip_digest,
    floor=floor,
    error=0.05,
  )
  prompt = made[1].prompts[0].prompt
  with mock.patch.dict(prompt.__dict__, calibration=stored):
    text = post(client).data.decode()
  assert text.count("None of these") == int(is_none)
  assert "calibrated: temperature 50 from 100 validation images" in text
  if is_none:
    assert "The floor refuses at most 5% of right answers" in text
  # A refused name is not shown as the answer.
  n_cards = text.count('<section class="card')
  assert n_cards and text.count('class="bar best"') == n_cards - int(is_none)


@pytest.mark.parametrize("upright", [True, False, None])
def test_an_answer_says_that_its_training_did_not_turn_pictures(
  client, monkeypatch, upright
):
  monkeypatch.setattr(Prompt, "upright", upright)
  text = post(client).data.decode()
  assert ("were not turned as their EXIF says" in text) == (upright is False)


def test_a_name_is_text_and_the_key_brings_the_picture_back(client):
  first = post(client).data.decode()
  assert first.count("<script") == 1 and "&lt;script&gt;alert(1)" in first
  [key] = re.findall(r'name="picture" value="([^"]+)"', first)
  again = post(client, image=b"", picture=key).data.decode()
  assert re.findall(r"<span>([\d.]+)%", again) == re.findall(r"<span>([\d.]+)%", first)
  shown = Image.open(io.BytesIO(client.get(f"/picture/{key}").data))
  np.testing.assert_array_equal(np.asarray(shown), np.asarray(noise(50, 40)))


@pytest.mark.parametrize(
  ("fields", "part"),
  [
    ({"image": b"x" * 4 * 2**20}, "1 MiB"),
    ({"image": b"GIF89a but no image"}, "the picture"),
    ({"image": b"", "picture": "../../secret.txt"}, "the picture: none given"),
    ({"names": ""}, "names: got 0"),
    ({"names": "\n".join(map(str, range(MAX_NAMES + 1)))}, "1 to 20"),
    ({"names": "star " * 199}, "star"),
    ({"names": "a\0b"}, "U+0000"),
    ({"names": "x" * 1001}, "too long"),
    ({"path": "/regions", "action": "boxes", "boxes": "<img src=x>"}, "<img"),
    ({"templates": "no name"}, "templates: got 'no name'"),
    ({"templates": "\n".join(f"{n} {{}}" for n in range(9))}, "prompts: got 9"),
    ({"run": "../demo"}, "no run '../demo'"),
    ({"run": "wide"}, "wide: context [2, 48] has width 48"),
  ],
)
def test_bad_input_is_a_line(client, fields, part):
  answer = post(client, **fields)
  assert answer.status_code == (413 if part == "1 MiB" else 400)
  assert part in line_of(answer)
  if answer.status_code == 400 and "names" not in fields:  # what was entered stays
    assert (
      "\n".join(html.escape(name) for name in NAMES.split("\n")) in answer.data.decode()
    )


def test_regions_of_a_scene(client):
  """The two buttons on an example: boxes are named as its objects, and a label map
  is drawn."""
  key = re.findall(
    r'name="example" value="([^"]+)"', client.get("/regions").data.decode()
  )[0]
  filled = client.post("/regions", data={"example": key}).data.decode()
  names, boxes, _ = map(
    html.unescape, re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", filled, re.S)
  )
  assert 3 <= len(boxes.split("\n")) <= 5
  for action in ("boxes", "segment"):
    fields = {"picture": key, "names": names, "boxes": boxes, "action": action}
    answer = post(client, "/regions", b"", **fields)
    assert answer.status_code == 200
    sheet = re.search(r'class="plot" src="([^"]+)"', answer.data.decode())[1]
    assert Image.open(io.BytesIO(client.get(sheet).data)).width > 900
    rows = re.findall(r"<tr><td>(.*?)</td>", answer.data.decode())
    assert rows == (boxes.split("\n") if action == "boxes" else [])


def test_a_page_without_regions_has_no_tab_for_them():
  client = server.make_app(NO_CLIP, Page(runs=""), server.Turns()).test_client()
  assert re.findall('<a href="(/[a-z]*)"', client.get("/runs").data.decode()) == [
    "/",
    "/runs",
    "/reports",
  ]
  assert client.get("/regions").status_code == 404


ESCAPES = [
  *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt"),
  *(
    "demo <b>/../../secret.txt",
    "..%252fsecret.txt",
    "//etc/passwd",
    "%2fetc%2fpasswd",
  ),
  *(
    "etc/passwd",
    "demo%00",
    "..\\secret.txt",
    "demo <b>/config.json",
    ".",
    "file:///etc/passwd",
  ),
]


@pytest.mark.parametrize("route", ["/runs/", "/report/", "/plots/", "/picture/", "/"])
def test_no_path_of_the_server_is_readable(client, route):
  texts = [
    f"{route}{folder}{path}" for path in ESCAPES for folder in ("", "demo%20%3Cb%3E/")
  ]
  for text in texts:
    answer = client.get(text)
    assert answer.status_code in (308, 404), text
    assert b"a secret" not in answer.data and b"root:" not in answer.data


def test_a_run_and_its_report(client):
  link, _ = sorted(
    re.findall(r'<a href="(/runs/[^"]+)"', client.get("/runs").data.decode())
  )
  text = client.get(link).data.decode()
  assert "<b>" not in text.partition("<main>")[2] and "demo &lt;b&gt;" in text
  sources = re.findall(r'src="([^"]+)"', text.partition("<main>")[2])
  assert [client.get(source).mimetype for source in sources] == ["image/png"] * 2
  report = client.get(re.search(r'href="(/report/[^"]+)"', text)[1])
  assert report.headers["Content-Security-Policy"].startswith(
    "sandbox; default-src 'none'"
  )
  assert re.findall(
    r'<a href="(/runs/[^"]+)"', client.get("/reports").data.decode()
  ) == [link]


def test_nothing_is_loaded_from_elsewhere_and_no_other_script_runs(client):
  for path in ("/", "/regions", "/runs", "/style.css", "/page.js", "/none"):
    answer = client.get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert (
      "unsafe" not in policy and answer.headers["X-Content-Type-Options"] == "nosniff"
    )
    assert b"http" not in answer.data
    scripts = re.findall(b"<script.*", answer.data)
    assert scripts == [b'<script src="/page.js" defer></script>'] * (
      answer.mimetype == "text/html"
    )


def test_the_page_says_what_it_is_and_of_the_toy_alone_that_it_is_one(
  made, client, monkeypatch
):
  for path in ("/", "/regions"):
    assert (
      "POMP learns a prompt" in (text := client.get(path).data.decode())
      and "a toy" in text
    )
  monkeypatch.setattr(made[1], "is_toy", False)
  assert "POMP learns" in (text := client.get("/").data.decode()) and "toy" not in text


@pytest.mark.parametrize(
  ("host", "name", "status"),
  [
    *[("127.0.0.1", "evil.example", 400), ("127.0.0.1", "127.0.0.1:8765", 200)],
    *[("127.0.0.1", "192.0.2.7", 400), ("127.0.0.1", "own.example:80", 200)],
    *[("0.0.0.0", "evil.example", 400), ("0.0.0.0", "own.example.evil", 400)],
    *[("0.0.0.0", "own.example", 200), ("0.0.0.0", "192.0.2.7:8765", 200)],
    *[("0.0.0.0", "[2001:db8::1]", 200), ("0.0.0.0", "localhost", 200)],
    *[("0.0.0.0", socket.gethostname(), 200), ("0.0.0.0", "evil.example:[", 400)],
  ],
)
def test_names_of_the_host_that_are_answered(host, name, status):
  page = Page(host=host, hosts=("own.example",), runs="")
  app = server.make_app(NO_CLIP, page, server.Turns())
  answer = app.test_client().get("/runs", headers={"Host": name})
  assert answer.status_code == status
  if status == 400 and "[" not in name:
    line = line_of(answer)
    assert name in line and "page.hosts" in line


def test_other_sites_are_refused(client):
  answer = client.post("/", data={}, headers={"Origin": "http://evil.example"})
  assert answer.status_code == 403


def test_an_unexpected_failure_is_a_line(made, client, monkeypatch, caplog):
  fails = mock.Mock(side_effect=ZeroDivisionError("/tmp/secret"))
  monkeypatch.setattr(made[1], "classify", fails)
  monkeypatch.setattr(server.log, "propagate", True)
  answer = post(client)
  assert answer.status_code == 500 and "log" in line_of(answer)
  assert "ZeroDivisionError" in caplog.text


def test_one_computes_at_a_time_and_few_wait():
  """Of two that come during a turn one is turned away, and the other waits for the
  end of it."""
  turns, order = server.Turns(waiting=1), queue.Queue()

  def compute():
    try:
      with turns.turn():
        order.put("computed")
    except server.BusyError:
      order.put("busy")

  others = [threading.Thread(target=compute, daemon=True) for _ in range(2)]
  with turns.turn():
    for other in others:
      other.start()
    assert order.get(timeout=60) == "busy"
    assert order.empty()
  assert order.get(timeout=60) == "computed"
  for other in others:
    other.join(60)
  turns.close()
  assert turns._lock.locked()


def test_the_shelf_drops_the_oldest_and_keeps_what_it_must():
  shelf = server.Shelf(max_bytes=10)
  fixed, first, second = (
    shelf.add(b"x" * 8, keep=True),
    shelf.add(b"a" * 5),
    shelf.add(b"b" * 5),
  )
  assert shelf.get(first) == b"aaaaa"  # used last, so the other one goes
  third = shelf.add(b"c")
  assert [shelf.get(key) for key in (second, first, third)] == [None, b"aaaaa", b"c"]
  assert shelf.get(fixed) == b"x" * 8 and shelf.get("") is None


def test_idle_connections_and_slow_uploads_keep_nobody_out(made):
  """Of 249 that never finish the oldest are closed. Before, 100 of them stopped it
  for 120 s."""
  upload = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nx"
  listener = socket.create_server(("127.0.0.1", 0))
  with server.serving(made[0], listener, 1.0), contextlib.ExitStack() as stack:
    address = listener.getsockname()
    for number in range(249):
      connection = stack.enter_context(socket.create_connection(address, timeout=60))
      connection.sendall(upload if number < 99 else b"")
    url = f"http://127.0.0.1:{address[1]}/style.css"
    assert urllib.request.urlopen(url, timeout=60).status == 200


def pipelined(address, stack, number):
  """Connections that send many requests for a large report and read no answer."""
  connections = []
  request = b"GET /report/large HTTP/1.1\r\nHost: localhost\r\n\r\n"
  for _ in range(number):
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address)
    connection.sendall(100 * request)
    connections.append(connection)
  return connections


def status_of(url):
  """Asks again while the connection is reset: on a busy machine the server may count
  a visitor, too, as silent."""
  end = time.monotonic() + 20
  while True:
    try:
      return urllib.request.urlopen(url, timeout=20).status
    except ConnectionError:
      if time.monotonic() > end:
        raise


@pytest.mark.parametrize(
  ("number", "limits"), [(8, {}), (30, {"_CONNECTIONS": 20, "_SILENCE": 0.5})]
)
def test_clients_that_read_nothing_keep_nobody_out(
  tmp_path, monkeypatch, number, limits
):
  """As many as there are threads; and more than connections, which are closed when
  silent."""
  for name, value in limits.items():
    monkeypatch.setattr(server, name, value)
  write_run(tmp_path / "large")
  # Beyond what sockets hold, and what waitress holds of a connection before its thread
  # waits.
  (tmp_path / "large" / "report.html").write_bytes(b"x" * 17 * 2**20)
  app = server.make_app(NO_CLIP, Page(runs=str(tmp_path)), server.Turns())
  listener = socket.create_server(("127.0.0.1", 0))
  with server.serving(app, listener, 1.0), contextlib.ExitStack() as stack:
    address = listener.getsockname()
    connections = pipelined(address, stack, number)
    for connection in connections[:8]:
      # its first answer is under way
      assert connection.recv(1, socket.MSG_PEEK) == b"H"
    url = f"http://127.0.0.1:{address[1]}/style.css"
    for _ in range(5):
      assert status_of(url) == 200
