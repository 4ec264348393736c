"""Classes of segmentation and detection sets, from packaged lists and users' files.

A line has the form

    name, synonym, ..  [TAB  base | novel | -]  [TAB  value, value, ..]

Prompts are learned on base classes; a class with "-" is in neither half. The values are
the class's pixel values in label images, for data sets that do not number their classes
0, 1, ..
Shape: C classes.
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
_LINES = ":lines"  # suffix of a list's name or path: commas are parts of names


@dataclasses.dataclass(frozen=True)
class ClassSplit:
  """Classes in the order of their labels."""

  # all names of each class; the first is the name of the class
  synonyms: tuple[tuple[str, ...], ...]
  groups: tuple[str, ...]  # C values of GROUPS
  # pixel values of each class in label images
  values: tuple[tuple[int, ...], ...] | None = None

  def __len__(self) -> int:
    return len(self.synonyms)

  @property
  def names(self) -> tuple[str, ...]:
    """The C class names."""
    return tuple(names[0] for names in self.synonyms)

  def indices(self, group: str) -> np.ndarray:
    """Numbers of the classes in a group: int64 [n]."""
    return np.flatnonzero(np.array(self.groups) == group)

  def not_novel(self) -> np.ndarray:
    """Numbers of the classes that a training may see: int64 [n]."""
    return np.flatnonzero(np.array(self.groups) != "novel")


def undivided(names: Sequence[str], group: str = "-") -> ClassSplit:
  """Classes of one name each, all of one group."""
  return ClassSplit(tuple((name,) for name in names), (group,) * len(names))


def read_class_split(name_or_path: str | os.PathLike) -> ClassSplit:
  """Reads a packaged list by name (`CLASS_SPLITS`), or a user's file.

  With the suffix ":lines" of the name or path, each line is one name: "road, route" is
  one text, as ZSSeg scores it.

  Raises:
    VocabularyError: the list is unknown, or a line has another form than above.
  """
  one_name_a_line = os.fspath(name_or_path).endswith(_LINES)
  path = _path_of(os.fspath(name_or_path).removesuffix(_LINES))
  rows = [line.split("\t") for line in read_lines(path)]
  n_columns = len(rows[0]) if rows else 0  # `check_names` refuses an empty list below
  for number, row in enumerate(rows, 1):
    if len(row) != n_columns or n_columns > 3:
      accepted = f"{n_columns} as in the first line" if n_columns < 4 else "1 to 3"
      raise VocabularyError(
        f"{path}: line {number} has {len(row)} columns, expected {accepted}"
      )
  synonyms = []
  groups = []
  for number, row in enumerate(rows, 1):
    texts = [row[0]] if one_name_a_line else row[0].split(",")
    names = tuple(text.strip() for text in texts)
    check_names(names, f"{path}: line {number}")
    group = row[1].strip() if n_columns > 1 else "-"
    if group not in GROUPS:
      raise VocabularyError(
        f"{path}: line {number} has the group {quoted(group)},"
        f" expected one of {', '.join(GROUPS)}"
      )
    synonyms.append(names)
    groups.append(group)
  check_names([names[0] for names in synonyms], str(path))
  values = None
  if n_columns > 2:
    values = _values(path, [row[2] for row in rows])
  return ClassSplit(tuple(synonyms), tuple(groups), values)


def _path_of(name: str) -> Path:
  """File of a packaged list or of a user's; VocabularyError for an unknown name."""
  if name in CLASS_SPLITS:
    return _FOLDER / f"{name}.txt"
  path = to_path(name)
  if not path.suffix and not exists(path):
    accepted = f"one of {', '.join(CLASS_SPLITS)}, or a file with one class a line"
    raise VocabularyError(f"unknown classes {quoted(name)}; expected {accepted}")
  return path


def _values(path: Path, cells: list[str]) -> tuple[tuple[int, ...], ...]:
  """Parses the pixel values of each class; VocabularyError unless all are different."""
  values: list[tuple[int, ...]] = []
  taken: set[int] = set()
  for number, cell in enumerate(cells, 1):
    words = [word.strip() for word in cell.split(",")]
    are_numbers = all(
      word.isascii() and word.isdigit() and len(word) < 6 for word in words
    )
    of_class = tuple(map(int, words)) if are_numbers else ()
    n_before = len(taken)
    taken.update(of_class)
    are_different = len(taken) == n_before + len(of_class)
    if not of_class or max(of_class) >= _MAX_VALUE or not are_different:
      raise VocabularyError(
        f"{path}: line {number} has the values {quoted(cell)},"
        f" expected different integers below {_MAX_VALUE}"
      )
    values.append(of_class)
  return tuple(values)
