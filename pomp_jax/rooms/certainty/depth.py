"""An answer as deep as it is sure: the most telling node of a tree whose probability is
high enough.

Shapes: B images, N classes, n nodes, T settings of a curve.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.rooms.certainty.outputs import blocks
from pomp_jax.rooms.certainty.trees import ClassTree

_SHOWN = 4  # nodes of a path that a line has at most


class Depth(NamedTuple):
  """An answer for each image."""

  nodes: Int[np.ndarray, " B"]
  probabilities: Float[np.ndarray, " B"]  # of the nodes


class Point(NamedTuple):
  """A point of a curve of accuracy against information."""

  setting: float  # least probability, or DARTS's lambda
  accuracy: float  # share of images whose answer is their class or above it
  bits: float  # mean information of the answers; 0 for a wrong one


@jax.jit
def deepest(
  probability_Bxn: Float[jax.Array, "B n"],
  bits_n: Float[jax.Array, " n"],
  least: float | Float[jax.Array, ""],
) -> Int[jax.Array, " B"]:
  """The node with the most bits among those with at least this probability.

  Of equal ones the likeliest, then the first. The root has probability 1.

  Args:
    probability_Bxn: probability of each node.
    bits_n: information of each node, in bits; below 0 for one without classes.
    least: probability that the answer must have.
  """
  # Sums of float32 may miss 1 by rounding.
  is_sure_Bxn = probability_Bxn >= jnp.minimum(least, 1 - 1e-4)
  bits_Bxn = jnp.where(is_sure_Bxn, bits_n, -1.0)
  most_Bx1 = jnp.max(bits_Bxn, axis=1, keepdims=True)
  return jnp.argmax(jnp.where(bits_Bxn == most_Bx1, probability_Bxn, -1.0), axis=1)


@jax.jit
def darts(
  probability_Bxn: Float[jax.Array, "B n"],
  bits_n: Float[jax.Array, " n"],
  weight: float | Float[jax.Array, ""],
) -> Int[jax.Array, " B"]:
  """The node that maximises (bits + lambda) * probability.

  Deng et al., "Hedging Your Bets" (2012): with the smallest lambda whose accuracy
  reaches a guarantee on validation images, the mean information is largest.

  Args:
    probability_Bxn: probability of each node.
    bits_n: information of each node, in bits; below 0 for one without classes.
    weight: lambda, in bits.
  """
  return jnp.argmax(jnp.maximum(bits_n + weight, 0) * probability_Bxn, axis=1)


def answers(
  tree: ClassTree, probability_BxN: Float[np.ndarray, "B N"], least: float
) -> Depth:
  """The deepest sure node of each image.

  Args:
    tree: the tree above the N classes.
    probability_BxN: probabilities of the classes, which sum to 1.
    least: probability that a node must have.
  """
  nodes = []
  of_nodes = []
  bits_n = jnp.asarray(tree.bits, jnp.float32)
  for sums_bxn in _sums_by_blocks(tree, probability_BxN):
    nodes_b = np.asarray(deepest(sums_bxn, bits_n, least))
    nodes.append(nodes_b)
    of_nodes.append(np.asarray(sums_bxn)[np.arange(len(nodes_b)), nodes_b])
  return Depth(np.concatenate(nodes), np.concatenate(of_nodes))


def curves(
  tree: ClassTree,
  probability_BxN: Float[np.ndarray, "B N"],
  labels_B: Int[np.ndarray, " B"],
  leasts: Sequence[float],
  weights: Sequence[float],
) -> dict[str, list[Point]]:
  """Accuracy against information, of sums above a threshold and of DARTS.

  Args:
    tree: the tree above the N classes.
    probability_BxN: probabilities of the classes.
    labels_B: right classes.
    leasts: probabilities that a node must have.
    weights: DARTS's lambdas.
  """
  bits_n = jnp.asarray(tree.bits, jnp.float32)
  nodes_of_least: dict[float, list[np.ndarray]] = {least: [] for least in leasts}
  nodes_of_weight: dict[float, list[np.ndarray]] = {weight: [] for weight in weights}
  for sums_bxn in _sums_by_blocks(tree, probability_BxN):
    for least, parts in nodes_of_least.items():
      parts.append(np.asarray(deepest(sums_bxn, bits_n, least)))
    for weight, parts in nodes_of_weight.items():
      parts.append(np.asarray(darts(sums_bxn, bits_n, weight)))
  return {
    "threshold": _points(tree, nodes_of_least, labels_B),
    "darts": _points(tree, nodes_of_weight, labels_B),
  }


def _points(
  tree: ClassTree,
  nodes_of_setting: Mapping[float, list[np.ndarray]],
  labels_B: Int[np.ndarray, " B"],
) -> list[Point]:
  """Accuracy and information of the answers under each setting."""
  points = []
  for setting, parts in nodes_of_setting.items():
    nodes_B = np.concatenate(parts)
    right_B = tree.holds(nodes_B, labels_B)
    bits_B = right_B * tree.bits[nodes_B]
    accuracy = float(np.mean(right_B))
    points.append(Point(setting, accuracy, bits=float(np.mean(bits_B))))
  return points


def text_of(
  tree: ClassTree,
  node: int,
  probability_n: Float[np.ndarray, " n"],
) -> str:
  """A line such as "dog (0.97) > terrier (0.81) > ?".

  Nodes that tell no more than the one above are not shown, nor those far above.

  Args:
    tree: the tree above the classes.
    node: the answer.
    probability_n: probability of each node.
  """
  shown: list[int] = []
  for one in tree.path(node):
    if shown and tree.n_below[one] == tree.n_below[shown[-1]]:
      shown.pop()
    shown.append(one)
  # Of all classes a node tells nothing.
  n_classes = len(tree.nodes)
  shown = [one for one in shown if tree.n_below[one] < n_classes or one == node]
  parts = [f"{tree.tree.names[one]} ({probability_n[one]:.2f})" for one in shown]
  if len(parts) > _SHOWN:
    parts = ["..", *parts[-_SHOWN:]]
  if tree.n_below[node] > 1:
    parts.append("?")
  return " > ".join(parts)


def _sums_by_blocks(
  tree: ClassTree, probability_BxN: Float[np.ndarray, "B N"]
) -> Iterator[Float[jax.Array, "b n"]]:
  """Yields probabilities of the nodes for some images at a time."""
  for block in blocks(len(probability_BxN), len(tree.pair_nodes)):
    yield tree.probabilities(probability_BxN[block])
