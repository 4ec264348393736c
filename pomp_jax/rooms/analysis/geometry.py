"""Geometry of features and learned vectors: alignment, uniformity, maps, nearest tokens; plots.

Everything runs on the host, with sums in float64. Shapes: n images, N classes, P prompts,
E embedding, M context vectors, V tokens of the vocabulary, D width, T nearest tokens.
"""

from collections.abc import Mapping, Sequence
import os
import re
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np
from scipy.spatial.distance import cdist

from pomp_jax.data.subsets import spread_evenly
from pomp_jax.data.wordnet import Tree
from pomp_jax.report import drawing
from pomp_jax.report.labels import counted, prompt_labels, with_counts
from pomp_jax.report.report import (
  INTERVAL,
  Report,
  Section,
  Table,
  cell,
  percent,
  prompts_section,
  short_labels,
)
from pomp_jax.world.names import SHAPES

# Rows of a similarity matrix at a time: 64 MB of cosines for 20,000 classes.
_CHUNK = 768
# Share of the classes from which on a branch is shown by itself.
_SMALLEST_BRANCH = 1 / 50
# Tokens in the sample of `token_spacing`.
_SAMPLE = 512
# Classes in a map and in a matrix: more would cover one another.
_MAP_CLASSES, _MATRIX_CLASSES = 3000, 240


def alignment(
  image_features_nxE: Float[np.ndarray, "n E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_n: Int[np.ndarray, " n"],
) -> float:
  """Computes the mean squared distance between images and the text of their class, 0 to 4.

  mean_i ||f(x_i) - g(t_{y_i})||^2, Wang & Isola (2020), eq. 1 with alpha = 2. As in POMP, the pairs
  are images and their classes. Rows are unit vectors.
  """
  gaps_nxE = image_features_nxE - class_features_NxE[labels_n]
  return float(np.mean(np.sum(np.square(gaps_nxE, dtype=np.float64), axis=-1)))


def uniformity(class_features_NxE: Float[np.ndarray, "N E"], temperature: float = 2.0) -> float:
  """Computes how evenly class features spread over the sphere; lower is more even.

  log mean_{i<j} exp(-t ||g_i - g_j||^2), Wang & Isola (2020), eq. 2, over all pairs of two or more
  unit vectors; temperature is t, dimensionless.
  """
  n_classes, total = len(class_features_NxE), 0.0
  for start in range(0, n_classes, _CHUNK):
    block_RxE = class_features_NxE[start : start + _CHUNK]
    # Later classes only: each pair once.
    cosines_RxS = block_RxE @ class_features_NxE[start:].T
    # ||a - b||^2 = 2 - 2 a.b on the unit sphere.
    potential_RxS = np.exp(2 * temperature * (cosines_RxS - 1), dtype=np.float64)
    total += np.sum(np.triu(potential_RxS, 1))
  return float(np.log(total / (n_classes * (n_classes - 1) / 2)))


def prompt_similarity(
  features_PxNxE: Sequence[Float[np.ndarray, "N E"]],
) -> Float[np.ndarray, "P P"]:
  """Computes the mean cosine between the unit features of a class under two prompts."""
  rows_PxNE = np.stack(features_PxNxE).astype(np.float64).reshape(len(features_PxNxE), -1)
  return rows_PxNE @ rows_PxNE.T / len(features_PxNxE[0])


def branch_plane(
  features_NxE: Float[np.ndarray, "N E"], branch_N: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "N 2"], tuple[float, float]]:
  """Projects classes onto the plane in which the means of their branches lie farthest apart.

  The axes are the first two principal components of the means, each weighted by its number of
  classes; with fewer than three branches, of the features themselves. The largest component of an
  axis is positive. Returns coordinates, and the share of all variance along each axis.
  """
  centred_NxE = np.asarray(features_NxE, np.float64) - np.mean(features_NxE, axis=0)
  spread_NxE = centred_NxE
  branches = np.unique(branch_N)
  if len(branches) >= 3:
    means = {branch: centred_NxE[branch_N == branch].mean(axis=0) for branch in branches}
    spread_NxE = np.stack([means[branch] for branch in branch_N])
  _, vectors_ExE = np.linalg.eigh(spread_NxE.T @ spread_NxE)
  axes_2xE = vectors_ExE.T[::-1][:2]
  largest_2x1 = np.argmax(np.abs(axes_2xE), axis=-1, keepdims=True)
  axes_2xE = axes_2xE * np.sign(np.take_along_axis(axes_2xE, largest_2x1, axis=-1))
  points_Nx2 = centred_NxE @ axes_2xE.T
  variance = np.sum(np.square(points_Nx2), axis=0) / max(np.sum(np.square(centred_NxE)), 1e-300)
  return points_Nx2, (float(variance[0]), float(variance[1]))


class Branches(NamedTuple):
  """Classes in a few large groups, for the colours of a map."""

  names: tuple[str, ...]
  of_class: Int[np.ndarray, " N"]  # branch of each class, an index into `names`


