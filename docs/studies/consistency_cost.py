"""Seconds of a training step with each term of consistency beside one without, in turn.

  python -m docs.studies.consistency_cost

Of 4,000 classes of the embedded world, 128 images and K = 128 or 1,000.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.step import create_state
from pomp_jax.train import setup
from tests.support.small_run import settings

TERMS = ("none", "squared", "l1", "kl")
CLASSES, BATCH, ROUNDS = 4000, 128, 9


class Timed:
  """A compiled step on one batch of random features, and its times."""

  def __init__(self, term: str, k: int, folder: pathlib.Path):
    """Compiles it, and takes it once."""
    fields: dict[str, Any] = {"k": k, "batch_size": BATCH, "data.n_classes": CLASSES}
    fields |= {"data.images_per_class": 2, "data.features": "stored", "eval.images": 64}
    if term != "none":
      fields |= {f"consistency_{term}": 1.0, "anchors": "{}."}
    run = setup.prepare(settings(**fields), RunFolder(folder / term))
    self._frozen, self._step = run.frozen, run.build_step()
    self._state = create_state(run.learner(), run.optimizer, 0)
    rng, width = np.random.default_rng(0), run.encoder.clip.config.projection_dim
    features_BxE = rng.standard_normal((BATCH, width), np.float32)
    labels_B = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    self._batch = jax.device_put({"image": features_BxE, "label": labels_B})
    self.seconds: list[float] = []
    self.take(1)

  def take(self, steps: int) -> float:
    """Takes steps; returns the seconds of one."""
    start = time.perf_counter()
    for _ in range(steps):
      self._state, metrics = self._step(self._state, self._frozen, self._batch)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / steps


def main() -> None:
  """Prints a row a term."""
  for k, steps in ((128, 20), (1000, 3)):
    with tempfile.TemporaryDirectory() as folder:
      timed = {term: Timed(term, k, pathlib.Path(folder)) for term in TERMS}
      for _ in range(ROUNDS):
        for one in timed.values():
          one.seconds.append(one.take(steps))
    for term, one in timed.items():
      ratios = (
        of(one.seconds) / of(timed["none"].seconds) for of in (min, statistics.median)
      )
      print(
        f"K = {k}, {term}: {min(one.seconds):.4f} s, fastest %.3f, median %.3f"
        % (*ratios,)
      )


if __name__ == "__main__":
  main()
