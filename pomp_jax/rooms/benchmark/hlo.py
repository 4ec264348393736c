"""Reads the text of a compiled program: cycles, collectives and their axes, operations.

The text is `jax.stages.Compiled.as_text()`, the program of one device. XLA promises no
format: lines that the patterns below do not match are missing from the figures.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b(pred|[suf]\d+\w*|bf16|c64|c128)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Kind of a transfer between slices, such as ALL_REDUCE; only in programs for TPUs.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
NETWORK = "slices (data-centre network)"


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str  # of the result, such as f32[4,64]{1,0}, or a tuple of types
  operation: str  # such as fusion or all-reduce
  rest: str  # operands and attributes
  is_root: bool

  def attribute(self, name: str) -> str:
    """The computation that an attribute names; "" without the attribute."""
    match = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
    return match[1] if match else ""


class Collective(NamedTuple):
  """Collectives of one kind over the same axes."""

  kind: str
  # Names of mesh axes joined by " x ", sizes of groups along no axes, or NETWORK.
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
    for instruction in self.computations.get(name, ()):
      yield instruction, times
      inner_times = times
      if instruction.operation == "while":
        inner_times *= self.trips(instruction) or 1
      for callee in _called(instruction, into_fusions):
        yield from self._visited(callee, inner_times, into_fusions)

  def trips(self, loop: Instruction) -> int | None:
    """Trips of a `while`; None if they are unknown.

    The number is XLA's own, or else the bound n of a condition `i < n`.
    """
    if match := _TRIPS.search(loop.rest):
      return int(match[1])
    condition = self.computations.get(loop.attribute("condition"), [])
    constants = [line for line in condition if line.operation == "constant"]
    root = _root(condition)
    if root is not None and root.operation == "fusion":
      # The comparison lies in the fusion; its bound lies in or beside the fusion.
      fused = self.computations.get(root.attribute("calls"), [])
      constants += [line for line in fused if line.operation == "constant"]
      root = _root(fused)
    if root is None or "direction=LT" not in root.rest:
      return None
    bounds = set()
    for constant in constants:
      if match := re.match(r"(\d+)\)", constant.rest):
        bounds.add(int(match[1]))
    return bounds.pop() if len(bounds) == 1 else None

  def has_product(self, instruction: Instruction) -> bool:
    """Whether an instruction computes a matrix product or a convolution."""
    if instruction.operation in ("dot", "convolution"):
      return True
    inner = self.computations.get(instruction.attribute("calls"), ())
    return any(map(self.has_product, inner))


def _root(computation: list[Instruction]) -> Instruction | None:
  """The instruction whose result a computation returns."""
  return next((line for line in computation if line.is_root), None)


def _called(instruction: Instruction, into_fusions: bool) -> list[str]:
  """Names of the computations that an instruction runs."""
  match instruction.operation:
    case "while":
      names = [instruction.attribute("body"), instruction.attribute("condition")]
    case "conditional":
      # A switch lists its branches; a conditional of a boolean names two attributes.
      branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
      listed = branches[1] if branches else ""
      names = [branch.strip(" %") for branch in listed.split(",")]
      names.append(instruction.attribute("true_computation"))
      names.append(instruction.attribute("false_computation"))
    case "call":
      names = [instruction.attribute("to_apply")]
    case "async-start":
      names = [instruction.attribute("calls")]
    case "fusion" if into_fusions:
      names = [instruction.attribute("calls")]
    case _:
      names = []
  return [name for name in names if name]


class Cycles(NamedTuple):
  """The compiler's estimate of the cycles of one call."""

  total: int
  products: int  # of fusions with a matrix product
  loops: int  # within loops
  unknown: int  # loops whose trips are not known, counted as one trip


def parse(text: str) -> Program:
  """Reads the text of a compiled program."""
  computations: dict[str, list[Instruction]] = {}
  entry = ""
  name = ""  # name of the computation that the current line belongs to
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      is_entry, name = header.groups()
      computations[name] = []
      if is_entry:
        entry = name
    elif (match := _INSTRUCTION.match(line)) and name:
      root, result = match.groups()
      kind, rest = _split_type(line[match.end() :])
      operation, _, rest = rest.partition("(")
      instruction = Instruction(
        name=result, type=kind, operation=operation, rest=rest, is_root=bool(root)
      )
      computations[name].append(instruction)
  return Program(computations, entry)


