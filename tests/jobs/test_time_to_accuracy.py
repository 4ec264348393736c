"""Curves of an ablation's cells, and the time of their steps."""

import pytest

from pomp_jax.config import ConfigError
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import ablate, pretrain
from tests.support.small_run import small_config

GRID = "sampling.name=uniform|posterior;k=20|all;seed=0|1"


def config_for(**changes):
  fields = {"job": "ablate", "ablate.grid": GRID, "ablate.curve_every": 4, "steps": 6}
  return small_config(**{**fields, "checkpoint.every": 2, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("time") / "run"
  return workdir, ablate.run(config_for(), str(workdir))


def test_a_curve_equals_the_validations_of_a_run_of_its_own(finished, tmp_path):
  _, results = finished
  stored = results["cells"][0]
  assert stored["curve"]["steps"] == [4, 6]
  cell = ablate.make_cells(config_for())[0]
  pretrain.run(cell.config, str(tmp_path))
  steps, alone = RunFolder(tmp_path).scalars()["validation_top1"]
  alone = dict(zip(steps, alone, strict=True))
  # One image of 300 may fall on the other side of a tie.
  assert stored["curve"]["top1"]["validation"] == pytest.approx(
    [alone[4], alone[6]], abs=1.01 / 300
  )
  for cell in results["cells"]:
    assert cell["curve"]["top1"]["novel"][-1] == pytest.approx(
      cell["top1"]["novel"], abs=1.01 / 300
    )


def test_each_kind_is_timed_once(finished):
  workdir, results = finished
  times = results["step_times"]
  assert [time["values"] for time in times] == [
    {"sampling.name": "uniform", "k": 20},
    {"sampling.name": None, "k": "all"},
    {"sampling.name": "posterior", "k": 20},
  ]
  for time in times:
    assert 0 < time["least_seconds"] <= time["step_seconds"] < 60
    assert (time["first_bank_seconds"] > 0) == (time["values"]["sampling.name"] == "posterior")
  assert (workdir / "plots" / "time_to_accuracy.png").exists()
  assert "Time to accuracy" in (workdir / "report.html").read_text()


def test_cells_without_the_wanted_curve_are_trained_again(finished, monkeypatch):
  workdir, _ = finished
  trained, train = [], ablate.train_lanes

  def told(job, group, *arguments):
    trained.extend(cell.name for cell in group)
    return train(job, group, *arguments)

  monkeypatch.setattr(ablate, "train_lanes", told)
  monkeypatch.setattr(ablate, "_step_times", lambda *_: [])
  grid = "sampling.name=uniform;k=20;seed=0"
  ablate.run(config_for(**{"ablate.grid": grid}), str(workdir))
  assert trained == []
  ablate.run(config_for(**{"ablate.grid": grid, "ablate.curve_every": 3}), str(workdir))
  assert trained == ["sampling.name=uniform, k=20, seed=0"]


def test_a_curve_needs_validation_images(tmp_path, monkeypatch):
  monkeypatch.setattr(ablate.inputs, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match=r"config\.ablate\.curve_every: got 4, expected 0 for data"):
    ablate.check(config_for(), str(tmp_path / "run"))
