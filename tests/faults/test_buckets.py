"""Fault campaign of runs in buckets: emulators of both stores behind a proxy that
answers for them.

The faults of single requests are in tests/files/test_buckets.py.
"""

import re

import numpy as np
import pytest

from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.run_folder import RunFolderError
from tests.faults.training import STEPS, Training, config_of, start_child, wait_for_kill
from tests.support import stores

# The training has two devices.
pytestmark = [pytest.mark.mesh, pytest.mark.slow("trainings in emulated stores")]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
  return Training(config_of(), tmp_path_factory.mktemp("buckets") / "reference")


@pytest.fixture(scope="module", params=stores.SCHEMES)
def running(request):
  with stores.running(request.param) as found:
    yield found[request.param]


@pytest.fixture
def store(running):
  yield running
  running.recover()
  running.before = lambda method, path: None


@pytest.fixture
def folder(store, request):
  return store.url(f"runs/{re.sub('[^a-z0-9]+', '-', request.node.name)}")


def test_killed_while_saving(training, store, folder, lost):
  """SIGKILL at a request of the second save, before the store gets it."""
  left = [5]
  second = re.compile(
    "(/|%2F)".join([folder.rpartition("/")[2], "checkpoints", "8", ""])
  )

  def before(method: str, path: str) -> None:
    if method in ("PUT", "POST") and second.search(path):
      left[0] -= 1
      if left[0] == 0:
        child.kill()
        child.wait()

  child = start_child(folder, {})
  store.before = before
  steps = training.resume(folder, wait_for_kill(child))
  lost(f"{store.scheme}://, SIGKILL during a save", steps)


@pytest.mark.parametrize("status", [429, 503])
def test_busy(training, store, folder, lost, status):
  faults = store.faults
  attempt = training.run(
    folder, lambda now: store.fail(status, 5.0) if now == 8 else None
  )
  assert store.faults > faults
  np.testing.assert_array_equal(attempt.context, training.context)
  lost(f"{store.scheme}://, {status} for 5 s", 0)


@pytest.mark.parametrize("policy", ["stop", "retry"])
def test_refusing(training, store, folder, lost, policy):
  """The store refuses everything during a save, and recovers at the next step or
  start."""

  def hook(now: int) -> None:
    if now == 8:
      store.fail(403)
    if now == 9:
      store.recover()

  attempt = training.run(folder, hook, **{"checkpoint.on_failure": policy})
  store.recover()
  steps = 0
  if policy == "retry":
    assert "could not save" in attempt.warnings
    np.testing.assert_array_equal(attempt.context, training.context)
  else:
    attempt.check_error(CheckpointError, "could not save")
    steps = training.resume(folder, 8)
  lost(f"{store.scheme}://, 403, {policy}", steps)


def test_the_bucket_disappears(training, store, folder, lost):
  """It is gone for the rest of the run; the next start is refused, the third
  resumes."""
  attempt = training.run(folder, lambda now: store.fail(404) if now == 10 else None)
  assert attempt.error is not None and "\n" not in str(attempt.error)
  with pytest.raises(RunFolderError, match="no bucket"):
    training.run(folder)
  store.recover()
  steps = training.resume(folder, STEPS)
  lost(f"{store.scheme}://, bucket disappears", steps)
