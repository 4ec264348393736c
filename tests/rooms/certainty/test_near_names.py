"""Names that nearly equal others: against all pairs in NumPy, and the job."""

import csv

import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.rooms.certainty import near_names
from pomp_jax.rooms.certainty.near_names import near_pairs
from tests.rooms.certainty.answers import unit_rows
from tests.support.small_run import run_job, settings

NAMES = tuple(f"name {i}" for i in range(60))


@pytest.mark.parametrize("block", [7, 60, 1000])
def test_pairs_are_those_of_the_whole_matrix(monkeypatch, block):
  monkeypatch.setattr(near_names, "_BLOCK", block)
  rows = unit_rows(np.random.default_rng(0).normal(size=(60, 4)))
  found = near_pairs(rows, NAMES, rows, NAMES, bound=0.9, most=25)
  cosines = rows.astype(np.float64) @ rows.T
  pairs = [(cosines[i, j], i, j) for i in range(60) for j in range(i + 1, 60)]
  expected = sorted((pair for pair in pairs if pair[0] >= 0.9), reverse=True)
  assert found.n_pairs == len(expected) > 25
  assert [(pair.first, pair.second) for pair in found.pairs] == [
    (NAMES[i], NAMES[j]) for _, i, j in expected[:25]
  ]
  assert [pair.cosine for pair in found.pairs] == pytest.approx(
    [cosine for cosine, *_ in expected[:25]]
  )


def test_pairs_of_two_lists():
  rows = unit_rows(np.random.default_rng(1).normal(size=(60, 4)))
  found = near_pairs(rows[:20], NAMES[:20], rows[20:], NAMES[20:], bound=0.8, most=1000)
  cosines = rows[:20].astype(np.float64) @ rows[20:].T
  expected = {(NAMES[i], NAMES[20 + j]) for i, j in np.argwhere(cosines >= 0.8)}
  assert {(pair.first, pair.second) for pair in found.pairs} == expected
  assert found.n_pairs == len(expected) > 10


def test_the_job_writes_the_pairs(tmp_path):
  names = ["red plain disc on teal", "red shaded disc on teal", "navy star on white"]
  (tmp_path / "names.txt").write_text("\n".join(names))
  fields = {"job": "near_names", "near_names.names": str(tmp_path / "names.txt")}
  results = run_job(settings(**fields, **{"near_names.bound": -1.0}), tmp_path / "run")
  rows = Encoder(load_clip("world")).class_features(names, "{}.")
  with (tmp_path / "run/pairs.csv").open() as file:
    written = list(csv.DictReader(file))
  assert len(written) == results["pairs"] == 3
  first = written[0]
  assert {first["first"], first["second"]} == set(names[:2])
  assert float(first["cosine"]) == pytest.approx(rows[0] @ rows[1], abs=1e-5)
  cosines = [float(row["cosine"]) for row in written]
  assert cosines == sorted(cosines, reverse=True)
  assert results["nearest"][0]["first"] == first["first"]


def test_each_field_changes_what_it_names(tmp_path):
  names = ["red plain disc on teal", "red shaded disc on teal", "navy star on white"]
  results = {}
  for name, own in (("three", names), ("two", names[1:])):
    (tmp_path / f"{name}.txt").write_text("\n".join(own))
    fields = {"job": "near_names", "near_names.bound": -1.0}
    fields |= {"near_names.names": str(tmp_path / f"{name}.txt")}
    results[name] = run_job(settings(**fields), tmp_path / name)
    if name == "two":
      continue
    for field, value in (("prompt", "the {}"), ("bound", 0.9), ("most", 1)):
      changes = fields | {f"near_names.{field}": value}
      results[field] = run_job(settings(**changes), tmp_path / field)
  cosine = {name: found["nearest"][0]["cosine"] for name, found in results.items()}
  assert results["two"]["pairs"] == 1 and results["three"]["pairs"] == 3
  assert cosine["prompt"] != cosine["three"] == cosine["bound"]
  assert results["bound"]["pairs"] == 1
  assert results["most"]["pairs"] == 3 and len(results["most"]["nearest"]) == 1


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"near_names.names": ""}, "near_names.names"),
    ({"near_names.bound": 1.5}, "near_names.bound"),
    ({"near_names.most": 0}, "near_names.most"),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, changes, field):
  config = settings(job="near_names", **{"near_names.names": "dtd"} | changes)
  with pytest.raises(ConfigError) as refused:
    run_job(config, tmp_path / "run")
  assert refused.value.field == field
  assert not (tmp_path / "run").exists()
