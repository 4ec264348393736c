"""Mutants: which there are, the tests that they are shown to, and the sample of the
day."""

from math import comb
import pathlib
import re
import subprocess
import sys

from cosmic_ray.mutating import mutate_code
import pytest

from tests.mutants.listing import (
  ROOMS,
  ROOT,
  Room,
  all_mutants,
  change_of,
  draw,
  equivalents,
  is_equivalent,
  mutants_of,
  shown_to,
)
from tests.mutants.operators import OWN
from tests.mutants.session import is_below

_SOURCE = """\
import dataclasses
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  Number = 1 | 2


@dataclasses.dataclass(frozen=True)
class Limit:
  '''Below 3.'''

  value: int | float = 3

  @functools.cache
  def holds(self, *, other: int | None) -> int | None:
    if other is None:
      raise ValueError(f"more than {self.value - 1}, {other is None}")
    log.info("below %d", self.value + 2)
    return other < self.value
"""


def _written(tmp_path: pathlib.Path) -> pathlib.Path:
  source = pathlib.Path("pomp_jax", "prompt", "limits.py")
  (tmp_path / source).parent.mkdir(parents=True)
  (tmp_path / source).write_text(_SOURCE)
  return source


@pytest.mark.parametrize("operator", OWN.values())
def test_our_operators_make_their_examples(operator):
  for example in operator.examples():
    made = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
    assert made == example.post_mutation_code


def test_annotations_messages_caches_and_declarations_are_not_mutated(tmp_path):
  source = _written(tmp_path)
  changes = [change_of(mutant, tmp_path) for mutant in mutants_of(source, tmp_path)]
  assert {(change.function, change.line, change.becomes) for change in changes} == {
    ("", "@dataclasses.dataclass(frozen=True)", ""),
    ("Limit", "value: int | float = 3", "value: int | float = 4"),
    ("Limit", "value: int | float = 3", "value: int | float = 2"),
    ("holds", "if other is None:", "if other is not None:"),
    ("holds", "if other is None:", "if not other is None:"),
    ("holds", "return other < self.value", "return other <= self.value"),
  }


def test_a_dotted_exception_is_not_replaced(tmp_path):
  source = _written(tmp_path)
  (tmp_path / source).write_text("try:\n  x\nexcept (OSError, zlib.error):\n  pass\n")
  changes = [change_of(mutant, tmp_path) for mutant in mutants_of(source, tmp_path)]
  assert [change.becomes for change in changes] == [
    "except (CosmicRayTestingException, zlib.error):"
  ]


def test_an_equivalent_mutant_stays_one_when_lines_move(tmp_path):
  source = _written(tmp_path)
  known = {
    change_of(mutant, tmp_path): "a reason" for mutant in mutants_of(source, tmp_path)
  }
  (tmp_path / source).write_text(
    "# One more line.\n" + _SOURCE.replace("value: int", "value:  int")
  )
  listed = [
    is_equivalent(mutant, known, tmp_path) for mutant in mutants_of(source, tmp_path)
  ]
  assert sorted(listed) == 2 * [False] + 4 * [True]


def test_each_equivalent_mutant_has_its_line_and_a_reason():
  for change, reason in equivalents().items():
    lines = [line.strip() for line in (ROOT / change.file).read_text().splitlines()]
    assert change.line in lines, change
    assert change.becomes != change.line and len(reason) > 20, change


def test_a_sample_is_drawn_by_its_seed(monkeypatch):
  monkeypatch.setitem(ROOMS, "one", Room(("prompt/mesh.py",), (), 1.0))
  mutants = all_mutants("one")
  assert len(mutants) > 5
  assert draw("one", 5, "1") == draw("one", 5, "1") != draw("one", 5, "2")
  assert sorted(map(str, draw("one", len(mutants) + 1, "1"))) == sorted(
    map(str, mutants)
  )


@pytest.mark.parametrize(
  "source, whole_room, first, others",
  [
    (
      "prompt/loss.py",
      False,
      "tests/prompt/test_loss.py",
      {"tests/prompt/sampling/test_samplers.py"},
    ),
    (
      "prompt/loss.py",
      True,
      "tests/prompt/test_loss.py",
      {"tests/prompt/test_bank.py"},
    ),
    (
      "prompt/sampling/without_replacement.py",
      False,
      "tests/prompt/sampling/test_without_replacement.py",
      set(),
    ),
    (
      "clip/attention.py",
      False,
      "tests/clip/test_packed.py",
      {"tests/clip/test_towers.py"},
    ),
  ],
)
def test_the_nearest_tests_come_first(source, whole_room, first, others):
  mutant = next(mutants_of(pathlib.Path("pomp_jax", source)))
  tests = shown_to(mutant, whole_room=whole_room)
  assert tests[0] == first and others <= set(tests) and len(set(tests)) == len(tests)
  assert whole_room == ("tests/prompt/test_context.py" in tests)


def test_a_small_sample_may_be_below_its_bar_by_chance():
  for n_seen, n_tested, bar in [
    (12, 20, 0.85),
    (13, 20, 0.85),
    (3, 10, 0.75),
    (4, 10, 0.75),
  ]:
    terms = [
      comb(n_tested, k) * bar**k * (1 - bar) ** (n_tested - k)
      for k in range(n_seen + 1)
    ]
    assert is_below(n_seen, n_tested, bar) == (sum(terms) < 0.01)
  assert is_below(12, 20, 0.85) and not is_below(13, 20, 0.85)
  assert not is_below(0, 0, 0.85)


@pytest.mark.slow("seconds of parsing; the test of its line is of the first tier")
def test_each_equivalent_mutant_is_one():
  known = equivalents()
  mutants = [mutant for room in ROOMS for mutant in all_mutants(room)]
  assert {
    change_of(mutant) for mutant in mutants if is_equivalent(mutant, known)
  } == set(known)


@pytest.mark.slow("minutes of mutants, each shown to the tests of its package")
def test_the_sample_of_the_day(tmp_path):
  session = f"--session={tmp_path / 'session.sqlite'}"
  command = [sys.executable, "-m", "tests.mutants", "--minutes=5", session]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  print(found.stdout)
  assert found.returncode == 0, found.stdout + found.stderr
  assert re.search(r"^prompt +\d+", found.stdout, re.MULTILINE)
