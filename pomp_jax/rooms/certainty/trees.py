"""A tree above a list of classes: WordNet's, a CSV of ranks, own groups, COCO's.

| file | its tree |
| --- | --- |
| `wordnet` | is-a relations of the synsets of the class list |
| `.csv` | one column per rank, the coarsest first, class names last; a header line |
| `.toml` | `group = ["member", ..]`; a member is a class or another group |
| `.json` | COCO's or LVIS's categories, with `supercategory` |

A node may have several parents: a dog is a canine and a domestic animal. A class may
have other classes below it. A class counts once for each node above it, however many
paths lead to that node.

Shapes: B images, N classes, n nodes, P pairs of a class and a node at or above the
class, s classes below a node.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import os
import tomllib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from pomp_jax.data.class_lists import VocabularyError, load_class_list
from pomp_jax.data.wordnet import Tree, load_tree
from pomp_jax.files.paths import read_text, read_user_json
from pomp_jax.files.terminal import printable, quoted
from pomp_jax.rooms.certainty.fields import SUFFIXES, WORDNET

_ROOT = "anything"  # root that is added above COCO's supercategories


class TreeError(VocabularyError):
  """A tree can't be used; the message is one line that names the file or the field."""


class ClassTree(NamedTuple):
  """A tree with N classes at some of its nodes."""

  tree: Tree
  nodes: Int[np.ndarray, " N"]  # node of each class
  # Each class is paired with its own node and with every node above.
  pair_classes: Int[np.ndarray, " P"]
  pair_nodes: Int[np.ndarray, " P"]
  n_below: Int[np.ndarray, " n"]  # number of classes at and below each node
  # log2(N / n_below): information of an answer with the node; -1 without classes
  bits: Float[np.ndarray, " n"]

  def probabilities(
    self, probability_BxN: Float[np.ndarray, "B N"] | Float[jax.Array, "B N"]
  ) -> Float[jax.Array, "B n"]:
    """Sums the probabilities of the classes at and below each node."""
    return _sums(
      jnp.asarray(probability_BxN),
      self.pair_classes,
      self.pair_nodes,
      len(self.tree),
    )

  def holds(
    self, nodes_B: Int[np.ndarray, " B"], labels_B: Int[np.ndarray, " B"]
  ) -> Bool[np.ndarray, " B"]:
    """Whether each node is the node of the label's class, or a node above it."""
    # Write each pair of class and node as one number, to look pairs up in sorted order.
    n_nodes = len(self.tree)
    known = np.sort(self.pair_classes.astype(np.int64) * n_nodes + self.pair_nodes)
    asked_B = labels_B.astype(np.int64) * n_nodes + nodes_B
    place_B = np.minimum(np.searchsorted(known, asked_B), len(known) - 1)
    return known[place_B] == asked_B

  def below(self, name: str, where: str) -> Int[np.ndarray, " s"]:
    """Labels of the classes at and below a node.

    Args:
      name: name of a node, or its id.
      where: field, for messages.

    Raises:
      TreeError: no node has this name, or not exactly one such node has classes.
    """
    names = self.tree.names
    nodes = [node for node, node_name in enumerate(names) if node_name == name]
    if not nodes and name in self.tree.ids:
      nodes = [self.tree.ids.index(name)]
    with_classes = [node for node in nodes if self.n_below[node]]
    if not nodes:
      raise TreeError(f"{where}: no node is named {quoted(name)}; expected one")
    if len(with_classes) != 1:
      raise TreeError(
        f"{where}: {len(with_classes)} nodes with classes are named {quoted(name)};"
        " expected one, or its id"
      )
    is_below_P = self.pair_nodes == with_classes[0]
    return np.sort(self.pair_classes[is_below_P])

  def path(self, node: int) -> list[int]:
    """Nodes of a path down to `node`, without the root.

    Of several parents the path takes the most informative one, then the deepest.
    """
    found = []
    while node != self.tree.root:
      found.append(node)
      parents = self.tree.parents[node].tolist()
      node = max(parents, key=lambda one: (self.bits[one], self.tree.depth[one]))
    return found[::-1]


