"""Each room can be taken off: its folder, its rows in the registry, its hooks and
its configs."""

import ast
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from pomp_jax.config.command_line import packaged_configs
from tests.support.processes import ROOT, environment
from tests.support.refusals import refusals

ROOMS = sorted(
  path.parent.name for path in (ROOT / "pomp_jax/rooms").glob("*/__init__.py")
)
_SHORT = {
  "steps": 2,
  "data.n_classes": 64,
  "data.images_per_class": 1,
  "k": 8,
  "batch_size": 8,
}
_SHORT |= {"eval.images": 16, "checkpoint.every": 2}
# A field of the contrast, and the method, which a room may have.
_WIRED = ("k", "method")
# Imports every module that is left, shows the fields, and runs a short form of the
# demo.
_USE = """
import json, pkgutil, sys
import pomp_jax
for module in pkgutil.walk_packages(pomp_jax.__path__, "pomp_jax."):
  if ".configs" not in module.name:
    __import__(module.name)
from pomp_jax import main
from pomp_jax.config.command_line import help_text
from tests.support.refusals import refusals
print(help_text())
print(json.dumps(refusals()))
sys.exit(main.main(sys.argv[1:]))
"""


def take_off(root: pathlib.Path, room: str) -> None:
  """Deletes a room's folder, its rows and hooks; the configs that name it are no
  longer offered."""
  shutil.rmtree(root / "pomp_jax/rooms" / room)
  path = root / "pomp_jax/registry.py"
  lines = path.read_text().splitlines()
  for node in ast.parse("\n".join(lines)).body:
    value = getattr(node, "value", None)
    rows = (
      zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ()
    )
    # the last first: columns before it stay where they are
    for key, row in reversed([*rows]):
      if f"'rooms.{room}." in ast.unparse(row):
        first = row if key is None else key
        head = lines[first.lineno - 1][: first.col_offset].rstrip("*")
        tail = lines[row.end_lineno - 1][row.end_col_offset :].removeprefix(",")
        lines[first.lineno - 1 : row.end_lineno] = [""] * (
          row.end_lineno - first.lineno + 1
        )
        lines[first.lineno - 1] = head + tail
    if isinstance(value, ast.Constant) and f"rooms.{room}." in str(value.value):
      lines[node.lineno - 1] = f'{node.targets[0].id} = ""'
  path.write_text("\n".join(lines))
  path = root / "pomp_jax/hooks.py"
  path.write_text(
    re.sub(rf'Hook\(\s*"rooms\.{room}\.[^"]*"\s*\)', 'Hook("")', path.read_text())
  )


# The room that the core asks for most; a process with a training takes 8 s for each.
_FIRST = ("regularisation",)
_OTHERS = pytest.mark.slow("the same for the other rooms")


@pytest.fixture(
  scope="module",
  params=[
    *_FIRST,
    *(pytest.param(room, marks=_OTHERS) for room in ROOMS if room not in _FIRST),
  ],
)
def without(request, tmp_path_factory):
  """A copy of the package and of tests without a room, and the name of the room."""
  root = tmp_path_factory.mktemp("without")
  for name in ("pomp_jax", "configs", "tests/support", "tests/train"):
    ignored = shutil.ignore_patterns(
      "__pycache__", "configs" if name == "pomp_jax" else ""
    )
    shutil.copytree(ROOT / name, root / name, ignore=ignored)
  shutil.copytree(ROOT / "configs", root / "pomp_jax/configs")
  for name in ("tests/conftest.py", "pyproject.toml"):
    shutil.copy(ROOT / name, root / name)
  take_off(root, request.param)
  return root, request.param


def rooms_of(file: pathlib.Path) -> str:
  """The line of a config file that names the rooms that it needs; "" if there is
  none."""
  found = re.search(r"^ROOMS = .*$", file.read_text(), re.MULTILINE)
  return found[0] if found else ""


def _python(root: pathlib.Path, *arguments: str) -> str:
  """What Python prints in the copy; a failure is an error with both streams."""
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=root,
    env=environment(1, PYTHONPATH=str(root)),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_the_others_work_without_a_room(without):
  root, room = without
  fields = [f"--config.{field}={value}" for field, value in _SHORT.items()]
  text = _python(
    root, "-c", _USE, "--config=demo", f"--workdir={root / 'run'}", *fields
  )
  assert f"rooms.{room}" not in text
  # Each config that is left is refused for the same field as with all rooms, or
  # accepted.
  (line,) = [line for line in text.splitlines() if line.startswith("{")]
  left = json.loads(line)
  assert left == {name: field for name, field in refusals().items() if name in left}
  needs = {
    file.stem
    for file in (ROOT / "configs").glob("*.py")
    if f'"{room}"' in rooms_of(file)
  }
  assert left.keys() == packaged_configs().keys() - needs
  assert (root / "run/prompt.npz").exists() and (root / "run/report.html").exists()


@pytest.mark.slow("two lowered steps in a process of its own")
def test_fields_reach_what_they_name_without_a_room(without):
  root, _ = without
  test = (
    "tests/train/test_wiring.py::test_a_field_that_matters_changes_its_pieces_alone"
  )
  plugins = ("-p", "no:xdist", "-p", "no:cacheprovider")
  _python(root, "-m", "pytest", *plugins, *(f"{test}[{field}]" for field in _WIRED))
