"""Sampling of negatives: which classes a step contrasts with, and their importance weights."""

from pomp_jax.prompt.sampling.draws import draw_key, n_negatives, sample_uniform
from pomp_jax.prompt.sampling.exclusions import complete_negatives
from pomp_jax.prompt.sampling.samplers import (
  ANCHORS,
  EXCLUSIONS,
  SAMPLERS,
  Negatives,
  SamplingArrays,
  SamplingSettings,
  draw_negatives,
)