def _split_type(text: str) -> tuple[str, str]:
  """Splits an instruction's line, from its type on, into the type and the rest.

  A type is a word such as `f32[4,64]{1,0}`, or a tuple of types in parentheses, which
  may hold tuples.
  """
  if not text.startswith("("):
    kind, _, rest = text.partition(" ")
    return kind, rest
  depth = 0  # parentheses that are open
  for position, character in enumerate(text):
    if character == "(":
      depth += 1
    elif character == ")":
      depth -= 1
    if depth == 0:
      # The tuple is closed; a space follows.
      return text[: position + 1], text[position + 2 :]
  return text, ""


def cycles(program: Program) -> Cycles | None:
  """Adds up the estimates of all instructions, times the trips of their loops.

  Returns None if the program has no estimates.
  """
  total = products = loops = unknown = 0
  for instruction, times in program.visited():
    if instruction.operation == "while" and program.trips(instruction) is None:
      unknown += 1
    match = _CYCLES.search(instruction.rest)
    if not match:
      continue
    n_cycles = times * int(match[1])
    total += n_cycles
    if program.has_product(instruction):
      products += n_cycles
    if times > 1:
      loops += n_cycles
  if not total:
    return None
  return Cycles(total, products=products, loops=loops, unknown=unknown)


def collectives(program: Program, sizes: Mapping[str, int]) -> list[Collective]:
  """Adds up the collectives of one call by kind and axes.

  `sizes` are the sizes of the mesh's axes in order; partition i is device i of the
  flattened mesh. A program belongs to one slice. With several slices, `sizes` are those
  of the mesh within a slice: XLA sums within the slice, sends the sum to the other
  slices (NETWORK), and distributes what it receives within the slice.
  """
  numbers: collections.Counter[tuple[str, str]] = collections.Counter()
  n_bytes: collections.Counter[tuple[str, str]] = collections.Counter()
  for instruction, times in program.visited(into_fusions=True):
    kind = instruction.operation.removesuffix("-start")
    between_slices = _BETWEEN_SLICES.search(instruction.rest)
    if instruction.operation == "send" and between_slices:
      kind = between_slices[1].lower().replace("_", "-")
      axes = NETWORK
    elif kind in COLLECTIVES:
      axes = _axes(instruction.rest, sizes)
    else:
      continue
    numbers[kind, axes] += times
    n_bytes[kind, axes] += times * _bytes_of_result(instruction)
  return [
    Collective(kind, axes, number=numbers[kind, axes], n_bytes=n_bytes[kind, axes])
    for kind, axes in sorted(numbers)
  ]


