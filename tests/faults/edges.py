"""Campaign of damaged caches, images and prompts, and hostile files, as a table.

  python -m tests.faults.edges                    all kinds
  python -m tests.faults.edges --only=image,npz   the kinds with these words in their names

Every trial is seeded. Outcomes of a file:

  refused       one line names it, and it is not used
  left out      an unreadable image; a cache that is computed again, with a warning
  harmless      exactly what was written is read
  other pixels  another picture, of a format without checksums
  WRONG         anything else: other values, another exception, a program that is started

Exit status 1 if anything is wrong, or a trial takes more memory than PEAK_MIB.
"""

import os

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import collections
from collections.abc import Callable, Iterator
import contextlib
import io
import json
import pathlib
import re
import sys
import tempfile
import time
import warnings

import numpy as np
from PIL import Image

from pomp_jax.data.class_lists import VocabularyError, read_names
from pomp_jax.data.images import ImageError, decode_image, load_rgb, open_image
from pomp_jax.files.class_features import CategoryFileError, read_categories
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from tests.faults import damaged_caches, hostile_files

# The largest image takes 320 MiB in Pillow: as it is stored, and in RGB.
PEAK_MIB = 350
OUTCOMES = ("refused", "left out", "harmless", "other pixels", "WRONG")

Trials = Iterator[tuple[str, Callable[[], str]]]


def kinds(seed: int, folder: pathlib.Path, n: int) -> dict[str, Callable[[], Trials]]:
  """Returns functions by name of the kind that yield descriptions and trials.

  Args:
    seed: seed of files and damage.
    folder: empty folder for files.
    n: number of trials per kind of damaged file.
  """
  found: dict[str, Callable[[], Trials]] = {}

  def add(name: str, trials: Callable[..., Trials], *arguments: object) -> None:
    rng = np.random.default_rng([seed, len(found)])
    found[name] = lambda: trials(rng, *arguments)

  for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
    add(f"image, {kind}, damaged", _damaged_images, kind, n)
  add("image, deep grey", _deep_greys)
  add("image, grey without a scale", _unreadable_images, hostile_files.greys_without_a_scale)
  add("image, hostile", _unreadable_images, hostile_files.images)
  add("image, the largest that is read", _largest)
  for suffix in ("npz", "pth", "safetensors"):
    add(f"prompt, {suffix}, damaged", _damaged_prompts, folder / f"prompt.{suffix}", n)
  add("prompt, npz, hostile", _hostile_archives, folder / "hostile.npz")
  add("prompt, pth, hostile", _hostile_pickles, folder / "hostile.pth")
  add("names, hostile", _hostile_names, folder / "names.txt")
  add("categories, hostile", _hostile_categories, folder / "categories.json")
  return found


def damaged(content: bytes, rng: np.random.Generator, n: int) -> Iterator[tuple[str, bytes]]:
  """Yields a file with a bit flipped, truncated, or with a stretch overwritten, in turn."""
  for number in range(n):
    where = int(rng.integers(len(content)))
    if number % 3 == 0:
      yield "bit flipped", _replaced(content, where, bytes([content[where] ^ 1 << rng.integers(8)]))
    elif number % 3 == 1:
      yield "cut off", content[:where]
    else:
      yield "overwritten", _replaced(content, where, rng.bytes(32))


def _replaced(content: bytes, where: int, part: bytes) -> bytes:
  return (content[:where] + part + content[where + len(part) :])[: len(content)]


def _damaged_images(rng: np.random.Generator, kind: str, n: int) -> Trials:
  y, x = np.mgrid[:90, :120]
  waves = 127 + 120 * np.sin(x[..., None] / [9, 14, 23] + y[..., None] / 11)
  image = Image.fromarray((waves + rng.normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8))
  file = io.BytesIO()
  image.save(file, kind)
  content = file.getvalue()
  expected = decode_image(content, "x", 64)
  for how, bad in damaged(content, rng, n):
    yield how, lambda bad=bad: _image(bad, expected)


