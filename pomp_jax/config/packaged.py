"""The configs that come with the package, by name: `--config=demo` is `configs/demo.py`.

`pomp_jax/configs` is a link to `configs/` in the repository and a folder in an installed package.
"""

import ast
from collections.abc import Sequence
import difflib
import os
import pathlib

from absl import flags

FOLDER = pathlib.Path(__file__).parent.parent / "configs"


def packaged_configs() -> dict[str, pathlib.Path]:
  """File of each packaged config by its name, in alphabetical order."""
  return {file.stem: file for file in sorted(FOLDER.glob("*.py")) if _has_get_config(file)}


def summary(file: pathlib.Path) -> str:
  """The first line of a config's docstring; the file is not run."""
  return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def _has_get_config(file: pathlib.Path) -> bool:
  """Whether it is a config, and not values that several share."""
  return "\ndef get_config(" in file.read_text("utf-8")


def with_file(argv: Sequence[str]) -> list[str]:
  """Replaces the name of a packaged config after `--config` by its file.

  Raises:
    flags.Error: no such name, or no such file but a packaged config of that name.
  """
  argv = list(argv)
  for index, argument in enumerate(argv):
    flag, equals, value = argument.partition("=")
    if flag not in ("-config", "--config"):
      continue
    if equals:
      argv[index] = f"{flag}={_file_of(value)}"
    elif index + 1 < len(argv):
      argv[index + 1] = _file_of(argv[index + 1])
  return argv


def _file_of(value: str) -> str:
  path, colon, variant = value.partition(":")
  configs, name = packaged_configs(), pathlib.Path(path).stem
  if path.endswith(".py") or os.sep in path:
    if name in configs and not os.path.exists(path):
      raise flags.Error(f"--config: no file {path}; --config={name} is the packaged config")
  elif path in configs:
    return f"{configs[path]}{colon}{variant}"
  elif path:
    near = difflib.get_close_matches(path, configs, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise flags.Error(
      f"--config: no packaged config {path!r}; {hint}`--help` lists them, and a file ends in .py"
    )
  return value
