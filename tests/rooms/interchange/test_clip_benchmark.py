"""CLIP_benchmark's form; `test_metrics` compares the figures with what it computes them by."""

import csv
import io
import json

import pytest

from pomp_jax.files.run_folder import to_json
from pomp_jax.rooms.interchange.clip_benchmark import benchmark_csv, benchmark_records


def results_of(labels, classes=9):
  figures = {"top1": 0.5, "top5": 0.75, "macro_top1": 0.25, "classes": classes}
  sets = {"own/pets": {"prompts": dict.fromkeys(labels, figures)}}
  return {"clip_model": "ViT-B/16", "sets": sets}


@pytest.mark.parametrize(("n_classes", "acc5"), [(9, 0.75), (4, None)])
def test_a_record_is_of_a_set_and_a_prompt(n_classes, acc5):
  records = benchmark_records(results_of(["runs/a/prompt.npz"], classes=n_classes))
  metrics = {"acc1": 0.5, "acc5": acc5, "mean_per_class_recall": 0.25}
  record = {"dataset": "own/pets", "model": "ViT-B/16", "pretrained": "runs/a/prompt.npz"}
  record |= {"task": "zeroshot_classification", "metrics": metrics, "language": "en"}
  assert json.loads(to_json(records)) == {"own-pets_runs-a-prompt.npz": record}
  [row] = csv.DictReader(io.StringIO(benchmark_csv(records.values())))
  assert row["model_fullname"] == "ViT-B/16 runs/a/prompt.npz"
  assert [row[name] for name in metrics] == ["0.5", "0.75" if acc5 else "", "0.25"]


def test_no_two_files_have_one_name():
  labels = ["a photo of a {}.", "A photo of a {}?", "{}.", "..", '=a,"b"\n', "ß" * 300, "x" * 300]
  records = benchmark_records(results_of(labels))
  assert len({name.lower() for name in records}) == len(labels)
  for name in records:
    assert len(name) < 180 and not set(name) & set('/\\ {}=,"\n')
  # Quoting: what is written is what is read.
  rows = csv.DictReader(io.StringIO(benchmark_csv(records.values()), newline=""))
  assert [row["pretrained"] for row in rows] == labels