def wordnet_branches(tree: Tree, class_nodes_N: Int[np.ndarray, " N"]) -> Branches:
  """Cuts WordNet's tree into branches of comparable size.

  Starting at the root, the branch with most classes is split into its children until about
  10 hold at least 2% of the classes each. Smaller ones become "other". A class with two parents
  belongs to the first by id.
  """
  branch_N = np.full(len(class_nodes_N), tree.root)
  child_E = np.repeat(np.arange(len(tree)), list(map(len, tree.parents)))
  parent_E = np.concatenate(tree.parents)
  split: set[int] = set()
  while True:
    found, counts = np.unique(branch_N, return_counts=True)
    large = {int(b): int(n) for b, n in zip(found, counts, strict=True)}
    large = {b: n for b, n in large.items() if n >= _SMALLEST_BRANCH * len(branch_N)}
    divisible = [b for b in large if b not in split]
    if len(large) >= 10 or not divisible:
      break
    largest = max(divisible, key=large.__getitem__)
    split.add(largest)
    children = set(child_E[parent_E == largest].tolist())
    for c in np.flatnonzero(branch_N == largest):
      above = children.intersection(tree.ancestors[class_nodes_N[c]].tolist())
      branch_N[c] = min(above, default=largest)
  order = sorted(large, key=lambda b: -large[b])
  index = {b: i for i, b in enumerate(order)}
  of_class = np.array([index.get(int(b), len(order)) for b in branch_N])
  other = ("other",) if np.any(of_class == len(order)) else ()
  return Branches((*(tree.names[b] for b in order), *other), of_class)


def shape_branches(names: Sequence[str]) -> Branches | None:
  """Groups the classes of the embedded world by shape; None for other class names."""
  pattern = re.compile(rf" ({'|'.join(map(re.escape, SHAPES))}) on ")
  found = [pattern.search(name) for name in names]
  if not all(found):
    return None
  shapes = np.array([SHAPES.index(match[1]) for match in found if match])
  present, of_class = np.unique(shapes, return_inverse=True)
  return Branches(tuple(SHAPES[s] for s in present), of_class)


def nearest_tokens(
  vectors_MxD: Float[np.ndarray, "M D"], embeddings_VxD: Float[np.ndarray, "V D"], top: int
) -> tuple[Int[np.ndarray, "M T"], Float[np.ndarray, "M T"]]:
  """Ids and Euclidean distances of the `top` tokens nearest to each vector, as in CoOp (2022)."""
  distances_MxV = cdist(vectors_MxD, embeddings_VxD)
  tokens_MxT = np.argsort(distances_MxV, axis=-1, kind="stable")[:, :top]
  return tokens_MxT, np.take_along_axis(distances_MxV, tokens_MxT, axis=-1)


def token_spacing(embeddings_VxD: Float[np.ndarray, "V D"]) -> float:
  """The median distance from a token to its nearest neighbour, over 512 tokens spread evenly."""
  n_tokens = len(embeddings_VxD)
  tokens = np.linspace(0, n_tokens - 1, min(n_tokens, _SAMPLE)).astype(int)
  distances = cdist(embeddings_VxD[tokens], embeddings_VxD)
  distances[np.arange(len(tokens)), tokens] = np.inf
  return float(np.median(distances.min(axis=-1)))


def alignment_uniformity(path: str | os.PathLike, sets: Mapping[str, Mapping[str, Any]]) -> None:
  """Plots alignment against uniformity, a panel a data set and a point a prompt; none for None."""
  prompts, title = list(next(iter(sets.values()))["prompts"]), "Alignment and uniformity"
  figure, axes_of = drawing.panels(len(sets), 3.2, 3.2, f"{title} (lower is better)")
  for place, (axes, (name, of_set)) in enumerate(zip(axes_of, sets.items(), strict=True)):
    for i, one in enumerate(of_set["prompts"].values()):
      x = np.array([one["uniformity"]], float)  # None becomes NaN, which is not drawn
      axes.plot(x, [one["alignment"]], linestyle="", markersize=8, **drawing.style(i))
    axes.margins(0.2)
    y_label = "" if place % drawing.COLUMNS else "alignment of images and classes"
    heading = with_counts(drawing.name(name, 18), of_set["images"], of_set["classes"])
    drawing.label_panel(axes, heading, "uniformity of the classes", y_label, grid="both")
  drawing.legend_below(figure, axes_of[0].get_lines(), prompt_labels(prompts))
  drawing.save(path, figure)