def _bytes_of_result(instruction: Instruction) -> int:
  """Bytes of a collective's results; types of asynchronous ones list operands, too."""
  sizes = [_bytes(kind, shape) for kind, shape in _ARRAY.findall(instruction.type)]
  match instruction.operation:
    case "collective-permute-start":  # operand, result, contexts
      sizes = sizes[1:2]
    case "send":  # result, context
      sizes = sizes[:1]
    case "all-gather-start" | "reduce-scatter-start" | "all-to-all-start":
      sizes = sizes[len(sizes) // 2 :]  # operands, then equally many results
  return sum(sizes)


def _bytes(kind: str, shape: str) -> int:
  """Bytes of an array of a type such as bf16 and a shape such as 4,64."""
  match = re.search(r"\d+", kind)
  bits = int(match[0]) if match else 8  # `pred` has no number
  n_values = math.prod(int(size) for size in shape.split(",") if size)
  return n_values * max(8, bits) // 8


def _axes(rest: str, sizes: Mapping[str, int]) -> str:
  """Names the mesh axes along which a collective communicates.

  Args:
    rest: the collective's line after the name of its operation.
    sizes: size of each mesh axis, by name, in the mesh's order.

  Returns:
    Names such as "data x class"; or the sizes of the groups, if these lie along no set
    of axes.
  """
  names = list(sizes)
  shape = tuple(sizes.values())
  n_devices = math.prod(shape)
  groups = _groups(rest, n_devices)

  # Try each set of axes with several devices: along other axes nothing communicates.
  ids = np.arange(n_devices).reshape(shape)
  large_axes = [axis for axis, size in enumerate(shape) if size > 1]
  for n_axes in range(1, len(large_axes) + 1):
    for axes in itertools.combinations(large_axes, n_axes):
      if _groups_along(ids, axes) == groups:
        return " x ".join(names[axis] for axis in axes)
  group_sizes = sorted({str(len(group)) for group in groups})
  return "groups of " + ", ".join(group_sizes)


def _groups_along(ids: np.ndarray, axes: Sequence[int]) -> set[frozenset[int]]:
  """Groups of devices that differ only in their positions along `axes`.

  Args:
    ids: number of each device, an array with the shape of the mesh.
    axes: axes of `ids`.
  """
  other_axes = [axis for axis in range(ids.ndim) if axis not in axes]
  group_size = math.prod(ids.shape[axis] for axis in axes)
  rows = ids.transpose([*other_axes, *axes]).reshape(-1, group_size)
  return {frozenset(row) for row in rows.tolist()}


def _groups(rest: str, n_devices: int) -> set[frozenset[int]]:
  """Groups of partitions that a collective joins.

  XLA writes the groups as {{0,1},{2,3}}, in a short form such as [2,2]<=[4] (0 to 3 as
  two groups of two), or as the pairs of a permutation. Without any of these forms all
  partitions are one group.
  """
  short = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if short:
    shape, source, axes = short.groups()
    ids = np.arange(math.prod(_numbers(source))).reshape(_numbers(source))
    if axes:
      ids = ids.transpose(_numbers(axes))
    return {frozenset(row) for row in ids.reshape(_numbers(shape)).tolist()}
  listed = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest
  )
  if not listed:
    return {frozenset(range(n_devices))}
  rows = re.findall(r"\{([\d, ]*)\}", listed[1])
  groups = [frozenset(_numbers(row)) for row in rows]
  if "source_target_pairs" in rest:
    return _joined(groups)
  return set(groups)


def _numbers(text: str) -> tuple[int, ...]:
  """Reads the numbers of a text such as 4,64."""
  return tuple(int(part) for part in text.split(",") if part)


def _joined(pairs: list[frozenset[int]]) -> set[frozenset[int]]:
  """Joins pairs that share a partition, which gives the cycles of a permutation."""
  joined: list[frozenset[int]] = []
  for pair in pairs:
    touching = [group for group in joined if group & pair]
    apart = [group for group in joined if not group & pair]
    joined = [*apart, pair.union(*touching)]
  return set(joined)


class Findings(NamedTuple):
  """Counts of what makes a step slow or fast on an accelerator."""

  float64: int  # results with a float64
  callbacks: int  # calls of the host
  backward_scatters: int  # scatters in the backward pass
  donated: int  # arguments whose memory a result reuses
  products: Mapping[str, int]  # number of matrix products by the type of their result


def findings(text: str) -> Findings:
  """Counts operations anywhere in a program's text."""
  program = parse(text)
  float64 = callbacks = scatters = 0
  products: dict[str, int] = {}
  for instruction in itertools.chain.from_iterable(program.computations.values()):
    operation = instruction.operation
    target = _first_group(_TARGET, instruction.rest)
    if "f64[" in instruction.type:
      float64 += 1
    is_transfer = operation in ("infeed", "outfeed", "send", "recv")
    if is_transfer and not _BETWEEN_SLICES.search(instruction.rest):
      callbacks += 1
    if "callback" in target:
      callbacks += 1
    # JAX names the operations of a backward pass `transpose(..)`.
    is_backward = "transpose(" in _first_group(_OP_NAME, instruction.rest)
    if operation == "scatter" and is_backward:
      scatters += 1
    # Products by cuBLAS and cuDNN are custom calls.
    is_library_product = re.search(r"gemm|matmul|\$conv", target)
    if operation in ("dot", "convolution") or is_library_product:
      dtype = instruction.type.lstrip("(").partition("[")[0]
      products[dtype] = products.get(dtype, 0) + 1
  # The first line lists the results that reuse the memory of an argument.
  head = text.partition("\n")[0]
  return Findings(
    float64=float64,
    callbacks=callbacks,
    backward_scatters=scatters,
    donated=len(re.findall(r"(?:may|must)-alias", head)),
    products=products,
  )


def _first_group(pattern: re.Pattern[str], text: str) -> str:
  """The match of a pattern's first group in a text; "" if there is no match."""
  match = pattern.search(text)
  return match[1] if match else ""
