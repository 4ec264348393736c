"""Fuzzing of readers: damaged files, edited JSON, and a monitor of what a reader does
with them.

A reader must return a valid value or raise an error that it documents, with a message
of one line. It must neither unpickle anything nor open a file outside the given
folders.
"""

from collections.abc import Iterator, Sequence
import contextlib
import copy
import json
import os
import pathlib
import pickle
import sys
import sysconfig
import threading
from typing import Any

from hypothesis import strategies as st

# JSON that `json.dumps` can't write, by its placeholder.
_TEXTS = {
  '"HUGE NUMBER"': "9" * 5000,
  '"DEEP"': "[" * 900 + "]" * 900,
  '"DEEPER"': '{"a":' * 50_000 + "1" + "}" * 50_000,
}
_PLACEHOLDERS = [json.loads(text) for text in _TEXTS]
# Letters that break lines, terminals and encodings.
AWKWARD = [
  "",
  " ",
  "\n",
  "\x00",
  "\x1b[2J",
  "\x85",
  "\u2028",
  "\ud800",
  "\ufeff",
  "_",
  "é",
  "{}",
]
_NUMBERS = [
  0,
  1,
  -1,
  2**31,
  2**63,
  2**64,
  -(2**63),
  10**30,
  0.5,
  float("nan"),
  float("inf"),
]

awkward_text = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=8), max_size=4).map(
  "".join
)


def json_values(*words: str) -> st.SearchStrategy[Any]:
  """Draws small JSON values; `words` are keys and strings that the reader knows."""
  text = st.sampled_from(words) | awkward_text if words else awkward_text
  plain = (
    st.none() | st.booleans() | st.sampled_from([*_NUMBERS, *_PLACEHOLDERS]) | text
  )
  return st.recursive(
    plain,
    lambda inner: (
      st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
    ),
    max_leaves=8,
  )


@st.composite
def edited_json(draw: st.DrawFn, valid: Any, *words: str) -> bytes:
  """Draws an encoded JSON value with some parts replaced, removed or duplicated."""
  value = copy.deepcopy(valid)
  for _ in range(draw(st.integers(0, 3))):
    value = _edit(draw, value, json_values(*words))
  text = json.dumps(value)
  for placeholder, real in _TEXTS.items():
    text = text.replace(placeholder, real)
  return text.encode(
    draw(st.sampled_from(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-32-le"]))
  )


def _edit(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any]) -> Any:
  places = list(_places(value))
  if not places or draw(st.integers(0, 9)) == 0:
    return draw(values)
  holder, key = draw(st.sampled_from(places))
  action = draw(st.sampled_from(["replace", "replace", "remove", "duplicate"]))
  if action == "replace":
    holder[key] = draw(values)
  elif action == "remove":
    del holder[key]
  elif isinstance(holder, list):
    holder.insert(key, copy.deepcopy(holder[key]))
  return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
  """Yields every container in a value with each of its keys."""
  if isinstance(value, dict | list):
    for key in list(value) if isinstance(value, dict) else range(len(value)):
      yield value, key
      yield from _places(value[key])


@st.composite
def damaged(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
  """Draws one of the valid files after a few edits, or random bytes."""
  data = bytearray(draw(st.sampled_from(valid) | st.binary(max_size=64)))
  for _ in range(draw(st.integers(0, 4))):
    where = draw(st.integers(0, max(0, len(data) - 1)))
    accident = draw(
      st.sampled_from(["flip", "flip", "set", "insert", "delete", "cut", "repeat"])
    )
    if accident == "flip" and data:
      data[where] ^= 1 << draw(st.integers(0, 7))
    elif accident == "set":
      new = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8]))
      data[where : where + len(new)] = new
    elif accident == "insert":
      data[where:where] = draw(st.binary(max_size=16))
    elif accident == "delete":
      del data[where : where + draw(st.integers(1, 64))]
    elif accident == "cut":
      del data[where:]
    elif accident == "repeat":
      data[where:where] = data[where : where + draw(st.integers(1, 64))]
  return bytes(data)


class Bomb:
  """An object whose unpickling creates a folder."""

  def __init__(self, folder: pathlib.Path):
    self._folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self._folder,)


def bombs(folder: pathlib.Path) -> list[bytes]:
  """Returns pickles of every protocol that create a folder, bare and nested."""
  values = [Bomb(folder), {"state_dict": {"ctx": Bomb(folder)}}, [Bomb(folder)]]
  protocols = range(pickle.HIGHEST_PROTOCOL + 1)
  return [pickle.dumps(value, protocol) for value in values for protocol in protocols]


# Paths that any code may open: Python, installed packages, this package, devices.
_OURS = str(pathlib.Path(__file__).resolve().parent.parent.parent / "pomp_jax")
_PACKAGES = [path for path in sys.path if path.endswith("site-packages")]
_PYTHON = {*sysconfig.get_paths().values(), *_PACKAGES, sys.prefix, sys.base_prefix}
_OPEN_TO_ALL = (*map(os.path.realpath, _PYTHON), _OURS, "/dev/", "/proc/", "/sys/")
_watching: list[tuple[tuple[str, ...], set[int], list[str]]] = []


def _note(event: str, arguments: tuple) -> None:
  if not _watching:
    return
  folders, others, seen = _watching[-1]
  if threading.get_ident() in others:
    return
  if event == "pickle.find_class":
    seen.append(f"unpickles {arguments}")
  elif event == "open" and not isinstance(arguments[0], int):
    name = os.fsdecode(arguments[0])
    path = os.path.realpath(name)
    # Python looks up the source line of a syntax error under these names.
    if name in ("<string>", "<unknown>"):
      return
    if not path.startswith(folders) and not path.startswith(_OPEN_TO_ALL):
      seen.append(f"opens {path}")


sys.addaudithook(_note)


@contextlib.contextmanager
def allowed_errors(
  *errors: type[Exception], within: Sequence[os.PathLike]
) -> Iterator[None]:
  """Checks a reader: it may raise `errors` with one line, and open files in `within`
  only."""
  folders = tuple(os.path.realpath(folder) for folder in within)
  # Threads of earlier tests, such as image prefetchers, are ignored.
  others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
  seen: list[str] = []
  _watching.append((folders, others, seen))
  try:
    yield
  except errors as error:
    message = str(error)
    assert message and message.isprintable(), repr(message)
  finally:
    _watching.pop()
  assert not seen, seen
