"""Reproduces a table of accuracies in four stages.

A set that fails Inputs or Controls is stopped, and skips the later stages.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
import os
from typing import Any

import numpy as np

from pomp_jax.config import validate
from pomp_jax.data.source import LabelledSet, StoredImages
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import AnyPrompt
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.rooms.reproduce import (
  controls_stage,
  diagnose,
  inputs_stage,
  orders_stage,
  retrained_stage,
)
from pomp_jax.rooms.reproduce.controls_stage import RECORD, Expected
from pomp_jax.rooms.reproduce.digests import digests_of_clip, digests_of_set
from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.measure import Measured, Measurer
from pomp_jax.rooms.reproduce.retrained_stage import SeedsTarget, TrainingGroup
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
from pomp_jax.rooms.reproduce.tables import RELEASED, Accuracies
from pomp_jax.rooms.reproduce.targets import TEST_IMAGES
from pomp_jax.rooms.reproduce.tolerances import Seeds, seeds_of
from pomp_jax.train import pretrain

log = logging.getLogger(__name__)

_PAPERS_DTYPE = "float32"
_TRAINING_IMAGES = 4096  # most training images that are compared with the test images


@dataclasses.dataclass(frozen=True)
class Sets:
  """Opens the sets of a table."""

  names: Sequence[str]
  # Opens a set by its name; InputError if the set is not there.
  open: Callable[[str], LabelledSet]
  # Opens a set's training images by its name; None if they are not compared.
  open_training: Callable[[str], LabelledSet] | None = None


@dataclasses.dataclass
class Reproduction:
  """State of a reproduction: what was compared so far, and what failed."""

  table: Accuracies
  sets: Sets
  measurer: Measurer
  dtype: str
  record: Mapping[str, Any]  # packaged record; empty if there is none
  quick: bool
  # Prompts of later stages that exist from the start, by label. They are measured
  # together with the controls, so that the images are encoded once.
  prepared: Mapping[str, AnyPrompt] = dataclasses.field(default_factory=dict)
  rows: list[Row] = dataclasses.field(default_factory=list)
  findings: list[Finding] = dataclasses.field(default_factory=list)
  # set -> why the set was stopped
  stopped: dict[str, str] = dataclasses.field(default_factory=dict)
  opened: dict[str, LabelledSet] = dataclasses.field(default_factory=dict)
  # set -> `StoredImages.stamps`; apart from `digests`, because a record must not
  # depend on paths and times
  stamps: dict[str, str] = dataclasses.field(default_factory=dict)
  digests: dict[str, Any] = dataclasses.field(default_factory=dict)
  answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  measured: dict[str, Any] = dataclasses.field(default_factory=dict)
  # always empty: only tables of regions have figures
  figures: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def inputs(self) -> None:
    """Stage 1: opens the sets and compares digests."""
    clip = digests_of_clip(self.measurer.encoder.clip)
    self.digests = {"clip": clip, "sets": {}}
    expected = self.record.get("clip", {})
    found = inputs_stage.clip_inputs(clip, expected, self.dtype, _PAPERS_DTYPE)
    self._add(found.rows, found.findings)
    reason = "Inputs failed for the CLIP" if found.findings else ""
    for name in self.sets.names:
      self._set_inputs(name)
      if reason:
        self.stopped.setdefault(name, reason)

  def _set_inputs(self, name: str) -> None:
    try:
      labelled = self.sets.open(name)
    except InputError as error:
      self.rows.append(
        Row(
          INPUTS,
          name,
          "set",
          "opened",
          "not opened",
          FAIL,
          why=str(error),
          rule="equal",
        )
      )
      shared = "sets can't be opened"
      self.findings.append(finding(INPUTS, "split", name, str(error), shared))
      self.stopped[name] = "the set can't be opened"
      return
    self.opened[name] = labelled
    source = labelled.source
    # Take the stamps before any content is read: a file that changes later then has
    # another stamp.
    self.stamps[name] = source.stamps() if isinstance(source, StoredImages) else ""
    digests = digests_of_set(labelled)
    self.digests["sets"][name] = digests
    record = self._record_of(name)
    if "pairs" not in record:  # a record of right answers without digests
      record = {}
    overlap = self._overlap(name, labelled)
    found = inputs_stage.set_inputs(
      name, digests, record, TEST_IMAGES.get(name), overlap
    )
    self._add(found.rows, found.findings)
    if found.findings:
      self.stopped[name] = "Inputs failed for the set"

  def _overlap(self, name: str, labelled: LabelledSet) -> int | None:
    """Number of test images that are training images too, byte for byte; None if they
    are not compared."""
    if self.sets.open_training is None:
      return None
    training = self.sets.open_training(name).source
    test = labelled.source
    if not (isinstance(training, StoredImages) and isinstance(test, StoredImages)):
      return None
    by_size: dict[int, set[bytes]] = {}
    for row in range(min(len(training), _TRAINING_IMAGES)):
      content = training.encoded(row)
      by_size.setdefault(len(content), set()).add(content)
    n_equal = 0
    for row in range(len(test)):
      # Most files differ from all training images in size, and are not read.
      same_size = by_size.get(test.encoded_size(row), set())
      if same_size and test.encoded(row) in same_size:
        n_equal += 1
    return n_equal

  def controls(self) -> None:
    """Stage 2: measures the hand-written prompts, and infers causes of failures."""
    # A control's label is also the prompt.
    prompts = {label: label for label in self.table.controls}
    evidence = []
    by_label: dict[str, dict[str, Measured]] = {label: {} for label in prompts}
    for name in self.sets.names:
      if reason := self.stopped.get(name):
        for label in prompts:
          self._skip(CONTROLS, name, label, reason)
        continue
      measured = self._measure(CONTROLS, name, prompts)
      for label, one in measured.items():
        by_label[label][name] = one
      of_set = self._evidence_of(name, measured)
      evidence.append(of_set)
      rows = [*of_set.rows.values(), *diagnose.sketch_rows(of_set).values()]
      self._add(rows, ())
      if any(row.status == FAIL for row in rows):
        self.stopped[name] = "Controls failed for the set"
    found = diagnose.diagnose([one for one in evidence if one.rows])
    self.findings += found
    for label, (table, row_name) in self.table.controls.items():
      if table:
        self._means(CONTROLS, label, by_label[label], (table, row_name))

  def _evidence_of(
    self, name: str, measured: Mapping[str, Measured]
  ) -> diagnose.SetEvidence:
    """Rows and sketches of a set, from which `diagnose` infers a cause."""
    rows = {}
    for label, one in measured.items():
      row = self._control_row(name, label, one)
      if row is not None:
        rows[label] = row
    record = self._record_of(name)
    sketches = {
      label: control.get("text_sketch", ())
      for label, control in record.get("controls", {}).items()
    }
    image_sketch = record.get("image_sketch", ())
    return diagnose.SetEvidence(name, rows, measured, sketches, image_sketch)

  def _control_row(self, name: str, label: str, measured: Measured) -> Row | None:
    """The row of a control; None if there is no target."""
    expected = self._expected_control(name, label)
    if expected is None:
      return None
    return controls_stage.row_of_set(
      CONTROLS, name, label, measured, expected, self.quick
    )

  def _expected_control(self, name: str, label: str) -> Expected | None:
    """Target of a control: a printed figure, or the record's count."""
    table, row = self.table.controls[label]
    if table:
      target = self.table.target((table, row), name)
      return None if target is None else controls_stage.printed(target, name)
    record = self._record_of(name)
    counts = record.get("controls", {})
    if label not in counts:
      return None
    return controls_stage.recorded(counts[label]["right"], record)

  def _record_of(self, name: str) -> Mapping[str, Any]:
    """Part of the record on a set; empty if there is none."""
    record: Mapping[str, Any] = self.record.get("sets", {}).get(name, {})
    return record

  def _means(
    self,
    stage: str,
    label: str,
    measured: Mapping[str, Measured],
    of: tuple[str, str],
    released: int = 0,
  ) -> None:
    """Adds the rows of the means over sets; a mean without all its sets is not run.

    Args:
      stage: one of `rows.STAGES`.
      label: label of the prompt.
      measured: answers by set.
      of: table and row of the target.
      released: number of vectors of a released prompt, whose own figure is the target;
        0 if the target is `of`.
    """
    for mean, sets in self.table.means.items():
      target = self.table.target(of, mean)
      if released:
        target = self.table.released(released, mean)
      if target is None:
        continue
      if not controls_stage.complete(sets, measured):
        missing = [name for name in sets if name not in measured]
        why = f"{len(missing)} of its sets were stopped: {', '.join(missing)}"
        self._skip(stage, mean, label, why)
        continue
      paper = self.table.target(self.table.paper, mean) if released else None
      row = controls_stage.mean_row(
        stage,
        mean,
        label,
        {name: measured[name] for name in sets},
        controls_stage.printed(target, mean, beside=paper),
        self.quick,
      )
      self._add([row], ())

  def published(self, prompts: Mapping[str, Prompt]) -> None:
    """Stage 3: compares released prompts with their own figures, not the paper's row.

    Args:
      prompts: released prompts by label.
    """
    if not prompts:
      why = self.table.no_prompts
      self.rows.append(not_run(PUBLISHED, "all sets", "top-1", why))
      return
    usable = {}
    for label, prompt in prompts.items():
      rows, findings = self._prompt_rows(label, prompt)
      self._add(rows, findings)
      if findings:
        for name in self.sets.names:
          self._skip(PUBLISHED, name, label, "Published prompts failed for the file")
      else:
        usable[label] = prompt
    by_label: dict[str, dict[str, Measured]] = {label: {} for label in usable}
    for name in self.sets.names:
      if reason := self.stopped.get(name):
        for label in usable:
          self._skip(PUBLISHED, name, label, reason)
        continue
      if not usable:
        continue
      measured = self._measure(PUBLISHED, name, usable)
      for label, one in measured.items():
        by_label[label][name] = one
        row = self._published_row(name, label, usable[label], one)
        if row is not None:
          self._add([row], ())
    for label, prompt in usable.items():
      n_vectors = len(prompt.context)
      if n_vectors in RELEASED and self.table.paper:
        self._means(PUBLISHED, label, by_label[label], self.table.paper, n_vectors)
      failing = [
        row
        for row in self.rows
        if row.stage == PUBLISHED and row.quantity.endswith(f", {label}")
        if row.status == FAIL
      ]
      if failing:
        names = ", ".join(row.subject for row in failing)
        text = f"the controls pass, but {label} is off its column on {names}"
        self.findings.append(finding(PUBLISHED, "prompt", label, text))

  def _prompt_rows(self, label: str, prompt: Prompt) -> tuple[list[Row], list[Finding]]:
    """Compares fields and context of a prompt file with the released prompt's."""
    released = self.record.get("released", {})
    rows: list[Row] = []
    findings: list[Finding] = []
    found = {
      "vectors M": str(len(prompt.context)),
      "position of the name": prompt.position,
    }
    lengths = [released["m"]] if released else sorted(RELEASED)
    closest = min(lengths, key=lambda m: abs(m - len(prompt.context)))
    expected = {"vectors M": str(closest), "position of the name": "end"}
    for quantity, value in found.items():
      row = compared(
        PUBLISHED, label, quantity, expected[quantity], value, source="released prompts"
      )
      rows.append(row._replace(why="a field of the file"))
      if row.status == FAIL:
        text = f"{quantity} is {value} in the file, and {expected[quantity]} in the released one"
        findings.append(finding(PUBLISHED, "prompt", label, text))
    if released and not findings:
      context_MxD = np.asarray(released["context"], np.float32)
      same = np.allclose(context_MxD, prompt.context, atol=1e-6)
      got = "the released one" if same else "another"
      row = compared(
        PUBLISHED, label, "context", "the released one", got, source=RECORD
      )
      rows.append(row._replace(why="an array: equal or not"))
      if not same:
        distance = float(
          np.linalg.norm(context_MxD - prompt.context) / np.linalg.norm(context_MxD)
        )
        text = (
          f"the context is {100 * distance:.0f}% of its norm away from the released one:"
          " of another training or another CLIP"
        )
        findings.append(finding(PUBLISHED, "prompt", label, text))
    return rows, findings

  def _published_row(
    self, name: str, label: str, prompt: Prompt, measured: Measured
  ) -> Row | None:
    """The row of a released prompt on a set; None if there is no target."""
    expected = self._expected_of_released(name, len(prompt.context))
    if expected is None:
      return None
    return controls_stage.row_of_set(
      PUBLISHED, name, label, measured, expected, self.quick
    )

  def _expected_of_released(self, name: str, n_vectors: int) -> Expected | None:
    """Target of a released prompt on a set; None if there is none."""
    counts = self.record.get("released", {}).get("right", {})
    if name in counts:
      return controls_stage.recorded(counts[name], self._record_of(name))
    paper = self.table.target(self.table.paper, name)
    if n_vectors in RELEASED:
      target = self.table.released(n_vectors, name)
      if target is not None:
        return controls_stage.printed(target, name, beside=paper)
    # The paper's row is of 4 vectors (appendix E.2). It prints no row of 16 vectors.
    if paper is not None and n_vectors == min(RELEASED):
      return controls_stage.printed(paper, name, loose=True)
    return None

  def retrained(self, group: TrainingGroup) -> None:
    """Stage 4: compares trainings of several seeds with a row of a table.

    Args:
      group: the trainings, or the reason why there are none.
    """
    label = group.label
    if not group.trainings:
      quantity = controls_stage.quantity_of(label)
      self.rows.append(not_run(RETRAINED, "all sets", quantity, group.why_not))
      return
    of = label if self.table.methods else ""
    rows, findings = retrained_stage.recipe_rows(group, of)
    self._add(rows, findings)
    if findings:
      for name in (*self.sets.names, *self.table.means):
        self._skip(RETRAINED, name, label, "Retrained failed for the recipe")
      return
    prompts: dict[str, AnyPrompt] = {one.label: one.prompt for one in group.trainings}
    figures: dict[str, list[float]] = {}
    for name in self.sets.names:
      if reason := self.stopped.get(name):
        self._skip(RETRAINED, name, label, reason)
        continue
      measured = self._measure(RETRAINED, name, prompts)
      figures[name] = [one.top1 for one in measured.values()]
    rows = []
    for name, values in figures.items():
      target = self._seeds_target(name, group.target)
      if target is not None or group.target is None:
        row = retrained_stage.seeds_row(
          name, np.array(values), target, group, loose=True
        )
        rows.append(row)
    for mean, sets in self.table.means.items():
      target = self._seeds_target(mean, group.target)
      if target is None and group.target is not None:
        continue
      if not controls_stage.complete(sets, figures):
        self._skip(RETRAINED, mean, label, "some of its sets were stopped")
        continue
      values_of_seeds = np.mean([figures[name] for name in sets], axis=0)
      row = retrained_stage.seeds_row(mean, values_of_seeds, target, group, loose=False)
      rows.append(row)
    self._add(rows, ())
    if (found := retrained_stage.training_finding(rows, of)) is not None:
      self.findings.append(found)

  def orders(self, arms: Sequence[TrainingGroup]) -> None:
    """Stage 4 of an ablation: tests which arm is better, on each set and mean of sets.

    Args:
      arms: one group for each arm that has trainings.
    """
    answers: dict[str, dict[str, list[Measured]]] = {}
    reasons: dict[str, str] = {}
    for group in arms:
      rows, findings = retrained_stage.recipe_rows(group, group.label)
      self._add(rows, findings)
      if findings:
        reasons[group.label] = f"stopped: the recipe of {group.label} failed"
        continue
      prompts: dict[str, AnyPrompt] = {one.label: one.prompt for one in group.trainings}
      answers[group.label] = {
        name: list(self._measure(RETRAINED, name, prompts).values())
        for name in self._going_on()
      }
    for one in self.table.orders:
      for subject in one.printed:
        self._order(one, subject, answers, reasons)
    self.findings += orders_stage.order_findings(self.rows)

  def _going_on(self) -> list[str]:
    """The sets that no earlier stage stopped."""
    return [name for name in self.sets.names if name not in self.stopped]

  def _order(
    self,
    one: orders_stage.Order,
    subject: str,
    answers: Mapping[str, Mapping[str, Sequence[Measured]]],
    reasons: Mapping[str, str],
  ) -> None:
    """Adds the row of an order on a set or mean of sets, or why it was not run."""
    sets = self.table.means.get(subject, (subject,))
    why = ""
    for arm in (one.better, one.worse):
      if arm not in answers:
        missing = f"no training of {arm}: reproduce.runs has folders of finished ones"
        why = why or reasons.get(arm, missing)
    missing_sets = [name for name in sets if name not in self._going_on()]
    if missing_sets and not why:
      reason = self.stopped.get(missing_sets[0], "the set is not there")
      why = f"stopped: {', '.join(missing_sets)}: {reason}"
    if why:
      row = not_run(RETRAINED, subject, one.quantity, why, source=one.source)
    else:
      row = orders_stage.order_row(
        one,
        subject,
        sets,
        better=answers[one.better],
        worse=answers[one.worse],
        quick=self.quick,
      )
    self._add([row], ())

  def _seeds_target(
    self, subject: str, of: tuple[str, str] | None
  ) -> SeedsTarget | None:
    """Target of trainings on a set or mean of sets, and its source; None if there is
    none."""
    trained = self.record.get("trained", {})
    if trained:
      sets = self.table.means.get(subject, (subject,))
      seeds = np.mean([trained[name] for name in sets], axis=0)
      of_seeds = seeds_of(list(map(float, seeds)))
      return SeedsTarget(of_seeds, f"{RECORD}, {len(seeds)} seeds")
    target = self.table.target(of, subject)
    if target is None:
      return None
    figure = Seeds(target.value / 100, 0.0, 1)
    return SeedsTarget(figure, f"{target.table}, {target.row}")

  def _measure(
    self, stage: str, name: str, prompts: Mapping[str, AnyPrompt]
  ) -> dict[str, Measured]:
    """Measures prompts on a set, and lists digests of their answers for the report."""
    labelled = self.opened[name]
    digests = self.digests["sets"][name]
    parts = [digests[key] for key in ("pairs", "names", "content")]
    digest = fingerprint([*parts, self.stamps[name]])
    together: dict[str, AnyPrompt] = {label: label for label in self.table.controls}
    together |= self.prepared
    first = CONTROLS
    # Prompts that did not exist from the start, such as new trainings, are measured
    # apart.
    if not prompts.keys() <= together.keys():
      together = dict(prompts)
      first = stage
    piece = f"{first.lower().replace(' ', '_')}-{name}"
    measured = self.measurer.measure(piece, digest, labelled, together)
    for number, (label, one) in enumerate(measured.items()):
      if label not in prompts:
        continue
      self.answers.append(
        {
          "stage": stage,
          "set": name,
          "prompt": label,
          "piece": piece,
          "number": number,
          "images": one.n,
          "right": one.right,
          "digest": one.digest,
        }
      )
    self.measured[piece] = measured
    return {label: measured[label] for label in prompts}

  def _skip(self, stage: str, subject: str, label: str, why: str) -> None:
    quantity = controls_stage.quantity_of(label)
    self.rows.append(not_run(stage, subject, quantity, f"stopped: {why}"))

  def _add(self, rows: Any, findings: Any) -> None:
    self.rows += rows
    self.findings += findings

  def record_of(self) -> dict[str, Any]:
    """Content for a record of this table: digests, sketches, right answers."""
    sets: dict[str, Any] = {}
    for name, digests in self.digests["sets"].items():
      sets[name] = dict(digests)
      measured = self.measured.get(f"{CONTROLS.lower()}-{name}", {})
      sets[name]["controls"] = {
        label: {
          "right": one.right,
          "images": one.n,
          "answers": one.digest,
          "text_sketch": one.text_sketch,
        }
        for label, one in measured.items()
        if label in self.table.controls
      }
      for one in measured.values():
        sets[name]["image_sketch"] = one.image_sketch
    return {"table": self.table.name, "clip": self.digests["clip"], "sets": sets}


def seeds_to_train(
  replace: Callable[[Mapping[str, Any]], Any],
  recipe: Mapping[str, Any],
  n_seeds: int,
  folder: str,
) -> dict[str, Any]:
  """Configs of the seeds' trainings by folder, after the checks of `pretrain`.

  Args:
    replace: `replace` of the job's config, which has CLIP and mesh.
    recipe: fields of the training.
    n_seeds: number of seeds; the first seed is 0.
    folder: folder of the runs.

  Raises:
    ConfigError: the folder of a seed holds a training by another recipe, finished or
      not.
    InputError: the training can't start.
  """
  trainings = {}
  for seed in range(n_seeds):
    training = replace({"job": "pretrain", **recipe, "seed": seed})
    workdir = os.path.join(folder, f"seed_{seed}")
    validate(training)
    pretrain.check(training, workdir)
    trainings[workdir] = training
  return trainings


def retrain(trainings: Mapping[str, Any]) -> list[str]:
  """Trains the seeds that have not finished; returns the folders of all seeds.

  Args:
    trainings: result of `seeds_to_train`.
  """
  for workdir, training in trainings.items():
    log.info("training of seed %d", training.seed)
    pretrain.run(training, workdir)
  return list(trainings)
