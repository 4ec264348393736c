"""Stage 4, Retrained: recipes and seeds of trainings, and a one-sided test."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from pomp_jax.config.every_job import flatten
from pomp_jax.data.class_lists import ClassList
from pomp_jax.evaluate.named_prompts import AnyPrompt, describe, read_prompt
from pomp_jax.files.paths import exists
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json
from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.rows import FAIL, RETRAINED, Row, compared, not_run
from pomp_jax.rooms.reproduce.tables import OTHER_RECIPE_FIELDS, RECIPE_FIELDS
from pomp_jax.rooms.reproduce.tolerances import (
  Seeds,
  seeds_of,
  seeds_tolerance,
  t_reach,
)


class Training(NamedTuple):
  """A finished training."""

  label: str  # such as "seed 3"
  fields: Mapping[str, Any]  # dotted name -> value
  # the learned context, or the checkpoint's content for a method without a context
  prompt: AnyPrompt

  @property
  def digest(self) -> str:
    """Digest of what was learned."""
    return fingerprint(describe(self.prompt, _NO_CLASSES))


class TrainingGroup(NamedTuple):
  """Trainings that differ in the seed, and their recipe and target."""

  label: str  # "retrained", or the name of a method
  trainings: Sequence[Training]
  recipe: Mapping[str, Any]  # fields of the target's training by dotted name
  target: tuple[str, str] | None  # table and row; None if no target is printed
  why_not: str = ""  # why there are no trainings, or no target


# For `describe`: a digest of what was learned depends on no classes.
_NO_CLASSES = ClassList((), None, "", ())


class SeedsTarget(NamedTuple):
  """Figure that trainings are compared with, and its source."""

  seeds: Seeds  # one seed if a table prints a single number
  source: str  # where the figure is printed, or the record


def read_training(folder: str) -> Training:
  """Reads the config of a finished training, and the prompt that it learned.

  Raises:
    RunFolderError: the run has not finished.
    PromptFileError: the prompt can't be read.
    CheckpointError: the checkpoint of a method without a prompt file can't be read.
    ConfigError: the run learned for the classes of its training alone.
  """
  run = RunFolder(folder)
  if not exists(run.results):
    raise RunFolderError(f"{folder}: no results.json; expected a finished training")
  fields = flatten(read_json(run.config))
  label = f"seed {fields.get('seed')}"
  if exists(run.prompt):
    return Training(label, fields, load_prompt(run.prompt))
  return Training(label, fields, read_prompt(folder, "reproduce.runs").prompt)


def read_trainings(folder: str) -> list[Training]:
  """Reads a finished training, or every cell of a finished job `ablate`.

  Raises:
    RunFolderError: the run has not finished, or has no cells.
    InputError: a training can't be read, as in `read_training`.
  """
  run = RunFolder(folder)
  if not exists(run.results) or read_json(run.results).get("job") != "ablate":
    return [read_training(folder)]
  paths = sorted((run.path / "cells").glob("*.npz"))
  if not paths:
    raise RunFolderError(f"{folder}: no cells/*.npz; expected a finished ablation")
  trainings = []
  for path in paths:
    prompt = load_prompt(path)
    fields = flatten(prompt.config)
    trainings.append(Training(f"seed {fields.get('seed')}", fields, prompt))
  return trainings


def recipe_rows(group: TrainingGroup, of: str = "") -> tuple[list[Row], list[Finding]]:
  """Compares the trainings' fields with the recipe, and checks that no seed is reused.

  Args:
    group: trainings of at least one seed.
    of: name of the method, if a table has several.
  """
  trainings = group.trainings
  recipe = group.recipe
  suffix = f", {of}" if of else ""
  subject = f"recipe{suffix}"
  rows: list[Row] = []
  findings: list[Finding] = []
  for kind, names in RECIPE_FIELDS.items():
    for name in names:
      if name in recipe:
        row = _field_row(subject, name, group)
        rows.append(row)
        if row.status == FAIL:
          findings.append(_field_finding(kind, row))
  for kind, names in OTHER_RECIPE_FIELDS.items():
    for name in names:
      if name not in recipe:
        continue
      row = _field_row(subject, name, group)
      # Show these fields only if they differ: rows that pass would hide the rows of the
      # fields that a paper states.
      if row.status == FAIL:
        rows.append(row)
        findings.append(_field_finding(kind, row))
  seeds = len({one.fields.get("seed") for one in trainings})
  prompts = len({one.digest for one in trainings})
  expected = f"{len(trainings)} different"
  for quantity, count in (("seeds", seeds), ("prompts", prompts)):
    subject = f"seeds{suffix}"
    row = compared(RETRAINED, subject, quantity, expected, f"{count} different")
    rows.append(row._replace(why="equal trainings count once", n=len(trainings)))
    if row.status == FAIL and not any(one.kind == "seeds" for one in findings):
      text = f"{len(trainings)} trainings have {count} different {quantity}: reused"
      findings.append(finding(RETRAINED, "seeds", subject, text))
  return rows, findings


def _field_row(subject: str, name: str, group: TrainingGroup) -> Row:
  """Compares a field of the trainings with the recipe."""
  values = {_shown(one.fields.get(name)) for one in group.trainings}
  got = " and ".join(sorted(values))
  expected = _shown(group.recipe[name])
  row = compared(RETRAINED, subject, name, expected, got, source="the recipe")
  return row._replace(why="a field of the training")


def _field_finding(kind: str, row: Row) -> Finding:
  """Makes the finding of a field that differs from the recipe."""
  text = (
    f"{row.quantity} is {row.got} in the training, and {row.expected} in the recipe"
  )
  return finding(RETRAINED, kind, row.subject, text)


def _shown(value: Any) -> str:
  """A field's value as text; a tuple counts as a list, which JSON files store."""
  if isinstance(value, tuple):
    value = list(value)
  return str(value)


