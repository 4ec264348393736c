"""Linear probe of CLIP (Radford et al., 2021, section 3.2 and appendix A.3).

Multinomial logistic regression on image features by L-BFGS; `search` finds the L2
strength. Shapes: n images, N classes, E embedding, P = E N + N weights and biases.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
import scipy.optimize

from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.baselines import classifiers
from pomp_jax.rooms.baselines.classifiers import Training
from pomp_jax.rooms.baselines.fields import Probe
from pomp_jax.rooms.baselines.learner_accuracy import classifier_accuracy

# Strengths of the sweep, and the resolution of the search in decades.
COARSE = tuple(10.0**power for power in range(-6, 7, 2))
_FINEST = 1 / 8


class LinearProbe(NamedTuple):
  """A linear classifier."""

  kernel: Float[np.ndarray, "E N"]
  bias: Float[np.ndarray, " N"]
  strength: float  # L2 strength of the fit

  def scores(self, features_nxE: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n N"]:
    """Computes logits."""
    return features_nxE @ self.kernel + self.bias


def fit(
  features_nxE: Float[np.ndarray, "n E"],
  labels_n: Int[np.ndarray, " n"],
  n_classes: int,
  strength: float,
  *,
  iterations: int = 1000,
  start: LinearProbe | None = None,
) -> LinearProbe:
  """Minimises sum_i cross-entropy_i + strength / 2 * ||kernel||^2 by L-BFGS.

  The bias is not penalised. In scikit-learn's LogisticRegression, C = 1 / strength.

  Args:
    features_nxE: features of the images.
    labels_n: class of each image.
    n_classes: number of classes, N.
    strength: strength of the penalty, above 0.
    iterations: maximum number of iterations of L-BFGS.
    start: initial probe; None: zeros.
  """
  width = features_nxE.shape[1]
  n_weights = width * n_classes
  objective = _objective((width, n_classes))
  features = jnp.asarray(features_nxE, jnp.float32)
  labels = jnp.asarray(labels_n)

  def value_and_gradient(
    weights: Float[np.ndarray, " P"],
  ) -> tuple[float, Float[np.ndarray, " P"]]:
    value, gradient = objective(
      jnp.asarray(weights, jnp.float32), features, labels, strength
    )
    return float(value), np.asarray(gradient, np.float64)

  initial = np.zeros(n_weights + n_classes)
  if start is not None:
    # Assign to the slice to keep float64: the arrays of a probe are float32.
    initial[:] = np.concatenate([start.kernel.ravel(), start.bias])
  solution = scipy.optimize.minimize(
    value_and_gradient,
    initial,
    jac=True,
    method="L-BFGS-B",
    options={
      "maxiter": iterations,
      "maxfun": 2 * iterations,
      "ftol": 1e-9,
      "gtol": 1e-8,
    },
  )
  kernel, bias = np.split(solution.x.astype(np.float32), [n_weights])
  return LinearProbe(kernel.reshape(width, n_classes), bias, strength)


@functools.cache
def _objective(shape: tuple[int, int]) -> Callable:
  """Compiles the objective of `fit`, divided by n, and its gradient.

  The strength is an argument, so that one program serves all strengths.

  Args:
    shape: (E, N), shape of the kernel.
  """

  def value(
    weights: Float[jax.Array, " P"],
    features_nxE: Float[jax.Array, "n E"],
    labels_n: Int[jax.Array, " n"],
    strength: Float[jax.Array, ""],
  ) -> Float[jax.Array, ""]:
    kernel, bias = jnp.split(weights, [shape[0] * shape[1]])
    kernel_ExN = kernel.reshape(shape)
    logits_nxN = (
      jnp.matmul(features_nxE, kernel_ExN, precision=jax.lax.Precision.HIGHEST) + bias
    )
    right_n = jnp.take_along_axis(logits_nxN, labels_n[:, None], axis=1)[:, 0]
    loss_n = jax.nn.logsumexp(logits_nxN, axis=1) - right_n
    penalty = 0.5 * strength * jnp.sum(jnp.square(kernel_ExN)) / labels_n.size
    return jnp.mean(loss_n) + penalty

  return jax.jit(jax.value_and_grad(value))


class Search(NamedTuple):
  """Result of a search for the L2 strength."""

  probe: LinearProbe  # the most accurate one
  accuracies: dict[float, float]  # on validation images, by strength


def search(
  fit_with: Callable[[float, LinearProbe | None], LinearProbe],
  accuracy_of: Callable[[LinearProbe], float],
) -> Search:
  """Searches for the L2 strength as CLIP does: a sweep, then bisection.

  The sweep tries every second decade. Bisection tries the two neighbours of the best
  strength, and halves their distance down to an eighth of a decade. Ties go to the
  probe that was tried first; in the sweep this is the one with the stronger penalty. A
  probe with weights that are not finite is never the best, and never an initial probe.

  Args:
    fit_with: fits a probe for a strength, from an initial probe or from zeros.
    accuracy_of: accuracy of a probe on validation images, within [0, 1].

  Raises:
    FloatingPointError: no probe of the sweep is finite.
  """
  accuracies: dict[float, float] = {}
  best: LinearProbe | None = None
  best_accuracy = -1.0

  def attempt(strength: float) -> None:
    """Fits a probe of a strength not tried yet, starting from the best probe so far."""
    nonlocal best, best_accuracy
    if strength in accuracies:
      return
    probe = fit_with(strength, best)
    accuracy = accuracy_of(probe)
    accuracies[strength] = accuracy
    is_finite = np.isfinite(probe.kernel).all() and np.isfinite(probe.bias).all()
    if is_finite and accuracy > best_accuracy:
      best = probe
      best_accuracy = accuracy

  # Try the strongest penalty first: its solution is close to the initial zeros.
  for strength in reversed(COARSE):
    attempt(strength)
  if best is None:
    strengths = ", ".join(map(str, COARSE))
    raise FloatingPointError(f"no probe of the strengths {strengths} is finite")

  decades = 1.0
  while decades >= _FINEST:
    centre = best.strength
    attempt(centre * 10.0**-decades)
    attempt(centre * 10.0**decades)
    decades /= 2
  return Search(best, accuracies)


def fit_classifier(
  training: Training, iterations: int
) -> tuple[LinearProbe, dict[str, Any]]:
  """Fits probes on the training images, and keeps the best on validation images."""
  train = training.features()
  validation = training.validation

  def fit_with(strength: float, start: LinearProbe | None) -> LinearProbe:
    return fit(
      train.features,
      train.labels,
      len(train.names),
      strength,
      iterations=iterations,
      start=start,
    )

  def accuracy_of(probe: LinearProbe) -> float:
    return classifier_accuracy(probe, validation)["top1"]

  with waiting("fitting linear probes"):
    probe, accuracies = search(fit_with, accuracy_of)
  return probe, {
    "strength": probe.strength,
    "validation_images": len(validation.labels),
    "validation_top1": {
      f"{strength:.4g}": top1 for strength, top1 in accuracies.items()
    },
  }


def run(config: TrainingConfig, folder: RunFolder) -> dict[str, Any]:
  """Fits and evaluates a linear probe, see `classifiers.run`."""
  fit = functools.partial(fit_classifier, iterations=config.of(Probe).iterations)
  return classifiers.run(config, folder, fit)
