"""Config files, and those that come with the package by name: `demo` is `configs/demo.py`.

`pomp_jax/configs` is a link to `configs/` in the repository and a folder in an installed package.
"""

import ast
import difflib
import importlib.util
import os
import pathlib

from ml_collections import ConfigDict

from pomp_jax.errors import InputError

FOLDER = pathlib.Path(__file__).parent.parent / "configs"


def packaged_configs() -> dict[str, pathlib.Path]:
  """File of each packaged config by its name, in alphabetical order."""
  files = sorted(FOLDER.glob("*.py"))
  # The others are values that several share.
  return {file.stem: file for file in files if "\ndef get_config(" in file.read_text("utf-8")}


def summary(file: pathlib.Path) -> str:
  """The first line of a config's docstring; the file is not run."""
  return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def config_file(name: str) -> str:
  """Finds the file of a packaged config, or that of a path, without what is behind a colon.

  Raises:
    InputError: no such file.
  """
  path = name.partition(":")[0]
  configs, stem = packaged_configs(), pathlib.Path(path).stem
  if path in configs:
    return str(configs[path])
  if not path.endswith(".py"):
    near = difflib.get_close_matches(path, configs, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
      f"--config: no packaged config {path!r}; {hint}`--help` lists them, and a file ends in .py"
    )
  if not os.path.isfile(path):
    hint = f"; --config={stem} is the packaged config" if stem in configs else ""
    raise InputError(f"--config: no file {path}{hint}")
  return path


def load_config(name: str) -> ConfigDict:
  """Runs `get_config` of a config file, with the text behind a colon as its argument."""
  spec = importlib.util.spec_from_file_location("config", config_file(name))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  _, colon, argument = name.partition(":")
  config = module.get_config(argument) if colon else module.get_config()
  if not isinstance(config, ConfigDict):
    found = type(config).__name__
    raise InputError(f"{module.__file__}: get_config returns a {found}, expected a ConfigDict")
  return config
