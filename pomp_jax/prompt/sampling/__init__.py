"""Which classes a step contrasts with, and what each of them stands for in the denominator.

`uniform` is the method's own draw. The other samplers propose probabilities (`proposals`), draw by
them without replacement (`weighted`), and give each class drawn the weight that keeps the sum over
all classes unbiased. `rejection` says which classes are no negatives of an image.
"""

from pomp_jax.prompt.sampling.rejection import EXCLUSIONS, rejected, with_batch_positives
from pomp_jax.prompt.sampling.sampler import (
  ANCHORS,
  SAMPLERS,
  Draw,
  Sampling,
  SamplingArrays,
  draw_negatives,
  weights_of_available,
)
from pomp_jax.prompt.sampling.uniform import draw_key, n_negatives, sample_uniform

__all__ = [
  "ANCHORS",
  "EXCLUSIONS",
  "SAMPLERS",
  "Draw",
  "Sampling",
  "SamplingArrays",
  "draw_key",
  "draw_negatives",
  "n_negatives",
  "rejected",
  "sample_uniform",
  "weights_of_available",
  "with_batch_positives",
]
