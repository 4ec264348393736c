"""Arrays that samplers of negatives read: class counts, and relations between classes.

Shapes: N classes, n images.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float32
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

  Args:
    sampling: `config.sampling`.
    data: `config.data`, which names the relations between classes.
    names: names of the N classes.
    labels_n: class of each training image.

  Raises:
    ConfigError: a field needs relations that these classes do not have.
  """
  arrays = SamplingArrays()
  # Arrays that each field of `config.sampling` needs at its present value.
  needs = {
    "name": SAMPLERS[sampling.name].needs,
    "exclude": EXCLUSIONS[sampling.exclude],
  }
  if sampling.ancestors_weight > 0:
    needs["ancestors_weight"] = ("levels",)

  if "frequency" in needs["name"]:
    frequency_N = _frequencies(labels_n, len(names), sampling.power)
    arrays = arrays._replace(frequency=frequency_N)

  field_of_relation = {}
  for field, arrays_needed in needs.items():
    for relation in _RELATIONS.intersection(arrays_needed):
      field_of_relation[relation] = field
  if not field_of_relation:
    return arrays

  relations = RELATIONS.open()(data, names) if RELATIONS else None
  if relations is None:
    field = next(iter(field_of_relation.values()))
    expected = (
      "a value that needs no relations between classes, or data.names with synsets"
    )
    raise ConfigError(f"sampling.{field}", getattr(sampling, field), expected)
  for relation in field_of_relation:
    arrays = arrays._replace(**{relation: getattr(relations, relation)})
  return arrays


def _frequencies(
  labels_n: np.ndarray, n_classes: int, power: float
) -> Float32[np.ndarray, " N"]:
  """Probability of each class: proportional to its number of images, to a power.

  Args:
    labels_n: class of each training image.
    n_classes: N.
    power: `sampling.power`; 0 for a uniform distribution.
  """
  counts_N = np.bincount(labels_n, minlength=n_classes).astype(np.float64)
  # Divide by the largest count first, so that no power overflows.
  weights_N = (counts_N / counts_N.max()) ** power
  return (weights_N / weights_N.sum()).astype(np.float32)


def sampling_of(sampling: Sampling, logit_scale: float) -> SamplingSettings:
  """Converts `config.sampling` for the step of a CLIP with this logit scale."""
  values = vars(sampling) | {"logit_scale": logit_scale}
  names = [field.name for field in dataclasses.fields(SamplingSettings)]
  return SamplingSettings(**{name: values[name] for name in names})
