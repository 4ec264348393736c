"""Reproduces tables 4 to 7 and 13: the jobs `segment` and `detect` on stored regions.

The jobs are loaded by name, as the command line does. Each run of a job has its own
folder below the reproduction's folder, and resumes there.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import logging
import os
import pathlib
from typing import Any

from pomp_jax.clip.load import Clip
from pomp_jax.config import validate
from pomp_jax.config.command_line import load_config
from pomp_jax.config.errors import ConfigError
from pomp_jax.config.every_job import Config
from pomp_jax.config.fields import Clip as ClipFields
from pomp_jax.config.from_file import unpack
from pomp_jax.files.paths import exists, is_dir
from pomp_jax.files.pieces import fingerprint
from pomp_jax.registry import load_job
from pomp_jax.rooms.reproduce import inputs_stage
from pomp_jax.rooms.reproduce.digests import (
  SAMPLED,
  digests_of_clip,
  file_digest,
  short,
)
from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.region_tables import (
  IMAGES,
  IMAGES_SOURCE,
  MOVED_BETWEEN_PUBLICATIONS,
  PROMPT_FILES,
  Case,
  RegionTable,
)
from pomp_jax.rooms.reproduce.rows import (
  CONTROLS,
  FAIL,
  INPUTS,
  PUBLISHED,
  RETRAINED,
  Row,
  compared,
  not_run,
)
from pomp_jax.rooms.reproduce.targets import Target, target
from pomp_jax.rooms.reproduce.tolerances import HALF_DIGIT

log = logging.getLogger(__name__)

RUNS = "cases"  # folder of the jobs' runs
_REGIONS = "regions"
_PAPERS_DTYPE = "float32"
_WHY = (
  "half a printed digit, and 0.5 points: by that the paper's table 6 and the released"
  " README differ where they print one figure twice (Objects365, 22.9 and 23.4)"
)


@dataclasses.dataclass
class RegionReproduction:
  """State of a reproduction: what was compared so far, and what failed."""

  table: RegionTable
  root: str
  workdir: str
  clip: ClipFields
  record: Mapping[str, Any]  # packaged record; empty if there is none
  quick: bool = False
  rows: list[Row] = dataclasses.field(default_factory=list)
  findings: list[Finding] = dataclasses.field(default_factory=list)
  # data set -> why the data set was stopped
  stopped: dict[str, str] = dataclasses.field(default_factory=dict)
  digests: dict[str, Any] = dataclasses.field(default_factory=dict)
  answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  # For each row with a figure: the run, and the keys of the figure in its results.
  figures: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def check(self) -> None:
    """Checks each run whose files exist, as its job does; ConfigError if no run has its
    files."""
    cases_of = self._runs()
    with_files = {
      name: cases for name, cases in cases_of.items() if not self._missing(cases)
    }
    if not with_files:
      first = self._missing(next(iter(cases_of.values())))
      expected = f"a folder with at least one of the table's rows, such as {first}"
      raise ConfigError("reproduce.root", self.root, expected)
    job = load_job(self.table.job)
    for name, cases in with_files.items():
      config = self._config_of(cases)
      validate(config)
      job.check(config, self._workdir_of(name))

  def inputs(self, clip: Clip) -> None:
    """Stage 1: compares the CLIP, and counts and digests of each data set.

    Args:
      clip: the CLIP of all runs.
    """
    digests = digests_of_clip(clip)
    self.digests = {"clip": digests, "sets": {}}
    expected = self.record.get("clip", {})
    dtype = self.clip.dtype
    found = inputs_stage.clip_inputs(digests, expected, dtype, _PAPERS_DTYPE)
    self.rows += found.rows
    self.findings += found.findings
    for data in dict.fromkeys(case.data for case in self.table.cases):
      self._inputs_of(data)
      if found.findings:
        self.stopped.setdefault(data, "Inputs failed for the CLIP")

  def _inputs_of(self, data: str) -> None:
    """Compares a data set and the regions of each of its rows: counts and digests."""
    missing = [
      path
      for path in (os.path.join(self.root, data, name) for name in self.table.inputs)
      if not exists(path)
    ]
    if missing:
      why = f"{missing[0]} is not there"
      self.rows.append(not_run(INPUTS, data, "files", why))
      self.stopped[data] = why
      return
    parts = {name: os.path.join(self.root, data, name) for name in self.table.inputs}
    for case in self.table.cases:
      path = os.path.join(self.root, data, case.folder, _REGIONS)
      if case.data == data and is_dir(path):
        parts[f"{case.folder}/{_REGIONS}"] = path
    found = {name: _digest(path) for name, path in parts.items()}
    self.digests["sets"][data] = found
    expected = self.record.get("sets", {}).get(data, {})
    for name, digest in found.items():
      quantity = f"files of {name}"
      row = inputs_stage.digest_row(data, quantity, expected.get(name), digest)
      self.rows.append(row)
      if row.status == FAIL:
        text = f"{name} are other files than those of the record"
        self.findings.append(finding(INPUTS, "images", data, text))
        self.stopped[data] = "Inputs failed for the data set"
    self._count(data, parts)

  def _count(self, data: str, parts: Mapping[str, str]) -> None:
    """Compares the number of images with the published number."""
    count = IMAGES.get(data)
    counted = [path for name, path in parts.items() if name.endswith(_REGIONS)]
    if "labels" in parts:
      counted = [parts["labels"]]
    if count is None or not counted:
      return
    # A folder has one file per image; a folder of regions also has regions.json.
    n_images = sum(name != "regions.json" for name in os.listdir(counted[0]))
    row = compared(
      INPUTS,
      data,
      "images",
      float(count),
      float(n_images),
      rule="within",
      tolerance=0.0,
      why="a count",
      source=IMAGES_SOURCE,
    )
    self.rows.append(row)
    if row.status == FAIL:
      text = f"{n_images:,} images, and {count:,} are published"
      shared = inputs_stage.OTHER_COUNT
      self.findings.append(finding(INPUTS, "split", data, text, shared))
      self.stopped[data] = "Inputs failed for the data set"

  def compare(self, stage: str) -> None:
    """Stages 2 and 3: runs the jobs of the stage's rows, and compares their figures.

    Args:
      stage: `rows.CONTROLS` or `rows.PUBLISHED`.
    """
    for name, cases in self._runs().items():
      if cases[0].stage != stage:
        continue
      data = cases[0].data
      why = ""
      if data in self.stopped:
        why = f"stopped: {self.stopped[data]}"
      elif missing := self._missing(cases):
        why = f"{missing} is not there"
      if why:
        for case in cases:
          self._skip(case, why)
        continue
      config = self._config_of(cases)
      log.info("%s of %s: %s", stage, data, name)
      results: Any = load_job(self.table.job).run(config, self._workdir_of(name))
      for case in cases:
        self._compare(case, results)
    for data in dict.fromkeys(case.data for case in self.table.cases):
      self._finding_of(stage, data)

  def _compare(self, case: Case, results: Mapping[str, Any]) -> None:
    """Compares the figures of a case with the results of its run."""
    label = case.text or self._prompt_file(case)
    for column, place in case.figures.items():
      printed = _target(case, column)
      if printed is None:
        continue
      value: Any = results["figures"][label]
      for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
      quantity = _quantity(case, column)
      if value is None:
        why = (
          f"the run has no {' '.join(place)}: no such class, or regions without masks"
        )
        self.rows.append(not_run(case.stage, case.data, quantity, why))
        continue
      row = compared(
        case.stage,
        case.data,
        quantity,
        printed.value / 100,
        float(value),
        rule="within",
        tolerance=HALF_DIGIT + MOVED_BETWEEN_PUBLICATIONS,
        why=_WHY,
        n=results["images"],
        n_target=IMAGES.get(case.data),
        source=f"{printed.table}, {printed.row}",
        beside=_beside(case, column),
      )
      self.rows.append(row)
      figure = {"stage": case.stage, "subject": case.data, "quantity": quantity}
      self.figures.append({**figure, "run": case.run, "place": [label, *place]})

  def _skip(self, case: Case, why: str) -> None:
    quantity = f"{case.row}, table {case.table}, {case.prefix}"
    self.rows.append(not_run(case.stage, case.data, quantity, why))

  def _finding_of(self, stage: str, data: str) -> None:
    """Stops a data set and adds a finding if rows of a stage failed on the data set."""
    of_data = [row for row in self.rows if (row.stage, row.subject) == (stage, data)]
    failing = [row for row in of_data if row.status == FAIL]
    if not failing:
      return
    self.stopped[data] = f"{stage} failed for the data set"
    known = [row for row in of_data if row.got is not None]
    shares = [float(row.got or 0) / float(row.expected or 1) for row in known]
    n_failing = f"{len(failing)} of {len(known)} figures"
    if stage == PUBLISHED:
      text = (
        f"the controls pass or are not there, but {n_failing} are off: {_far(failing)}"
      )
      kind = "prompt"
    elif max(shares) < _NOTHING:
      text = f"every figure is below a tenth of the printed one: {_far(failing)}"
      kind = "regions"
    else:
      text = f"{n_failing} are off: {_far(failing)}"
      kind = "templates" if len(failing) < len(known) else "regions"
    self.findings.append(finding(stage, kind, data, text))

  def retrained(self) -> None:
    """Stage 4: adds rows that say what of the tables is not trained or computed."""
    why = "no network of these tables is trained here"
    self.rows.append(not_run(RETRAINED, "all sets", "networks", why))
    for subject, reason in self.table.not_computed.items():
      self.rows.append(not_run(PUBLISHED, subject, "figures", reason))

  def record_of(self) -> dict[str, Any]:
    """Content for a record of this table."""
    return {"table": self.table.name, **self.digests}

  def _runs(self) -> dict[str, list[Case]]:
    """Cases by the run of the job that computes them."""
    found: dict[str, list[Case]] = {}
    for case in self.table.cases:
      found.setdefault(case.run, []).append(case)
    return found

  def _workdir_of(self, run: str) -> str:
    return os.path.join(self.workdir, RUNS, run)

  def _missing(self, cases: Sequence[Case]) -> str:
    """A path that a run needs and that does not exist; "" if all paths exist."""
    case = cases[0]
    needed = [os.path.join(self.root, case.data, name) for name in self.table.inputs]
    needed.append(os.path.join(self.root, case.data, case.folder, _REGIONS))
    for path in needed:
      if not exists(path):
        return path
    if not case.text and not self._prompt_file(case):
      names = " or ".join(PROMPT_FILES)
      return os.path.join(self.root, case.data, case.folder, names)
    return ""

  def _prompt_file(self, case: Case) -> str:
    """File of a row's prompt or class vectors; "" if there is none."""
    for name in PROMPT_FILES:
      path = os.path.join(self.root, case.data, case.folder, name)
      if exists(path):
        return path
    return ""

  def _config_of(self, cases: Sequence[Case]) -> Config:
    """The packaged config of a data set, with the files and prompts of its cases."""
    first = cases[0]
    packaged = unpack(load_config(first.data), self.table.job)
    prompts = dict.fromkeys(case.text or self._prompt_file(case) for case in cases)
    changes: dict[str, Any] = {
      "clip.model": self.clip.model,
      "clip.dtype": self.clip.dtype,
      "regions.source": "file",
      "regions.path": os.path.join(self.root, first.data, first.folder, _REGIONS),
      f"{self.table.job}.prompts": tuple(prompts),
    }
    for name, field in self.table.inputs.items():
      changes[field] = os.path.join(self.root, first.data, name)
    replaced: Config = packaged.replace(changes)
    return replaced


