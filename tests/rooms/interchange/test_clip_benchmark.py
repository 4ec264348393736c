"""CLIP_benchmark's form; `test_metrics` compares the figures with what it computes
them by."""

import csv
import json

import pytest

from pomp_jax.rooms.interchange.clip_benchmark import benchmark_records, write


def results_of(labels, classes=9):
  figures = {"top1": 0.5, "top5": 0.75, "macro_top1": 0.25, "classes": classes}
  sets = {"own/pets": {"prompts": dict.fromkeys(labels, figures)}}
  return {"clip_model": "ViT-B/16", "sets": sets}


@pytest.mark.parametrize(("n_classes", "acc5"), [(9, 0.75), (4, None)])
def test_a_record_is_of_a_set_and_a_prompt(tmp_path, n_classes, acc5):
  write(tmp_path, results_of(["runs/a/prompt.npz"], classes=n_classes))
  [file] = (tmp_path / "clip_benchmark").iterdir()
  metrics = {"acc1": 0.5, "acc5": acc5, "mean_per_class_recall": 0.25}
  record = {
    "dataset": "own/pets",
    "model": "ViT-B/16",
    "pretrained": "runs/a/prompt.npz",
  }
  record |= {"task": "zeroshot_classification", "metrics": metrics, "language": "en"}
  assert (
    file.name == "own-pets_runs-a-prompt.npz.json"
    and json.loads(file.read_text()) == record
  )
  [row] = csv.DictReader((tmp_path / "clip_benchmark.csv").open(newline=""))
  assert row["model_fullname"] == "ViT-B/16 runs/a/prompt.npz"
  assert [row[name] for name in metrics] == ["0.5", "0.75" if acc5 else "", "0.25"]


def test_no_two_files_have_one_name(tmp_path):
  labels = [
    "a photo of a {}.",
    "A photo of a {}?",
    "{}.",
    "..",
    '=a,"b"\n',
    "ß" * 300,
    "x" * 300,
  ]
  records = benchmark_records(results_of(labels))
  assert len({name.lower() for name in records}) == len(labels)
  for name in records:
    assert len(name) < 180 and not set(name) & set('/\\ {}=,"\n')
  # Quoting: what is written is what is read.
  write(tmp_path, results_of(labels))
  rows = csv.DictReader((tmp_path / "clip_benchmark.csv").open(newline=""))
  assert [row["pretrained"] for row in rows] == labels
