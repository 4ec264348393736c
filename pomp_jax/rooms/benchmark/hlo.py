"""Reads the text of a compiled program: estimated cycles, collectives and their axes,
operations.

The text is `jax.stages.Compiled.as_text()`, of one device. XLA promises no format; what
is not found is missing from the figures.
"""

from collections.abc import Iterator, Mapping
import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
  *("collective-permute", "collective-broadcast"),
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b(pred|[suf]\d+\w*|bf16|c64|c128)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# What a slice sends to the others, such as ALL_REDUCE; TPUs alone.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
NETWORK = "slices (data-centre network)"


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str  # of its result, such as f32[4,64]{1,0}, or a tuple of these
  operation: str  # such as fusion or all-reduce
  rest: str  # operands and attributes
  is_root: bool

  def attribute(self, name: str) -> str:
    """The computation that an attribute names; "" without it."""
    found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
    return found[1] if found else ""


class Collective(NamedTuple):
  """Collectives of one kind over the same axes."""

  kind: str
  # of the mesh, joined by " x "; the sizes of groups that are along no axis; NETWORK
  axes: str
  number: int  # in a step
  n_bytes: int  # of the results on one device, in a step


class Program(NamedTuple):
  """The computations of a compiled program by name, and the name of the first one."""

  computations: Mapping[str, list[Instruction]]
  entry: str

  def visited(self, into_fusions: bool = False) -> Iterator[tuple[Instruction, int]]:
    """Yields each instruction that runs, and how often in a call of the program."""
    yield from self._visited(self.entry, 1, into_fusions)

  def _visited(
    self, name: str, times: int, into_fusions: bool
  ) -> Iterator[tuple[Instruction, int]]:
    for one in self.computations.get(name, ()):
      yield one, times
      inner, called = times, []
      if one.operation == "while":
        inner = times * (self.trips(one) or 1)
        called = [one.attribute("body"), one.attribute("condition")]
      elif one.operation == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
        names = branches[1] if branches else ""
        called = [part.strip(" %") for part in names.split(",")]
        called += [one.attribute(f"{value}_computation") for value in ("true", "false")]
      elif one.operation == "call":
        called = [one.attribute("to_apply")]
      elif one.operation == "async-start" or (
        into_fusions and one.operation == "fusion"
      ):
        called = [one.attribute("calls")]
      for own in filter(None, called):
        yield from self._visited(own, inner, into_fusions)

  def trips(self, loop: Instruction) -> int | None:
    """Trips of a `while`: XLA's own number, or the bound of a condition `i < n`;
    None: unknown."""
    if found := _TRIPS.search(loop.rest):
      return int(found[1])
    condition = self.computations.get(loop.attribute("condition"), [])
    bounds = [one for one in condition if one.operation == "constant"]
    comparing = [one for one in condition if one.is_root]
    if comparing and comparing[0].operation == "fusion":
      inner = self.computations.get(comparing[0].attribute("calls"), [])
      bounds += [one for one in inner if one.operation == "constant"]
      comparing = [one for one in inner if one.is_root]
    numbers = {
      int(one.rest.partition(")")[0]) for one in bounds if re.match(r"\d+\)", one.rest)
    }
    if not comparing or "direction=LT" not in comparing[0].rest or len(numbers) != 1:
      return None
    return numbers.pop()

  def has_product(self, one: Instruction) -> bool:
    """Whether an instruction computes a matrix product or a convolution."""
    inner = self.computations.get(one.attribute("calls"), ())
    return one.operation in ("dot", "convolution") or any(map(self.has_product, inner))


class Cycles(NamedTuple):
  """The compiler's estimate of the cycles of one call."""

  total: int
  products: int  # of fusions with a matrix product
  loops: int  # within loops
  unknown: int  # loops whose trips are not known, counted as one trip


def parse(text: str) -> Program:
  """Reads the text of a compiled program."""
  computations: dict[str, list[Instruction]] = {}
  entry = name = ""
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      name = found[2]
      computations[name] = []
      entry = name if found[1] else entry
    elif (found := _INSTRUCTION.match(line)) and name:
      kind, rest = _split_type(line[found.end() :])
      operation, _, rest = rest.partition("(")
      computations[name].append(
        Instruction(found[2], kind, operation, rest, bool(found[1]))
      )
  return Program(computations, entry)


def _split_type(text: str) -> tuple[str, str]:
  """The type of a result, and what follows it."""
  if not text.startswith("("):
    kind, _, rest = text.partition(" ")
    return kind, rest
  depth = end = 0
  while end < len(text):
    depth += {"(": 1, ")": -1}.get(text[end], 0)
    end += 1
    if depth == 0:
      break
  return text[:end], text[end + 1 :]


def cycles(program: Program) -> Cycles | None:
  """Adds up the estimates of all instructions, times the trips of their loops.

  None if the program has no estimates.
  """
  total = 0
  in_products = 0
  in_loops = 0
  n_unknown = 0
  for instruction, times in program.visited():
    if instruction.operation == "while" and program.trips(instruction) is None:
      n_unknown += 1
    estimate = _CYCLES.search(instruction.rest)
    if not estimate:
      continue
    n_cycles = times * int(estimate[1])
    total += n_cycles
    if program.has_product(instruction):
      in_products += n_cycles
    if times > 1:
      in_loops += n_cycles
  return Cycles(total, in_products, in_loops, n_unknown) if total else None


