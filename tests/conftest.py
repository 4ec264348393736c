"""What all tests need before JAX starts, the two tiers, and the devices that a test
computes on.

In a file whose `pytestmark` is `mesh` the package has 8 virtual devices, elsewhere one.
A test with `@pytest.mark.slow("reason")` is in the second tier: `bash launch/test.sh
--all` runs both.
"""

from collections.abc import Iterator
import gc
import os
import signal
import sys

from tests.support.processes import share_compilation_cache, xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(1)}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
if "jax" in sys.modules and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  raise AssertionError("JAX reads the folder of its cache when it is imported")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
  share_compilation_cache()

import hypothesis
import jax
import pytest

# For this process; those that it starts have one, or as many as `environment` says.
jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ["tests.support.shared_runs"]

# No deadline, nor another limit on time: the first example of a property compiles, and
# machines are busy. Derandomized: runs agree.
for _name, _examples in (("pomp", 15), ("many", 50)):
  hypothesis.settings.register_profile(
    _name,
    deadline=None,
    derandomize=True,
    max_examples=_examples,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
  )

# Started behind a shell (`&`, nohup) this process ignores it, and so would all that
# tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_device() -> Iterator[None]:
  """Gives the package the first device alone, also for what a session makes once."""
  from pomp_jax import hosts

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(hosts, "devices", lambda *, local=False: jax.local_devices()[:1])
    yield


@pytest.fixture(scope="module", autouse=True)
def all_devices(one_device: None, request: pytest.FixtureRequest) -> Iterator[None]:
  """Gives the package all devices in the files of the group `mesh`."""
  from pomp_jax import hosts

  with pytest.MonkeyPatch.context() as patch:
    if request.node.get_closest_marker("mesh"):
      patch.setattr(hosts, "devices", lambda *, local=False: jax.local_devices())
    yield


def pytest_configure(config: pytest.Config) -> None:
  # Fuzzing takes more examples where both tiers run.
  hypothesis.settings.load_profile("pomp" if config.option.markexpr else "many")


def pytest_collection_finish() -> None:
  # Tracing makes many objects, and a million are there from imports: with Python's
  # thresholds a tenth of the time is spent on searching them for cycles.
  gc.freeze()
  gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """A test of the second tier says why it is there."""
  for item in items:
    for marker in item.iter_markers("slow"):
      assert marker.args and isinstance(marker.args[0], str), (
        f"{item.nodeid}: slow without a reason"
      )