def _sum_pairs(
  probability_BxN: Float[Array, "B N"],
  pair_classes: Int[Array, " P"],
  pair_nodes: Int[Array, " P"],
  n_nodes: int,
) -> Float[Array, "B G"]:
  of_pairs_PxB = probability_BxN.T[pair_classes]
  return jax.ops.segment_sum(of_pairs_PxB, pair_nodes, num_segments=n_nodes).T


_sums = jax.jit(_sum_pairs, static_argnums=3)


def load_class_tree(
  tree: str, names: Sequence[str], class_list: str | os.PathLike
) -> ClassTree:
  """Reads a tree and finds the classes in it.

  Args:
    tree: `wordnet`, or a file.
    names: the N classes in the order of their labels.
    class_list: class list of the names; `wordnet` needs its synsets.

  Raises:
    TreeError: the tree can't be read, has a cycle or several roots, or lacks a class.
  """
  if tree == WORDNET:
    synsets = load_class_list(class_list).synsets
    if synsets is None:
      raise TreeError(f"{class_list}: has no synsets, which the tree wordnet takes")
    wordnet = load_tree()
    return of_nodes(wordnet, wordnet.nodes(synsets))
  parents, node_of_class = _read(tree)
  missing = [name for name in names if name not in node_of_class]
  if missing:
    raise TreeError(
      f"{tree}: {len(missing)} of {len(names)} names are not in the tree, such as"
      f" {quoted(missing[0])}; expected each of them"
    )
  built = tree_of(parents, tree)
  return of_nodes(built, built.nodes([node_of_class[name] for name in names]))


def of_nodes(tree: Tree, nodes_N: Int[np.ndarray, " N"]) -> ClassTree:
  """Places N classes at these nodes of a tree."""
  above = [tree.ancestors[node] for node in nodes_N]
  lengths = [len(nodes) for nodes in above]
  pair_classes = np.repeat(np.arange(len(nodes_N), dtype=np.int32), lengths)
  pair_nodes = np.concatenate(above).astype(np.int32)
  n_below = np.bincount(pair_nodes, minlength=len(tree))
  # -1 bit, because a node without a class below it is never an answer.
  bits = np.where(n_below > 0, np.log2(len(nodes_N) / np.maximum(n_below, 1)), -1.0)
  return ClassTree(tree, nodes_N, pair_classes, pair_nodes, n_below, bits)


def tree_of(parents: Mapping[str, Sequence[str]], where: str) -> Tree:
  """Builds a tree.

  Args:
    parents: parents of each node, by the node's id.
    where: the tree's file, for messages.

  Raises:
    TreeError: there is a cycle, or more than one root.
  """
  cycle = _cycle(parents)
  if cycle:
    raise TreeError(f"{where}: a cycle: {' > '.join(map(_shown, cycle))}")
  roots = sorted(node for node, above in parents.items() if not above)
  if len(roots) > 1:
    shown = ", ".join(map(_shown, roots[:3]))
    more = ", .." if len(roots) > 3 else ""
    raise TreeError(
      f"{where}: {len(roots)} roots, {shown}{more}; expected one node above them all"
    )
  ids = sorted(parents)
  names = [_name(node) for node in ids]
  return Tree(ids, names, [sorted(parents[node]) for node in ids])


def _name(node: str) -> str:
  """Name of a node: its id without the rank or kind and the tab in front, if any."""
  return node.rpartition("\t")[2]


def _shown(node: str) -> str:
  return quoted(_name(node))


def _cycle(parents: Mapping[str, Sequence[str]]) -> list[str]:
  """Nodes of a cycle, downwards, with the first node again at the end; empty without a
  cycle."""
  # Kahn's algorithm: take away nodes without parents until only cycles, and what is
  # below them, are left. `n_left` counts the parents of each node that are left.
  n_left = {node: len(above) for node, above in parents.items()}
  children: dict[str, list[str]] = {node: [] for node in parents}
  for node, above in parents.items():
    for parent in above:
      children[parent].append(node)
  ready = [node for node, count in n_left.items() if not count]
  while ready:
    for child in children[ready.pop()]:
      n_left[child] -= 1
      if not n_left[child]:
        ready.append(child)
  left = [node for node, count in n_left.items() if count]
  if not left:
    return []
  # Each node that is left has a parent that is left, so the way up ends in a cycle.
  node = left[0]
  seen: list[str] = []
  while node not in seen:
    seen.append(node)
    node = next(parent for parent in parents[node] if n_left[parent])
  return [*seen[seen.index(node) :], node][::-1]