# If every figure is below this share of the printed one, nothing was recognised.
_NOTHING = 0.1


def _far(rows: Sequence[Row]) -> str:
  """Part of a sentence on the row that is furthest off."""
  row = max(rows, key=lambda row: abs(float(row.got or 0) - float(row.expected or 0)))
  got = 100 * float(row.got or 0)
  expected = 100 * float(row.expected or 0)
  return f"{got:.1f} where {expected:.1f} is printed ({row.quantity})"


def _quantity(case: Case, column: str) -> str:
  return f"{column} (%), {case.row}, table {case.table}, {case.prefix}"


def _target(case: Case, column: str) -> Target | None:
  return target(case.table, case.row, f"{case.prefix} {column}")


def _beside(case: Case, column: str) -> float | None:
  """The released README's figure, which may differ from the paper's; None if not
  printed."""
  if case.row != "POMP" or case.table != "6":
    return None
  found = target("released detection", "POMP", f"{case.prefix} {column}")
  return found.value / 100 if found else None


def _digest(path: str) -> str:
  """Digest of a file, or of a folder: all names, and the content of `SAMPLED` files."""
  if not is_dir(path):
    return file_digest(path)
  names = sorted(os.listdir(path))
  digest = hashlib.sha256(fingerprint(names).encode())
  # A hash of the names chooses the files, so every machine reads the same files.
  for name in sorted(sorted(names, key=short)[:SAMPLED]):
    digest.update(file_digest(pathlib.Path(path) / name).encode())
  return digest.hexdigest()


STAGES_OF_CASES = (CONTROLS, PUBLISHED)
