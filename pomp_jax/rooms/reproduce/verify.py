"""Checks the finished folder of somebody else: digests and arithmetic, but no new
measurement."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.paths import read_file, read_text
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import (
  ERROR,
  DamagedFileError,
  RunFolderError,
  parse_json,
  to_json,
  with_checksum,
)
from pomp_jax.rooms.reproduce import targets
from pomp_jax.rooms.reproduce.finished_folder import NAME, VERSION, digests_of_files
from pomp_jax.rooms.reproduce.orders_stage import DIFFERENCE, OVER, welch
from pomp_jax.rooms.reproduce.region_cases import RUNS
from pomp_jax.rooms.reproduce.reproduction_report import verdict_of
from pomp_jax.rooms.reproduce.rows import RETRAINED, Row, from_dict, status_of

_KEYS = {
  "format_version",
  "source",
  "job",
  "table",
  "verdict",
  "quick",
  "rows",
  "findings",
  "means",
  "answers",
  "figures",
  "digests",
  "provenance",
  "files",
}
# What reading and computing raise for a folder whose digests fit and whose contents
# have another form.
_FORGED = (
  ArithmeticError,
  AttributeError,
  EOFError,
  InputError,
  LookupError,
  OSError,
  RecursionError,
  TypeError,
  ValueError,
  zipfile.BadZipFile,
)


def problems_of(folder: str | os.PathLike) -> list[str]:
  """Lists contradictions in a finished reproduction; empty if there are none.

  Args:
    folder: folder of the run.

  Raises:
    RunFolderError: reproduction.json is missing, or can't be read.
  """
  root = pathlib.Path(folder)
  path = root / NAME
  if not path.is_file():
    raise RunFolderError(f"{path}: missing; expected a finished reproduction")
  raw = path.read_bytes()
  try:
    content = parse_json(raw, path)
  except DamagedFileError as error:
    return [str(error)]
  # `parse_json` accepts a file without a checksum, but reproduction.json has one.
  if not isinstance(content, dict) or b'"checksum": ' not in raw:
    return [f"{NAME}: its checksum is missing"]
  if set(content) != _KEYS or content["format_version"] != VERSION:
    return [f"{NAME}: has other keys than version {VERSION} of its format"]
  if not isinstance(content["files"], dict):
    return [f"{NAME}: files is no object of digests by name"]
  try:
    problems = _canonical(raw, content)
    problems += _files(root, content["files"])
    return problems or _arithmetic(root, content)
  except _FORGED as error:
    return [f"{NAME}: {type(error).__name__}: {error}"]


def _canonical(raw: bytes, content: Mapping[str, Any]) -> list[str]:
  """A problem if writing the file's content again would give other bytes."""
  if raw.decode() != to_json(with_checksum(content)):
    return [f"{NAME}: edited: not as it was written"]
  return []


def _files(root: pathlib.Path, listed: Mapping[str, str]) -> list[str]:
  """Problems of files: another digest, a missing file, or a file that is not listed."""
  problems = []
  found = digests_of_files(root)
  for name in sorted({*listed, *found}):
    if name not in found:
      problems.append(f"{name}: missing")
    elif name not in listed:
      problems.append(f"{name}: is not listed in {NAME}")
    elif found[name] != listed[name]:
      problems.append(f"{name}: changed after it was written")
  return problems


def _arithmetic(root: pathlib.Path, content: Mapping[str, Any]) -> list[str]:
  """Problems of statuses, verdict, accuracies, means and targets, computed again."""
  problems: list[str] = []
  rows = [from_dict(one) for one in content["rows"]]
  for row in rows:
    where = f"{row.stage}, {row.subject}, {row.quantity}"
    status = status_of(row.rule, row.expected, row.got, row.tolerance)
    if status != row.status:
      problems.append(f"{where}: says {row.status}, but its figures give {status}")
    problems += [f"{where}: {text}" for text in _target(row)]
  verdict = verdict_of(rows, content["findings"])
  if verdict != content["verdict"]:
    problems.append(f"verdict: says {content['verdict']!r}, the rows give {verdict!r}")
  problems += _answers(root, content, rows)
  problems += _means(content["means"], rows)
  problems += _orders(content, rows)
  problems += _figures(root, content, rows)
  stored = _listed_json(root, content, "results.json")
  for key in ("rows", "verdict", "findings", "answers", "figures"):
    if stored[key] != content[key]:
      problems.append(f"results.json: {key} differ from those of {NAME}")
  error = root / ERROR
  # `exists` is false for a link to nothing, and `read_text` refuses pipes and devices.
  if os.path.lexists(error):
    said = read_text(error, RunFolderError)
    if said.strip() != verdict.strip():
      problems.append(f"{ERROR}: is not the verdict")
  return problems


def _listed(root: pathlib.Path, content: Mapping[str, Any], name: str) -> pathlib.Path:
  """Path of a file of the folder, whose digest has been compared.

  Raises:
    RunFolderError: the file is not among those that reproduction.json lists, such as a
      pipe, or a file outside the folder.
  """
  if name not in content["files"]:
    raise RunFolderError(f"{name}: is not listed in {NAME}")
  return root / name


