"""Measures how well a score separates images of known from images of unknown classes.

A score should be higher for known classes. Scores are the maximum softmax probability
(MSP; Hendrycks & Gimpel, 2017), the maximum logit (Hendrycks et al., 2022), the energy
(Liu et al., 2020), and the maximum softmax of the cosines themselves (MCM; Ming et al.,
2022).

Shapes: K known images, U unknown images.
"""

from jaxtyping import Float
import numpy as np
import scipy.stats

from pomp_jax.rooms.certainty.outputs import Outputs

LABELS = {
  "calibrated": "probability, calibrated",
  "msp": "maximum softmax (MSP)",
  "max_logit": "maximum logit",
  "mcm": "softmax of cosines (MCM)",
  "energy": "energy",
}


def scores_of(plain: Outputs, calibrated: Outputs) -> dict[str, np.ndarray]:
  """Scores of images, by the name of the score.

  Args:
    plain: outputs without a temperature.
    calibrated: outputs with the temperature.
  """
  return {
    "calibrated": calibrated.confidence,
    "msp": plain.confidence,
    "max_logit": plain.max_cosine,  # the logit scale does not change the order
    "mcm": plain.mcm,
    "energy": plain.energy,
  }


def auroc(
  known_K: Float[np.ndarray, " K"], unknown_U: Float[np.ndarray, " U"]
) -> float:
  """Probability that a known image scores above an unknown one; a tie counts half."""
  # Mann-Whitney's U from the ranks of the known images.
  ranks = scipy.stats.rankdata(np.concatenate([known_K, unknown_U]))
  n_known = len(known_K)
  wins = ranks[:n_known].sum() - n_known * (n_known + 1) / 2
  return float(wins / (n_known * len(unknown_U)))


def fpr_at(
  known_K: Float[np.ndarray, " K"],
  unknown_U: Float[np.ndarray, " U"],
  share: float = 0.95,
) -> float:
  """Share of unknown images that are accepted at a threshold on the score.

  The threshold is the largest that accepts at least `share` of the known images.

  Args:
    known_K: scores of known images.
    unknown_U: scores of unknown images.
    share: share of the known images to accept.
  """
  n_accepted = int(np.ceil(share * len(known_K) - 1e-9))
  threshold = np.sort(known_K)[len(known_K) - n_accepted]
  return float(np.mean(unknown_U >= threshold))


def detection_figures(
  known: dict[str, np.ndarray], unknown: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """AUROC of each score, and its FPR if 95% of the known images are accepted."""
  return {
    name: {
      "auroc": auroc(known[name], unknown[name]),
      "fpr95": fpr_at(known[name], unknown[name]),
    }
    for name in known
  }
