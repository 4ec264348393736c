"""Infers causes from the pattern of failed accuracies, without any digest.

A measured signature triggers each rule. Rules are tried in order, and the first rule
that fits a set names the cause.

Shapes: n images, N classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

from pomp_jax.rooms.reproduce.digests import sketch_distance
from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.measure import Measured
from pomp_jax.rooms.reproduce.rows import CONTROLS, FAIL, Row, compared

# Relative distance of sketches from which features count as different: rounding moves
# a sketch by 1e-5, bfloat16 by 1e-2.
_OTHER_FEATURES = 1e-3
_FAR = 0.10  # relative gap of one set that preprocessing can't explain
_A_LITTLE = 0.10  # largest relative gap that resizing or precision explains
_MOST = 0.6  # share of a class's images that a swap of two classes has to explain


class SetEvidence(NamedTuple):
  """The controls of one set: rows, answers, and the record's sketches."""

  name: str
  # by label of the prompt
  rows: Mapping[str, Row]
  measured: Mapping[str, Measured]
  text_sketches: Mapping[str, Sequence[float]]  # empty: the record has none
  image_sketch: Sequence[float]  # empty: the record has none


def sketch_rows(one: SetEvidence) -> dict[str, Row]:
  """Compares sketches of a set's features with the record's sketches.

  Features may differ although every answer is equal.

  Args:
    one: the controls of a set.

  Returns:
    Rows by the features that they compare; empty if the record has no sketches.
  """
  distances: dict[str, float] = {}
  if one.image_sketch:
    got = next(iter(one.measured.values())).image_sketch
    distances["images"] = sketch_distance(got, one.image_sketch)
  for label, expected in one.text_sketches.items():
    if not expected:
      continue
    got = one.measured[label].text_sketch
    distances[f"names, {label}"] = sketch_distance(got, expected)
  rows = {}
  for label, distance in distances.items():
    rows[f"features of {label}"] = compared(
      CONTROLS,
      one.name,
      f"distance of features of {label}",
      0.0,
      round(distance, 6),
      rule="within",
      tolerance=_OTHER_FEATURES,
      why="a share of the features' norm; rounding moves them by 1e-5",
      source="record",
    )
  return rows


def diagnose(sets: Sequence[SetEvidence]) -> list[Finding]:
  """Names the causes of failed controls.

  Args:
    sets: every set whose controls were run, including sets that passed.
  """
  failing = [one for one in sets if _failed(one)]
  if not failing:
    return []
  found = _by_sketches(sets, failing)
  if found:
    return found
  if len(failing) == len(sets) and all(map(_at_chance, failing)):
    shifted = [_shift(one) for one in failing]
    if all(shift is not None for shift in shifted):
      # `or 0` only tells the type checker that the shift is not None.
      text = f"answers are the label {-(shifted[0] or 0):+d} on every set"
      return [finding(CONTROLS, "labels", "all sets", text)]
    text = (
      "every set is at chance under every prompt: random or damaged weights, or labels"
      " that mean nothing"
    )
    return [finding(CONTROLS, "weights", "all sets", text)]
  if len(failing) == len(sets) and len(sets) > 1:
    return [_all_sets(failing)]
  if len(failing) > 1 and 2 * len(failing) >= len(sets):
    gaps = [_gap(row) for one in failing for row in one.rows.values()]
    if max(map(abs, gaps)) <= _A_LITTLE:
      return [_all_sets(failing)]
  return [_one_set(one) for one in failing]


def _failed(one: SetEvidence) -> bool:
  rows = [*one.rows.values(), *sketch_rows(one).values()]
  return any(row.status == FAIL for row in rows)


def _by_sketches(
  sets: Sequence[SetEvidence], failing: Sequence[SetEvidence]
) -> list[Finding]:
  """Causes that show in the features; empty if the record has no sketches of them."""
  recorded = [one for one in sets if one.image_sketch]
  if not recorded:
    return []
  images = [one for one in recorded if _images_differ(one)]
  if images:
    if len(images) == len(recorded) and len(recorded) > 1:
      text = (
        "the features of images differ on every set, those of names do not:"
        " the same files become other pixels"
      )
      return [finding(CONTROLS, "preprocessing", "all sets", text)]
    return [
      finding(CONTROLS, "images", one.name, "the features of its images differ")
      for one in images
    ]
  labels: set[str] = set()
  for one in failing:
    labels |= {label for label in one.rows if _text_differs(one, label)}
  if not labels:
    return []
  every = {label for one in failing for label in one.rows}
  if labels == every and len(every) > 1:
    text = "the features of names differ under every prompt, those of images do not"
    return [finding(CONTROLS, "names", _subject(failing, sets), text)]
  shown = ", ".join(sorted(labels))
  text = (
    f"the features of names differ under {shown} alone, by other texts or averaging"
  )
  return [finding(CONTROLS, "templates", _subject(failing, sets), text)]


def _subject(failing: Sequence[SetEvidence], sets: Sequence[SetEvidence]) -> str:
  if len(failing) == len(sets) and len(sets) > 1:
    return "all sets"
  return ", ".join(one.name for one in failing)


