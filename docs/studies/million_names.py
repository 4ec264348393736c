"""A million synthetic class vectors: seconds and memory of the ten best of each image.

python -m docs.studies.million_names --names=1000000 --width=512

Each row is a process of its own, whose peak memory is measured. Rows: ours in three
types, NumPy's matrix product with argpartition, and faiss's flat index where it is
installed. The vectors are random on the unit sphere.
"""

import argparse
from collections.abc import Callable, Sequence
import importlib.util
import json
import multiprocessing
import resource
import time

import numpy as np

KINDS = ("float32", "float16", "int8")
IMAGES, BEST, REPEATS = 64, 10, 3


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a JSON line for each implementation."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--names", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=512)
  options = parser.parse_args(argv)
  ways = [f"ours, {kind}" for kind in KINDS] + ["numpy"]
  if importlib.util.find_spec("faiss"):
    ways.append("faiss")
  spawned = multiprocessing.get_context("spawn")
  for way in ways:
    with spawned.Pool(1) as pool:
      found = pool.apply(measured, (way, options.names, options.width))
    print(json.dumps({"way": way, **found}), flush=True)


def measured(way: str, n_names: int, width: int) -> dict[str, float]:
  """Seconds of one pass over all names, the best of several, and memory of the
  process."""
  rng = np.random.default_rng(0)
  features = unit(rng.normal(size=(IMAGES, width)).astype(np.float32))
  search, head_bytes = opened(way, n_names, width)
  labels = search(features)  # compiles
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    search(features)
    seconds.append(time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "seconds": round(min(seconds), 3),
    "head_gb": round(head_bytes / 1e9, 2),
    "peak_gb": round(peak * 1024 / 1e9, 2),
    "first_labels": int(np.sum(labels[:, 0])),  # equal for exact searches
  }


def opened(way: str, n_names: int, width: int) -> tuple[Callable, int]:
  """What finds the best labels, and the bytes of its vectors."""
  kind = way.rpartition(" ")[2]
  if kind in KINDS:
    from pomp_jax.rooms.certainty import heads

    rows = joined([heads.rows_of(part, kind) for part in parts(n_names, width)])
    return (
      lambda features: heads.top_k(features, rows, 100.0, BEST).labels,
      rows.n_bytes,
    )
  if way == "faiss":
    import faiss

    index = faiss.IndexFlatIP(width)
    for part in parts(n_names, width):
      index.add(part)
    return lambda features: index.search(features, BEST)[1], 4 * n_names * width
  vectors = np.empty((n_names, width), np.float32)
  start = 0
  for part in parts(n_names, width):
    vectors[start : start + len(part)] = part
    start += len(part)

  def search(features):
    scores = features @ vectors.T
    some = np.argpartition(-scores, BEST, axis=1)[:, :BEST]
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1)
    return np.take_along_axis(some, order, axis=1)

  return search, vectors.nbytes


def joined(rows):
  """Rows of all parts together."""
  from pomp_jax.rooms.certainty.heads import Rows

  values = np.concatenate([one.values for one in rows])
  if rows[0].scales is None:
    return Rows(values)
  return Rows(values, np.concatenate([one.scales for one in rows]))


def parts(n_names: int, width: int):
  """Yields unit vectors, the same for every implementation."""
  size = 50_000
  for number, start in enumerate(range(0, n_names, size)):
    rng = np.random.default_rng([1, number])
    count = min(size, n_names - start)
    yield unit(rng.normal(size=(count, width)).astype(np.float32))


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of norm 1."""
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
  main()
