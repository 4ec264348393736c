"""Writes an evaluation as CLIP_benchmark does: a JSON file for each set, and a CSV.

https://github.com/LAION-AI/CLIP_benchmark, version 1.6.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from pomp_jax.files.paths import Path, remove_folder
from pomp_jax.files.run_folder import write_json
from pomp_jax.report.report import write_csv

_COLUMNS = (
  "acc1",
  "acc5",
  "mean_per_class_recall",
  "dataset",
  "model",
  "pretrained",
  "task",
  "language",
  "model_fullname",
)
# For fewer classes CLIP_benchmark has no number as acc5.
_ACC5_CLASSES = 5
_PART_CHARACTERS = 80  # most characters of a part of a file name


def write(folder: Path, results: Mapping[str, Any]) -> None:
  """Writes the records of an evaluation in CLIP_benchmark's two forms.

  `clip_benchmark/` gets a JSON file for each set and prompt. `clip_benchmark.csv` gets
  a row for each file, as the command `clip_benchmark build` makes from the files.

  Args:
    folder: folder of the run.
    results: content of `results.json`.
  """
  records = benchmark_records(results)

  json_folder = folder / "clip_benchmark"
  # Remove the records of other prompts that an earlier evaluation may have left.
  remove_folder(json_folder)
  json_folder.mkdir()
  for stem, record in records.items():
    write_json(json_folder / f"{stem}.json", record, checksum=False)

  rows = []
  for record in records.values():
    values = {
      **record,
      **record["metrics"],
      "model_fullname": f"{record['model']} {record['pretrained']}",
    }
    rows.append([values[column] for column in _COLUMNS])
  write_csv(folder / "clip_benchmark.csv", _COLUMNS, rows)


def benchmark_records(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Builds a record for each set and prompt, by the stem of its file.

  The field `pretrained` names the prompt here. In CLIP_benchmark it names the weights.
  """
  records: dict[str, dict[str, Any]] = {}
  for name, results_of_set in results["sets"].items():
    for label, figures in results_of_set["prompts"].items():
      stem = _unused(f"{_slug(name)}_{_slug(label) or 'prompt'}", records)
      acc5 = figures["top5"] if figures["classes"] >= _ACC5_CLASSES else None
      records[stem] = {
        "dataset": name,
        "model": results["clip_model"],
        "pretrained": label,
        "task": "zeroshot_classification",
        "metrics": {
          "acc1": figures["top1"],
          "acc5": acc5,
          "mean_per_class_recall": figures["macro_top1"],
        },
        "language": "en",
      }
  return records


def _unused(stem: str, used: Iterable[str]) -> str:
  """Adds a number to a stem that is used, ignoring case as some file systems do."""
  used_lower = {name.lower() for name in used}
  name = stem
  number = 1
  while name.lower() in used_lower:
    number += 1
    name = f"{stem}-{number}"
  return name


def _slug(text: str) -> str:
  """Part of a file name that any file system takes."""
  return re.sub(r"[^A-Za-z0-9_.+@-]+", "-", text)[:_PART_CHARACTERS].strip("-.")