def _images_differ(one: SetEvidence) -> bool:
  got = next(iter(one.measured.values())).image_sketch
  return sketch_distance(got, one.image_sketch) > _OTHER_FEATURES


def _text_differs(one: SetEvidence, label: str) -> bool:
  expected = one.text_sketches.get(label)
  if not expected:
    return False
  got = one.measured[label].text_sketch
  return sketch_distance(got, expected) > _OTHER_FEATURES


def _gap(row: Row) -> float:
  """Relative difference: (got - expected) / expected."""
  assert isinstance(row.got, float) and isinstance(row.expected, float)
  return (row.got - row.expected) / max(row.expected, 1e-9)


def _at_chance(one: SetEvidence) -> bool:
  """Whether every prompt's accuracy is near chance.

  Near chance is up to three times chance, or three standard errors above chance.
  """
  for measured in one.measured.values():
    chance = 1 / measured.n_classes
    reach = 3 * (chance * (1 - chance) / measured.n) ** 0.5
    if measured.top1 > max(3 * chance, chance + reach):
      return False
  return True


def _shift(one: SetEvidence) -> int | None:
  """The most frequent difference of label and answer, modulo the classes; None if no
  difference stands out."""
  measured = next(iter(one.measured.values()))
  ahead_n = (measured.labels - measured.answers) % measured.n_classes
  values, counts = np.unique(ahead_n[ahead_n != 0], return_counts=True)
  if not len(values):
    return None
  best = int(np.argmax(counts))
  # Ordinary errors spread over all differences, about `chance` images for each.
  chance = measured.n / measured.n_classes
  if counts[best] < max(6 * chance, 0.1 * measured.n):
    return None
  # A difference beyond half of the classes is a shift downwards.
  value = int(values[best])
  return value if value <= measured.n_classes // 2 else value - measured.n_classes


def _all_sets(failing: Sequence[SetEvidence]) -> Finding:
  """Rules for a failure that many sets have in common."""
  labels = list(failing[0].rows)
  bad = {
    label for label in labels if all(one.rows[label].status == FAIL for one in failing)
  }
  passed = {
    label for label in labels if all(one.rows[label].status != FAIL for one in failing)
  }
  if bad and passed:
    text = f"{', '.join(sorted(bad))} fails, {', '.join(sorted(passed))} does not"
    return finding(CONTROLS, "templates", "all sets", text)
  gaps = [_gap(row) for one in failing for row in one.rows.values()]
  largest = max(map(abs, gaps))
  mean = float(np.mean(gaps))
  if largest <= _A_LITTLE:
    text = (
      f"every set is off by a little ({100 * mean:+.1f}% of its accuracy on average)"
    )
    text += ": resizing or precision"
    return finding(CONTROLS, "preprocessing", "all sets", text)
  text = f"every set is far off ({100 * mean:+.0f}% of its accuracy on average)"
  text += ": normalisation of the pixels, or the weights"
  return finding(CONTROLS, "preprocessing", "all sets", text)


def _one_set(one: SetEvidence) -> Finding:
  """Rules for a set that fails while other sets pass."""
  shift = _shift(one)
  if shift is not None and _at_chance(one):
    text = f"labels are the answers {shift:+d}: shifted"
    return finding(CONTROLS, "labels", one.name, text)
  measured = next(iter(one.measured.values()))
  swapped = _swapped(measured)
  if swapped:
    first, second = swapped
    text = f"classes {first} and {second} are taken for each other: swapped"
    return finding(CONTROLS, "labels", one.name, text)
  if _at_chance(one):
    text = "at chance, while other sets are right: its labels, or images of another set"
    return finding(CONTROLS, "labels", one.name, text)
  failing = [label for label, row in one.rows.items() if row.status == FAIL]
  if len(failing) < len(one.rows):
    text = f"{', '.join(failing)} fails, the other prompts pass"
    return finding(CONTROLS, "templates", one.name, text)
  gap = float(np.mean([_gap(row) for row in one.rows.values()]))
  if measured.n != (next(iter(one.rows.values())).n or measured.n):
    return finding(CONTROLS, "split", one.name, "another number of images")
  if gap < -_FAR:
    text = f"{100 * gap:+.0f}% of its accuracy, while other sets are right"
    return finding(CONTROLS, "names", one.name, f"{text}: its names, or its split")
  text = f"{100 * gap:+.1f}% of its accuracy under every prompt: its split or labels"
  return finding(CONTROLS, "split", one.name, text)


def _swapped(measured: Measured) -> tuple[int, int] | None:
  """Two classes that are mostly taken for each other; None if there are none."""
  n = measured.n_classes
  # A matrix of more classes would take too much memory.
  counts_NxN = np.zeros((n, n), int) if n <= 2000 else None
  if counts_NxN is None:
    return None
  np.add.at(counts_NxN, (measured.labels, measured.answers), 1)
  sizes_N = np.maximum(counts_NxN.sum(1), 1)
  taken: Int[np.ndarray, " N"] = counts_NxN.argmax(1)
  for first in range(n):
    second = int(taken[first])
    if second <= first or int(taken[second]) != first:
      continue
    share = min(
      counts_NxN[first, second] / sizes_N[first],
      counts_NxN[second, first] / sizes_N[second],
    )
    if share >= _MOST:
      return first, second
  return None
