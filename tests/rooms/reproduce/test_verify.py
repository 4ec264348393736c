"""`verify` finds what was changed in a finished folder."""

import json
import os
import re

import numpy as np
import pytest

from pomp_jax.config import defaults
from pomp_jax.files.run_folder import ERROR, RunFolderError, read_json, write_json
from pomp_jax.registry import load_job
from pomp_jax.rooms.reproduce.finished_folder import NAME, digests_of_files
from pomp_jax.rooms.reproduce.reproduce import NotReproducedError
from pomp_jax.rooms.reproduce.verify import problems_of


def verify(folder):
  config = defaults("reproduce").replace({"reproduce.verify": str(folder)})
  job = load_job("reproduce")
  job.check(config, "unused")
  return job.run(config, "unused")


def test_a_folder_as_it_was_written(finished):
  assert problems_of(finished) == []
  assert verify(finished) == {}


def test_a_folder_without_its_file(tmp_path):
  with pytest.raises(RunFolderError, match=r"reproduction\.json: missing"):
    problems_of(tmp_path)


def rewritten(folder, change):
  """Writes reproduction.json anew with its checksum, results.json and the list of
  files, as a forger would."""
  content = read_json(folder / NAME)
  change(content)
  results = read_json(folder / "results.json")
  for key in ("rows", "verdict", "findings", "answers"):
    results[key] = content[key]
  write_json(folder / "results.json", results)
  content["files"] = digests_of_files(folder)
  write_json(folder / NAME, content)


def _row(content, subject="novel", quantity="top-1, hand_written"):
  (found,) = (
    row
    for row in content["rows"]
    if (row["subject"], row["quantity"]) == (subject, quantity)
  )
  return found


def a_better_figure(content):
  _row(content)["got"] += 0.001


def another_status(content):
  _row(content)["status"] = "BETTER"


def another_verdict(content):
  content["verdict"] = content["verdict"].replace("IN PART", "WHOLLY")


def more_right_answers(content):
  content["answers"][0]["right"] += 1


def another_digest(content):
  content["answers"][0]["digest"] = "0" * 64


@pytest.mark.parametrize(
  "change",
  [
    a_better_figure,
    another_status,
    another_verdict,
    more_right_answers,
    another_digest,
  ],
)
def test_a_forger_who_writes_all_checksums_anew_meets_the_arithmetic(
  change, finished, copy_of
):
  folder = copy_of(finished)
  rewritten(folder, change)
  with pytest.raises(NotReproducedError):
    verify(folder)


def test_files_that_are_added_or_removed(finished, copy_of):
  folder = copy_of(finished)
  (folder / "more.txt").write_text("more")
  assert problems_of(folder) == [f"more.txt: is not listed in {NAME}"]
  (folder / "more.txt").unlink()
  (folder / "report.html").unlink()
  assert problems_of(folder) == ["report.html: missing"]


def test_pipes_devices_and_links_to_nothing_are_problems(finished, copy_of):
  folder = copy_of(finished)
  pipe, device = folder / "a_pipe", "/dev/zero"
  os.mkfifo(pipe)
  error = folder / ERROR
  error.unlink(missing_ok=True)
  for target in (pipe, device, folder / "nothing"):
    error.symlink_to(target)
    (problem,) = problems_of(folder)
    assert ERROR in problem and "can't be read" in problem
    error.unlink()
  # A pipe in the place of a file that the forger left out of the list.
  (folder / "results.json").unlink()
  os.mkfifo(folder / "results.json")
  content = read_json(folder / NAME)
  del content["files"]["results.json"]
  write_json(folder / NAME, content)
  (problem,) = problems_of(folder)
  assert "results.json: is not listed" in problem


def not_a_list_of_files(folder, content):
  content["files"] = 5


def a_piece_that_is_no_archive(folder, content):
  name = f"pieces/{content['answers'][0]['piece']}.npz"
  (folder / name).write_bytes(b"no archive")
  content["files"] = digests_of_files(folder)


def an_empty_piece(folder, content):
  name = f"pieces/{content['answers'][0]['piece']}.npz"
  (folder / name).write_bytes(b"")
  content["files"] = digests_of_files(folder)


def a_piece_outside_the_folder(folder, content):
  piece = content["answers"][0]["piece"]
  content["answers"][0]["piece"] = f"../../{folder.name}/pieces/{piece}"


def answers_without_an_image(folder, content):
  one = content["answers"][0]
  none = np.zeros(0, np.int32)
  arrays = {"labels": none, f"answers_{one['number']}": none}
  np.savez(folder / "pieces" / f"{one['piece']}.npz", **arrays)
  one |= {"right": 0, "images": 0}
  content["files"] = digests_of_files(folder)


@pytest.mark.parametrize(
  ("change", "part"),
  [
    (not_a_list_of_files, "files is no object"),
    (a_piece_that_is_no_archive, "UnpicklingError|ValueError|BadZipFile"),
    (an_empty_piece, "EOFError"),
    (a_piece_outside_the_folder, "is not listed"),
    (answers_without_an_image, "ZeroDivisionError"),
  ],
)
def test_contents_of_another_form_are_a_problem(change, part, finished, copy_of):
  folder = copy_of(finished)
  content = read_json(folder / NAME)
  change(folder, content)
  write_json(folder / NAME, content)
  problems = problems_of(folder)
  assert re.search(part, problems[0]), problems


def _flip(path, rng):
  """Flips one bit of a file."""
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(bytes(content))


def _edit(path, rng):
  """Replaces one digit of a text by another, or cuts a file."""
  content = bytearray(path.read_bytes())
  digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
  if path.suffix not in (".json", ".md", ".tex", ".html", ".yaml") or not digits:
    path.write_bytes(bytes(content[: rng.integers(len(content))]))
    return
  place = digits[rng.integers(len(digits))]
  content[place] = ord("0") + (content[place] - ord("0") + rng.integers(1, 10)) % 10
  path.write_bytes(bytes(content))


@pytest.mark.slow("each of 200 changes reads the whole folder")
def test_each_of_two_hundred_flips_and_edits_is_found(finished, copy_of):
  rng = np.random.default_rng(0)
  folder = copy_of(finished)
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  # The file that lists the others is a third of the changes.
  places = [folder / NAME] * 67 + [files[i] for i in rng.integers(len(files), size=133)]
  missed = []
  for number, path in enumerate(places):
    before = path.read_bytes()
    (_flip if number % 2 else _edit)(path, rng)
    assert path.read_bytes() != before
    try:
      found = problems_of(folder)
    except RunFolderError as error:
      found = [str(error)]
    if not found:
      missed.append((number, path))
    path.write_bytes(before)
  assert missed == []
  assert problems_of(folder) == []


def test_eval_results_are_yaml_of_one_result(finished):
  files = sorted((finished / ".eval_results").glob("*.yaml"))
  assert len(files) == 4
  for file in files:
    text = file.read_text()
    assert text.startswith("- {")
    entry = json.loads(text.removeprefix("- "))
    assert entry["dataset"]["task_id"] == "top1"
    assert 0 < entry["value"] < 100
