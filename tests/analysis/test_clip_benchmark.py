"""CLIP_benchmark's form, with figures by scikit-learn as it computes them."""

import csv
import io
import json

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from pomp_jax.analysis.clip_benchmark import benchmark_csv, benchmark_records
from pomp_jax.files.run_folder import to_json
from pomp_jax.inference.metrics import Answers, Tally


def figures(n_classes, seed):
  """Figures of random scores, and the same by scikit-learn."""
  rng = np.random.default_rng(seed)
  # Unequal classes, the last without images.
  labels = rng.choice(n_classes - 1, 200, p=rng.dirichlet(np.ones(n_classes - 1)))
  logits = rng.normal(size=(200, n_classes)) + 2 * np.eye(n_classes)[labels]
  order = np.argsort(-logits, axis=-1)
  rank = np.argmax(order == labels[:, None], axis=-1)
  tally = Tally(n_classes)
  tally.add(labels, Answers(rank, order[:, 0], scipy.special.softmax(logits, axis=-1).max(-1)))
  topk = {
    k: top_k_accuracy_score(labels, logits, k=k, labels=np.arange(n_classes))
    for k in (1, 5)
    if k <= n_classes
  }
  recall = balanced_accuracy_score(labels, logits.argmax(-1))
  return tally.figures(), {"acc1": topk[1], "acc5": topk.get(5), "mean_per_class_recall": recall}


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
  assert list(records) == [
    "dtd_hand_written",
    "dtd_runs-a-prompt.npz",
    "own-pets_hand_written",
    "own-pets_runs-a-prompt.npz",
  ]
  for record, ((name, label), metrics) in zip(records.values(), expected.items(), strict=True):
    assert json.loads(to_json(record)) == {
      "dataset": name,
      "model": "ViT-B/16",
      "pretrained": label,
      "task": "zeroshot_classification",
      "metrics": {key: value and pytest.approx(value) for key, value in metrics.items()},
      "language": "en",
    }
  # Micro and macro differ, and four classes have no acc5.
  metrics = records["own-pets_hand_written"]["metrics"]
  assert abs(metrics["acc1"] - metrics["mean_per_class_recall"]) > 0.003
  assert metrics["acc5"] is None


def test_the_csv_has_a_line_for_each_record(evaluated):
  results, expected = evaluated
  rows = list(csv.DictReader(io.StringIO(benchmark_csv(benchmark_records(results).values()))))
  assert {(row["dataset"], row["pretrained"]) for row in rows} == set(expected)
  for row in rows:
    metrics = expected[row["dataset"], row["pretrained"]]
    for name, value in metrics.items():
      assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value)
    assert row["model_fullname"] == f"ViT-B/16 {row['pretrained']}"
    assert (row["task"], row["language"]) == ("zeroshot_classification", "en")


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