def similarity_matrices(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Plots cosines of unit class features [N,E] sorted by branch, a panel a prompt."""
  order_N = np.argsort(branches.of_class, kind="stable")
  shown = order_N[spread_evenly(_MATRIX_CLASSES, len(order_N))]
  cosines = {name: rows[shown] @ rows[shown].T for name, rows in features.items()}
  # The colour range ignores the diagonal.
  values = np.array([matrix[~np.eye(len(shown), dtype=bool)] for matrix in cosines.values()])
  lowest, highest = (values.min(), values.max()) if values.size else (0.0, 1.0)
  figure, axes_of = drawing.panels(len(features), 3.6, 3.6, _title(title, shown, order_N))
  starts = np.flatnonzero(np.diff(branches.of_class[shown], prepend=-1))
  middle = (starts + np.append(starts[1:], len(shown)) - 1) / 2
  names = drawing.names([branches.names[branches.of_class[shown[start]]] for start in starts], 18)
  headings = drawing.names(prompt_labels(list(cosines)))
  for place, (axes, matrix) in enumerate(zip(axes_of, cosines.values(), strict=True)):
    picture = axes.imshow(matrix, cmap="viridis", vmin=lowest, vmax=highest)
    drawing.label_panel(axes, headings[place])
    axes.set_xticks([])
    axes.set_yticks(middle, [""] * len(names) if place % drawing.COLUMNS else names)
    axes.tick_params(length=0)
    for start in starts[1:]:
      axes.axhline(start - 0.5, color="white", linewidth=0.5)
      axes.axvline(start - 0.5, color="white", linewidth=0.5)
  bar = figure.colorbar(picture, ax=axes_of, shrink=0.7)
  bar.set_label("cosine", fontsize=drawing.TEXT)
  bar.ax.tick_params(labelsize=drawing.TEXT)
  drawing.save(path, figure)


def _title(title: str, shown: np.ndarray, classes: np.ndarray) -> str:
  """A title with the number of classes, and how many of them are drawn."""
  part = f"{len(shown):,} of " if len(shown) < len(classes) else ""
  return f"{title}: {part}{counted(len(classes), 'class')}"


def class_maps(
  path: str | os.PathLike, features: Mapping[str, np.ndarray], branches: Branches, title: str
) -> None:
  """Plots classes in the plane that separates their branches best, with names at their medians."""
  shown = spread_evenly(_MAP_CLASSES, len(branches.of_class))
  title = _title(title, shown, branches.of_class)
  figure, axes_of = drawing.panels(len(features), 4.2, 4.2, title)
  headings = drawing.names(prompt_labels(list(features)))
  names = drawing.names(branches.names, 18)
  size = np.clip(4000 / len(shown), 5, 30)  # square points
  for axes, heading, rows in zip(axes_of, headings, features.values(), strict=True):
    points_Nx2, explained = branch_plane(rows, branches.of_class)
    for branch in np.unique(branches.of_class[shown]):
      own = points_Nx2[shown][branches.of_class[shown] == branch]
      # The marker changes after each round of colours.
      colour = drawing.COLOURS[branch % len(drawing.COLOURS)]
      marker = drawing.MARKERS[branch // len(drawing.COLOURS) % len(drawing.MARKERS)]
      x, y = own.T
      axes.scatter(x, y, s=size, color=colour, marker=marker, alpha=0.45, linewidths=0)
      if len(names) > 1:
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": colour, "pad": 1.2}
        place: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box | {"linewidth": 0.8}}
        x, y = np.median(own, axis=0)
        axes.text(x, y, names[branch], fontsize=6.5, **place)
    drawing.label_panel(
      axes, heading, *(f"{100 * share:.0f}% of the variance" for share in explained)
    )
    axes.set(xticks=[], yticks=[])
  drawing.save(path, figure)


def geometry_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `analyse`: figures, maps and similarities of each set, nearest tokens."""
  labels, sets = short_labels(results["prompts"]), results["sets"]
  counts = [(name, f"{of['images']:,}", f"{of['classes']:,}") for name, of in sets.items()]
  sections = [
    prompts_section(results["prompts"], labels),
    Section("Data sets", table=Table(("set", "images", "classes"), counts)),
    Section("Alignment and uniformity", picture="alignment_uniformity.png"),
  ]
  for title, text, shown in (
    ("Alignment (lower is better)", "", lambda of: cell(of["alignment"], 3)),
    ("Uniformity (lower is better)", "", lambda of: cell(of["uniformity"], 3)),
    ("Top-1 accuracy (%)", INTERVAL, lambda of: percent(of["top1"], of.get("top1_interval"))),
  ):
    rows = [
      [short, *(shown(of_set["prompts"][label]) for of_set in sets.values())]
      for label, short in labels.items()
    ]
    sections.append(Section(title, text, Table(("prompt", *sets), rows), brief=True))
  for name in sets:
    file = name.replace("/", "-")
    sections.append(Section(f"Class features of {name}", picture=f"map_{file}.png"))
    sections.append(Section(f"Cosines of classes of {name}", picture=f"similarity_{file}.png"))
  text = (
    "Euclidean distances; half of the vocabulary's tokens have another within"
    f" {results['tokens']['median_distance_between_tokens']:.3f}."
  )
  for label, vectors in results["tokens"]["vectors"].items():
    rows = []
    for number, one in enumerate(vectors, 1):
      near = zip(one["tokens"], one["distances"], strict=True)
      rows.append([str(number), *(f"{token} {distance:.3f}" for token, distance in near)])
    if rows:  # a prompt of class names alone has no vector
      table = Table(("vector", *(f"token {i}" for i in range(1, len(rows[0])))), rows)
      sections.append(Section(f"Nearest tokens: {labels[label]}", text, table, brief=True))
  prompts = counted(len(labels), "prompt")
  text = f"{prompts} on {counted(len(sets), 'data set')}, CLIP {results['clip_model']}."
  return Report(f"Class features under {prompts}", text, sections)
