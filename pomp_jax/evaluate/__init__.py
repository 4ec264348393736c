"""Inference with a finished prompt: classify images, evaluate data sets."""

from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.evaluate.ranking import topk_accuracy

__all__ = ["Classifier", "topk_accuracy"]
