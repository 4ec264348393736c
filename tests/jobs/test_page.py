"""The job page: what each field reaches, errors before it serves, and its end by a signal."""

import functools
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid

import numpy as np
from PIL import Image
import pytest

from pomp_jax import hosts, inputs
from pomp_jax.config import FIELDS, ConfigError, unpack, validate
from pomp_jax.configs import page as page_config
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, Prompt, save_prompt
from pomp_jax.jobs import page as job
from tests.support.processes import ROOT, environment, reserved_port
from tests.support.small_run import settings

# On a port that is free.
CONFIG = {"job": "page", "page.port": 0, "page.runs": "", "regions.crop": "context"}


def ask(url, image, names):
  """Status and page of a picture that is sent with names."""
  boundary, parts = uuid.uuid4().hex, []
  for header, content in (
    ('name="names"', names.encode()),
    ('name="file"; filename="a.png"', image),
  ):
    parts.append(f"--{boundary}\r\nContent-Disposition: form-data; {header}\r\n\r\n".encode())
    parts.append(content + b"\r\n")
  body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
  kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
  try:
    with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=300) as answer:
      return answer.status, answer.read().decode()
  except urllib.error.HTTPError as error:
    return error.code, error.read().decode()


def png(side=40):
  file = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


# The tests below put another function in its place.
_OPEN_ENCODER = inputs.open_encoder


@functools.cache
def _open():
  return _OPEN_ENCODER(settings(**CONFIG))


def _encoder(config):
  """The world's CLIP, opened and compiled once."""
  assert config.clip == settings(**CONFIG).clip
  return _open()


@pytest.fixture
def served(monkeypatch, caplog, tmp_path):
  """A function: fields, and what is asked with the page's address -> the answers and the log."""
  pytest.importorskip("waitress")
  monkeypatch.setattr(job.inputs, "open_encoder", _encoder)
  monkeypatch.setattr(job.log, "propagate", True)
  caplog.set_level("INFO")

  def serve(changes, *questions):
    answers = []

    class Asked(hosts.StopRequest):
      """Asks while the page is served, and then to stop."""

      def after_step(self):
        [url] = re.findall(r"the page is at (http\S+)", caplog.text)
        answers.extend(question(url) for question in questions)
        return True

    monkeypatch.setattr(hosts, "StopRequest", Asked)
    config = settings(**CONFIG | changes)
    validate(config)
    caplog.clear()
    job.check(config, str(tmp_path / "workdir"))
    job.run(config, str(tmp_path / "workdir"))
    assert not (tmp_path / "workdir").exists()
    return answers, caplog.text

  return serve


def test_each_field_reaches_the_page(served, tmp_path):
  """Each field but the address: another value, and the page before and after."""
  (tmp_path / "runs" / "own run").mkdir(parents=True)
  (tmp_path / "runs" / "own run" / "config.json").write_text('{"job": "pretrain"}')
  names = "\n".join(("red star", "blue ring", "teal leaf"))
  changes = {
    "page.prompts": "the {}!",
    "page.runs": str(tmp_path / "runs"),
    "page.top": 2,
    "page.max_names": 2,
    "page.max_upload": 0.001,
  }
  fields = {field for field in FIELDS if field.startswith("page.")}
  assert fields == {*changes, "page.host", "page.port"}
  questions = (
    lambda url: ask(url, png(), names),
    lambda url: (200, urllib.request.urlopen(f"{url}runs", timeout=60).read().decode()),
  )

  def seen(found):
    (status, page), (_, runs) = found[0]
    return {
      "page.prompts": "the {}!" in page,
      "page.runs": "own run" in runs,
      "page.top": page.count("<progress"),
      "page.max_names": (status, "names: got 3" in page),
      "page.max_upload": "0.001 MiB" in page,
    }

  before = seen(served({"page.prompts": "{}."}, *questions))
  assert before == {
    "page.prompts": False,
    "page.runs": False,
    "page.top": 3,
    "page.max_names": (200, False),
    "page.max_upload": False,
  }
  for field, value in changes.items():
    after = seen(served({"page.prompts": "{}."} | {field: value}, *questions))
    assert after[field] != before[field], field


def test_the_address(served):
  with reserved_port() as port:
    pass
  _, text = served({"page.port": port})
  assert f"http://127.0.0.1:{port}/" in text and "password" not in text
  _, text = served({"page.host": "0.0.0.0"})
  assert "page.host=0.0.0.0" in text and "there is no password" in text


def _refused(tmp_path, **changes):
  config = settings(**CONFIG | changes)
  with pytest.raises(ConfigError) as found:
    validate(config)
    job.check(config, str(tmp_path))
  assert "\n" not in str(found.value)
  return found.value.field


def test_errors_are_found_before_it_serves(tmp_path):
  pytest.importorskip("waitress")
  per_class = Prompt(np.zeros((3, 2, 64), np.float32), "world")
  save_prompt(tmp_path / "prompt.npz", per_class)
  for field, value in (
    ("page.prompts", "no prompt"),
    ("page.prompts", str(tmp_path / "prompt.npz")),
    ("page.host", ""),
    ("page.top", 0),
    ("page.max_upload", 0.0),
    ("regions.crop", "masked"),
  ):
    assert _refused(tmp_path, **{field: value}) == field
  with socket.create_server(("127.0.0.1", 0)) as used:
    assert _refused(tmp_path, **{"page.port": used.getsockname()[1]}) == "page.port"
  assert _refused(tmp_path, **{"page.host": "192.0.2.1"}) == "page.host"


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
  assert prompts("prompts=b.npz;{}.") == ("b.npz", "{}.")
  assert prompts("clip=openai/clip-vit-base-patch16") == by_hand
  clip = lambda argument: unpack(page_config.get_config(argument)).clip.model
  assert clip("") == clip("prompt=own.npz,clip=world") == "world"
  assert (clip("prompt=own.npz"), clip("prompt=the {}.")) == ("an/own-clip", PUBLISHED_CLIP)
  config = unpack(page_config.get_config("runs=here,port=1,segment.window=20"))
  assert (config.page.runs, config.page.port, config.segment.window) == ("here", 1, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(tmp_path, number):
  pytest.importorskip("waitress")
  command = [sys.executable, "-m", "pomp_jax.main", "--config=page:port=0"]
  environ = environment(1, PYTHONUNBUFFERED="1") | {"PYTHONPATH": str(ROOT)}
  environ.pop("PYTEST_CURRENT_TEST", None)
  with subprocess.Popen(
    command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    lines = []
    for line in process.stdout:
      lines.append(line)
      if found := re.search(r"the page is at (http\S+)", line):
        assert urllib.request.urlopen(f"{found[1]}", timeout=60).status == 200
        os.kill(process.pid, number)
    errors = process.stderr.read()
  assert process.returncode == 0, (lines, errors)
  assert "error" not in errors and "Traceback" not in errors
  assert not list(tmp_path.iterdir())
