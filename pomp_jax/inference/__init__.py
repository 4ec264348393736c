"""Inference with a finished prompt: classify images, evaluate data sets."""

from pomp_jax.inference.classify import Classifier, category_features
from pomp_jax.inference.topk import topk_accuracy

__all__ = ["Classifier", "category_features", "topk_accuracy"]
