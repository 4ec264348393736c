"""What an experiment tracker gets of a training, and that its errors end none."""

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
from unittest import mock

import pytest

from pomp_jax import hosts
from pomp_jax.config import ConfigError, validate
from pomp_jax.config.fields import Log
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.rooms.interchange.fields import Tracking
from pomp_jax.rooms.interchange.tracker import Wandb
from pomp_jax.train import pretrain, results
from pomp_jax.train.watch import Watch
from tests.support.processes import environment
from tests.support.small_run import small_config

SMALL = {"steps": 6, "checkpoint.every": 2, "log.every": 1, "log.tracker": "wandb"}


@pytest.fixture
def installed(monkeypatch):
  """A function that installs a mock of wandb, its run as well, in which one call may
  raise.

  No environment variable of wandb is set.
  """
  for name in [name for name in os.environ if name.startswith("WANDB_")]:
    monkeypatch.delenv(name)

  def install(broken="none"):
    found = mock.MagicMock(
      offline=True, dir="/somewhere/wandb/run/files", Settings=dict
    )
    found.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
    found.init.return_value = found
    found.configure_mock(
      **{f"{broken}.side_effect": BrokenPipeError("the service has ended")}
    )
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found

  return install


def given(function):
  """What each call of a mock was given: its first argument, or its options."""
  return [
    call.args[0] if call.args else call.kwargs for call in function.call_args_list
  ]


def test_a_training_that_is_stopped_and_resumed(
  one_layer, installed, tmp_path, monkeypatch
):
  """The same run in both starts, with the config, all scalars, and the results at
  the end."""
  config = small_config(**SMALL, **{"clip.model": one_layer})
  folder, step = RunFolder(tmp_path / "runs" / "a"), Watch.step

  def signalled(self, number, metrics):
    step(self, number, metrics)
    if number == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  first = installed()
  with monkeypatch.context() as patch:
    patch.setattr(Watch, "step", signalled)
    with pytest.raises(hosts.Preempted):
      pretrain.run(config, str(folder.path))

  def lines():
    """The scalars of the run's log; a tracker has times of its own."""
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [
      {name: one for name, one in record.items() if name != "time"}
      for record in records
    ]

  assert given(first.log) == lines()
  assert [name for name, *_ in first.mock_calls[-2:]] == ["mark_preempting", "finish"]
  assert given(first.finish) == [{"exit_code": 1}] and not first.summary.update.called
  second = installed()
  pretrain.run(config, str(folder.path))
  (one,), (other,) = given(first.init), given(second.init)
  assert one["id"] == other["id"] and len(one["id"]) >= 8
  expected = {
    "name": "runs/a",
    "project": "pomp-jax",
    "resume": "allow",
    "job_type": "pretrain",
  }
  expected |= {"config": read_json(folder.config), "dir": str(folder.path)}
  assert other.items() >= expected.items()
  assert given(first.log) + given(second.log) == lines()
  assert given(second.summary.update) == [{"results": folder.read_results()}]
  assert second.mock_calls[-1] == mock.call.finish(exit_code=0)
  # The steps are no steps of wandb's own, of which none may come twice.
  assert given(second.define_metric) == ["*"]


@pytest.mark.usefixtures("few_texts")
def test_a_method_without_steps(one_layer, installed, tmp_path):
  wandb = installed()
  config = small_config(**SMALL | {"method": "zero_shot", "clip.model": one_layer})
  pretrain.run(config, str(tmp_path))
  assert given(wandb.summary.update) == [
    {"results": RunFolder(tmp_path).read_results()}
  ]
  assert not wandb.log.called and given(wandb.finish) == [{"exit_code": 0}]


_CALLS = ("init", "define_metric", "log", "log", "summary.update", "finish")


@pytest.mark.parametrize("broken", dict.fromkeys(_CALLS))
def test_an_error_of_the_tracker_is_one_warning(installed, caplog, tmp_path, broken):
  """Nothing more is sent after it."""
  wandb = installed(broken)
  with Wandb(RunFolder(tmp_path), {"job": "pretrain"}) as tracker:
    with MetricsWriter(tmp_path, tracker=tracker) as metrics:
      metrics.write(1, loss=2.0)
      metrics.write(2, loss=1.0)
    tracker.finish({"top1": 0.5})
  sent = [*_CALLS[: _CALLS.index(broken) + 1], "teardown"]
  assert [name for name, *_ in wandb.mock_calls] == sent
  (line,) = caplog.messages
  assert (
    line.startswith("wandb: ") and "the service has ended" in line and "\n" not in line
  )
  assert RunFolder(tmp_path).scalars() == {"loss": ([1, 2], [2.0, 1.0])}


def test_a_failed_training_is_told_as_such(installed, tmp_path, monkeypatch):
  """The user's variables come first."""
  wandb = installed()
  for name, value in {"PROJECT": "mine", "NAME": "this", "DIR": "elsewhere"}.items():
    monkeypatch.setenv(f"WANDB_{name}", value)
  with pytest.raises(ValueError), Wandb(RunFolder(tmp_path), {"job": "pretrain"}):
    raise ValueError
  assert wandb.mock_calls[-1] == mock.call.finish(exit_code=1)
  assert not wandb.mark_preempting.called
  (found,) = given(wandb.init)
  assert (found["project"], found["name"], found["dir"]) == ("mine", "this", None)


@pytest.mark.parametrize("content", ["[]", "\xff"])
def test_a_damaged_id(installed, tmp_path, caplog, content):
  """JSON without an id is replaced; anything else is a warning."""
  wandb = installed()
  (tmp_path / "tracker.json").write_text(content)
  Wandb(RunFolder(tmp_path), {"job": "pretrain"})
  assert len(given(wandb.init)) + len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["none", "wandb"])
def test_no_tracker_and_other_processes(installed, tmp_path, monkeypatch, name):
  wandb = installed()
  monkeypatch.setattr(hosts, "is_first", lambda: name == "none")
  log = Log().having(Tracking(tracker=name))
  with results.open_tracker(log, RunFolder(tmp_path), {"job": "pretrain"}) as tracker:
    tracker.write(1, {"loss": 1.0})
    tracker.finish({})
  assert not wandb.mock_calls and not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
  """A folder `wandb`, which the package leaves behind, is not the package."""
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.delitem(sys.modules, "wandb")
  (tmp_path / "wandb").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  importlib.invalidate_caches()
  with pytest.raises(
    ConfigError, match=r"^config\.log\.tracker: got 'wandb'.*pomp-jax\[wandb\]"
  ):
    validate(small_config(**SMALL))


_PROGRAM = """
import sys
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.interchange.tracker import Wandb
with Wandb(RunFolder(sys.argv[1]), {"job": "pretrain", "k": 3}) as tracker:
  for step in range(1, 21):
    tracker.write(step, {"loss": 1 / step})
  tracker.finish({"top1": 0.5})
"""


@pytest.mark.slow("starts the package's service; a mock is above")
def test_the_package_itself_offline(tmp_path):
  """Its file has all that was sent; a home that is missing does not matter."""
  if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed")
  environ = environment(1, WANDB_MODE="offline", HOME="/proc/none")
  command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
  done = subprocess.run(
    command, env=environ, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  (file,) = tmp_path.rglob("*.wandb")
  # Strings in a log of protocol buffers, which are not compressed.
  sent = file.read_bytes()
  assert all(json.dumps(1 / step).encode() in sent for step in range(1, 21))
  assert json.loads((tmp_path / "tracker.json").read_text())["wandb"].encode() in sent
  assert b"results" in sent
