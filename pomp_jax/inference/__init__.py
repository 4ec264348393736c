"""What a finished prompt does: classify images, and be evaluated."""

from pomp_jax.inference.category_features import category_features
from pomp_jax.inference.classify import Classifier, topk_accuracy

__all__ = ["Classifier", "category_features", "topk_accuracy"]
