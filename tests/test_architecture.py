"""What import-linter can't see of the plan: what really gets imported, names, docstrings."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).parent.parent / "pomp_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

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


def import_without(absent, modules):
  names = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in modules
  ]
  return subprocess.run(
    [sys.executable, "-c", _IMPORT_WITHOUT, ",".join(absent), *names],
    capture_output=True,
    text=True,
    check=False,
    cwd=PACKAGE.parent,
  )


def test_the_core_needs_a_bare_machine_only():
  """The method and the backbone, without the libraries for data, files, plots and the like."""
  absent = ["tensorflow", "torch", "orbax", "grain", "matplotlib", "tensorboardX"]
  core = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in ("prompt", "clip")]
  assert len(core) > 5
  done = import_without(absent, core)
  assert done.returncode == 0, done.stderr


def test_the_step_needs_jax_and_flax_alone():
  """The fast tower, the method and the step, where no HuggingFace and no annotations are."""
  absent = ["transformers", "tokenizers", "jaxtyping", "scipy", "ml_collections", "PIL"]
  names = ("packed.py", "attention.py", "text.py", "towers.py")
  core = [
    path
    for path in MODULES
    if path.parent.name == "prompt" or (path.parent.name == "clip" and path.name in names)
  ]
  assert len(core) >= 9
  done = import_without(absent, core)
  assert done.returncode == 0, done.stderr


def test_nothing_needs_another_framework():
  done = import_without(["tensorflow", "torch"], MODULES)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_named_for_what_they_hold_and_say_what_it_is(path):
  assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
  tree = ast.parse(path.read_text())
  if tree.body:
    assert ast.get_docstring(tree), f"{path} has no docstring"
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
      assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
