"""Bias and variance of the sampled gradient against the exact one over all classes.

Shapes: B images, K negatives of a draw, C = B + K, N classes, M context vectors, D
width, E embedding, R draws, P = M D entries of a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.learner import Frozen, Learner
from pomp_jax.prompt.loss import ContrastSettings, local_contrast, normalize
from pomp_jax.prompt.sampling.samplers import complete_negatives, draw_negatives
from pomp_jax.report import drawing
from pomp_jax.report.labels import counted
from pomp_jax.report.report import Report, Section, Table, cell, facts

# Smallest relative bias in a plot. A logarithmic axis has no zero, and a tenth of a
# percent matters to nobody.
_LOWEST_BIAS = 1e-3
_LINES = ("-", "--", ":", "-.", (0, (1, 3)))


def gradient_function(
  learner: Learner, settings: ContrastSettings, corrections: Sequence[str]
) -> Callable[..., Float[Array, "corrections P"]]:
  """Compiles (params, frozen, images [B,E], labels [B], key) -> gradients of one draw.

  Args:
    learner: the learner, whose token budget fits the draw.
    settings: sampler, K and logit scale; its loss and its correction are ignored.
    corrections: correction of each row of the result; all rows have the same draw.
      "sigmoid" stands for the sigmoid loss with importance weights.
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

    def class_features(
      params: Any,
    ) -> tuple[Float[Array, "C ... E"], Bool[Array, " C"] | None]:
      classes = learner.text_features(params, frozen, ids_C, features_BxE)
      return classes.features, classes.available

    # The forward pass of the text tower runs once for all corrections.
    class_features_CxE, pull_back, available_C = jax.vjp(
      class_features, params, has_aux=True
    )
    available_K = None if available_C is None else available_C[n_images:]
    negatives = complete_negatives(
      settings.sampling, frozen.sampling, drawn, labels_B, available_K
    )

    def gradient_of(correction: str) -> Float[Array, " P"]:
      if correction == "sigmoid":
        contrast = dataclasses.replace(settings, loss="sigmoid", correction="log")
      else:
        contrast = dataclasses.replace(settings, loss="softmax", correction=correction)

      def loss(class_features_CxE: Float[Array, "C ... E"]) -> Float[Array, ""]:
        return local_contrast(
          contrast,
          features_BxE,
          class_features_CxE[:n_images],
          class_features_CxE[-negatives.ids.size :],
          labels_B,
          negatives,
        ).loss

      (gradient,) = pull_back(jax.grad(loss)(class_features_CxE))
      return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    return jnp.stack([gradient_of(correction) for correction in corrections])

  return gradients


def draws_of(
  gradients: Callable,
  arguments: tuple[Any, Frozen, Float[Array, "B E"], Int32[Array, " B"]],
  n_draws: int,
  seed: int,
) -> Float[np.ndarray, "R corrections P"]:
  """Computes the gradients of independent draws for the same images.

  Args:
    gradients: function of `gradient_function`.
    arguments: arguments of `gradients` but the key: parameters, frozen arrays, images
      [B,E] and labels [B].
    n_draws: number of draws, R.
    seed: random seed of the draws.

  Returns:
    Gradients in float64, because `summarise` takes small differences of gradients.
  """
  keys_R = jax.random.split(jax.random.key(seed), n_draws)
  draws = []
  for key in steps_of(keys_R, "gradients", "draws", n_draws):
    gradients_of_draw = gradients(*arguments, key)
    draws.append(np.asarray(gradients_of_draw, np.float64))
  return np.stack(draws)


