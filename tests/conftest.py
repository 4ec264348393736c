"""What all tests need before JAX starts: 8 virtual CPU devices, and no network."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis

# No deadline: the first example of a property compiles. Derandomized: runs agree.
hypothesis.settings.register_profile(
  "pomp", deadline=None, derandomize=True, max_examples=50, database=None
)
hypothesis.settings.load_profile("pomp")
