"""Arrays that samplers of negatives read: class counts, and relations between classes.

Shapes: N classes, n images.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Data, Sampling
from pomp_jax.hooks import RELATIONS
from pomp_jax.prompt.sampling.samplers import (
  EXCLUSIONS,
  SAMPLERS,
  SamplingArrays,
  SamplingSettings,
)

# Fields of SamplingArrays that relations between classes fill.
_RELATIONS = frozenset({"groups", "group_sizes", "kin", "levels"})


def sampling_arrays(
  sampling: Sampling, data: Data, names: Sequence[str], labels_n: np.ndarray
) -> SamplingArrays:
  """Builds the arrays that `config.sampling` needs, except for the bank.

  ConfigError if a sampler needs relations that these classes do not have.

  Args:
    sampling: `config.sampling`.
    data: `config.data`, which names the relations between classes.
    names: names of the N classes.
    labels_n: class of each training image.
  """
  arrays = SamplingArrays()
  needs = {
    "name": SAMPLERS[sampling.name].needs,
    "exclude": EXCLUSIONS[sampling.exclude],
    "ancestors_weight": ("levels",) if sampling.ancestors_weight > 0 else (),
  }
  if "frequency" in needs["name"]:
    counts_N = np.bincount(labels_n, minlength=len(names)).astype(np.float64)
    # Relative to the largest count, so that no power overflows.
    counts_N = (counts_N / counts_N.max()) ** sampling.power
    arrays = arrays._replace(frequency=(counts_N / counts_N.sum()).astype(np.float32))
  needed = {
    part: field for field, parts in needs.items() for part in _RELATIONS & {*parts}
  }
  if not needed:
    return arrays
  relations = RELATIONS.open()(data, names) if RELATIONS else None
  if relations is None:
    field = next(iter(needed.values()))
    expected = (
      "a value that needs no relations between classes, or data.names with synsets"
    )
    raise ConfigError(f"sampling.{field}", getattr(sampling, field), expected)
  return arrays._replace(**{part: getattr(relations, part) for part in needed})


def sampling_of(sampling: Sampling, logit_scale: float) -> SamplingSettings:
  """Converts `config.sampling` for the step of a CLIP with this logit scale."""
  values = vars(sampling) | {"logit_scale": logit_scale}
  rows = dataclasses.fields(SamplingSettings)
  return SamplingSettings(**{row.name: values[row.name] for row in rows})
