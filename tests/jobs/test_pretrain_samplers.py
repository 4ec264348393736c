"""The main job with samplers: stopped between two banks it goes on as if it had not been."""

import numpy as np
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.train.sampling_data import Bank
from pomp_jax.train.watch import Watch
from tests.support.small_run import small_config, trained

HARD = {
  "sampling.name": "hard",
  "sampling.refresh_every": 3,
  "sampling.exclude": "kin",
  "sampling.ancestors_weight": 0.2,
  "steps": 8,
}


class _StopError(Exception):
  pass


def test_a_run_goes_on_with_the_bank_that_it_had(tmp_path, monkeypatch):
  whole = trained(small_config(**HARD), tmp_path / "whole")
  step = Watch.step

  def stop(self, number, metrics):
    step(self, number, metrics)
    if number == 6:
      raise _StopError

  # The checkpoint of step 4 lies between the banks of steps 3 and 6.
  with monkeypatch.context() as patch:
    patch.setattr(Watch, "step", stop)
    with pytest.raises(_StopError):
      trained(small_config(**HARD), tmp_path / "stopped")
  refreshed, refresh = [], Bank.refresh

  def told(self, steps, state, frozen):
    before = frozen.sampling.bank
    state, frozen = refresh(self, steps, state, frozen)
    refreshed.append((steps, frozen.sampling.bank is not before))
    return state, frozen

  monkeypatch.setattr(Bank, "refresh", told)
  again = trained(small_config(**HARD), tmp_path / "stopped")
  assert refreshed == [(4, True), (5, False), (6, True), (7, False)]
  np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("name", "hardest", "one of uniform, hard"),
    ("anchors", "text", "one of classes, images"),
    ("exclude", "synonyms", "one of none, similar, kin"),
    ("mix", 0.0, "above 0, at most 1"),
    ("mix", 1.5, "above 0, at most 1"),
    ("temperature", 0.0, "a number above 0"),
    ("refresh_every", 0, "1 or more"),
    ("power", -1.0, "0 or more"),
    ("exclude_threshold", 2.0, "-1 to 1"),
    ("ancestors_weight", float("nan"), "0 or more"),
  ],
)
def test_fields_that_cannot_be_are_refused(field, value, expected):
  config = small_config(**{f"sampling.{field}": value})
  with pytest.raises(ConfigError, match=rf"config\.sampling\.{field}: got .*, expected {expected}"):
    validate(config)
