"""Geometry of features and learned vectors: alignment, uniformity, nearest tokens.

Everything runs on the host, with sums in float64. Shapes: n images, N classes, P
prompts, E embedding, M context vectors, V tokens of the vocabulary, D width, T nearest
tokens, R classes of a block, S classes from the block's first on.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np
from scipy.spatial.distance import cdist

from pomp_jax.report import drawing, report
from pomp_jax.report.labels import counted, prompt_labels, with_counts

# Rows of a similarity matrix at a time: 64 MB of cosines for 20,000 classes.
_CHUNK = 768
# Tokens in the sample of `token_spacing`.
_SAMPLE = 512


def alignment(
  image_features_nxE: Float[np.ndarray, "n E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_n: Int[np.ndarray, " n"],
) -> float:
  """Computes how near images are to the texts of their classes; lower is nearer.

  mean_i ||f(x_i) - g(t_{y_i})||^2, Wang & Isola (2020), eq. 1 with alpha = 2. As in POMP,
  the pairs are images and their classes.

  Args:
    image_features_nxE: unit features of the images.
    class_features_NxE: unit features of the classes.
    labels_n: class of each image.

  Returns:
    The mean squared distance, 0 to 4, computed in float64.
  """
  text_features_nxE = class_features_NxE[labels_n]
  difference_nxE = image_features_nxE - text_features_nxE
  squares_nxE = np.square(difference_nxE, dtype=np.float64)
  distance_n = np.sum(squares_nxE, axis=-1)
  return float(np.mean(distance_n))


def uniformity(class_features_NxE: Float[np.ndarray, "N E"]) -> float:
  """Computes how evenly class features spread over the sphere; lower is more even.

  log mean_{i<j} exp(-2 ||g_i - g_j||^2), Wang & Isola (2020), eq. 2 with t = 2, over
  all pairs of two or more unit vectors.
  """
  n_classes = len(class_features_NxE)
  total = 0.0
  for start in range(0, n_classes, _CHUNK):
    block_RxE = class_features_NxE[start : start + _CHUNK]
    # Pairs with earlier classes are in the sum already.
    cosines_RxS = block_RxE @ class_features_NxE[start:].T
    # ||a - b||^2 = 2 - 2 a.b on the unit sphere.
    potential_RxS = np.exp(4 * (cosines_RxS - 1), dtype=np.float64)
    total += np.sum(np.triu(potential_RxS, 1))
  n_pairs = n_classes * (n_classes - 1) / 2
  return float(np.log(total / n_pairs))


def prompt_similarity(
  rows_PxNxE: Sequence[Float[np.ndarray, "N E"]],
) -> Float[np.ndarray, "P P"]:
  """Computes the mean cosine between the unit features of a class under two prompts."""
  rows_PxNE = np.stack(rows_PxNxE).astype(np.float64).reshape(len(rows_PxNxE), -1)
  return rows_PxNE @ rows_PxNE.T / len(rows_PxNxE[0])


class NearestTokens(NamedTuple):
  """Tokens of a vocabulary that are nearest to some vectors, nearest first."""

  ids_MxT: Int[np.ndarray, "M T"]
  distances_MxT: Float[np.ndarray, "M T"]  # Euclidean


def nearest_tokens(
  vectors_MxD: Float[np.ndarray, "M D"],
  embeddings_VxD: Float[np.ndarray, "V D"],
  top: int,
) -> NearestTokens:
  """Finds the tokens nearest to each vector, as in CoOp (2022).

  Args:
    vectors_MxD: learned context vectors.
    embeddings_VxD: token embeddings of the CLIP.
    top: number of tokens of a vector, T; all V tokens if `top` exceeds V.
  """
  distances_MxV = cdist(vectors_MxD, embeddings_VxD)
  # Stable: of equally near tokens the lower id comes first.
  order_MxV = np.argsort(distances_MxV, axis=-1, kind="stable")
  ids_MxT = order_MxV[:, :top]
  distances_MxT = np.take_along_axis(distances_MxV, ids_MxT, axis=-1)
  return NearestTokens(ids_MxT, distances_MxT)


def token_spacing(embeddings_VxD: Float[np.ndarray, "V D"]) -> float:
  """Computes the median distance from a token to its nearest neighbour, over 512 tokens
  that are spread evenly."""
  n_tokens = len(embeddings_VxD)
  tokens = np.linspace(0, n_tokens - 1, min(n_tokens, _SAMPLE)).astype(int)
  distances = cdist(embeddings_VxD[tokens], embeddings_VxD)
  # A token is not its own neighbour.
  distances[np.arange(len(tokens)), tokens] = np.inf
  return float(np.median(distances.min(axis=-1)))


def alignment_uniformity(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Any]]
) -> None:
  """Plots alignment against uniformity: data sets as panels, prompts as points.

  A prompt whose uniformity is None has no point.
  """
  title = "Alignment and uniformity (lower is better)"
  figure, panels = drawing.panels(len(sets), 3.2, 3.2, title)
  for number, (name, of_set) in enumerate(sets.items()):
    axes = panels[number]
    for i, figures in enumerate(of_set["prompts"].values()):
      # None becomes NaN, which is not drawn.
      x = np.array([figures["uniformity"]], float)
      style = drawing.style(i)
      axes.plot(x, [figures["alignment"]], linestyle="", markersize=8, **style)
    axes.margins(0.2)
    y_label = ""
    if drawing.starts_row(axes):
      y_label = "alignment of images and classes"
    heading = with_counts(drawing.name(name, 18), of_set["images"], of_set["classes"])
    drawing.label_panel(
      axes, heading, "uniformity of the classes", y_label, grid="both"
    )
  prompts = list(next(iter(sets.values()))["prompts"])
  drawing.legend_below(figure, panels[0].get_lines(), prompt_labels(prompts))
  drawing.save(path, figure)


def geometry_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> report.Report:
  """Reports the job `analyse`: figures of each set, nearest tokens."""
  labels = report.short_labels(results["prompts"])
  sets = results["sets"]
  counts = []
  for name, of_set in sets.items():
    counts.append((name, f"{of_set['images']:,}", f"{of_set['classes']:,}"))
  sections = [
    report.prompts_section(results["prompts"], labels),
    report.Section(
      "Data sets", table=report.Table(("set", "images", "classes"), counts)
    ),
    report.Section("Alignment and uniformity", picture="alignment_uniformity.png"),
    _figure_section("Alignment (lower is better)", "", _alignment_cell, sets, labels),
    _figure_section("Uniformity (lower is better)", "", _uniformity_cell, sets, labels),
    _figure_section("Top-1 accuracy (%)", report.INTERVAL, _top1_cell, sets, labels),
  ]
  spacing = results["tokens"]["median_distance_between_tokens"]
  text = (
    "Euclidean distances; half of the vocabulary's tokens have another within"
    f" {spacing:.3f}."
  )
  for label, vectors in results["tokens"]["vectors"].items():
    # A prompt of class names alone has no vector.
    if vectors:
      title = f"Nearest tokens: {labels[label]}"
      sections.append(report.Section(title, text, _tokens_table(vectors), brief=True))
  prompts = counted(len(labels), "prompt")
  text = f"{prompts} on {counted(len(sets), 'data set')}, CLIP {results['clip_model']}."
  return report.Report(f"Class features under {prompts}", text, sections)


def _figure_section(
  title: str,
  text: str,
  cell_of: Callable[[Mapping[str, Any]], str],
  sets: Mapping[str, Mapping[str, Any]],
  labels: Mapping[str, str],
) -> report.Section:
  """A table of one figure: prompts in rows, data sets in columns."""
  rows = []
  for label, short_label in labels.items():
    cells = [cell_of(of_set["prompts"][label]) for of_set in sets.values()]
    rows.append([short_label, *cells])
  return report.Section(title, text, report.Table(("prompt", *sets), rows), brief=True)


def _alignment_cell(figures: Mapping[str, Any]) -> str:
  return report.cell(figures["alignment"], 3)


def _uniformity_cell(figures: Mapping[str, Any]) -> str:
  return report.cell(figures["uniformity"], 3)


def _top1_cell(figures: Mapping[str, Any]) -> str:
  return report.percent(figures["top1"], figures.get("top1_interval"))


def _tokens_table(vectors: Sequence[Mapping[str, Any]]) -> report.Table:
  """A table with a row for each vector: its nearest tokens and their distances."""
  rows = []
  for number, vector in enumerate(vectors, 1):
    row = [str(number)]
    for token, distance in zip(vector["tokens"], vector["distances"], strict=True):
      row.append(f"{token} {distance:.3f}")
    rows.append(row)
  n_tokens = len(rows[0]) - 1
  columns = [f"token {number}" for number in range(1, n_tokens + 1)]
  return report.Table(("vector", *columns), rows)
