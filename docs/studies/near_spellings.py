"""Finds names of ImageNet-21K with nearly the same spelling, and needs no encoder: the
list in docs/how-to/certainty.md.

python -m docs.studies.near_spellings --names=imagenet21k --output=spellings.csv

The report of the job near_names on the vectors of spellings in place of class vectors: a
name's counts of three letters in a row, hashed to some numbers and of unit length. The
embedded CLIP knows drawn shapes alone and has no positions for the longest of these
names, so that its report of them would say nothing.

Shapes: N names, E hashed counts.
"""

import argparse
from collections.abc import Sequence
import csv
import pathlib
import time
import zlib

import numpy as np

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.encoder import unit_rows
from pomp_jax.rooms.certainty.near_names import Pair, near_pairs

N_LETTERS = 3
N_HASHED = 1024
BOUND = 0.9
MOST = 10_000
SHOWN = 10


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the nearest pairs and writes all of them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--names", default="imagenet21k")
  parser.add_argument("--output", type=pathlib.Path, required=True)
  options = parser.parse_args(argv)
  names = load_class_list(options.names).names
  start = time.monotonic()
  rows_NxE = spellings(names)
  pairs, count = near_pairs(rows_NxE, names, rows_NxE, names, bound=BOUND, most=MOST)
  seconds = time.monotonic() - start
  print(f"{len(names):,} names, {count:,} pairs of {BOUND} or more, {seconds:.1f} s")
  for pair in pairs[:SHOWN]:
    print(f"{pair.cosine:.4f}  {pair.first}  |  {pair.second}")
  with options.output.open("w", newline="", encoding="utf-8") as stream:
    writer = csv.writer(stream)
    writer.writerow(Pair._fields)
    writer.writerows(pairs)


def spellings(names: Sequence[str]) -> np.ndarray:
  """Unit rows [N,E] of how often three letters in a row, without case, occur."""
  counts_NxE = np.zeros((len(names), N_HASHED), np.float32)
  for row_E, name in zip(counts_NxE, names, strict=True):
    text = f" {name.lower()} "
    for start in range(len(text) - N_LETTERS + 1):
      letters = text[start : start + N_LETTERS]
      row_E[zlib.crc32(letters.encode()) % N_HASHED] += 1
  return unit_rows(counts_NxE)


if __name__ == "__main__":
  main()
