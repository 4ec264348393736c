"""The task certain of predict: pictures in, answers out; bad input."""

import csv
import json

import numpy as np
from PIL import Image
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.errors import InputError
from pomp_jax.evaluate import Classifier
from pomp_jax.evaluate.calibrated import CalibrationError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.rooms.certainty.predict_task import NONE
from pomp_jax.rooms.certainty.trees import TreeError
from pomp_jax.world import source
from tests.support.report_page import Page
from tests.support.small_run import run_job, settings


@pytest.fixture(scope="module")
def made(shared):
  """Folder with a calibrated prompt, pictures and a tree of groups of like names."""

  def make(folder):
    fields = {"job": "calibrate", "calibrate.prompt": "a photo of a {}."}
    fields |= {"data.n_classes": 1000, "eval.images": 1000, "calibrate.error": 0.2}
    run_job(settings(**fields), folder / "run")
    names = json.loads((folder / "run/class_names.json").read_text())["names"]
    (folder / "pictures").mkdir()
    images = source("base", n_images=1000, n_classes=1000)
    for i, pixels in enumerate(images.images(np.arange(0, 1000, 40))):
      Image.fromarray(pixels).save(folder / f"pictures/{i:02}.png")
    Image.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(
      folder / "pictures/nothing.png"
    )
    # The two likeliest names of a picture are of one group, so that it is sure of that.
    group_of = {}
    pictures = sorted((folder / "pictures").glob("*.png"))
    for best in Classifier("world", folder / "run").predict(pictures, top=2):
      (first, _), (second, _) = best
      group = group_of.get(first) or group_of.get(second) or f"like {first}"
      group_of.setdefault(first, group)
      group_of.setdefault(second, group)
    with (folder / "tree.csv").open("w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow(["all", "group", "name"])
      rows.writerows(["thing", group_of.get(name, "rest"), name] for name in names)
    (folder / "some.txt").write_text("\n".join(names[:5]))
    (folder / "other.txt").write_text(f"{names[0]}\na cat\n")
    (folder / "empty.txt").write_text("\n")

  return shared("certain", make)


def predicted(made, tmp_path, **changes):
  fields = {"job": "predict", "predict.task": "certain", "predict.top": 3}
  fields |= {"predict.prompt": str(made / "run")}
  fields |= {"predict.images": str(made / "pictures")}
  changes = {
    name: value.replace("MADE", str(made)) if isinstance(value, str) else value
    for name, value in changes.items()
  }
  return run_job(settings(**fields | changes), tmp_path / "run")


def shown(row):
  return f"{row['name']} {100 * row['probability']:.1f}%"


def test_answers_are_the_classifiers_with_floor_and_set(made, tmp_path):
  results = predicted(made, tmp_path)
  classifier = Classifier("world", made / "run")
  stored = load_prompt(made / "run").calibration
  texts = set()
  for file, rows in results["images"].items():
    expected = classifier.predict(str(made / "pictures" / file), top=3)
    assert [row["name"] for row in rows] == [name for name, _ in expected]
    shares = [share for _, share in expected]
    assert [row["probability"] for row in rows] == pytest.approx(shares, abs=1e-5)
    is_none = shares[0] < stored.floor
    assert rows[0]["answer"] == (NONE if is_none else rows[0]["name"])
    inside = [share >= 1 - stored.sets.threshold for share in shares]
    assert [row["in_set"] for row in rows] == inside
    texts.add(is_none)
  assert texts == {True, False}  # the case has both
  assert "calibrated: temperature" in results["probabilities"]
  assert "(float32), model" in results["size"]
  floor = f"{100 * stored.floor:.2f}%"
  rule = f'"{NONE}" where the likeliest name has less than {floor}, otherwise the'
  assert results["answers"] == f"{rule} likeliest name"
  tables = Page((tmp_path / "run/report.html").read_text()).tables
  assert tables[0][0] == ["picture", "answer", "names in the set", "names"]
  inside = {0: "0", 1: "1", 2: "2", 3: "3 or more"}  # of the three names shown
  assert tables[0][1:] == [
    [
      file,
      rows[0]["answer"],
      inside[sum(row["in_set"] for row in rows)],
      ", ".join(map(shown, rows)),
    ]
    for file, rows in results["images"].items()
  ]
  assert ["answers", results["answers"]] in tables[1]
  lines = (tmp_path / "run/results.csv").read_text().splitlines()
  assert lines[0] == "file,rank,name,probability,in_set,answer"


def test_answers_as_deep_as_they_are_sure(made, tmp_path):
  flat = predicted(made, tmp_path / "flat")["images"]
  changes = {"certain.tree": "MADE/tree.csv", "certain.least": 0.9}
  results = predicted(made, tmp_path / "deep", **changes)
  assert "deepest node of the tree that has 90% or more" in results["answers"]
  deep = results["images"]
  assert flat.keys() == deep.keys()
  lines = list(csv.reader((made / "tree.csv").open()))[1:]
  group_of = {name: group for _, group, name in lines}
  ends = set()
  for file, rows in deep.items():
    text = rows[0]["answer"]
    assert (text == NONE) == (flat[file][0]["answer"] == NONE)
    if text not in (NONE, "?"):
      node, share = text.removesuffix(" > ?").rpartition(" > ")[2].rsplit(" (", 1)
      assert float(share[:-1]) >= 0.9
      assert node in (group_of[rows[0]["name"]], rows[0]["name"])
      ends.add(text.endswith("?"))
  assert ends == {True, False}


@pytest.mark.parametrize("subset", ["MADE/some.txt", "under:rest"])
def test_a_subset_is_renormalised_and_said(made, tmp_path, subset):
  names = json.loads((made / "run/class_names.json").read_text())["names"]
  changes = {"certain.subset": subset}
  changes |= {"certain.tree": "MADE/tree.csv"} if "under" in subset else {}
  kept = names[:5]
  if "under" in subset:
    lines = csv.reader((made / "tree.csv").open())
    kept = [name for _, group, name in lines if group == "rest"]
  results = predicted(made, tmp_path, **changes, **{"predict.top": 1000})
  for rows in results["images"].values():
    assert {row["name"] for row in rows} == set(kept)
    assert sum(row["probability"] for row in rows) == pytest.approx(1, abs=1e-5)
    assert all(row["in_set"] is None for row in rows)
  assert f"renormalised over {len(kept):,} of 1,000 names" in results["probabilities"]


def test_int8_rows_say_so(made, tmp_path):
  whole = predicted(made, tmp_path / "whole")
  rounded = predicted(made, tmp_path / "int8", **{"certain.rows": "int8"})
  assert rounded["probabilities"].endswith("int8 rows")
  for file, rows in whole["images"].items():
    near = rounded["images"][file][0]["probability"]
    assert near == pytest.approx(rows[0]["probability"], abs=0.03)


@pytest.mark.parametrize(
  ("changes", "error", "line"),
  [
    ({"predict.prompt": "{}.", "predict.names": "MADE/some.txt"}, CalibrationError, ""),
    ({"predict.names": "MADE/some.txt"}, CalibrationError, "another list"),
    ({"predict.calibration": "never"}, ConfigError, "predict.calibration"),
    ({"certain.subset": "MADE/empty.txt"}, InputError, "empty"),
    ({"certain.subset": "MADE/other.txt"}, ConfigError, "'a cat'"),
    ({"certain.subset": "under:x"}, ConfigError, "certain.subset"),
    ({"certain.tree": "MADE/none.csv"}, ConfigError, "certain.tree"),
    ({"certain.tree": "wordnet"}, TreeError, "no synsets"),
    ({"certain.rows": "int4"}, ConfigError, "certain.rows"),
    ({"certain.least": 1.5}, ConfigError, "certain.least"),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
  made, tmp_path, changes, error, line
):
  with pytest.raises(error) as refused:
    predicted(made, tmp_path, **changes)
  assert line in str(refused.value) and "\n" not in str(refused.value)
  assert not (tmp_path / "run").exists()
