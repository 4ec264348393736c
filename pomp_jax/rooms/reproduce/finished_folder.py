"""Files of a finished reproduction for others: reproduction.json, .eval_results.

`reproduction.json` lists every file of the folder with its SHA-256, and all figures,
so that `verify` needs nothing else.
"""

from collections.abc import Mapping
import datetime
import json
import pathlib
from typing import Any

from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import ERROR, with_provenance, write_json
from pomp_jax.rooms.reproduce import targets
from pomp_jax.rooms.reproduce.digests import file_digest
from pomp_jax.rooms.reproduce.rows import NOT_RUN, PUBLISHED, RETRAINED

NAME = "reproduction.json"
VERSION = 1
EVAL_RESULTS = ".eval_results"
# Not listed: the file itself, and the error that a failing run writes after the file.
_UNLISTED = (NAME, ERROR)


def write(folder: Path, results: Mapping[str, Any], clip_model: str) -> None:
  """Writes .eval_results/, and last reproduction.json, which lists all other files.

  Args:
    folder: folder of the run.
    results: contents of results.json.
    clip_model: name of the CLIP.
  """
  root = pathlib.Path(str(folder))
  for name, text in eval_results(results, clip_model).items():
    (root / EVAL_RESULTS).mkdir(exist_ok=True)
    write_file(root / EVAL_RESULTS / name, text)
  content = with_provenance(results)
  content = {"format_version": VERSION, "source": targets.source(), **content}
  write_json(root / NAME, {**content, "files": digests_of_files(root)})


def digests_of_files(root: pathlib.Path) -> dict[str, str]:
  """SHA-256 of each file below a folder, by the file's path within the folder."""
  return {
    path.relative_to(root).as_posix(): file_digest(path)
    for path in sorted(root.rglob("*"))
    if path.is_file() and path.relative_to(root).as_posix() not in _UNLISTED
  }


def eval_results(results: Mapping[str, Any], clip_model: str) -> dict[str, str]:
  """Contents of `.eval_results/` by file name, in the format of HuggingFace's hub.

  The hub reads the files beside a prompt. A file has a list of one result: `dataset`
  with `id` and `task_id`, `value` in percent, `date`, and `notes`. The YAML is written
  as JSON, because JSON is YAML, too.

  Args:
    results: contents of results.json.
    clip_model: name of the CLIP, for the notes.
  """
  date = datetime.datetime.now(datetime.UTC).date().isoformat()
  files: dict[str, str] = {}
  for row in results["rows"]:
    learned = row["stage"] in (PUBLISHED, RETRAINED)
    is_accuracy = row["quantity"].startswith("top-1") and isinstance(row["got"], float)
    if not (learned and is_accuracy and row["status"] != NOT_RUN):
      continue
    label = row["quantity"].removeprefix("top-1, ")
    slug = "".join(c if c.isalnum() else "_" for c in f"{row['subject']}_{label}")
    entry = {
      "dataset": {"id": row["subject"], "task_id": "top1"},
      "value": round(100 * row["got"], 2),
      "date": date,
      "notes": f"{label}, {clip_model}, {row['status']}: {row['source']}",
    }
    if results["quick"]:
      entry["notes"] += "; 200 images a set"
    files[f"{slug}.yaml"] = f"- {json.dumps(entry, ensure_ascii=False)}\n"
  return files
