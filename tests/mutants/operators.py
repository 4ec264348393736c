"""Operators of our own: what is left out, and what changes places.

cosmic-ray's change a symbol. These make the mistakes of somebody who edits: an argument
that is not passed on, an item that a list lacks, a condition that is dropped, two
arguments in the wrong order.
"""

from collections.abc import Callable, Iterator

from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator
from parso.tree import BaseNode, NodeOrLeaf

Span = tuple[tuple[int, int], tuple[int, int]]


def _parts(node: NodeOrLeaf) -> list[NodeOrLeaf]:
  """The parts of a node that separators part: arguments, items, conditions."""
  return node.children[::2] if isinstance(node, BaseNode) else []


def _is_display(node: NodeOrLeaf) -> bool:
  """Whether a node has the items of a list or of a longer tuple, and is no
  comprehension.

  A pair is mostly unpacked, so that without one of the two any test fails.
  """
  if (
    node.type != "testlist_comp"
    or node.children[1] != ","
    or node.parent.type != "atom"
  ):
    return False
  return node.parent.children[0] == "[" or len(_parts(node)) > 2


class RemoveItem(Operator):
  """Removes an argument by name, an item of a list, tuple or dict, or a part of
  `and` and `or`."""

  def _removable(self, node: NodeOrLeaf) -> Iterator[NodeOrLeaf]:
    if node.type == "arglist":
      yield from (part for part in _parts(node) if _name_of(part))
    elif node.type in ("and_test", "or_test") or _is_display(node):
      yield from _parts(node)
    elif node.type == "dictorsetmaker" and node.children[1:2] == [":"]:
      yield from node.children[::4]

  def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
    """Where a part of the node can be removed."""
    for part in self._removable(node):
      yield part.start_pos, part.end_pos

  def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
    """Removes the part and the separator behind it, or before the last."""
    part = list(self._removable(node))[index]
    place = next(i for i, child in enumerate(node.children) if child is part)
    size = 3 if node.type == "dictorsetmaker" else 1
    if place + size < len(node.children):
      del node.children[place : place + size + 1]
    else:
      del node.children[max(place - 1, 0) : place + size]
    return node

  @classmethod
  def examples(cls) -> tuple[Example, ...]:
    """Code before and after."""
    return (
      Example("f(a, b=1)", "f(a)"),
      Example("f(b=1, c=2)", "f( c=2)"),
      Example("[a, b]", "[ b]"),
      Example("[a, b]", "[a]", 1),
      Example("x = (a, b, c)", "x = (a, c)", 1),
      Example("x = {a: 1, b: 2}", "x = { b: 2}"),
      Example("x = {a: 1, b: 2}", "x = {a: 1}", 1),
      Example("x = a and b", "x = b"),
      Example("x = a or b or c", "x = a or b", 2),
    )


def _name_of(part: NodeOrLeaf) -> str:
  """The name of an argument `name=value`; empty for others."""
  is_named = part.type == "argument" and part.children[1] == "="
  return part.children[0].value if is_named else ""


class SwapArguments(Operator):
  """Swaps two neighbours among the arguments of a call that have no name."""

  def _pairs(self, node: NodeOrLeaf) -> Iterator[tuple[int, int]]:
    if node.type != "arglist":
      return
    for place in range(0, len(node.children) - 2, 2):
      pair = node.children[place], node.children[place + 2]
      if all(
        part.type not in ("argument", "string", "number", "lambdef") for part in pair
      ):
        yield place, place + 2

  def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
    """Where two arguments can be swapped."""
    for first, second in self._pairs(node):
      yield node.children[first].start_pos, node.children[second].end_pos

  def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
    """Swaps them; each keeps the space that stood at its place."""
    first, second = list(self._pairs(node))[index]
    one, other = node.children[first], node.children[second]
    prefixes = one.get_first_leaf().prefix, other.get_first_leaf().prefix
    node.children[first], node.children[second] = other, one
    other.get_first_leaf().prefix, one.get_first_leaf().prefix = prefixes
    return node

  @classmethod
  def examples(cls) -> tuple[Example, ...]:
    """Code before and after."""
    return (
      Example("f(a, b, c)", "f(b, a, c)"),
      Example("f(a, b.c, d=1)", "f(b.c, a, d=1)"),
    )


OWN = {f"own/{operator.__name__}": operator for operator in (RemoveItem, SwapArguments)}


def operator_of(name: str) -> Callable[[], Operator]:
  """The class of an operator of ours (own/..) or of cosmic-ray (core/..)."""
  return OWN[name] if name in OWN else get_operator(name)