def summarise(
  gradients_RxP: Float[np.ndarray, "R P"], exact_P: Float[np.ndarray, " P"]
) -> dict[str, float | int]:
  """Estimates bias, deviation and direction of a sampled gradient g_K against g.

  g is the exact gradient, which is not 0. The squared distance between g and the mean
  over R draws is, on average, the squared bias plus 1/R of the variance. The variance's
  part is subtracted. A jackknife over the R >= 3 independent draws estimates the
  standard error of the squared bias.

  Returns:
    draws: R.
    relative_bias: ||E g_K - g|| / ||g||. bias_low and bias_high are the roots of its
      square minus and plus two standard errors, at least 0.
    relative_deviation: sqrt(E ||g_K - E g_K||^2) / ||g||.
    cosine: cosine of the mean over the draws with g. draw_cosine, draw_cosine_error:
      mean cosine of single draws with g, and its standard error.
  """
  gradients_RxP = gradients_RxP.astype(np.float64)
  exact_P = exact_P.astype(np.float64)
  n_draws = len(gradients_RxP)
  squared_norm = np.sum(exact_P**2)
  norm = np.sqrt(squared_norm)

  def squared_bias(rows_RxP: np.ndarray) -> float:
    variance = rows_RxP.var(axis=0, ddof=1).sum()
    squared_distance = np.sum((rows_RxP.mean(axis=0) - exact_P) ** 2)
    return (squared_distance - variance / len(rows_RxP)) / squared_norm

  bias = squared_bias(gradients_RxP)
  jackknife_R = np.array(
    [squared_bias(np.delete(gradients_RxP, row, axis=0)) for row in range(n_draws)]
  )
  spread = np.sum((jackknife_R - jackknife_R.mean()) ** 2)
  error = np.sqrt((n_draws - 1) / n_draws * spread)

  variance = gradients_RxP.var(axis=0, ddof=1).sum()
  mean_P = gradients_RxP.mean(axis=0)
  norms_R = np.linalg.norm(gradients_RxP, axis=1)
  # The gradient of a draw is 0 if all its images are certain: avoid 0 / 0.
  cosine_R = (
    gradients_RxP @ exact_P / np.maximum(norms_R * norm, np.finfo(np.float64).tiny)
  )
  return {
    "draws": n_draws,
    "relative_bias": float(np.sqrt(max(bias, 0.0))),
    "bias_low": float(np.sqrt(max(bias - 2 * error, 0.0))),
    "bias_high": float(np.sqrt(max(bias + 2 * error, 0.0))),
    "relative_deviation": float(np.sqrt(variance / squared_norm)),
    "cosine": float(mean_P @ exact_P / (np.linalg.norm(mean_P) * norm)),
    "draw_cosine": float(cosine_R.mean()),
    "draw_cosine_error": float(cosine_R.std(ddof=1) / np.sqrt(n_draws)),
  }


class _Row(NamedTuple):
  """A row of panels, with a line for each pair of sampler and correction."""

  heading: str
  label_of_line: dict[tuple[str, str], str]  # by sampler and correction


def gradient_bias_panels(
  path: str | os.PathLike,
  cells: Sequence[Mapping[str, Any]],
  *,
  images: int,
  classes: int,
) -> None:
  """Plots bias, deviation and direction against K: by correction, then by sampler.

  Args:
    path: file of the plot.
    cells: `sampler`, `correction`, `k` and the figures of `summarise`, for each
      combination.
    images: number of images, B.
    classes: number of classes, N.
  """
  samplers = list(dict.fromkeys(cell["sampler"] for cell in cells))
  corrections = list(dict.fromkeys(cell["correction"] for cell in cells))
  by_correction = {(samplers[0], name): name for name in corrections}
  rows = [_Row(f"{samplers[0]} draw, by correction", by_correction)]
  if len(samplers) > 1:
    by_sampler = {(name, corrections[0]): name for name in samplers}
    rows.append(_Row(f"correction {corrections[0]}, by sampler", by_sampler))
  ticks = sorted({cell["k"] for cell in cells})
  biases = [cell["bias_low"] for cell in cells if cell["bias_low"] > _LOWEST_BIAS]
  lowest = min(biases, default=_LOWEST_BIAS)
  title = (
    f"The sampled gradient against the exact contrast: {counted(images, 'image')},"
    f" {counted(classes, 'class')}; bars: two standard errors over {_draws(cells)}"
  )
  figure, panels = drawing.panels(3 * len(rows), 3.8, 3.7, title, columns=3)
  for number, row in enumerate(rows):
    bias, deviation, cosine = panels[3 * number : 3 * number + 3]
    for line, (pair, label) in enumerate(row.label_of_line.items()):
      cells_of_line = [
        cell for cell in cells if (cell["sampler"], cell["correction"]) == pair
      ]
      # Shift the lines, so that error bars at the same K don't overlap.
      shift = 1.05 ** (line - (len(row.label_of_line) - 1) / 2)
      _draw_line((bias, deviation, cosine), cells_of_line, line, shift, label)
    bias.set_yscale("log")
    bias.set_ylim(bottom=0.8 * lowest)
    bias.legend(frameon=False, fontsize=drawing.TEXT)
    drawing.log_axis(bias, "y")
    drawing.log_axis(deviation, "y")
    norm = r"$(E\,\|g_K - E\,g_K\|^2)^{1/2} \;/\; \|g\|$"
    for axes, heading, y_label in (
      (bias, f"Bias: {row.heading}", r"$\|E\,g_K - g\| \;/\; \|g\|$"),
      (deviation, "Deviation of one draw", norm),
      (cosine, "Direction of one draw", r"mean cosine of $g_K$ and $g$"),
    ):
      drawing.log_axis(axes, "x", ticks)
      drawing.label_panel(axes, heading, "K, classes of a step", y_label, grid="both")
  drawing.save(path, figure)