def seeds_row(
  subject: str,
  values: Float[np.ndarray, " seeds"],
  target: SeedsTarget | None,
  group: TrainingGroup,
  loose: bool,
) -> Row:
  """Tests a figure over seeds one-sidedly; without a target only reports the figure.

  Args:
    subject: set or mean of sets.
    values: our figure of each seed, fractions of 1.
    target: figure of the target; None if none is printed.
    group: the trainings.
    loose: whether `subject` is a single set.
  """
  ours = seeds_of([float(value) for value in values])
  quantity = f"top-1, {group.label}"
  if target is None:
    row = not_run(RETRAINED, subject, quantity, group.why_not, n=ours.n)
    return row._replace(got=ours.mean)
  expected, source = target
  theirs = expected if expected.n > 1 else None
  tolerance = seeds_tolerance(ours, theirs, loose)
  if tolerance is None:
    why = "one seed has no interval; train two or more"
    return not_run(
      RETRAINED, subject, quantity, why, expected=expected.mean, source=source
    )
  reach = t_reach(ours.n, ours.std)
  return compared(
    RETRAINED,
    subject,
    quantity,
    expected.mean,
    ours.mean,
    rule="at least",
    tolerance=tolerance.value,
    why=tolerance.why,
    n=ours.n,
    interval=(ours.mean - reach, ours.mean + reach),
    source=source,
  )


def training_finding(rows: Sequence[Row], of: str = "") -> Finding | None:
  """Finding of trainings that fail though their recipe is right; None if none fails.

  Args:
    rows: rows of one group of trainings.
    of: name of the method, if a table has several.
  """
  failing = [row for row in rows if row.status == FAIL]
  if not failing:
    return None
  names = ", ".join(row.subject for row in failing)
  what = f"trainings of {of}" if of else "trained prompts"
  text = f"the recipe is right, but {what} are worse than the target on {names}"
  return finding(RETRAINED, "training", names, text)
