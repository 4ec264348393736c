"""SIGTERM and SIGHUP: wherever they arrive, one line and a status that asks for
another start."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import pytest

from pomp_jax import hosts
from pomp_jax import main as main_module
from pomp_jax.config import JOBS, defaults
from pomp_jax.errors import RunError
from tests.support.command_line import handlers_kept, run_main
from tests.support.processes import ROOT

DEMO = f"--config={ROOT}/configs/demo.py"
RESUMES = "the same command resumes from run"
STOPPED = (75, [f"error: stopped by SIGTERM; {RESUMES}"])


@pytest.fixture(autouse=True)
def as_before():
  with handlers_kept():
    yield


def send(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


@pytest.fixture
def run_as(capsys, tmp_path, monkeypatch):
  """Runs the program with a function as its job; `run_main`'s result."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run").mkdir()

  def run(function):
    played = SimpleNamespace(check=lambda *_: None, run=lambda *_: function())
    monkeypatch.setattr(main_module, "load_job", lambda name: played)
    return run_main(capsys, DEMO, "--workdir=run")

  return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_training_asks_for_another_start(run_as, number):
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  assert run_as(lambda: send(number)) == (
    75,
    [f"error: stopped by {number.name}; {RESUMES}"],
  )
  signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  assert run_as(lambda: send(signal.SIGHUP)) == (0, [])


def test_the_earliest_signal_that_main_handles(run_as, monkeypatch):
  handle = hosts.StopSignals.handle

  def handle_and_receive(stop, number):
    handle(stop, number)
    send(number)

  monkeypatch.setattr(hosts.StopSignals, "handle", handle_and_receive)
  assert run_as(lambda: pytest.fail("the job runs")) == STOPPED


@pytest.mark.parametrize("job", JOBS)
def test_a_signal_in_the_check_of_any_job(capsys, tmp_path, monkeypatch, job):
  played = SimpleNamespace(check=lambda *_: send())
  monkeypatch.setattr(main_module, "validate", lambda _: None)
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  monkeypatch.chdir(tmp_path)
  status, lines = run_main(capsys, DEMO, "--workdir=run", f"--config.job={job}")
  assert (status, lines) == (75, ["error: stopped by SIGTERM; nothing was written"])
  assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_nothing_to_resume(capsys, tmp_path, monkeypatch):
  """Not even where a run of the same folder does."""
  played = SimpleNamespace(check=lambda *_: None, run=lambda *_: send())
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run").mkdir()
  status, lines = run_main(capsys, DEMO, "--workdir=run", "--config.dry_run")
  assert (status, lines) == (75, ["error: stopped by SIGTERM; nothing was written"])


@pytest.mark.parametrize("failed", [False, True])
def test_a_second_signal_interrupts_nothing(run_as, monkeypatch, failed):
  """`timeout` sends two: one while the first is being reported, and one after the
  report."""
  fail = mock.Mock(side_effect=RunError("the job failed"))
  one_line = main_module.one_line

  def receive_twice(message, limit):
    send()
    send(signal.SIGHUP)
    return one_line(message, limit)

  monkeypatch.setattr(main_module, "one_line", receive_twice)
  assert run_as(fail if failed else send) == (
    (1, ["error: the job failed"]) if failed else STOPPED
  )
  send()


def test_a_signal_after_the_job_leaves_its_status(run_as):
  assert run_as(lambda: None) == (0, [])
  send()


def test_a_library_that_replaces_the_exception(run_as):
  def replace():
    try:
      send()
    except BaseException:
      raise RuntimeError("INTERNAL: a callback failed") from None

  assert run_as(replace) == STOPPED


def test_a_library_that_drops_the_exception(run_as, monkeypatch):
  """The next signal is heard, once it is not part of the same request."""

  def drop():
    with contextlib.suppress(BaseException):
      send()
    send()

  monkeypatch.setattr("pomp_jax.hosts.stop._SAME_SECONDS", 60.0)
  assert run_as(drop) == (0, [])
  monkeypatch.setattr("pomp_jax.hosts.stop._SAME_SECONDS", 0.0)
  assert run_as(drop) == STOPPED


def test_a_signal_within_the_garbage_collector(run_as):
  """Its callbacks can't raise; JAX has one."""
  came = []

  def callback(phase, info):
    if phase == "stop" and not came:
      came.append(phase)
      send()

  def collect():
    gc.callbacks.append(callback)
    try:
      gc.collect()
      time.sleep(60)
    finally:
      gc.callbacks.remove(callback)

  assert run_as(collect) == STOPPED


@pytest.mark.parametrize(
  ("number", "field", "remains"),
  [
    (signal.SIGTERM, "--config.k=20", "the same command resumes"),
    (signal.SIGHUP, "--config.k=20", "the same command resumes"),
    (signal.SIGTERM, "--config.dry_run=v5e:4x4", "nothing was written"),
  ],
)
def test_a_signal_while_it_imports_asks_for_another_start(
  tmp_path, number, field, remains
):
  (tmp_path / "absl.py").write_text(
    "import time\nprint('here', flush=True)\ntime.sleep(60)\n"
  )
  environ = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "pomp_jax.main", field]
  signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen(
    command, cwd=tmp_path, env=environ, text=True, **pipes
  ) as process:
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    lines = process.stderr.read().splitlines()
  assert process.returncode == 75
  assert lines == [f"error: stopped by {number.name}; {remains}"]


def test_whose_loop_asks_for_the_signal():
  for job, method in (
    ("pretrain", "pomp"),
    ("repeat", "pomp"),
    ("pretrain", "vpt_deep"),
  ):
    config = defaults(job).replace({"method": method})
    assert config.stops_together
    assert not config.replace({"dry_run": "here"}).stops_together
  assert defaults("train_masks").stops_together
  for config in (
    defaults("evaluate"),
    defaults("repeat").replace({"method": "linear_probe"}),
  ):
    assert not config.stops_together
