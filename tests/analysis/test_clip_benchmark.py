"""CLIP_benchmark's form; `test_metrics` compares the figures with what it computes them by."""

import csv
import io
import json

import numpy as np
import pytest

from pomp_jax.analysis.clip_benchmark import benchmark_csv, benchmark_records
from pomp_jax.files.run_folder import to_json


def figures(n_classes, seed):
  """Figures of a tally, and CLIP_benchmark's names for them."""
  top1, top5, macro = np.random.default_rng(seed).random(3).tolist()
  metrics = {"acc1": top1, "acc5": top5 if n_classes >= 5 else None, "mean_per_class_recall": macro}
  return {"top1": top1, "top5": top5, "macro_top1": macro, "classes": n_classes}, metrics


@pytest.fixture(scope="module")
def evaluated():
  """Results of two sets under two prompts, and the metrics of each pair."""
  sizes, prompts = {"dtd": 9, "own/pets": 4}, ("hand_written", "runs/a/prompt.npz")
  found = {
    (name, label): figures(n_classes, 10 * n + m)
    for n, (name, n_classes) in enumerate(sizes.items())
    for m, label in enumerate(prompts)
  }
  sets = {name: {"prompts": {label: found[name, label][0] for label in prompts}} for name in sizes}
  expected = {pair: metrics for pair, (_, metrics) in found.items()}
  return {"clip_model": "ViT-B/16", "sets": sets}, expected


def test_a_record_is_of_a_set_and_a_prompt(evaluated):
  results, expected = evaluated
  records = benchmark_records(results)
  labels = ("hand_written", "runs-a-prompt.npz")
  assert list(records) == [f"{name}_{label}" for name in ("dtd", "own-pets") for label in labels]
  for record, ((name, label), metrics) in zip(records.values(), expected.items(), strict=True):
    assert json.loads(to_json(record)) == {
      "dataset": name,
      "model": "ViT-B/16",
      "pretrained": label,
      "task": "zeroshot_classification",
      "metrics": metrics,
      "language": "en",
    }
  rows = csv.DictReader(io.StringIO(benchmark_csv(records.values())))
  for row, ((name, _), metrics) in zip(rows, expected.items(), strict=True):
    assert row["dataset"] == name
    for metric, value in metrics.items():
      assert row[metric] == "" if value is None else float(row[metric]) == pytest.approx(value)


def test_no_two_files_have_one_name():
  labels = ["a photo of a {}.", "A photo of a {}?", "{}.", "..", '=a,"b"\n', "ß" * 300, "x" * 300]
  one = figures(6, 0)[0]
  results = {"clip_model": "world", "sets": {"dtd": {"prompts": dict.fromkeys(labels, one)}}}
  records = benchmark_records(results)
  assert [record["pretrained"] for record in records.values()] == labels
  assert len({name.lower() for name in records}) == len(labels)
  for name in records:
    assert len(name) < 180 and not set(name) & set('/\\ {}=,"\n') and name.startswith("dtd")
  # Quoting: what is written is what is read.
  rows = csv.DictReader(io.StringIO(benchmark_csv(records.values()), newline=""))
  assert [row["pretrained"] for row in rows] == labels
