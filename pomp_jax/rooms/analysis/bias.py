"""Bias and variance of the sampled gradient against the exact one over all classes.

Shapes: B images, K negatives of a draw, C = B + K, N classes, M context vectors, D
width, R draws, P = M D entries of a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.learner import Frozen, Learner
from pomp_jax.prompt.loss import ContrastSettings, local_contrast, normalize
from pomp_jax.prompt.sampling.samplers import complete_negatives, draw_negatives
from pomp_jax.report import drawing
from pomp_jax.report.labels import counted
from pomp_jax.report.report import Report, Section, Table, cell, facts

# Smallest relative bias in a plot: single precision's rounding is near.
_LOWEST_BIAS = 1e-3
_LINES = ("-", "--", ":", "-.", (0, (1, 3)))


def gradient_function(
  learner: Learner, settings: ContrastSettings, corrections: Sequence[str]
) -> Callable[..., Float[Array, "corrections P"]]:
  """Compiles (params, frozen, image features [B,E], labels [B], key) -> gradients of
  one draw.

  Each correction is a row, of the same draw; "sigmoid" is that loss with importance
  weights. The learner's token budget fits the draw; the loss and the correction of
  `settings` are ignored.
  """

  @jax.jit
  def gradients(
    params: Any,
    frozen: Frozen,
    features_BxE: jax.Array,
    labels_B: jax.Array,
    key: jax.Array,
  ) -> Float[Array, "corrections P"]:
    drawn = draw_negatives(
      key,
      settings.sampling,
      k=settings.k,
      n_classes=settings.n_classes,
      labels_B=labels_B,
      images_BxE=normalize(features_BxE),
      arrays=frozen.sampling,
    )
    ids_C = jnp.concatenate([labels_B, drawn.ids])
    n_images = labels_B.size

    def classes(
      params: Any,
    ) -> tuple[Float[Array, "C ... E"], Bool[Array, " C"] | None]:
      found = learner.text_features(params, frozen, ids_C, features_BxE)
      return found.features, found.available

    class_features_CxE, pull_back, available_C = jax.vjp(classes, params, has_aux=True)
    available_S = None if available_C is None else available_C[n_images:]
    negatives = complete_negatives(
      settings.sampling, frozen.sampling, drawn, labels_B, available_S
    )

    def one(correction: str) -> Float[Array, " P"]:
      own = dataclasses.replace(settings, loss="softmax", correction=correction)
      if correction == "sigmoid":
        own = dataclasses.replace(settings, loss="sigmoid", correction="log")

      def loss(class_features_CxE: Float[Array, "C ... E"]) -> Float[Array, ""]:
        parts = class_features_CxE[:n_images], class_features_CxE[-negatives.ids.size :]
        return local_contrast(own, features_BxE, *parts, labels_B, negatives).loss

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
  """Computes R = `n_draws` independent draws by a `gradient_function` for the same
  images."""
  keys = steps_of(
    jax.random.split(jax.random.key(seed), n_draws), "gradients", "draws", n_draws
  )
  return np.stack([np.asarray(gradients(*arguments, key), np.float64) for key in keys])


def summarise(
  gradients_RxP: Float[np.ndarray, "R P"], exact_P: Float[np.ndarray, " P"]
) -> dict[str, float | int]:
  """Estimates bias, deviation and direction of a sampled gradient g_K against the exact
  one, g.

  The squared distance of the mean over R draws from g is the squared bias plus, on
  average, 1/R of the variance; that share is subtracted. The standard error is a
  jackknife over the R >= 3 draws, which are independent. g is not 0.

  Returns:
    draws: R.
    relative_bias: ||E g_K - g|| / ||g||; bias_low and bias_high are two standard errors of its
      square away, at least 0.
    relative_deviation: sqrt(E ||g_K - E g_K||^2) / ||g||.
    cosine: cosine of the mean over the draws with g. draw_cosine, draw_cosine_error:
    mean cosine of single draws with g, and its standard error.
  """
  gradients_RxP, exact_P = gradients_RxP.astype(np.float64), exact_P.astype(np.float64)
  n_draws, size = len(gradients_RxP), np.sum(exact_P**2)

  def squared_bias(rows_RxP: np.ndarray) -> float:
    variance = rows_RxP.var(axis=0, ddof=1).sum()
    return (
      np.sum((rows_RxP.mean(axis=0) - exact_P) ** 2) - variance / len(rows_RxP)
    ) / size

  bias = squared_bias(gradients_RxP)
  without_R = np.array(
    [squared_bias(np.delete(gradients_RxP, r, axis=0)) for r in range(n_draws)]
  )
  error = np.sqrt((n_draws - 1) / n_draws * np.sum((without_R - without_R.mean()) ** 2))
  mean_P, length = gradients_RxP.mean(axis=0), np.sqrt(size)
  norms_R = np.linalg.norm(gradients_RxP, axis=1)
  cosine_R = (
    gradients_RxP @ exact_P / np.maximum(norms_R * length, np.finfo(np.float64).tiny)
  )
  return {
    "draws": n_draws,
    "relative_bias": float(np.sqrt(max(bias, 0.0))),
    "bias_low": float(np.sqrt(max(bias - 2 * error, 0.0))),
    "bias_high": float(np.sqrt(max(bias + 2 * error, 0.0))),
    "relative_deviation": float(
      np.sqrt(gradients_RxP.var(axis=0, ddof=1).sum() / size)
    ),
    "cosine": float(mean_P @ exact_P / (np.linalg.norm(mean_P) * length)),
    "draw_cosine": float(cosine_R.mean()),
    "draw_cosine_error": float(cosine_R.std(ddof=1) / np.sqrt(n_draws)),
  }


def gradient_bias_panels(
  path: str | os.PathLike,
  cells: Sequence[Mapping[str, Any]],
  *,
  images: int,
  classes: int,
) -> None:
  """Plots bias, deviation and direction against K: by correction, then by sampler.

  `cells` hold `sampler`, `correction`, `k` and the figures of `summarise`.
  """
  samplers = list(dict.fromkeys(cell["sampler"] for cell in cells))
  corrections = list(dict.fromkeys(cell["correction"] for cell in cells))
  rows = [
    (f"{samplers[0]} draw, by correction", [(samplers[0], c) for c in corrections], 1)
  ]
  if len(samplers) > 1:
    series = [(sampler, corrections[0]) for sampler in samplers]
    rows.append((f"correction {corrections[0]}, by sampler", series, 0))
  ticks = sorted({cell["k"] for cell in cells})
  shown = [cell["bias_low"] for cell in cells if cell["bias_low"] > _LOWEST_BIAS]
  # There are fewer draws at a larger K.
  fewest, most = (limit(cell["draws"] for cell in cells) for limit in (min, max))
  draws = counted(most, "draw") if fewest == most else f"{fewest:,} to {most:,} draws"
  title = (
    f"The sampled gradient against the exact contrast: {counted(images, 'image')},"
    f" {counted(classes, 'class')}; bars: two standard errors over {draws}"
  )
  figure, axes_of = drawing.panels(3 * len(rows), 3.8, 3.7, title, columns=3)
  for row, (title, series, label_index) in enumerate(rows):
    bias, deviation, cosine = axes_of[3 * row : 3 * row + 3]
    for i, key in enumerate(series):
      own = [cell for cell in cells if (cell["sampler"], cell["correction"]) == key]
      of = {field: np.array([cell[field] for cell in own]) for field in own[0]}
      # Shifted, so that error bars at the same K don't overlap.
      k = of["k"] * 1.05 ** (i - (len(series) - 1) / 2)
      options = {"linestyle": _LINES[i % len(_LINES)], "capsize": 2, "elinewidth": 0.9}
      names = ("relative_bias", "bias_low", "bias_high")
      value, low, high = (np.maximum(of[name], _LOWEST_BIAS) for name in names)
      reach = np.maximum([value - low, high - value], 0)
      drawing.error_bars(
        bias, k, value, i, yerr=reach, label=key[label_index], **options
      )
      drawing.error_bars(deviation, k, of["relative_deviation"], i, **options)
      errors = 2 * of["draw_cosine_error"]
      drawing.error_bars(cosine, k, of["draw_cosine"], i, yerr=errors, **options)
    bias.set_yscale("log")
    bias.set_ylim(bottom=0.8 * min(shown, default=_LOWEST_BIAS))
    bias.legend(frameon=False, fontsize=drawing.TEXT)
    drawing.log_axis(bias, "y")
    drawing.log_axis(deviation, "y")
    norm = r"$(E\,\|g_K - E\,g_K\|^2)^{1/2} \;/\; \|g\|$"
    for axes, heading, y_label in (
      (bias, f"Bias: {title}", r"$\|E\,g_K - g\| \;/\; \|g\|$"),
      (deviation, "Deviation of one draw", norm),
      (cosine, "Direction of one draw", r"mean cosine of $g_K$ and $g$"),
    ):
      drawing.log_axis(axes, "x", ticks)
      drawing.label_panel(axes, heading, "K, classes of a step", y_label, grid="both")
  drawing.save(path, figure)


def gradient_bias_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `gradient_bias`: its plot, and the figures of each
  combination."""
  counts = (
    f"{counted(results['images'], 'image')}, {counted(results['n_classes'], 'class')}"
  )
  rows = []
  for own in results["cells"]:
    shown = {
      name: cell(value, 3) for name, value in own.items() if not isinstance(value, str)
    }
    head = [own["sampler"], own["correction"], shown["k"], shown["draws"]]
    bias = f"{shown['relative_bias']} ({shown['bias_low']} to {shown['bias_high']})"
    error = own["draw_cosine_error"]
    cosine = f"{shown['draw_cosine']} ± {cell(None if error is None else 2 * error, 3)}"
    rows.append([*head, bias, shown["relative_deviation"], cosine, shown["cosine"]])
  columns = ["sampler", "correction", "K", "draws", "bias", "deviation of a draw"]
  columns += ["cosine of a draw", "cosine of the mean"]
  text = (
    "Bias: distance of the mean gradient over the draws from the exact one; deviation: root mean"
    " square distance of a draw from their mean; both relative to the norm of the exact gradient."
    " Cosines are with the exact gradient. In brackets and after ±: two standard errors."
  )
  norm, seconds = cell(results["exact_norm"], 4), cell(results["seconds"])
  data = {
    "prompt": results["prompt"],
    "norm of the exact gradient": norm,
    "time (s)": seconds,
  }
  sections = [
    Section("Data", table=facts(data)),
    Section("Bias, deviation and direction against K", picture="gradient_bias.png"),
    Section(
      "Sampled gradients beside the exact one", text, Table(columns, rows), brief=True
    ),
  ]
  combinations = (
    f"{counted(len(rows), 'combination')} of sampler, correction and K: {counts}."
  )
  return Report(f"Bias of the sampled gradient: {counts}", combinations, sections)
