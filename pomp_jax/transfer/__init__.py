"""What a finished prompt is used for."""

from pomp_jax.transfer.category_features import category_features
from pomp_jax.transfer.classification import Classifier, topk_accuracy
from pomp_jax.transfer.encoder import Encoder

__all__ = ["Classifier", "Encoder", "category_features", "topk_accuracy"]
