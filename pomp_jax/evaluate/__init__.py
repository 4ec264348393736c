"""Inference with a finished prompt: classify images, evaluate data sets."""

from pomp_jax.evaluate.classify import Classifier
from pomp_jax.evaluate.predictions import topk_accuracy

__all__ = ["Classifier", "topk_accuracy"]