def _image(content: bytes, expected: np.ndarray | None) -> str:
  """Reads an image as tests and as views do; both must agree."""
  with _no_program(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      found = decode_image(content, "x.jpg", 64)
    except ImageError as error:
      found = None
      assert str(error).isprintable() and len(str(error)) < 500, error
    try:
      whole, _ = load_rgb(open_image(content, "x.jpg"), "x.jpg")
    except ImageError:
      # One of them alone may refuse its size.
      return "left out" if found is None else "WRONG"
  if found is None:
    return "left out" if max(whole.size) > 50 * min(whole.size) else "WRONG"
  if whole.mode != "RGB" or (found.shape, found.dtype) != ((64, 64, 3), np.uint8):
    return "WRONG"
  return "harmless" if np.array_equal(found, expected) else "other pixels"


def _deep_greys(rng: np.random.Generator) -> Trials:
  for how, content, expected in hostile_files.deep_greys(rng):
    yield how, lambda content=content, expected=expected: _scaled(content, expected)


def _scaled(content: bytes, expected: np.ndarray) -> str:
  found, _ = load_rgb(open_image(content, "x.jpg"), "x.jpg")
  same = np.array_equal(found, np.repeat(expected[..., None], 3, axis=-1))
  return "harmless" if same else "WRONG"


def _unreadable_images(rng: np.random.Generator, make: Callable) -> Trials:
  for how, content in make(rng):
    yield how, lambda content=content: _left_out(content)


def _left_out(content: bytes) -> str:
  outcome = _image(content, None)
  return outcome if outcome == "left out" else "WRONG"


def _largest(rng: np.random.Generator) -> Trials:
  file = io.BytesIO()
  Image.new("1", (8192, 8192)).save(file, "PNG")
  content, black = file.getvalue(), np.zeros((64, 64, 3), np.uint8)
  yield "8192 x 8192", lambda: _image(content, black)


def _damaged_prompts(rng: np.random.Generator, path: pathlib.Path, n: int) -> Trials:
  context = rng.normal(0, 0.02, (4, 32)).astype(np.float32)
  prompt = Prompt(context, "a/clip", "middle", "{}.", {"seed": 1})
  save_prompt(path, prompt)
  for how, bad in damaged(path.read_bytes(), rng, n):
    yield how, lambda bad=bad: _prompt(path, bad, prompt)


def _prompt(path: pathlib.Path, content: bytes, expected: Prompt | None) -> str:
  path.write_bytes(content)
  try:
    found = load_prompt(path)
  except PromptFileError as error:
    return _refused(error, path)
  if expected is None:
    return "WRONG"
  texts = [(p.clip_model, p.position, p.template, p.config) for p in (found, expected)]
  same = texts[0] == texts[1] and np.array_equal(found.context, expected.context)
  return "harmless" if same else "WRONG"


def _hostile_archives(rng: np.random.Generator, path: pathlib.Path) -> Trials:
  for how, content in hostile_files.archives():
    yield how, lambda content=content: _prompt(path, content, None)


def _hostile_pickles(rng: np.random.Generator, path: pathlib.Path) -> Trials:
  for how, content in hostile_files.pickles(path.parent / "made by a pickle"):
    yield how, lambda content=content: _pickle(path, content)


def _pickle(path: pathlib.Path, content: bytes) -> str:
  outcome = _prompt(path, content, None)
  return "WRONG" if (path.parent / "made by a pickle").exists() else outcome


def _hostile_names(rng: np.random.Generator, path: pathlib.Path) -> Trials:
  for how, content in hostile_files.lists_of_names(rng):
    yield how, lambda content=content: _names(path, content)


def _names(path: pathlib.Path, content: bytes) -> str:
  path.write_bytes(content)
  try:
    read_names(path)
  except VocabularyError as error:
    return _refused(error, path)
  return "WRONG"


def _hostile_categories(rng: np.random.Generator, path: pathlib.Path) -> Trials:
  for name in ("a\x1b[2Jb", "\x9bm", "", "_", "\ud800", "x\0", None, 3, ["a"]):
    rows = [{"id": 1, "name": "cat"}, {"id": 2, "name": name}]
    yield repr(name), lambda rows=rows: _categories(path, rows)


def _categories(path: pathlib.Path, rows: list[dict]) -> str:
  path.write_text(json.dumps({"categories": rows}))
  try:
    read_categories(path)
  except CategoryFileError as error:
    return _refused(error, path)
  return "WRONG"


def _refused(error: Exception, path: pathlib.Path) -> str:
  """Checks for one short line that names the file."""
  line = str(error)
  named = line.startswith(str(path)) and line.isprintable() and len(line) < 1000
  return "refused" if named else "WRONG"


@contextlib.contextmanager
def _no_program() -> Iterator[None]:
  """Raises if a program is started."""
  started = len(_started)
  yield
  if len(_started) > started:
    raise RuntimeError(f"starts {_started[-1]}")


_started: list[str] = []
sys.addaudithook(
  lambda event, arguments: (
    _started.append(str(arguments)) if event in ("subprocess.Popen", "os.system") else None
  )
)


def measured(trial: Callable[[], str]) -> tuple[str, float | None]:
  """Returns a trial's outcome, and the rise of memory in MiB; None where Linux does not tell."""
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
  except OSError:
    before = None
  try:
    outcome = trial()
  except Exception as error:  # the campaign looks for these
    print(f"{type(error).__name__}: {error}"[:500], flush=True)
    outcome = "WRONG"
  return outcome, None if before is None else max(0.0, _memory("VmHWM") - before)


def _memory(field: str) -> float:
  text = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024


class Row:
  """Outcomes of the trials of a kind."""

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self.peak: float | None = None

  def add(self, outcome: str, peak: float | None) -> None:
    """Counts a trial."""
    self.counts[{"recomputed": "left out"}.get(outcome, outcome)] += 1
    self.peak = peak if self.peak is None else max(self.peak, peak or 0.0)

  @property
  def good(self) -> bool:
    """Whether no outcome is wrong and no peak too high."""
    return not self.counts["WRONG"] and (self.peak or 0.0) <= PEAK_MIB

  def text(self, name: str) -> str:
    """Formats a row of the table."""
    numbers = " | ".join(str(self.counts[outcome]) for outcome in OUTCOMES)
    peak = "" if self.peak is None else f"{self.peak:.0f}"
    return f"| {name} | {self.counts.total()} | {numbers} | {peak} |"


def run_kind(trials: Trials) -> Row:
  """Runs all trials of a kind."""
  row = Row()
  for how, trial in trials:
    outcome, peak = measured(trial)
    if outcome == "WRONG" or (peak or 0.0) > PEAK_MIB:
      print(f"{how}: {outcome}, {peak} MiB", flush=True)
    row.add(outcome, peak)
  return row


def _caches(seed: int, folder: pathlib.Path) -> dict[str, Row]:
  """Runs the trials of `damaged_caches`, by file."""
  rows: dict[str, Row] = collections.defaultdict(Row)
  trials = damaged_caches.trials(seed, folder)
  while True:
    found: list[tuple[str, str]] = []

    def step(found=found) -> str:
      found += [next(trials, ("", ""))]
      return found[0][1]

    outcome, peak = measured(step)
    kind = found[0][0] if found else "caches"
    if not kind:
      return rows
    rows[f"cache, {kind.rpartition(', ')[0]}"].add(outcome, peak)
    if not found:
      return rows  # the generator raised


def main() -> int:
  """Runs the campaign, and prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", default="", help="words, separated by commas")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--trials", type=int, default=30, help="of each kind of damaged file")
  arguments = parser.parse_args()
  words = [word.lower() for word in arguments.only.split(",")]
  start, rows = time.monotonic(), {}
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    for name, trials in kinds(arguments.seed, folder, arguments.trials).items():
      if any(word in name.lower() for word in words):
        rows[name] = run_kind(trials())
    if any(word in "cache" for word in words):
      (folder / "caches").mkdir()
      rows |= _caches(arguments.seed, folder / "caches")
  print(f"\n| file | trials | {' | '.join(OUTCOMES).lower()} | peak MiB |")
  print("| --- |" + " --- |" * (len(OUTCOMES) + 2))
  print("\n".join(row.text(name) for name, row in rows.items()))
  total = sum(row.counts.total() for row in rows.values())
  seconds = time.monotonic() - start
  print(f"\n{total} trials in {seconds:.0f} s, seed {arguments.seed}")
  return 0 if all(row.good for row in rows.values()) else 1


if __name__ == "__main__":
  sys.exit(main())