def collectives(program: Program, sizes: Mapping[str, int]) -> list[Collective]:
  """Collectives of one call, added up by kind and axes.

  `sizes` are those of the mesh's axes in order; partition i is device i of the
  flattened mesh. Of several slices they are one slice's, which a program is of; XLA
  sums within a slice, sends the result to the others (NETWORK), and spreads what comes
  back.
  """
  totals: dict[tuple[str, str], list[int]] = {}
  for instruction, times in program.visited(into_fusions=True):
    kind = instruction.operation.removesuffix("-start")
    axes = _axes(instruction.rest, sizes) if kind in COLLECTIVES else ""
    between = _BETWEEN_SLICES.search(instruction.rest)
    if instruction.operation == "send" and between:
      kind = between[1].lower().replace("_", "-")
      axes = NETWORK
    if axes:
      calls_and_bytes = totals.setdefault((kind, axes), [0, 0])
      calls_and_bytes[0] += times
      calls_and_bytes[1] += times * _bytes_of_result(instruction)
  return [Collective(*key, *total) for key, total in sorted(totals.items())]


def _bytes_of_result(instruction: Instruction) -> int:
  sizes = [_bytes(kind, shape) for kind, shape in _ARRAY.findall(instruction.type)]
  match instruction.operation:
    case "collective-permute-start":  # operand, result, contexts
      sizes = sizes[1:2]
    case "send":  # before a context
      sizes = sizes[:1]
    case "all-gather-start" | "reduce-scatter-start" | "all-to-all-start":
      sizes = sizes[len(sizes) // 2 :]  # after as many operands
  return sum(sizes)


def _bytes(kind: str, shape: str) -> int:
  """Bytes of an array, such as f32 and "8,128"."""
  width = re.search(r"\d+", kind)
  n_bits = int(width[0]) if width else 8  # pred
  n_values = math.prod(int(side) for side in shape.split(",") if side)
  return n_values * max(8, n_bits) // 8


def _axes(rest: str, sizes: Mapping[str, int]) -> str:
  """Names of the axes along which a collective's groups are."""
  n_devices = math.prod(sizes.values())
  groups = _groups(rest, n_devices)
  names = list(sizes)
  ids = np.arange(n_devices).reshape(tuple(sizes.values()))
  axes = range(ids.ndim)
  split_axes = [axis for axis in axes if ids.shape[axis] > 1]

  for subset in range(1, 2 ** len(split_axes)):
    along = [axis for bit, axis in enumerate(split_axes) if subset >> bit & 1]
    across = [axis for axis in axes if axis not in along]
    n_members = math.prod(ids.shape[axis] for axis in along)
    rows = ids.transpose(*across, *along).reshape(-1, n_members)
    if {frozenset(row) for row in rows.tolist()} == groups:
      return " x ".join(names[axis] for axis in along)
  group_sizes = sorted({str(len(group)) for group in groups})
  return f"groups of {', '.join(group_sizes)}"


def _groups(rest: str, n_devices: int) -> set[frozenset[int]]:
  """Groups of partitions: {{0,1},{2,3}}, the short form [2,2]<=[4], or pairs of a
  permutation."""
  short = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if short:
    shape, source = (tuple(map(int, part.split(","))) for part in short.groups()[:2])
    ids = np.arange(math.prod(source)).reshape(source)
    if short[3]:
      ids = ids.transpose(tuple(map(int, short[3].split(","))))
    return {frozenset(row) for row in ids.reshape(shape).tolist()}
  listed = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest
  )
  if not listed:
    return {frozenset(range(n_devices))}
  rows = re.findall(r"\{([\d, ]*)\}", listed[1])
  groups = [frozenset(map(int, filter(None, row.split(",")))) for row in rows]
  if "source_target_pairs" not in rest:
    return set(groups)
  # Join pairs that share a partition.
  joined: list[frozenset[int]] = []
  for group in groups:
    touching = [other for other in joined if other & group]
    joined = [other for other in joined if not other & group]
    joined.append(frozenset().union(group, *touching))
  return set(joined)


class Findings(NamedTuple):
  """What a step on an accelerator should not have, or should."""

  float64: int  # results with a float64
  callbacks: int  # calls of the host
  backward_scatters: int  # scatters in the backward pass
  donated: int  # arguments whose memory a result takes
  products: Mapping[str, int]  # number of matrix products by the type of their result


def findings(text: str) -> Findings:
  """Counts operations anywhere in a program's text."""
  program = parse(text)
  n_float64 = 0
  n_callbacks = 0
  n_scatters = 0
  products: dict[str, int] = {}
  for body in program.computations.values():
    for instruction in body:
      operation = instruction.operation
      n_float64 += "f64[" in instruction.type
      target_match = _TARGET.search(instruction.rest)
      target = target_match[1] if target_match else ""
      is_transfer = operation in ("infeed", "outfeed", "send", "recv")
      if is_transfer and not _BETWEEN_SLICES.search(instruction.rest):
        n_callbacks += 1
      n_callbacks += "callback" in target
      origin = _OP_NAME.search(instruction.rest)
      is_backward = bool(origin and "transpose(" in origin[1])
      n_scatters += operation == "scatter" and is_backward
      # Products of cuBLAS and cuDNN.
      is_library = bool(re.search(r"gemm|matmul|\$conv", target))
      if operation in ("dot", "convolution") or is_library:
        kind = instruction.type.lstrip("(").partition("[")[0]
        products[kind] = products.get(kind, 0) + 1
  head = text.partition("\n")[0]
  n_donated = len(re.findall(r"(?:may|must)-alias", head))
  return Findings(
    float64=n_float64,
    callbacks=n_callbacks,
    backward_scatters=n_scatters,
    donated=n_donated,
    products=products,
  )
