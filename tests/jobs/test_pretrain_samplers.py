"""The main job with a bank: a run that is stopped resumes with the bank that it had."""

import numpy as np
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.train import resume
from pomp_jax.train.setup import place_bank
from pomp_jax.train.watch import Watch
from tests.support.small_run import small_config, trained

POSTERIOR = {
  "sampling.name": "posterior",
  "sampling.renew": 3,
  "sampling.exclude": "kin",
  "sampling.ancestors_weight": 0.2,
  "steps": 8,
}


class _StopError(Exception):
  pass


def _trained_with_a_stop(config, folder, monkeypatch):
  """Trains until step 6, beyond the checkpoint of step 4, and then to the end."""
  step = Watch.step

  def stop(self, number, metrics):
    step(self, number, metrics)
    if number == 6:
      raise _StopError

  with monkeypatch.context() as patch:
    patch.setattr(Watch, "step", stop)
    with pytest.raises(_StopError):
      trained(config, folder)
  return trained(config, folder)


def test_a_resumed_run_has_the_bank_of_one_that_was_never_stopped(tmp_path, monkeypatch):
  config = small_config(**POSTERIOR)
  whole = trained(config, tmp_path / "whole")
  again = _trained_with_a_stop(config, tmp_path / "stopped", monkeypatch)
  np.testing.assert_array_equal(again, whole)
  # The bank of the checkpoint decides: with another one the draws would differ.
  monkeypatch.setattr(
    resume,
    "place_bank",
    lambda run, state: place_bank(run, state.replace(bank=np.ones_like(state.bank))),
  )
  other = _trained_with_a_stop(config, tmp_path / "other", monkeypatch)
  assert np.abs(other - whole).max() > 1e-5


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("name", "hardest"),
    ("anchors", "text"),
    ("exclude", "synonyms"),
    ("mix", 0.0),
    ("mix", 1.5),
    ("temperature", 0.0),
    ("renew", -1),
    ("bank_dtype", "float16"),
    ("power", -1.0),
    ("exclude_threshold", 2.0),
    ("ancestors_weight", float("nan")),
  ],
)
def test_fields_that_cannot_be_are_refused(field, value):
  config = small_config(**{f"sampling.{field}": value})
  with pytest.raises(ConfigError, match=rf"config\.sampling\.{field}: got"):
    validate(config)
