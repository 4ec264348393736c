"""Measures how long the steps wait for a save: `python -m tests.faults.save_time`."""

import tempfile
import time

import numpy as np

from pomp_jax.files.checkpoints import Checkpoints


def main() -> None:
  """Prints the least and the median time of thirty saves of each kind."""
  context = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32)
  prompt = {"context": context, "trace": context, "step": np.int32(3)}
  bank = {"bank": np.resize(context, (21_841, 512))}
  meta = {"config": dict.fromkeys(map(str, range(150)), 1)}
  for name, state in (("prompt", prompt), ("prompt and bank", prompt | bank)):
    seconds = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
      for step in range(32):
        start = time.perf_counter()
        checkpoints.save(step, state, meta, metric=0.5)
        seconds.append(time.perf_counter() - start)
    least, median = 1000 * min(seconds[2:]), 1000 * np.median(seconds[2:])
    print(f"{name}: least {least:.0f} ms, median {median:.0f} ms")


if __name__ == "__main__":
  main()
