"""An evaluation in the form of CLIP_benchmark: its JSON file of a data set, its CSV of
them all.

https://github.com/LAION-AI/CLIP_benchmark, version 1.6.
"""

from collections.abc import Mapping
import re
from typing import Any

from pomp_jax.files.paths import Path, remove_folder
from pomp_jax.files.run_folder import write_json
from pomp_jax.report.report import write_csv

_COLUMNS = (
  *("acc1", "acc5", "mean_per_class_recall", "dataset", "model", "pretrained", "task"),
  *("language", "model_fullname"),
)
# acc5 is not a number there for fewer classes.
_ACC5_CLASSES = 5
_PART_CHARACTERS = 80  # of a file name


def write(folder: Path, results: Mapping[str, Any]) -> None:
  """Writes `clip_benchmark/`, a file for each set and prompt, and
  `clip_benchmark.csv`."""
  records, files = benchmark_records(results), folder / "clip_benchmark"
  remove_folder(files)  # records of other prompts
  files.mkdir()
  for name, record in records.items():
    write_json(files / f"{name}.json", record, checksum=False)
  rows = []
  for record in records.values():
    row = record["metrics"] | record
    row["model_fullname"] = f"{record['model']} {record['pretrained']}"
    rows.append([row[column] for column in _COLUMNS])
  write_csv(folder / "clip_benchmark.csv", _COLUMNS, rows)


def benchmark_records(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Builds a record for each set and prompt, by the stem of its file; `pretrained`:
  the prompt."""
  found: dict[str, dict[str, Any]] = {}
  for name, of_set in results["sets"].items():
    for label, figures in of_set["prompts"].items():
      stem = unused = f"{_slug(name)}_{_slug(label) or 'prompt'}"
      number, used = 1, set(map(str.lower, found))  # file systems may ignore case
      while unused.lower() in used:
        number += 1
        unused = f"{stem}-{number}"
      acc5 = figures["top5"] if figures["classes"] >= _ACC5_CLASSES else None
      accuracy = {"acc1": figures["top1"], "acc5": acc5}
      accuracy["mean_per_class_recall"] = figures["macro_top1"]
      record = {"dataset": name, "model": results["clip_model"], "pretrained": label}
      record |= {
        "task": "zeroshot_classification",
        "metrics": accuracy,
        "language": "en",
      }
      found[unused] = record
  return found


def _slug(text: str) -> str:
  """Part of a file name that any file system takes."""
  return re.sub(r"[^A-Za-z0-9_.+@-]+", "-", text)[:_PART_CHARACTERS].strip("-.")
