"""Names that nearly equal others under a prompt: the job near_names.

Two classes whose vectors have a cosine near 1 get about the same score for every image,
so one of the two hides the other. The job writes `pairs.csv` and `results.json`.

Shapes: N classes, A and Z rows of two lists, E embedding.
"""

from collections.abc import Sequence
import heapq
import logging
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.classifier import open_prompt
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt, check_prompt
from pomp_jax.files.prompt_file import recorded_classes
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.report.report import write_csv
from pomp_jax.rooms.certainty.fields import NearNamesConfig
from pomp_jax.rooms.certainty.outputs import cosines

log = logging.getLogger(__name__)

_BLOCK = 2048  # rows of a block
_SHOWN = 10  # pairs in the log


class Pair(NamedTuple):
  """Two names and the cosine of their vectors."""

  cosine: float
  first: str
  second: str


class Near(NamedTuple):
  """Pairs of names that are near."""

  pairs: list[Pair]  # the nearest first, up to the number that was asked for
  n_pairs: int  # number of all near pairs, including pairs that `pairs` leaves out


def check(config: NearNamesConfig, workdir: str) -> None:
  """Checks that names and prompt can be opened; writes nothing."""
  settings = config.near_names
  names = load_class_list(settings.names or recorded_classes(settings.prompt)).names
  check_names(names, settings.names)
  prompt = open_prompt(settings.prompt, "near_names.prompt")
  clip_config = opening.clip_config(config.clip.model, config.clip.image_tower)
  named = NamedPrompt(settings.prompt, prompt)
  check_prompt(named, [(name,) for name in names], clip_config, config.clip.model)


def run(config: NearNamesConfig, workdir: str) -> dict[str, Any]:
  """Finds, prints and writes the pairs; returns what `results.json` holds."""
  settings, folder = config.near_names, RunFolder(workdir)
  source = settings.names or recorded_classes(settings.prompt)
  classes = load_class_list(source)
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  rows_NxE = features_under(encoder, classes, open_prompt(settings.prompt))
  check_finite(rows_NxE, "classes")
  start = time.monotonic()
  pairs, count = near_pairs(
    rows_NxE,
    classes.names,
    rows_NxE,
    classes.names,
    bound=settings.bound,
    most=settings.most,
  )
  results = {
    "job": config.job,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    "names": source,
    "classes": len(classes),
    "bound": settings.bound,
    "pairs": count,
    "seconds": round(time.monotonic() - start, 2),
    "nearest": [pair._asdict() for pair in pairs[:_SHOWN]],
  }
  if not hosts.is_first():
    return results
  folder.create(config.to_dict())
  with writing(folder.path):
    write_csv(folder.path / "pairs.csv", Pair._fields, pairs)
  folder.write_results(results)
  for pair in pairs[:_SHOWN]:
    print(f"{pair.cosine:.4f}  {pair.first}  |  {pair.second}")
  log.info("%d pairs with a cosine of %g or more", count, settings.bound)
  return results


def near_pairs(
  rows_AxE: Float[np.ndarray, "A E"],
  names: Sequence[str],
  others_ZxE: Float[np.ndarray, "Z E"],
  other_names: Sequence[str],
  *,
  bound: float,
  most: int,
) -> Near:
  """Finds the pairs of names whose vectors are near, the nearest first.

  Args:
    rows_AxE: unit features.
    names: names of `rows_AxE`.
    others_ZxE: unit features to compare with. Pass the array `rows_AxE` itself for the
      pairs within one list; each pair is then found once.
    other_names: names of `others_ZxE`.
    bound: least cosine of a pair.
    most: largest number of pairs to return.
  """
  is_same = rows_AxE is others_ZxE
  best: list[tuple[float, int, int]] = []
  count = 0
  for start in range(0, len(rows_AxE), _BLOCK):
    rows = jnp.asarray(rows_AxE[start : start + _BLOCK])
    # Within one list, earlier blocks hold no new pairs.
    for other in range(start if is_same else 0, len(others_ZxE), _BLOCK):
      block = jnp.asarray(others_ZxE[other : other + _BLOCK])
      cosine = np.asarray(_cosines(rows, block))
      i, j = np.nonzero(cosine >= bound)
      if is_same:
        is_later = other + j > start + i
        i, j = i[is_later], j[is_later]
      count += len(i)
      # Negative indices: `nlargest` then puts the least index first if cosines tie.
      found = zip(
        cosine[i, j].tolist(),
        (-(start + i)).tolist(),
        (-(other + j)).tolist(),
        strict=True,
      )
      best = heapq.nlargest(most, [*best, *found])
  pairs = [Pair(cosine, names[-i], other_names[-j]) for cosine, i, j in best]
  return Near(pairs, count)


_cosines = jax.jit(cosines)
