"""Classes of segmentation and detection sets; C classes. Packaged lists and files have
the form

    name, synonym, ..  [TAB  base | novel | -]  [TAB  value, value, ..]

Prompts are learned on base classes; "-" is in neither half. The values are those of the
class's pixels in label images, for data sets that do not number their classes 0, 1, ..
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib

import numpy as np

from pomp_jax.data.class_lists import VocabularyError, check_names, read_lines
from pomp_jax.files.paths import Path, exists, to_path
from pomp_jax.files.terminal import quoted

_FOLDER = pathlib.Path(__file__).with_name("splits")
CLASS_SPLITS = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))
GROUPS = ("base", "novel", "-")
_MAX_VALUE = 2**16  # label images have 8 or 16 bits
# Behind a list's name or path: commas are parts of names.
_LINES = ":lines"


@dataclasses.dataclass(frozen=True)
class ClassSplit:
  """Classes in the order of their labels."""

  synonyms: tuple[tuple[str, ...], ...]  # of each class; the first is the class's name
  groups: tuple[str, ...]  # C values of GROUPS
  values: tuple[tuple[int, ...], ...] | None = None  # of each class in label images

  def __len__(self) -> int:
    return len(self.synonyms)

  @property
  def names(self) -> tuple[str, ...]:
    """The C class names."""
    return tuple(names[0] for names in self.synonyms)

  def indices(self, group: str) -> np.ndarray:
    """Classes of a group: int64 [n]."""
    return np.flatnonzero(np.array(self.groups) == group)

  def not_novel(self) -> np.ndarray:
    """Classes that a training may see: int64 [n]."""
    return np.flatnonzero(np.array(self.groups) != "novel")


def undivided(names: Sequence[str], group: str = "-") -> ClassSplit:
  """Classes of one name each, all of one group."""
  return ClassSplit(tuple((name,) for name in names), (group,) * len(names))


def read_class_split(name_or_path: str | os.PathLike) -> ClassSplit:
  """Reads a packaged list by name (`CLASS_SPLITS`), or a user's file.

  Behind either, ":lines" makes each line one name: "road, route" is one text, as ZSSeg
  scores it.
  """
  whole = os.fspath(name_or_path).endswith(_LINES)
  name_or_path = os.fspath(name_or_path).removesuffix(_LINES)
  packaged = name_or_path in CLASS_SPLITS
  path = _FOLDER / f"{name_or_path}.txt" if packaged else to_path(name_or_path)
  if not packaged and not path.suffix and not exists(path):
    accepted = f"one of {', '.join(CLASS_SPLITS)}, or a file with one class a line"
    raise VocabularyError(
      f"unknown classes {quoted(str(name_or_path))}; expected {accepted}"
    )
  rows = [line.split("\t") for line in read_lines(path)]
  for number, row in enumerate(rows, 1):
    if len(row) != len(rows[0]) or len(row) > 3:
      accepted = (
        f"{len(rows[0])} as in the first line" if len(rows[0]) < 4 else "1 to 3"
      )
      raise VocabularyError(
        f"{path}: line {number} has {len(row)} columns, expected {accepted}"
      )
  texts = [[row[0]] if whole else row[0].split(",") for row in rows]
  synonyms = tuple(tuple(map(str.strip, names)) for names in texts)
  groups = tuple(row[1].strip() if len(row) > 1 else "-" for row in rows)
  for number, (names, group) in enumerate(zip(synonyms, groups, strict=True), 1):
    check_names(names, f"{path}: line {number}")
    if group not in GROUPS:
      found = f"line {number} has the group {quoted(group)}"
      raise VocabularyError(f"{path}: {found}, expected one of {', '.join(GROUPS)}")
  check_names([names[0] for names in synonyms], str(path))
  values = _values(path, [row[2] for row in rows]) if len(rows[0]) > 2 else None
  return ClassSplit(synonyms, groups, values)


def _values(path: Path, cells: list[str]) -> tuple[tuple[int, ...], ...]:
  values: list[tuple[int, ...]] = []
  seen: set[int] = set()
  for number, cell in enumerate(cells, 1):
    words = [word.strip() for word in cell.split(",")]
    valid = all(word.isascii() and word.isdigit() and len(word) < 6 for word in words)
    own = tuple(map(int, words)) if valid else ()
    if not own or max(own) >= _MAX_VALUE or len(seen | {*own}) < len(seen) + len(own):
      found = f"line {number} has the values {quoted(cell)}"
      raise VocabularyError(
        f"{path}: {found}, expected different integers below {_MAX_VALUE}"
      )
    values.append(own)
    seen.update(own)
  return tuple(values)
