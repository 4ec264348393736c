"""What all tests need before JAX starts: 8 virtual CPU devices, no network, programs kept."""

import os
import signal

from tests.support.processes import share_compilation_cache, xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"

# For all workers: the folder is the main process's, so that one that dies doesn't leave it.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _programs = share_compilation_cache()

import hypothesis

# No deadline, nor another limit on time: the first example of a property compiles, and machines are
# busy. Derandomized: runs agree.
hypothesis.settings.register_profile(
  "pomp",
  deadline=None,
  derandomize=True,
  max_examples=50,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pomp")

# Started behind a shell (`&`, nohup) this process ignores it, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
