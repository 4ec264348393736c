"""What import-linter can't see of the plan: imports, names, and who has the config."""

import ast
import inspect
from pathlib import Path
import re
import subprocess
import sys

import pytest

from pomp_jax import registry
from pomp_jax.config import every_job, fields
from pomp_jax.config.group import Group, own_rows

PACKAGE = Path(__file__).parent.parent / "pomp_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
_REGISTRY = PACKAGE / "registry.py"

_IMPORT_WITHOUT = """
import importlib, sys

absent = sys.argv[1].split(",")

class Without:
  # A finder that does not find them. As None in sys.modules they would look loaded to TFDS.
  def __init__(self, finder):
    self.finder = finder

  def __getattr__(self, name):
    return getattr(self.finder, name)

  def find_spec(self, name, path=None, target=None):
    found = name.split(".")[0] not in absent
    return self.finder.find_spec(name, path, target) if found else None

sys.meta_path[:] = map(Without, sys.meta_path)
for name in sys.argv[2:]:
  importlib.import_module(name)
"""


def _in(*rooms):
  return [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in rooms]


_TOWER = [
  PACKAGE / "clip" / f"{name}.py" for name in ("packed", "blocks", "attention", "text")
]
_GROUPS = {
  "tower, method and step need JAX and Flax alone": (
    ["transformers", "tokenizers", "jaxtyping", "scipy", "ml_collections", "PIL"],
    [*_TOWER, *(path for path in _in("prompt") if path.parent.name == "prompt")],
  ),
  "nothing needs another framework": (["tensorflow", "torch"], MODULES),
}


@pytest.mark.parametrize("group", _GROUPS)
def test_modules_are_imported_without(group):
  absent, modules = _GROUPS[group]
  assert len(modules) > 8
  names = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
      ".__init__"
    )
    for path in modules
  ]
  done = subprocess.run(
    [sys.executable, "-c", _IMPORT_WITHOUT, ",".join(absent), *names],
    capture_output=True,
    text=True,
    check=False,
    cwd=PACKAGE.parent,
  )
  assert done.returncode == 0, done.stderr


def test_no_test_of_the_core_imports_a_room():
  """A room's tests lie in its folder, so that they go with it and the core's run
  without it."""
  tests = Path(__file__).parent
  found = []
  for path in tests.rglob("*.py"):
    if path.relative_to(tests).parts[0] == "rooms":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      names = (
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      )
      if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
      if any(name.startswith(("pomp_jax.rooms", "tests.rooms")) for name in names):
        found.append(f"{path.relative_to(tests)}:{node.lineno}")
  assert found == []


def test_no_string_names_another_framework():
  """As `importlib.import_module("torch")`, which import-linter does not see."""
  found = set()
  for path in MODULES:
    calls = (
      node
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Call)
    )
    for call in calls:
      given = [*call.args, *(keyword.value for keyword in call.keywords)]
      roots = {
        str(value.value).split(".")[0]
        for value in given
        if isinstance(value, ast.Constant)
      }
      if roots & {"tensorflow", "torch"} and not ast.unparse(call.func).endswith(
        "find_spec"
      ):
        found.add(path.relative_to(PACKAGE).as_posix())
  assert found == set()


def test_jax_is_asked_for_devices_in_one_place():
  """Tests give the package fewer devices than JAX has."""
  functions = {"devices", "local_devices", "device_count", "local_device_count"}
  found = {
    path.relative_to(PACKAGE).as_posix()
    for path in MODULES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and node.attr in functions
    if ast.unparse(node.value) == "jax"
  }
  assert found == {"hosts/resources.py"}


def test_modules_are_named_for_what_they_hold():
  drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
  assert not drawers & {path.stem for path in MODULES}


# Names of the classes that hold the fields of a whole job.
CONFIGS = {"Config"} | {row.config.partition(":")[2] for row in registry.JOBS.values()}


def _takes_the_config(function):
  """Whether a parameter is the config of a whole job."""
  arguments = function.args
  for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
    nodes = ast.walk(argument.annotation) if argument.annotation else ()
    names = {getattr(node, "id", getattr(node, "attr", None)) for node in nodes} - {
      None
    }
    if names & CONFIGS or (argument.arg == "config" and names <= {"Any"}):
      return True
  return False


def test_a_config_is_unpacked_once():
  """By `check` and `run` of the registry's rows, `config.validate` and
  `train.setup.prepare`.

  What a room adds to the fields of the core sees the config too, in its `check_in`.
  """
  of_clip = _in("clip")  # the config of a CLIP
  of_rows = {row.module for row in registry.JOBS.values()} | {registry.DRY_RUN}
  of_rows |= {row.run.partition(":")[0] for row in registry.METHODS.values()}
  entries = {
    f"{name.replace('.', '/')}.py: {of}"
    for name in {*of_rows, "registry"}  # there is the contract of a job
    for of in ("check", "run")
  }
  found = [
    f"{path.relative_to(PACKAGE)}: {node.name}"
    for path in MODULES
    if path not in of_clip
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and _takes_the_config(node)
    if node.name != "check_in"
  ]
  others = sorted(set(found) - entries)
  assert others == [
    "config/from_file.py: validate",
    "train/setup.py: prepare",
  ]


def test_the_core_reads_each_of_its_fields():
  """A field that rooms alone read is theirs; with all rooms off nothing would read
  it."""
  read = set()
  for path in set(MODULES) - set(_in("rooms")):
    nodes = ast.walk(ast.parse(path.read_text()))
    read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
  groups = [group for group in vars(fields).values() if inspect.isclass(group)]
  rows = {
    f"{group.__name__}.{name}"
    for group in [*groups, every_job.Config]
    if issubclass(group, Group)
    for name in own_rows(group)
  }
  assert len(rows) > 80
  assert {row for row in rows if row.partition(".")[2] not in read} == set()


def test_the_fields_of_a_room_may_be_imported_first():
  """As by a process that unpickles a room's function."""
  rooms = [path.parent.name for path in MODULES if path.parts[-3:][0] == "rooms"]
  rooms = sorted(
    {room for room in rooms if (PACKAGE / "rooms" / room / "fields.py").exists()}
  )
  code = "import importlib, sys\n"
  for room in rooms:
    code += f"importlib.import_module('pomp_jax.rooms.{room}.fields')\n"
    code += "ours = [name for name in sys.modules if name.startswith('pomp_jax')]\n"
    code += "for name in ours: del sys.modules[name]\n"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True
  )
  assert len(rooms) >= 9 and done.returncode == 0, done.stderr.decode()


def _imported(path):
  """Modules that a file imports, and packages and names that it imports from."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
  return found


def test_from_the_command_to_the_loss_are_the_listed_files():
  """Those that CONTRIBUTING.md lists: each is imported by one before it, or is a
  job's row."""
  text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
  files = [
    PACKAGE / name for name in re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)
  ]
  assert files[0].name == "main.py" and files[-1].name == "loss.py"
  known = {
    f"pomp_jax.{job}" for job in re.findall(r'"([\w.]+)"', _REGISTRY.read_text())
  }
  for path, following in zip(files, files[1:], strict=False):
    known |= _imported(path)
    module = ".".join(following.relative_to(PACKAGE.parent).with_suffix("").parts)
    assert {module, module.rpartition(".")[0]} & known, module
