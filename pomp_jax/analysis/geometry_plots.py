"""Pictures of features: alignment beside uniformity, similarity matrices, maps of the classes."""

from collections.abc import Mapping
import math
import os

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.analysis.branches import Branches
from pomp_jax.analysis.drawing import (
  COLOURS,
  COLUMNS,
  MARKERS,
  legend_below,
  panels,
  plain,
  save,
  short,
  style,
)
from pomp_jax.analysis.geometry import branch_plane
from pomp_jax.data.source import spread_evenly

# More points than that cover one another.
_MAP_CLASSES = 3000
_MATRIX_CLASSES = 240


def alignment_uniformity(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, float | None]]]
) -> None:
  """A panel a data set, a point a prompt; better is to the lower left.

  Args:
    path: the PNG file.
    sets: data set -> prompt -> `alignment` and `uniformity`; None, of one class: no point.
  """
  prompts = list(next(iter(sets.values())))
  figure, axes_of = panels(len(sets), 3.2, 3.2, "Alignment and uniformity (lower is better)")
  for place, (axes, (name, figures)) in enumerate(zip(axes_of, sets.items(), strict=True)):
    for i, one in enumerate(figures.values()):
      across = math.nan if one["uniformity"] is None else one["uniformity"]
      axes.plot(across, one["alignment"], linestyle="", markersize=8, **style(i))
    axes.margins(0.2)
    axes.set_xlabel("uniformity of the classes", fontsize=8)
    if place % COLUMNS == 0:
      axes.set_ylabel("alignment of images and classes", fontsize=8)
    axes.grid(color="0.92")
    plain(axes, name)
  legend_below(figure, axes_of[0].get_lines(), prompts)
  save(path, figure)


def similarity_matrices(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Cosines between classes, a panel a prompt, the classes in the order of their branches.

  Args:
    path: the PNG file.
    features: prompt -> unit class features [N,E].
    branches: of the N classes; of more than 240 classes every so many-th is shown.
    title: of the whole.
  """
  order_N = np.argsort(branches.of_class, kind="stable")
  shown = order_N[spread_evenly(min(len(order_N), _MATRIX_CLASSES), len(order_N))]
  cosines = {name: rows[shown] @ rows[shown].T for name, rows in features.items()}
  off_diagonal = ~np.eye(len(shown), dtype=bool)
  values = np.concatenate([matrix[off_diagonal] for matrix in cosines.values()] or [np.zeros(1)])
  lowest, highest = (values.min(), values.max()) if values.size else (0.0, 1.0)
  figure, axes_of = panels(len(features), 3.6, 3.6, title)
  starts = np.flatnonzero(np.diff(branches.of_class[shown], prepend=-1))
  for place, (axes, (name, matrix)) in enumerate(zip(axes_of, cosines.items(), strict=True)):
    picture = axes.imshow(matrix, cmap="viridis", vmin=lowest, vmax=highest)
    axes.set_title(short(name), fontsize=10)
    axes.set_xticks([])
    names = [short(branches.names[branches.of_class[shown[start]]], 18) for start in starts]
    middle = (starts + np.append(starts[1:], len(shown)) - 1) / 2
    axes.set_yticks(middle, names if place % COLUMNS == 0 else [""] * len(names), fontsize=7)
    axes.tick_params(length=0)
    for start in starts[1:]:
      axes.axhline(start - 0.5, color="white", linewidth=0.5)
      axes.axvline(start - 0.5, color="white", linewidth=0.5)
  figure.colorbar(picture, ax=axes_of, shrink=0.7, label="cosine")
  save(path, figure)


def class_maps(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Classes in the plane in which their branches lie farthest apart, a panel a prompt.

  Args:
    path: the PNG file.
    features: prompt -> unit class features [N,E].
    branches: of the N classes, each told by colour and marker and named at its middle.
    title: of the whole.
  """
  n_classes = len(branches.of_class)
  shown = spread_evenly(min(n_classes, _MAP_CLASSES), n_classes)
  figure, axes_of = panels(len(features), 4.2, 4.2, title)
  for axes, (name, rows) in zip(axes_of, features.items(), strict=True):
    plane = branch_plane(rows, branches.of_class)
    _map(axes, plane.points[shown], branches, branches.of_class[shown])
    axes.set_title(short(name), fontsize=10)
    for set_label, share in zip((axes.set_xlabel, axes.set_ylabel), plane.explained, strict=True):
      set_label(f"{100 * share:.0f}% of the variance", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
  save(path, figure)


def _map(axes: Axes, points_nx2: np.ndarray, branches: Branches, branch_n: np.ndarray) -> None:
  for branch, name in enumerate(branches.names):
    own = points_nx2[branch_n == branch]
    if not len(own):
      continue
    # Every seven colours the marker changes.
    colour = COLOURS[branch % len(COLOURS)]
    marker = MARKERS[branch // len(COLOURS) % len(MARKERS)]
    axes.scatter(*own.T, s=5, color=colour, marker=marker, alpha=0.45, linewidths=0)
    if len(branches.names) > 1:
      box = {"facecolor": "white", "alpha": 0.75, "edgecolor": colour, "pad": 1.2, "linewidth": 0.8}
      place = np.median(own, axis=0)
      axes.text(*place, short(name, 18), fontsize=6.5, ha="center", va="center", bbox=box)
