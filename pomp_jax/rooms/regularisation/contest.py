"""Compares classifiers in pairs on the same validation images, by mean accuracy over
the classes.

Shapes: n images, N classes, E embedding.
"""

from typing import Any

from jax.sharding import Mesh
from jaxtyping import Bool, Float
import numpy as np

from pomp_jax.evaluate.metrics import class_weights, paired_difference_over_classes
from pomp_jax.evaluate.ranking import ranks_of_images
from pomp_jax.evaluate.split_features import SplitFeatures


class Contest:
  """Records which images each of several classifiers gets right."""

  def __init__(self, split: SplitFeatures, mesh: Mesh):
    """Takes the images' features and labels, and the devices that score them."""
    self._split, self._mesh = split, mesh
    self._right: dict[str, Bool[np.ndarray, " n"]] = {}

  def enter(self, name: str, class_features_NxE: Float[np.ndarray, "N E"]) -> None:
    """Enters a classifier by unit class features; all processes call this together."""
    rank_n = ranks_of_images(
      self._split.features, class_features_NxE, self._split.labels, mesh=self._mesh
    )
    self._right[name] = rank_n == 0

  def difference(self, first: str, second: str) -> dict[str, Any]:
    """Accuracy of the first minus that of the second, with its interval, see
    `paired_difference_over_classes`."""
    return paired_difference_over_classes(
      self._right[first], self._right[second], self._split.labels
    )

  def is_better(self, first: str, second: str) -> bool:
    """Whether the whole interval of the difference is above 0; False if one of the two
    has not been entered."""
    if first not in self._right or second not in self._right:
      return False
    return self.difference(first, second)["interval"][0] > 0

  def figures(self, name: str, reference: str) -> dict[str, Any]:
    """Right answers, mean accuracy over the classes, and difference from `reference`,
    as JSON values."""
    right_n = self._right[name]
    figures: dict[str, Any] = {
      "right": int(right_n.sum()),
      "macro_top1": float(class_weights(self._split.labels) @ right_n),
    }
    if name != reference:
      figures["difference"] = self.difference(name, reference)
    return figures
