"""The rehearsal: planted faults are named, honest runs pass, and a restart resumes."""

import json
import shutil

import pytest

from pomp_jax.rooms.reproduce import reproduce
from pomp_jax.rooms.reproduce.digests import packaged_record
from pomp_jax.rooms.reproduce.rows import FAIL, NOT_RUN, STAGES
from tests.rooms.reproduce.rehearsals import FAULTS, rehearse, write_trainings
from tests.support.report_page import Page

# Faults whose run takes seconds, for the stages that each run comes to.
_FIRST = (
  "labels shifted by one",
  "averaged before normalisation",
  "logit scale 1",
)
_OTHERS = pytest.mark.slow("the same for the other faults; some train")


@pytest.mark.parametrize(
  "fault",
  [
    pytest.param(fault, id=fault.name, marks=() if fault.name in _FIRST else (_OTHERS,))
    for fault in FAULTS
  ],
)
def test_a_planted_fault_is_named(fault, rehearsal):
  fault.plant(rehearsal)
  content = rehearse(rehearsal.folder / "run", **rehearsal.fields)
  assert content["findings"], content["verdict"]
  first = content["findings"][0]
  assert (first["stage"], first["kind"]) == (fault.stage, fault.kind), first
  assert fault.words in first["sentence"]
  failed = {row["stage"] for row in content["rows"] if row["status"] == FAIL}
  # No stage before the fault's fails.
  assert min(failed, key=STAGES.index) == fault.stage


def test_there_are_twenty_five_faults():
  assert len({fault.name for fault in FAULTS}) == len(FAULTS) == 25


@pytest.mark.slow("a whole rehearsal")
def test_a_fault_of_one_set_stops_that_set_alone(rehearsal):
  (fault,) = (one for one in FAULTS if one.name == "two classes swapped")
  fault.plant(rehearsal)
  content = rehearse(rehearsal.folder / "run", **rehearsal.fields)
  rows = [row for row in content["rows"] if row["stage"] == "Published prompts"]
  status = {row["subject"]: row["status"] for row in rows if "top-1" in row["quantity"]}
  assert status == {
    "known": NOT_RUN,
    "other_known": "PASS",
    "novel": "PASS",
    "shifted": "PASS",
  }
  (row,) = (row for row in rows if row["subject"] == "known")
  assert row["why"] == "stopped: Inputs failed for the set"


def test_without_trainings_it_says_what_was_not_run(finished):
  content = json.loads((finished / "reproduction.json").read_text())
  assert content["verdict"].startswith("REPRODUCED IN PART; not run: Retrained: ")
  assert not content["findings"]
  page = Page((finished / "report.html").read_text())
  assert content["verdict"] in page.text
  assert {f"{i}. {stage}" for i, stage in enumerate(STAGES, 1)} <= set(page.headings)


@pytest.mark.slow("three trainings")
def test_an_honest_run_is_reproduced(honest):
  content = json.loads((honest / "reproduction.json").read_text())
  assert content["verdict"].startswith("REPRODUCED [")
  assert {row["status"] for row in content["rows"]} == {"PASS"}


@pytest.mark.slow("twelve trainings")
def test_ten_honest_runs_do_not_fail(world_data, tmp_path):
  """Ten triples of twelve seeds, none of which is the target's."""
  runs = write_trainings(tmp_path / "seeds", range(200, 212))
  runs = sorted(map(str, runs))
  for start in range(10):
    rehearse_ok = rehearse(
      tmp_path / f"run_{start}",
      reproduce__root=str(world_data),
      reproduce__runs=tuple(runs[start : start + 3]),
    )
    assert rehearse_ok["verdict"].startswith("REPRODUCED ["), start


def test_a_restart_measures_what_is_missing(
  finished, world_data, tmp_path, monkeypatch
):
  first = json.loads((finished / "reproduction.json").read_text())
  shutil.copytree(finished, tmp_path / "run")
  (tmp_path / "run" / "pieces" / "controls-novel.npz").unlink()
  counted = []
  computed = reproduce.Measurer._computed

  def counting(self, labelled, prompts):
    counted.append(list(prompts))
    return computed(self, labelled, prompts)

  monkeypatch.setattr(reproduce.Measurer, "_computed", counting)
  again = rehearse(
    tmp_path / "run", reproduce__root=str(world_data), reproduce__quick=True
  )
  assert counted == [["hand_written", "ensemble", "{}.", "released, M = 4"]]
  assert again["rows"] == first["rows"]


def targets_alone():
  """The record's right answers, without digests and sketches: as a paper's table."""
  sets = {}
  for name, of in packaged_record("world")["sets"].items():
    controls = {label: {"right": one["right"]} for label, one in of["controls"].items()}
    sets[name] = {"images": of["images"], "controls": controls}
  return {"sets": sets}


@pytest.mark.slow("a run for each fault that patterns may show")
@pytest.mark.parametrize(
  "fault",
  [pytest.param(one, id=one.name) for one in FAULTS if one.by_pattern],
)
def test_patterns_name_a_fault_without_digests(fault, rehearsal, monkeypatch):
  monkeypatch.setattr(reproduce, "packaged_record", lambda table: targets_alone())
  fault.plant(rehearsal)
  content = rehearse(rehearsal.folder / "run", **rehearsal.fields)
  first = content["findings"][0]
  assert first["stage"] == "Controls"
  assert first["kind"] in fault.by_pattern, first
