"""All mutants of the packages, each a change of one place by cosmic-ray, and their
tests."""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import pathlib
import re
import tomllib
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_item import MutationSpec
from parso.tree import NodeOrLeaf

from tests.mutants.operators import operator_of

ROOT = pathlib.Path(__file__).parent.parent.parent

# An operator becomes its neighbour alone: `a | b` instead of `a + b` is an error in any test.
_PAIRS = {
  "BinaryOperator": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_Mul Pow_Mul BitAnd_BitOr",
  "ComparisonOperator": "Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Is_IsNot IsNot_Is",
  "UnaryOperator": "Delete_USub Delete_Not Delete_Invert",
}
_OF_COSMIC_RAY = (
  *(
    f"Replace{kind}_{pair}" for kind, pairs in _PAIRS.items() for pair in pairs.split()
  ),
  "ReplaceTrueWithFalse",
  "ReplaceFalseWithTrue",
  "ReplaceAndWithOr",
  "ReplaceOrWithAnd",
  "ReplaceBreakWithContinue",
  "ReplaceContinueWithBreak",
  "ExceptionReplacer",
  "AddNot",
  "NumberReplacer",
  "RemoveDecorator",
  "ZeroIterationForLoop",
)
_EXCEPTIONS = "core/ExceptionReplacer"
OPERATORS = tuple(f"core/{name}" for name in _OF_COSMIC_RAY)
# Calls whose arguments are messages.
_MESSAGES = ("log.", "_log_once(", "_warn_once(", "print(", "printable(")
_CACHES = ("@functools.cache\n", "@functools.lru_cache")


class Room(NamedTuple):
  """A package to mutate.

  Attributes:
    sources: patterns of its files.
    tests: files and folders of the first tier that test it.
    bar: share of its mutants that the tests have to see.
  """

  sources: tuple[str, ...]
  tests: tuple[str, ...]
  bar: float


ROOMS = {
  "prompt": Room(("prompt/**/*.py",), ("tests/prompt",), 0.85),
  "train": Room(("train/*.py",), ("tests/train",), 0.75),
  "evaluate": Room(
    ("evaluate/*.py",),
    ("tests/evaluate", "tests/train/test_unreadable.py", "tests/train/test_own.py")
    + ("tests/rooms/mixtures",),
    0.85,
  ),
  "files": Room(("files/*.py",), ("tests/files", "tests/faults/test_damage.py"), 0.85),
  "config": Room(("config/*.py",), ("tests/config", "tests/test_main.py"), 0.75),
  "clip": Room(
    (
      "clip/packed*.py",
      "clip/blocks*.py",
      "clip/attention*.py",
      "clip/tokens*.py",
      "clip/text*.py",
    ),
    ("tests/clip", "tests/test_encoder.py"),
    0.75,
  ),
}
# Tests of modules that they reach through another module.
_TESTS_OF = {
  "clip/attention": ("tests/clip/test_packed.py", "tests/clip/test_towers.py"),
  "clip/blocks": ("tests/clip/test_blocks.py", "tests/clip/test_packed.py"),
  "evaluate/predict": (
    "tests/evaluate/test_ranking.py",
    "tests/evaluate/test_classifier.py",
  ),
  "files/restricted_pickle": ("tests/files/test_fuzz.py",),
}


def room_of(mutant: MutationSpec) -> str:
  """The name of the room that a mutant is in."""
  return mutant.module_path.parts[1]


def _is_pointless(node: NodeOrLeaf) -> bool:
  """Whether no test should see a change of this node.

  Annotations, messages, caches, which only make a second call faster, and what only
  keeps programmers from a mistake: what type checkers run, `frozen` of dataclasses, and
  `*` before arguments that have to be named.
  """
  while (parent := node.parent) is not None:
    if (
      node.type == "if_stmt" and node.children[1].get_code().strip() == "TYPE_CHECKING"
    ):
      return True
    if node.type == "decorator" and node.get_code().lstrip().startswith(_CACHES):
      return True
    match parent.type:
      case "annassign" if node is parent.children[1]:
        return True
      case "funcdef" if node is parent.annotation:
        return True
      case "parameters" | "lambdef" if node.type == "operator":
        return True
      case "tfpdef" | "raise_stmt" | "assert_stmt":
        return True
      case "argument" if parent.children[0].get_code().strip() == "frozen":
        return True
      case "atom_expr" if parent.get_code().strip().startswith(_MESSAGES):
        return True
    node = parent
  return False


def _is_dotted(node: NodeOrLeaf, start: tuple[int, int], end: tuple[int, int]) -> bool:
  """Whether more than a name stands there, such as `zlib.error`, which cosmic-ray
  can't replace."""
  within = start[0], start[1] + 1
  return node.get_leaf_for_position(within).end_pos != end


def sources_of(room: Room, root: pathlib.Path = ROOT) -> list[pathlib.Path]:
  """The files of a package, relative to `root`."""
  package = root / "pomp_jax"
  paths = {path for pattern in room.sources for path in package.glob(pattern)}
  return sorted(path.relative_to(root) for path in paths)


