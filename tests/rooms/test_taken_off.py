"""Each room can be taken off: its folder, its rows in the registry and its configs."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, environment

ROOMS = sorted(path.parent.name for path in (ROOT / "pomp_jax/rooms").glob("*/__init__.py"))
_SHORT = {"steps": 2, "data.n_classes": 64, "data.images_per_class": 1, "k": 8, "batch_size": 8}
_SHORT |= {"eval.images": 16, "checkpoint.every": 2}
# Imports every module that is left, shows the fields, and runs a short form of the demo.
_USE = """
import pkgutil, sys
import pomp_jax
from pomp_jax.errors import InputError
for module in pkgutil.walk_packages(pomp_jax.__path__, "pomp_jax."):
  if ".configs" not in module.name:
    __import__(module.name)
from pomp_jax import main
from pomp_jax.config.command_line import help_text, load_config, packaged_configs
print(help_text())
for name in packaged_configs():
  try:
    load_config(name)
  except InputError as error:  # it takes an argument
    print(error)
sys.exit(main.main(sys.argv[1:]))
"""


def take_off(root: pathlib.Path, room: str) -> None:
  """Deletes a room's folder, its rows in the registry, and the configs that name one of them."""
  shutil.rmtree(root / "pomp_jax/rooms" / room)
  path = root / "pomp_jax/registry.py"
  lines = path.read_text().splitlines()
  names = []
  for node in ast.parse("\n".join(lines)).body:
    value = getattr(node, "value", None)
    rows = zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ()
    for key, row in rows:
      if f"'rooms.{room}." in ast.unparse(row):
        first = row if key is None else key
        lines[first.lineno - 1 : row.end_lineno] = [""] * (row.end_lineno - first.lineno + 1)
        names += [key.value] if isinstance(key, ast.Constant) else []
    if isinstance(value, ast.Constant) and f"rooms.{room}." in str(value.value):
      lines[node.lineno - 1] = f'{node.targets[0].id} = ""'
  path.write_text("\n".join(lines))
  # Those whose job or method is gone, and those that start from one of them.
  gone = [rf'(base\(|with_jobs\(.*, |method = )"{name}"' for name in names]
  left = set((root / "pomp_jax/configs").glob("*.py"))
  while gone:
    found = {file for file in left if any(re.search(one, file.read_text()) for one in gone)}
    for file in found:
      file.unlink()
    left -= found
    gone = [rf"pomp_jax.configs(\.| import .*\b){file.stem}\b" for file in found]


@pytest.mark.parametrize("room", ROOMS)
def test_the_others_work_without_a_room(room, tmp_path):
  for name in ("pomp_jax", "configs"):
    ignored = shutil.ignore_patterns("__pycache__", "configs" if name == "pomp_jax" else "")
    shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
  shutil.copytree(ROOT / "configs", tmp_path / "pomp_jax/configs")
  take_off(tmp_path, room)
  fields = [f"--config.{field}={value}" for field, value in _SHORT.items()]
  arguments = ["--config=demo", f"--workdir={tmp_path / 'run'}", *fields]
  done = subprocess.run(
    [sys.executable, "-c", _USE, *arguments],
    cwd=tmp_path,
    env=environment(1, PYTHONPATH=str(tmp_path)),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"rooms.{room}" not in done.stdout
  assert (tmp_path / "run/prompt.npz").exists() and (tmp_path / "run/report.html").exists()