def _draws(cells: Sequence[Mapping[str, Any]]) -> str:
  """Text of the number of draws, or of the range if a larger K has fewer draws."""
  fewest = min(cell["draws"] for cell in cells)
  most = max(cell["draws"] for cell in cells)
  if fewest == most:
    return counted(most, "draw")
  return f"{fewest:,} to {most:,} draws"


def _draw_line(
  panels: tuple[Axes, Axes, Axes],
  cells: Sequence[Mapping[str, Any]],
  line: int,
  shift: float,
  label: str,
) -> None:
  """Draws a pair of sampler and correction into the panels of a row.

  Args:
    panels: axes of bias, deviation and cosine.
    cells: figures of the pair, one cell at each K.
    line: number of the line, which chooses its colour and dashes.
    shift: factor on K, so that error bars of several lines don't overlap.
    label: text of the legend.
  """
  bias_axes, deviation_axes, cosine_axes = panels
  style = {
    "linestyle": _LINES[line % len(_LINES)],
    "capsize": 2,
    "elinewidth": 0.9,
  }

  def figures(name: str) -> np.ndarray:
    """Values of one figure, one for each cell."""
    return np.array([cell[name] for cell in cells])

  k = figures("k") * shift

  # A bias may be 0, which a logarithmic axis can't show.
  bias = np.maximum(figures("relative_bias"), _LOWEST_BIAS)
  low = np.maximum(figures("bias_low"), _LOWEST_BIAS)
  high = np.maximum(figures("bias_high"), _LOWEST_BIAS)
  reach = np.maximum([bias - low, high - bias], 0)
  drawing.error_bars(bias_axes, k, bias, line, yerr=reach, label=label, **style)

  deviation = figures("relative_deviation")
  drawing.error_bars(deviation_axes, k, deviation, line, **style)

  cosine = figures("draw_cosine")
  two_errors = 2 * figures("draw_cosine_error")
  drawing.error_bars(cosine_axes, k, cosine, line, yerr=two_errors, **style)


def gradient_bias_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Reports the job `gradient_bias`: its plot, and the figures of each combination."""
  n_images = counted(results["images"], "image")
  n_classes = counted(results["n_classes"], "class")
  counts = f"{n_images}, {n_classes}"
  columns = [
    "sampler",
    "correction",
    "K",
    "draws",
    "bias",
    "deviation of a draw",
    "cosine of a draw",
    "cosine of the mean",
  ]
  rows = [_figures_row(figures) for figures in results["cells"]]
  text = (
    "Bias: distance of the mean gradient over the draws from the exact one; deviation: root mean"
    " square distance of a draw from their mean; both relative to the norm of the exact gradient."
    " Cosines are with the exact gradient. In brackets and after ±: two standard errors."
  )
  data = {
    "prompt": results["prompt"],
    "norm of the exact gradient": cell(results["exact_norm"], 4),
    "time (s)": cell(results["seconds"]),
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


def _figures_row(figures: Mapping[str, Any]) -> list[str]:
  """Formats the figures of a combination as a row of the report."""
  text = {}
  for name, value in figures.items():
    if not isinstance(value, str):
      text[name] = cell(value, 3)
  two_errors = figures["draw_cosine_error"]
  if two_errors is not None:
    two_errors = 2 * two_errors
  return [
    figures["sampler"],
    figures["correction"],
    text["k"],
    text["draws"],
    f"{text['relative_bias']} ({text['bias_low']} to {text['bias_high']})",
    text["relative_deviation"],
    f"{text['draw_cosine']} ± {cell(two_errors, 3)}",
    text["cosine"],
  ]