def _listed_json(root: pathlib.Path, content: Mapping[str, Any], name: str) -> Any:
  """Value of a JSON file of the folder; raises as `_listed`."""
  path = _listed(root, content, name)
  return parse_json(read_file(path, RunFolderError), path)


def _target(row: Row) -> list[str]:
  """A problem if the expected figure is not printed in the table row of its source."""
  table, _, method = row.source.partition(", ")
  name = table.removeprefix("table ")
  if name not in targets.tables() or method not in targets.tables()[name]["rows"]:
    return []
  content = targets.tables()[name]
  printed = [value / 100 for value in content["rows"][method] if value is not None]
  if isinstance(row.expected, float) and row.expected not in printed:
    return [f"expected {row.expected} is no figure of {row.source}"]
  return []


def _answers(
  root: pathlib.Path, content: Mapping[str, Any], rows: list[Row]
) -> list[str]:
  """Problems of accuracies, computed again from the stored answers of each image."""
  problems = []
  by_key = {(row.stage, row.subject, row.quantity): row for row in rows}
  for one in content["answers"]:
    where = f"{one['stage']}, {one['set']}, {one['prompt']}"
    path = _listed(root, content, f"pieces/{one['piece']}.npz")
    with np.load(path, allow_pickle=False) as archive:
      labels = archive["labels"]
      given = archive[f"answers_{one['number']}"]
    if fingerprint([labels, given]) != one["digest"]:
      problems.append(f"{where}: another digest of the answers")
    right = int(np.sum(labels == given))
    if (right, len(labels)) != (one["right"], one["images"]):
      problems.append(f"{where}: {right} of {len(labels)} answers are right")
    row = by_key.get((one["stage"], one["set"], f"top-1, {one['prompt']}"))
    if row is not None and row.got != right / len(labels):
      problems.append(
        f"{where}: says {row.got}, the answers give {right / len(labels)}"
      )
  return problems


def _means(means: Mapping[str, list[str]], rows: list[Row]) -> list[str]:
  """Problems of means, computed again from the rows of their sets."""
  problems = []
  by_key = {(row.stage, row.subject, row.quantity): row.got for row in rows}
  for row in rows:
    if row.subject not in means or row.got is None:
      continue
    values = [
      by_key.get((row.stage, name, row.quantity)) for name in means[row.subject]
    ]
    figures = [float(value) for value in values if value is not None]
    if len(figures) < len(values):
      continue
    if abs(float(np.mean(figures)) - float(row.got)) > 1e-9:
      where = f"{row.stage}, {row.subject}, {row.quantity}"
      problems.append(f"{where}: says {row.got}, its sets give {np.mean(figures)}")
  return problems


def _orders(content: Mapping[str, Any], rows: list[Row]) -> list[str]:
  """Problems of differences of arms, computed again from the trainings' answers."""
  problems = []
  for row in rows:
    if row.rule != "order":
      continue
    where = f"{row.stage}, {row.subject}, {row.quantity}"
    sets = content["means"].get(row.subject, [row.subject])
    names = row.quantity.removeprefix(DIFFERENCE).split(OVER)
    better, worse = (_of_seeds(content["answers"], name, sets) for name in names)
    test = welch(better, worse)
    if row.got != test.difference:
      problems.append(f"{where}: says {row.got}, the answers give {test.difference}")
    # In a quick run the tolerance has the variance of the sample, which the counts of
    # right answers do not tell.
    if not content["quick"] and row.tolerance != test.reach:
      problems.append(f"{where}: says {row.tolerance}, the answers give {test.reach}")
  return problems


def _of_seeds(answers: list[dict[str, Any]], arm: str, sets: list[str]) -> list[float]:
  """Accuracy of each training of an arm, as a mean over sets."""
  by_set = [
    [
      one["right"] / one["images"]
      for one in answers
      if (one["stage"], one["set"]) == (RETRAINED, name)
      if one["prompt"].startswith(f"{arm}, seed ")
    ]
    for name in sets
  ]
  return [float(value) for value in np.mean(by_set, axis=0)]


def _figures(
  root: pathlib.Path, content: Mapping[str, Any], rows: list[Row]
) -> list[str]:
  """Problems of rows of tables of regions, compared with the results of the runs."""
  problems = []
  by_key = {(row.stage, row.subject, row.quantity): row for row in rows}
  for one in content["figures"]:
    results = _listed_json(root, content, f"{RUNS}/{one['run']}/results.json")
    value = results["figures"]
    for key in one["place"]:
      value = value[key]
    row = by_key[one["stage"], one["subject"], one["quantity"]]
    if row.got != value:
      where = f"{row.stage}, {row.subject}, {row.quantity}"
      problems.append(f"{where}: says {row.got}, the run's results give {value}")
  return problems
