"""What a failing report says: one statement a cause, parts of sets, and what is next."""

import json

import pytest

from pomp_jax.rooms.reproduce.findings import KINDS, finding, joined, then, to_dict
from pomp_jax.rooms.reproduce.inputs_stage import set_inputs
from pomp_jax.rooms.reproduce.reproduction_report import (
  reproduction_report,
  verdict_of,
)
from pomp_jax.rooms.reproduce.rows import CONTROLS, FAIL, INPUTS, compared
from pomp_jax.rooms.reproduce.rows import to_dict as of_row
from tests.rooms.reproduce.rehearsals import BY_NAME, rehearse
from tests.support.report_page import Page


def test_two_statements_about_a_subject_are_one():
  found = joined(
    [
      finding(INPUTS, "preprocessing", "all sets", "another mean"),
      finding(INPUTS, "split", "dtd", "47 images"),
      finding(INPUTS, "preprocessing", "all sets", "another std"),
      finding(INPUTS, "preprocessing", "all sets", "another std"),
    ]
  )
  assert [one.sentence for one in found] == ["another mean; another std", "47 images"]


def test_a_cause_that_sets_share_is_one_statement():
  shared = "sets can't be opened"
  of_sets = [finding(INPUTS, "split", name, f"no {name}", shared) for name in "ab"]
  (found,) = joined(of_sets)
  assert found.subject == "a, b"
  assert found.sentence == "2 sets can't be opened: a: no a; b: no b"
  of_sets = [finding(INPUTS, "split", name, f"no {name}", shared) for name in "abcde"]
  (found,) = joined(of_sets)
  assert found.sentence == "5 sets can't be opened, such as a: no a"
  assert "shared" not in to_dict(found)
  row = compared(INPUTS, "a", "set", "opened", "not opened")
  assert "Inputs, split (a, b, c and 2 more): 5 sets" in verdict_of(
    [row], [to_dict(found)]
  )


def test_other_causes_stay_apart():
  apart = [
    finding(INPUTS, "split", "a", "47 images", "sets have another number of images"),
    finding(INPUTS, "split", "b", "no b", "sets can't be opened"),
    finding(INPUTS, "labels", "a", "shifted"),
    finding(CONTROLS, "labels", "a", "shifted"),
    finding(CONTROLS, "labels", "b", "swapped"),
  ]
  assert joined(apart) == apart
  (found,) = joined([one._replace(sentence="at chance") for one in apart[3:]])
  assert (found.subject, found.sentence) == ("a, b", "at chance")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_how_to_run_again(kind):
  said = then(to_dict(finding(INPUTS, kind, "a", "b")))
  assert "pieces/" in said or "trainings/" in said or "same command" in said


def results_of(*rows, findings=()):
  return {
    "table": "cross_dataset",
    "verdict": "a verdict",
    "rows": [of_row(row) for row in rows],
    "findings": list(findings),
    "provenance": {
      "command": "pomp --config=reproduce",
      "commit": "0123456789abcdef",
      "versions": {"pomp_jax": "0.1.0", "jax": "0.10.2"},
      "date": "2026-12-02",
    },
  }


def test_few_images_beside_a_whole_sets_target_are_flagged():
  row = compared(
    CONTROLS, "eurosat", "top-1, a", 0.42, 0.25, rule="within", tolerance=0.1, n=4
  )
  whole = row._replace(subject="dtd", n=1692, n_target=1692)
  part = row._replace(n_target=8100)
  sections = reproduction_report(results_of(part, whole), {}).sections
  (section,) = (one for one in sections if one.title == "2. Controls")
  column = section.table.columns.index("n")
  assert [cells[column] for cells in section.table.rows] == ["4 of 8,100", "1,692"]
  assert section.notes and "fewer images" in section.notes[0]
  sections = reproduction_report(results_of(whole), {}).sections
  (section,) = (one for one in sections if one.title == "2. Controls")
  assert not section.notes


def test_the_markdown_has_the_command_and_the_commit(finished):
  text = (finished / "results.md").read_text()
  provenance = json.loads((finished / "results.json").read_text())["provenance"]
  assert "## Command and code" in text
  assert str(provenance["commit"] or "none")[:12] in text
  assert f"| pomp\\_jax | {provenance['versions']['pomp_jax']} |" in text
  page = Page((finished / "report.html").read_text())
  assert "Command and code" in page.headings


def test_after_a_fix_the_same_command_passes(rehearsal, world_data):
  """Nothing is deleted: the set's digests are keys of its pieces."""
  fault = BY_NAME["labels shifted by one"]
  fault.plant(rehearsal)
  workdir = rehearsal.folder / "run"
  content = rehearse(workdir, reproduce__quick=True, **rehearsal.fields)
  assert content["verdict"].startswith("NOT REPRODUCED: Inputs, labels (known)")
  assert "the same command" in (workdir / "results.md").read_text()
  split = rehearsal.data / "known" / "split.json"
  split.write_text((world_data / "known" / "split.json").read_text())
  others = {path: path.stat().st_mtime_ns for path in (workdir / "pieces").iterdir()}
  assert len(others) == 3
  content = rehearse(workdir, reproduce__quick=True, **rehearsal.fields)
  assert content["verdict"].startswith("REPRODUCED IN PART; not run: Retrained")
  assert not content["findings"]
  assert FAIL not in {row["status"] for row in content["rows"]}
  assert len(list((workdir / "pieces").iterdir())) == 4
  # The other sets were not measured again.
  assert {path: path.stat().st_mtime_ns for path in others} == others


@pytest.mark.slow("measures a set twice")
def test_after_a_fault_of_the_code_the_pieces_are_deleted(rehearsal, monkeypatch):
  """No digest sees another resize: the stored answers stay until they are deleted."""
  with monkeypatch.context() as patch:
    BY_NAME["squashed for cropped"].plant(rehearsal._replace(monkeypatch=patch))
    content = rehearse(rehearsal.folder / "run", **rehearsal.fields)
  assert content["findings"][0]["kind"] == "preprocessing"
  again = rehearse(rehearsal.folder / "run", **rehearsal.fields)
  assert again["verdict"] == content["verdict"]
  for path in (rehearsal.folder / "run" / "pieces").iterdir():
    path.unlink()
  assert rehearse(rehearsal.folder / "run", **rehearsal.fields)["findings"] == []


@pytest.mark.parametrize(
  ("templates", "text"),
  [
    (["a {}.", "b {}."], "a template is 'b {}.', the target's ''"),
    ([], "a template is '', the target's 'a {}.'"),
  ],
)
def test_a_template_too_many_or_too_few_is_named(templates, text):
  got = {"images": 1, "names": "1", "pairs": "2", "content": "3"}
  record = got | {"templates": ["a {}."]}
  inputs = set_inputs("dtd", got | {"templates": templates}, record, None, None)
  assert [found.sentence for found in inputs.findings] == [text]
