"""Profiles of some steps of a training."""

import jax
import pytest

from pomp_jax.config import ConfigError, validate
from tests.support.small_run import small_config, trained
from tests.train.test_watch import METRICS, opened


def test_a_run_leaves_a_profile(tmp_path):
  trained(
    small_config(steps=10, profile_steps="3+4", **{"checkpoint.every": 10}), tmp_path
  )
  (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
  assert trace.stat().st_size > 1000


@pytest.mark.parametrize("text", ["20", "30+20", "0+1", "a+b", "1+2+3", "20-30", "+3"])
def test_wrong_steps_of_a_profile(text):
  with pytest.raises(ConfigError, match=r"config\.profile_steps: got"):
    validate(small_config(profile_steps=text))


def test_a_profiler_error_is_a_warning(tmp_path, caplog):
  """Another profile is being recorded."""
  jax.profiler.start_trace(tmp_path / "other")
  try:
    with opened(tmp_path, profile_steps="1+2") as watch:
      for step in (1, 2, 3):
        watch.step(step, METRICS[step])
  finally:
    jax.profiler.stop_trace()
  (line,) = caplog.messages
  assert line.startswith("no profile: ")
