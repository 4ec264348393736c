"""Damage to stored files between two starts: none is silent, and none ends every start.

A trial damages one file of unfinished work, or swaps two, and starts the work again. A
start may end with one line that names the file; one of the first three finishes with
what undamaged files lead to.
"""

from collections.abc import Callable
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from pomp_jax.errors import InputError, RunError
from pomp_jax.files import features as features_module
from pomp_jax.files.features import Features
from pomp_jax.files.pieces import Pieces

STARTS = 3
# Starts a work in a folder, and returns what it leads to.
Start = Callable[[pathlib.Path], Any]


def flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def cut(path, rng):
  content = path.read_bytes()
  path.write_bytes(content[: rng.integers(len(content))])


def overwrite(path, rng):
  content = bytearray(path.read_bytes())
  start = rng.integers(len(content))
  content[start : start + 64] = bytes(len(content[start : start + 64]))
  path.write_bytes(content)


def extend(path, rng):
  path.write_bytes(path.read_bytes() + rng.bytes(9))


def remove(path, rng):
  del rng
  path.unlink()


def swap(path, rng):
  """With another file of its folder and kind, if there is one."""
  others = [
    other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path
  ]
  if others:
    other = others[rng.integers(len(others))]
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGES = (flip, flip, cut, overwrite, extend, remove, swap, swap)


def try_damages(
  work: pathlib.Path, start: Start, patterns: tuple[str, ...], n_trials: int, tmp_path
) -> int:
  """Makes the trials on copies of unfinished work; returns how many starts have
  ended in a line."""
  expected = start(pathlib.Path(shutil.copytree(work, tmp_path / "expected")))
  n_lines = 0
  for trial in range(n_trials):
    rng = np.random.default_rng(trial)
    folder = pathlib.Path(shutil.copytree(work, tmp_path / f"trial{trial}"))
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    path, damage = files[rng.integers(len(files))], DAMAGES[trial % len(DAMAGES)]
    damage(path, rng)
    for _ in range(STARTS):
      try:
        found = start(folder)
        break
      except (InputError, RunError) as error:
        assert str(error).isprintable() and str(folder) in str(error), error
        n_lines += 1
    else:
      pytest.fail(f"trial {trial}: {damage.__name__} of {path} ends every start")
    np.testing.assert_equal(
      found, expected, f"trial {trial}: {damage.__name__} of {path}"
    )
    shutil.rmtree(folder)
  return n_lines


def tiers(n_trials: int, n_all: int) -> list:
  """Numbers of trials in the first tier and in the second."""
  return [
    n_trials,
    pytest.param(n_all, marks=pytest.mark.slow("the whole damage campaign")),
  ]


@pytest.fixture
def trials(tmp_path, record_property):
  """A function that makes trials, and records them for the table."""

  def run(
    name: str,
    work: pathlib.Path,
    start: Start,
    patterns: tuple[str, ...],
    n_trials: int,
  ):
    n_lines = try_damages(work, start, patterns, n_trials, tmp_path)
    record_property("damaged", (name, n_trials, n_lines))

  return run


@pytest.mark.parametrize("n_trials", tiers(64, 2000))
def test_pieces(tmp_path, trials, n_trials):
  arrays = {name: {"array": np.arange(9) + i} for i, name in enumerate("abc")}

  def start(folder):
    of_facts, of_arrays = (
      Pieces(folder / "facts", "key"),
      Pieces(folder / "arrays", "key"),
    )
    for name in of_facts.missing(arrays):
      of_facts.save(name, {"name": f"class {name}"})
    for name in of_arrays.missing(arrays):
      of_arrays.save(name, {}, arrays[name])
    return {name: (of_facts.read(name), of_arrays.read(name)) for name in arrays}

  start(tmp_path / "work")
  trials("pieces", tmp_path / "work", start, ("*/*.json", "*/*.npz"), n_trials)


@pytest.mark.parametrize("n_trials", tiers(64, 1000))
def test_stored_features(tmp_path, trials, monkeypatch, n_trials):
  """Swaps are of two blocks, or of the two descriptions."""
  monkeypatch.setattr(features_module, "_BLOCK", 4)
  stored = np.random.default_rng(0).standard_normal((10, 2, 8)).astype(np.float32)

  def start(folder):
    features = Features(folder, stored.shape, {"clip": "x"}, together=(2, 1))
    features.create()
    for block in features.to_compute():
      features.write(block, stored[features.rows(block)])
    unreadable = features.complete()
    return unreadable, features.read(np.arange(10), np.tile(np.arange(2), (10, 1)))

  start(tmp_path / "work")
  trials("stored features", tmp_path / "work", start, ("*",), n_trials)
