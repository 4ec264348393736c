"""How far the sampled gradient is from that of the exact contrast over all classes.

Shapes: B images, K negatives of a draw, C = B + K, N classes, M context vectors, D width, R draws,
P = M D numbers of a gradient.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.annotations import Array, Float, Int32
from pomp_jax.files.progress import steps_of
from pomp_jax.prompt.group_loss import ContrastSettings, group_contrast, negatives_of
from pomp_jax.prompt.learner import Frozen, Learner
from pomp_jax.prompt.loss import normalize
from pomp_jax.prompt.sampling import draw_negatives


def gradient_function(
  learner: Learner, settings: ContrastSettings, corrections: Sequence[str]
) -> Callable[..., Float[Array, "corrections P"]]:
  """Compiles (params, frozen, image features [B,E], labels [B], key) -> gradients of one draw.

  Every correction sees the same draw.

  Args:
    learner: gives the class features; its token budget has to hold the draw.
    settings: K, N and the sampler; `correction` is not read.
    corrections: one row of the result each.
  """

  @jax.jit
  def gradients(params: Any, frozen: Frozen, features_BxE: jax.Array, labels_B: jax.Array, key):
    draw = draw_negatives(
      key,
      settings.sampling,
      k=settings.k,
      n_classes=settings.n_classes,
      labels_B=labels_B,
      images_BxE=normalize(features_BxE),
      arrays=frozen.sampling,
    )
    ids_C = jnp.concatenate([labels_B, draw.ids])
    n_images = labels_B.size

    def classes(params):
      found = learner.class_features(params, frozen, ids_C, features_BxE)
      return found.features, found.available

    class_features_CxE, pull_back, available_C = jax.vjp(classes, params, has_aux=True)
    available_K = None if available_C is None else available_C[n_images:]
    negatives = negatives_of(settings, frozen.sampling, draw, labels_B, available_K)

    def one(correction):
      def loss(class_features_CxE):
        return group_contrast(
          dataclasses.replace(settings, correction=correction),
          negatives,
          features_BxE,
          class_features_CxE[:n_images],
          class_features_CxE,
          labels_B,
        ).loss

      (gradient,) = pull_back(jax.grad(loss)(class_features_CxE))
      return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    return jnp.stack([one(correction) for correction in corrections])

  return gradients


def draws_of(
  gradients: Callable,
  arguments: tuple[Any, Frozen, Float[Array, "B E"], Int32[Array, " B"]],
  n_draws: int,
  seed: int,
) -> Float[np.ndarray, "R corrections P"]:
  """Gradients of R independent draws for the same images.

  Args:
    gradients: from `gradient_function`.
    arguments: params, frozen, image features and labels.
    n_draws: R.
    seed: of the draws.
  """
  keys = jax.random.split(jax.random.key(seed), n_draws)
  return np.stack(
    [
      np.asarray(gradients(*arguments, key), np.float64)
      for key in steps_of(keys, "gradients", "draws", n_draws)
    ]
  )


def summarise(
  gradients_RxP: Float[np.ndarray, "R P"], exact_P: Float[np.ndarray, " P"]
) -> dict[str, float | int]:
  """Bias, variance and direction of a sampled gradient g_K against the exact one, g.

  The squared distance of the mean over R draws from g is the squared bias and, on average, 1/R of
  the variance; that share is subtracted. Its standard error is a jackknife's, over the draws.

  Args:
    gradients_RxP: of R >= 3 independent draws.
    exact_P: g, not 0.

  Returns:
    draws; relative_bias: ||E g_K - g|| / ||g||, with bias_low and bias_high, two standard errors
    of its square away (0 where that is below 0: no bias is seen); relative_deviation:
    sqrt(E ||g_K - E g_K||^2) / ||g||; cosine: of the mean over the draws with g; draw_cosine and
    draw_cosine_error: mean over single draws, and its standard error.
  """
  gradients_RxP, exact_P = gradients_RxP.astype(np.float64), exact_P.astype(np.float64)
  n_draws, size = len(gradients_RxP), np.sum(exact_P**2)

  def squared_bias(rows_RxP: np.ndarray) -> float:
    variance = rows_RxP.var(axis=0, ddof=1).sum()
    return (np.sum((rows_RxP.mean(axis=0) - exact_P) ** 2) - variance / len(rows_RxP)) / size

  bias = squared_bias(gradients_RxP)
  without_R = np.array([squared_bias(np.delete(gradients_RxP, r, axis=0)) for r in range(n_draws)])
  error = np.sqrt((n_draws - 1) / n_draws * np.sum((without_R - without_R.mean()) ** 2))
  mean_P, length = gradients_RxP.mean(axis=0), np.sqrt(size)
  norms_R = np.linalg.norm(gradients_RxP, axis=1)
  cosine_R = gradients_RxP @ exact_P / np.maximum(norms_R * length, np.finfo(np.float64).tiny)
  return {
    "draws": n_draws,
    "relative_bias": float(np.sqrt(max(bias, 0.0))),
    "bias_low": float(np.sqrt(max(bias - 2 * error, 0.0))),
    "bias_high": float(np.sqrt(max(bias + 2 * error, 0.0))),
    "relative_deviation": float(np.sqrt(gradients_RxP.var(axis=0, ddof=1).sum() / size)),
    "cosine": float(mean_P @ exact_P / (np.linalg.norm(mean_P) * length)),
    "draw_cosine": float(cosine_R.mean()),
    "draw_cosine_error": float(cosine_R.std(ddof=1) / np.sqrt(n_draws)),
  }
