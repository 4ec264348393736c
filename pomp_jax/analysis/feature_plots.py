"""Plots of features: alignment against uniformity, similarity matrices, maps of the classes."""

from collections.abc import Mapping
import math
import os

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.analysis import drawing
from pomp_jax.analysis.features import Branches, branch_plane
from pomp_jax.data.source import spread_evenly

# More points than these cover one another.
_MAP_CLASSES = 3000
_MATRIX_CLASSES = 240


def alignment_uniformity(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, float | None]]]
) -> None:
  """Plots alignment against uniformity, a panel a data set and a point a prompt.

  Args:
    path: PNG file to write.
    sets: data set -> prompt -> `alignment` and `uniformity`; None (one class) gives no point.
  """
  prompts = list(next(iter(sets.values())))
  figure, axes_of = drawing.panels(
    len(sets), 3.2, 3.2, "Alignment and uniformity (lower is better)"
  )
  for place, (axes, (name, figures)) in enumerate(zip(axes_of, sets.items(), strict=True)):
    for i, one in enumerate(figures.values()):
      x = math.nan if one["uniformity"] is None else one["uniformity"]
      axes.plot(x, one["alignment"], linestyle="", markersize=8, **drawing.style(i))
    axes.margins(0.2)
    y_label = "" if place % drawing.COLUMNS else "alignment of images and classes"
    drawing.label_panel(axes, name, "uniformity of the classes", y_label, grid="both")
  drawing.legend_below(figure, axes_of[0].get_lines(), prompts)
  drawing.save(path, figure)


def similarity_matrices(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Plots cosines between classes sorted by branch, a panel a prompt.

  Args:
    path: PNG file to write.
    features: prompt -> unit class features [N,E].
    branches: branches of the N classes; of more than 240 classes an even subset is shown.
    title: title of the figure.
  """
  order_N = np.argsort(branches.of_class, kind="stable")
  shown = order_N[spread_evenly(min(len(order_N), _MATRIX_CLASSES), len(order_N))]
  cosines = {name: rows[shown] @ rows[shown].T for name, rows in features.items()}
  # The colour range ignores the diagonal.
  values = np.array([matrix[~np.eye(len(shown), dtype=bool)] for matrix in cosines.values()])
  lowest, highest = (values.min(), values.max()) if values.size else (0.0, 1.0)
  figure, axes_of = drawing.panels(len(features), 3.6, 3.6, title)
  starts = np.flatnonzero(np.diff(branches.of_class[shown], prepend=-1))
  middle = (starts + np.append(starts[1:], len(shown)) - 1) / 2
  names = [drawing.shorten(branches.names[branches.of_class[shown[start]]], 18) for start in starts]
  for place, (axes, (name, matrix)) in enumerate(zip(axes_of, cosines.items(), strict=True)):
    picture = axes.imshow(matrix, cmap="viridis", vmin=lowest, vmax=highest)
    axes.set_title(drawing.shorten(name), fontsize=10)
    axes.set_xticks([])
    axes.set_yticks(middle, [""] * len(names) if place % drawing.COLUMNS else names, fontsize=7)
    axes.tick_params(length=0)
    for start in starts[1:]:
      axes.axhline(start - 0.5, color="white", linewidth=0.5)
      axes.axvline(start - 0.5, color="white", linewidth=0.5)
  figure.colorbar(picture, ax=axes_of, shrink=0.7, label="cosine")
  drawing.save(path, figure)


def class_maps(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Plots classes in the plane that separates their branches best, a panel a prompt.

  Args:
    path: PNG file to write.
    features: prompt -> unit class features [N,E].
    branches: branches of the N classes, told apart by colour and marker.
    title: title of the figure.
  """
  n_classes = len(branches.of_class)
  shown = spread_evenly(min(n_classes, _MAP_CLASSES), n_classes)
  figure, axes_of = drawing.panels(len(features), 4.2, 4.2, title)
  for axes, (name, rows) in zip(axes_of, features.items(), strict=True):
    points_Nx2, explained = branch_plane(rows, branches.of_class)
    _scatter_branches(axes, points_Nx2[shown], branches, branches.of_class[shown])
    axes.set_title(drawing.shorten(name), fontsize=10)
    axes.set_xlabel(f"{100 * explained[0]:.0f}% of the variance", fontsize=8)
    axes.set_ylabel(f"{100 * explained[1]:.0f}% of the variance", fontsize=8)
    axes.set(xticks=[], yticks=[])
  drawing.save(path, figure)


def _scatter_branches(
  axes: Axes, points_nx2: np.ndarray, branches: Branches, branch_n: np.ndarray
) -> None:
  """Draws the points of each branch, and its name at their median."""
  for branch, name in enumerate(branches.names):
    own = points_nx2[branch_n == branch]
    if not len(own):
      continue
    # The marker changes after each round of colours.
    colour = drawing.COLOURS[branch % len(drawing.COLOURS)]
    marker = drawing.MARKERS[branch // len(drawing.COLOURS) % len(drawing.MARKERS)]
    axes.scatter(*own.T, s=5, color=colour, marker=marker, alpha=0.45, linewidths=0)
    if len(branches.names) > 1:
      box = {"facecolor": "white", "alpha": 0.75, "edgecolor": colour, "pad": 1.2, "linewidth": 0.8}
      middle = np.median(own, axis=0)
      axes.text(
        *middle, drawing.shorten(name, 18), fontsize=6.5, ha="center", va="center", bbox=box
      )
