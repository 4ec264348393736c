"""Answers with a node of a tree: the most informative node that is probable enough.

Shapes: B images, b images of a block, N classes, n nodes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.rooms.certainty.outputs import blocks
from pomp_jax.rooms.certainty.trees import ClassTree

_SHOWN = 4  # most nodes of a path in a line


class Depth(NamedTuple):
  """The node that answers each image."""

  nodes: Int[np.ndarray, " B"]
  probabilities: Float[np.ndarray, " B"]  # probability of each answer's node


class Point(NamedTuple):
  """A point of a curve of accuracy against information."""

  setting: float  # least probability, or DARTS's lambda
  accuracy: float  # share of images whose answer is the right class or a node above it
  bits: float  # mean information of the answers; a wrong answer counts 0


@jax.jit
def deepest(
  probability_Bxn: Float[jax.Array, "B n"],
  bits_n: Float[jax.Array, " n"],
  least: float | Float[jax.Array, ""],
) -> Int[jax.Array, " B"]:
  """The node with the most bits among the nodes with probability `least` or more.

  If nodes have equal bits, the likeliest node wins, then the first. Some node always
  qualifies, because the root has probability 1.

  Args:
    probability_Bxn: probability of each node.
    bits_n: information of each node, in bits; below 0 for a node without classes.
    least: probability that the answer must have.
  """
  # The root's probability is a sum in float32, which rounding may leave below 1.
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

  Deng et al., "Hedging Your Bets" (2012): the smallest lambda whose accuracy on
  validation images reaches a guarantee gives the largest mean information.

  Args:
    probability_Bxn: probability of each node.
    bits_n: information of each node, in bits; below 0 for a node without classes.
    weight: lambda, in bits.
  """
  return jnp.argmax(jnp.maximum(bits_n + weight, 0) * probability_Bxn, axis=1)


def answers(
  tree: ClassTree, probability_BxN: Float[np.ndarray, "B N"], least: float
) -> Depth:
  """Computes the answer of `deepest` to each image.

  Args:
    tree: the tree above the N classes.
    probability_BxN: probabilities of the classes, which sum to 1.
    least: probability that a node must have.
  """
  nodes = []
  probabilities = []
  bits_n = jnp.asarray(tree.bits, jnp.float32)
  for sums_bxn in _sums_by_blocks(tree, probability_BxN):
    nodes_b = np.asarray(deepest(sums_bxn, bits_n, least))
    nodes.append(nodes_b)
    probabilities.append(np.asarray(sums_bxn)[np.arange(len(nodes_b)), nodes_b])
  return Depth(np.concatenate(nodes), np.concatenate(probabilities))


def curves(
  tree: ClassTree,
  probability_BxN: Float[np.ndarray, "B N"],
  labels_B: Int[np.ndarray, " B"],
  leasts: Sequence[float],
  weights: Sequence[float],
) -> dict[str, list[Point]]:
  """Computes curves of accuracy against information, for `deepest` and for `darts`.

  Args:
    tree: the tree above the N classes.
    probability_BxN: probabilities of the classes.
    labels_B: right classes.
    leasts: values of `least` of `deepest`, one per point.
    weights: lambdas of `darts`, one per point.
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

  Of nodes with the same classes below them only the lowest is shown. Nodes above all
  classes are left out, and so is the start of a long path. "?" says that several
  classes are below the answer.

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
  # A node above all classes tells nothing; show it only if it is the answer.
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
  """Yields the probabilities of the nodes for a block of images at a time."""
  # The sums gather a number per pair of class and node, so pairs set the block size.
  for block in blocks(len(probability_BxN), len(tree.pair_nodes)):
    yield tree.probabilities(probability_BxN[block])