def mutants_of(
  source: pathlib.Path, root: pathlib.Path = ROOT, operators: Sequence[str] = OPERATORS
) -> Iterator[MutationSpec]:
  """All mutants of a file, whose path is relative to `root`."""
  nodes = list(ast_nodes(get_ast_from_path(root / source)))
  for name in operators:
    operator = operator_of(name)()
    places = [
      (node, place) for node in nodes for place in operator.mutation_positions(node)
    ]
    # cosmic-ray finds a place by its number among those of the operator.
    for occurrence, (node, (start, end)) in enumerate(places):
      if not (
        _is_pointless(node) or (name == _EXCEPTIONS and _is_dotted(node, start, end))
      ):
        yield MutationSpec(
          module_path=source,
          operator_name=name,
          occurrence=occurrence,
          start_pos=start,
          end_pos=end,
          definition_name=ASTQuery(node).get_definition_name(),
        )


def all_mutants(
  room: str, root: pathlib.Path = ROOT, operators: Sequence[str] = OPERATORS
) -> list[MutationSpec]:
  """All mutants of a room."""
  sources = sources_of(ROOMS[room], root)
  return [
    mutant for source in sources for mutant in mutants_of(source, root, operators)
  ]


def draw(
  room: str,
  count: int | None,
  seed: str,
  root: pathlib.Path = ROOT,
  operators: Sequence[str] = OPERATORS,
) -> list[MutationSpec]:
  """Draws mutants of a room without replacement: the first by a hash of each with the
  seed.

  A change of one file leaves the draw of the others nearly as it was.
  """

  def rank(mutant: MutationSpec) -> str:
    place = f"{seed} {mutant.module_path} {mutant.operator_name} {mutant.occurrence}"
    return hashlib.sha256(place.encode()).hexdigest()

  return sorted(all_mutants(room, root, operators), key=rank)[:count]


class Change(NamedTuple):
  """What a mutant changes, in words that hold when the lines around it move."""

  file: str
  function: str
  line: str  # without indentation, as `becomes`
  becomes: str


def change_of(mutant: MutationSpec, root: pathlib.Path = ROOT) -> Change:
  """Applies a mutant to the text of its file and compares."""
  text = (root / mutant.module_path).read_text()
  operator = operator_of(mutant.operator_name)()
  changed = mutate_code(text, operator, mutant.occurrence).splitlines()
  lines = text.splitlines()
  first = mutant.start_pos[0] - 1
  # Only a removed decorator changes the number of lines.
  becomes = changed[first] if len(changed) == len(lines) else ""
  return Change(
    file=str(mutant.module_path),
    function=mutant.definition_name or "",
    line=lines[first].strip(),
    # cosmic-ray puts a space before a new number.
    becomes=re.sub(r"(?<=[(\[]) +| +(?= )", "", becomes.strip()),
  )


def equivalents() -> dict[Change, str]:
  """Mutants that no test can see, with the reason."""
  entries = tomllib.loads(
    (pathlib.Path(__file__).parent / "equivalent.toml").read_text()
  )
  return {
    Change(file, entry["function"], entry["line"], entry["becomes"]): entry["reason"]
    for file, listed in entries.items()
    for entry in listed
  }


def is_equivalent(
  mutant: MutationSpec, known: Iterable[Change], root: pathlib.Path = ROOT
) -> bool:
  """Whether a mutant is one of `equivalents()`; only one of their lines is applied."""
  place = str(mutant.module_path), mutant.definition_name or ""
  near = [change for change in known if (change.file, change.function) == place]
  if not near:
    return False
  line = (
    (root / mutant.module_path)
    .read_text()
    .splitlines()[mutant.start_pos[0] - 1]
    .strip()
  )
  return line in {change.line for change in near} and change_of(mutant, root) in near


def shown_to(
  mutant: MutationSpec, *, whole_room: bool, root: pathlib.Path = ROOT
) -> list[str]:
  """The test files that a mutant is shown to, those first that are most likely to see
  it.

  That is the file of its module's name, then those that import the module, and with
  `whole_room` all others of its room. A module that none imports is shown to the whole
  room.
  """
  source = mutant.module_path
  room = ROOMS[room_of(mutant)]
  files = []
  for place in room.tests:
    path = root / place
    files += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
  package = r"\.".join(source.parent.parts)
  imported = re.compile(rf"{package}(\.| import .*\b){source.stem}\b")
  listed = _TESTS_OF.get("/".join(source.with_suffix("").parts[1:]), ())
  named, importing, others = [], [], []
  for path in files:
    name = str(path.relative_to(root))
    if path.stem == f"test_{source.stem}":
      named.append(name)
    elif name in listed or imported.search(path.read_text()):
      importing.append(name)
    else:
      others.append(name)
  near = [*named, *importing]
  return [*near, *others] if whole_room or not near else near
