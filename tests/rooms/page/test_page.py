"""The job page: what each field reaches, errors before it serves, and its end by a
signal."""

import contextlib
import io
import os
import signal
import socket
import threading
import urllib.request

import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.config import ConfigError, fields_of, unpack, validate
from pomp_jax.configs import page as page_config
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, Prompt, save_prompt
from pomp_jax.rooms.page import page as job
from tests.rooms.page.test_form import encoded, noise
from tests.support.command_line import handlers_kept, run_main
from tests.support.processes import reserved_port
from tests.support.small_run import run_job, settings

server = pytest.importorskip("pomp_jax.rooms.page.server", exc_type=ImportError)

# On a port that is free.
CONFIG = {"job": "page", "page.port": 0, "page.runs": "", "regions.crop": "context"}


def run(changes, workdir):
  run_job(settings(**CONFIG | changes), workdir)
  assert not workdir.exists()


@pytest.fixture
def stops(monkeypatch):
  """The page is asked to stop as soon as it is served."""
  monkeypatch.setattr(hosts.StopRequest, "after_step", lambda _: True)


@pytest.fixture
def pages(monkeypatch, stops, tmp_path):
  """A function: fields -> pages of a picture, of runs, and under a name of its own;
  statuses."""
  png = encoded(noise(40, 40))
  names, answers, limits = "red star\nblue ring\nteal leaf", [], []

  @contextlib.contextmanager
  def serving(app, listener, max_upload):
    """Asks without a connection."""
    listener.close()
    limits.append(max_upload)
    fields = {"names": names, "action": "classify", "file": (io.BytesIO(png), "a.png")}
    client = app.test_client()
    named = client.get("/", headers={"Host": "own.example"})
    answers[:] = client.post("/", data=fields), client.get("/runs"), named
    yield

  monkeypatch.setattr(server, "serving", serving)

  def ask(**changes):
    run({"page.prompts": "{}."} | changes, tmp_path / "workdir")
    assert limits[-1] == settings(**CONFIG | changes).page.max_upload
    return [(answer.status_code, answer.data.decode()) for answer in answers]

  return ask


def test_each_field_reaches_the_page(pages, tmp_path):
  """Each field but the address, which has a test of its own."""
  (tmp_path / "runs" / "own run").mkdir(parents=True)
  (tmp_path / "runs" / "own run" / "config.json").write_text('{"job": "pretrain"}')
  fields = {field for field in fields_of() if field.startswith("page.")}
  own = {"prompts", "runs", "top", "max_names", "max_upload", "hosts"}
  assert fields == {*(f"page.{name}" for name in own), "page.host", "page.port"}

  (status, page), (_, runs), (refused, _) = pages()
  assert (status, refused) == (200, 400) and page.count("<progress") == 3
  assert "the {}!" not in page and "own run" not in runs and "0.001 MiB" not in page
  for field, value, expected, part in (
    ("prompts", "the {}!", 200, "the {}!"),
    ("max_names", 2, 400, "names: got 3"),
    ("max_upload", 0.001, 200, "0.001 MiB"),
  ):
    (status, page), *_ = pages(**{f"page.{field}": value})
    assert status == expected and part in page
  _, (status, runs), _ = pages(**{"page.runs": str(tmp_path / "runs")})
  assert status == 200 and "own run" in runs
  (status, page), _, (answered, _) = pages(
    **{"page.top": 2, "page.hosts": ("own.example",)}
  )
  assert (status, answered) == (200, 200) and page.count("<progress") == 2


def test_the_address(stops, monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(job.log, "propagate", True)  # not so after a command line
  caplog.set_level("INFO")
  with reserved_port() as port:
    pass
  run({"page.port": port}, tmp_path / "workdir")
  assert f"http://127.0.0.1:{port}/" in caplog.text and "password" not in caplog.text
  run({"page.host": "0.0.0.0"}, tmp_path / "workdir")
  assert "page.host=0.0.0.0" in caplog.text and "there is no password" in caplog.text


def test_errors_are_found_before_it_serves(tmp_path):
  per_class = Prompt(np.zeros((3, 2, 64), np.float32), "world")
  save_prompt(tmp_path / "prompt.npz", per_class)
  with socket.create_server(("127.0.0.1", 0)) as used:
    for field, value in (
      ("page.prompts", "no prompt"),
      ("page.prompts", str(tmp_path / "prompt.npz")),
      ("page.host", ""),
      ("page.host", "192.0.2.1"),
      ("page.port", used.getsockname()[1]),
      ("page.hosts", ("Own.example:80",)),
      ("regions.crop", "masked"),
    ):
      with pytest.raises(ConfigError, match=r"^[^\n]*$") as found:
        config = settings(**CONFIG | {field: value})
        validate(config)
        job.check(config, str(tmp_path))
      assert found.value.field == field


def test_a_missing_library_is_a_line(tmp_path, monkeypatch):
  monkeypatch.setattr(job, "_LIBRARIES", ("no_such_library",))
  with pytest.raises(job.InputError, match=r"pip install 'pomp-jax\[page\]'"):
    job.check(settings(**CONFIG), str(tmp_path))


def test_the_config_takes_the_demos_prompt_where_there_is_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  prompts = lambda argument: unpack(page_config.get_config(argument)).page.prompts
  by_hand = ("a photo of a {}.", "{}.")
  assert prompts("") == by_hand
  (tmp_path / "runs" / "demo").mkdir(parents=True)
  (tmp_path / "runs" / "demo" / "prompt.npz").touch()
  assert prompts("") == ("runs/demo/prompt.npz", *by_hand)
  save_prompt("own.npz", Prompt(np.zeros((2, 64), np.float32), "an/own-clip"))
  assert prompts("prompt=own.npz") == ("own.npz", *by_hand)
  clip = lambda argument: unpack(page_config.get_config(argument)).clip.model
  assert clip("") == clip("prompt=own.npz,clip=world") == "world"
  assert (clip("prompt=own.npz"), clip("prompt=the {}.")) == (
    "an/own-clip",
    PUBLISHED_CLIP,
  )


def test_it_waits_for_the_computation_that_runs_before_it_ends(
  stops, monkeypatch, tmp_path
):
  """While it still serves: `Turns.close` waits, and lets no other computation start."""
  events = []

  @contextlib.contextmanager
  def serving(app, listener, max_upload):
    listener.close()
    yield
    events.append("no more served")

  monkeypatch.setattr(server, "serving", serving)
  monkeypatch.setattr(server.Turns, "close", lambda turns: events.append("closed"))
  run({"page.prompts": "{}."}, tmp_path / "workdir")
  assert events == ["closed", "no more served"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(tmp_path, monkeypatch, capsys, number):
  """While it serves, by its own handlers of signals; the answer is of its own
  server."""
  answers = []

  def ask(url):
    try:
      answers.append(urllib.request.urlopen(url, timeout=60).status)
    finally:  # without an answer, too, or the page would serve for ever
      os.kill(os.getpid(), number)

  def start(text, *words):
    if "the page is at" in text:
      (url,) = words
      threading.Thread(target=ask, args=[url]).start()

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(job.log, "info", start)
  with handlers_kept():
    status, lines = run_main(capsys, "--config=page:port=0")
  assert (status or 0, answers) == (0, [200])
  assert not [line for line in lines if "error" in line or "Traceback" in line]
  assert not list(tmp_path.iterdir())
