"""Damage to files, as disks and interrupted writes leave them."""

import pathlib

import numpy as np


def damage(file: pathlib.Path, how: str, rng: np.random.Generator) -> None:
  """Damages a file; `how` is "truncated", "bit-flipped" or "deleted"."""
  content = bytearray(file.read_bytes())
  if how == "deleted":
    file.unlink()
  elif how == "truncated" or not content:
    file.write_bytes(content[: rng.integers(len(content) or 1)])
  else:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)