def _read(path: str) -> tuple[dict[str, list[str]], dict[str, str]]:
  """Reads a file: the parents of each node, and the node of each class name."""
  if path.endswith(".csv"):
    return _read_ranks(path)
  if path.endswith(".toml"):
    return _read_groups(path)
  if path.endswith(".json"):
    return _read_categories(path)
  raise TreeError(
    f"{path}: not a tree; expected {WORDNET}, or a file {', '.join(SUFFIXES)}"
  )


def _read_ranks(path: str) -> tuple[dict[str, list[str]], dict[str, str]]:
  text = read_text(path, TreeError)
  try:
    # Any of the three line ends ends a row, since some programs write CR alone.
    rows = list(csv.reader(io.StringIO(text, newline=None)))
  except csv.Error as error:
    raise TreeError(f"{path}: not CSV ({error})") from error
  if len(rows) < 2:
    raise TreeError(f"{path}: no rows; expected a header and a row a class")
  header = rows[0]
  parents: dict[str, list[str]] = {}
  node_of_class = {}
  for number, row in enumerate(rows[1:], 2):
    if not row:
      continue
    if len(row) != len(header) or not row[-1].strip():
      raise TreeError(
        f"{path}: line {number} has {len(row)} cells; expected {len(header)}, the last"
        " one a name"
      )
    above: list[str] = []
    for rank, value in zip(header, row, strict=True):
      # An empty cell: the class does not have this rank.
      if not value.strip():
        continue
      # The rank is a part of the id: a genus and a family may have the same name.
      node = f"{rank.strip()}\t{value.strip()}"
      known = parents.setdefault(node, above)
      if known != above:
        here = _shown(above[0]) if above else "no other"
        before = _shown(known[0]) if known else "no other"
        raise TreeError(
          f"{path}: line {number}: {quoted(value)} is below {here}, and before below"
          f" {before}"
        )
      above = [node]
    node_of_class[row[-1].strip()] = above[0]
  return parents, node_of_class


def _read_groups(path: str) -> tuple[dict[str, list[str]], dict[str, str]]:
  text = read_text(path, TreeError)
  try:
    groups = tomllib.loads(text)
  except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
    raise TreeError(f"{path}: not TOML ({printable(str(error))})") from error
  parents: dict[str, list[str]] = {group: [] for group in groups}
  for group, members in groups.items():
    is_list = isinstance(members, list) and members
    if not is_list or not all(isinstance(name, str) for name in members):
      raise TreeError(f"{path}: {quoted(group)} is no list of names")
    for name in members:
      above = parents.setdefault(name, [])
      if group not in above:
        above.append(group)
  return parents, {node: node for node in parents}


def _read_categories(path: str) -> tuple[dict[str, list[str]], dict[str, str]]:
  content: Any = read_user_json(path, TreeError)
  categories = content.get("categories") if isinstance(content, dict) else None
  if not isinstance(categories, list) or not categories:
    raise TreeError(f"{path}: no categories; expected COCO's or LVIS's annotations")
  parents: dict[str, list[str]] = {_ROOT: []}
  node_of_class = {}
  for category in categories:
    texts = [category.get(key) for key in ("name", "supercategory")]
    if not all(isinstance(text, str) and text for text in texts):
      raise TreeError(f"{path}: a category without a name and a supercategory")
    name, above = texts
    parents.setdefault(f"super\t{above}", [_ROOT])
    parents[f"class\t{name}"] = [f"super\t{above}"]
    # Class lists may write LVIS's "air_conditioner" with a space.
    node_of_class[name.replace("_", " ")] = node_of_class[name] = f"class\t{name}"
  return parents, node_of_class
