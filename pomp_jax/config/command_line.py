"""The command line: settings and options, `--help`, one line for each mistake."""

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
import os
import pathlib
import re
import runpy
import traceback
from typing import Any, NoReturn

from ml_collections import ConfigDict

from pomp_jax.config.every_job import Part, fields_of, parts_of, value_of_text
from pomp_jax.config.from_file import base, unpack, with_argument
from pomp_jax.errors import InputError
from pomp_jax.files.paths import problem_of
from pomp_jax.files.terminal import one_line
from pomp_jax.registry import JOBS

# A link to `configs/` in the repository, a folder in an installed package.
FOLDER = pathlib.Path(__file__).parent.parent / "configs"
_ROOMS = pathlib.Path(__file__).parent.parent / "rooms"


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise InputError(message)


_PARSER = _Parser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
_PARSER.add_argument(
  "--config", help="the experiment: name of a packaged config or job, or a file"
)
_PARSER.add_argument(
  "--workdir", help="folder of all that the run leaves; default: runs/NAME"
)
_PARSER.add_argument("--coordinator", help="host:port of process 0, where it listens")
_PARSER.add_argument(
  "--num_processes", type=int, help="number of processes; 1: this alone"
)
_PARSER.add_argument("--process_id", type=int, help="number of this process, from 0")
_PARSER.add_argument(
  "--start_timeout",
  type=int,
  default=300,
  help="seconds within which all processes must arrive",
)
_PARSER.add_argument(
  "--heartbeat_timeout",
  type=int,
  default=60,
  help="seconds after which a silent process is lost",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads a command line.

  Returns:
    The options. `workdir` is `default_workdir` if none is given, and `settings` is the
    config, not validated yet.

  Raises:
    InputError: an unknown option, no config, or a config file that fails.
  """
  overrides, rest = _overrides(arguments)
  options, unknown = _PARSER.parse_known_args(rest)
  if unknown:
    is_option = unknown[0].startswith("-")
    hint = "" if is_option else "; overrides look like --config.k=64"
    raise InputError(f"unknown argument {unknown[0]!r}{hint}")
  if not options.config:
    raise InputError("--config: nothing given; takes a file, or a name such as demo")
  name = pathlib.Path(config_file(options.config)).stem
  options.default_workdir = os.path.join("runs", name)
  if options.workdir is None:
    options.workdir = options.default_workdir
  _check_options(options)
  try:
    settings = unpack(load_config(options.config), overrides.get("job", ""))
    options.settings = settings.replace(overrides)
  except InputError:
    raise
  except Exception as error:  # config files are programs
    raise InputError(_explained(error)) from error
  return options


def _check_options(options: argparse.Namespace) -> None:
  """Raises InputError for an unusable folder, or a timeout below 1 s."""
  if not options.workdir:
    raise InputError(
      "--workdir: nothing given; takes the folder for what the run leaves"
    )
  if problem := problem_of(options.workdir):
    raise InputError(f"--workdir: got {options.workdir!r}, takes {problem}")
  for name in ("start_timeout", "heartbeat_timeout"):
    seconds = getattr(options, name)
    if seconds < 1:
      raise InputError(f"--{name}: got {seconds}, takes 1 or more seconds")


def _overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
  """Parses `--config.FIELD=VALUE`, `--config.FIELD VALUE` and `--config.FLAG`.

  Returns:
    The values by field, and all other arguments.
  """
  values: dict[str, Any] = {}
  rest = []
  remaining = iter(arguments)
  for argument in remaining:
    override = re.fullmatch(r"--config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
    if not override:
      rest.append(argument)
      continue
    field, text = override.groups()
    if text is None and _is_flag(field):
      text = "true"
    elif text is None:
      text = next(remaining, None)
      # The next argument is an option, so the value was forgotten.
      if text is None or text.startswith("--"):
        instead = "nothing" if text is None else repr(text)
        raise InputError(f"{argument}: expected a value, found {instead}")
    values[field] = value_of_text(field, text)
  return values, rest


def _is_flag(field: str) -> bool:
  """Whether `--config.FIELD` without a value sets the field to true."""
  row = fields_of().get(field)
  if row is None:
    return False
  return row.type is bool or "true" in row.metadata["spellings"]


def _explained(error: Exception) -> str:
  """Returns one line with the error and the place in the config file that raised it."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}:{error.lineno}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  place = [frame for frame in frames if "ml_collections" not in frame.filename][-1]
  where = f"{place.filename}:{place.lineno}"
  text = one_line(error.args[0] if len(error.args) == 1 else error, None)
  # ConfigDict's message already names the nearest field.
  if near := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
    return f"{where}: unknown field {near[2]} (did you mean {near[1]}?)"
  message = text.partition(" Other fields present")[0]
  name = re.fullmatch(r"\W*(\w+)\W*", message)
  if name and isinstance(error, AttributeError | KeyError):
    readers = _readers_of(group=name[1])
    if readers:
      jobs = " or ".join(f"base({job!r})" for job in readers)
      return (
        f"{where}: no config.{name[1]} in a config of another job; start from {jobs}"
      )
  return f"{where}: {type(error).__name__}: {message}"


def _readers_of(group: str) -> list[str]:
  """Returns the jobs that read a group of fields; none if there is no such group."""
  prefix = f"{group}."
  return [
    job for job in JOBS if any(field.startswith(prefix) for field in fields_of(job))
  ]


def packaged_configs() -> dict[str, pathlib.Path]:
  """Finds the packaged configs that can be used here.

  Returns:
    The file of each config by its name, in alphabetical order. A config whose `ROOMS`
    names a room that is not installed is left out.
  """
  configs = {}
  for file in sorted(FOLDER.glob("*.py")):
    text = file.read_text("utf-8")
    # A file without `get_config` holds values that several configs share.
    is_config = "\ndef get_config(" in text
    if is_config and _has_rooms(text):
      configs[file.stem] = file
  return configs


def _has_rooms(text: str) -> bool:
  """Whether all rooms are installed that a config names, as in `ROOMS = ("page",)`."""
  line = re.search(r"^ROOMS = (\(.*\))$", text, re.MULTILINE)
  rooms = ast.literal_eval(line[1]) if line else ()
  return all((_ROOMS / room / "__init__.py").exists() for room in rooms)


def summaries() -> dict[str, str]:
  """Returns the summary of each job's module, by the name of the job."""
  texts = {}
  for name, job in JOBS.items():
    module = FOLDER.parent.joinpath(*job.module.split("."))
    texts[name] = summary(module.with_suffix(".py"))
  return texts


def summary(file: pathlib.Path) -> str:
  """Returns the first paragraph of a file's docstring; the file is not run."""
  return _first_paragraph(ast.get_docstring(ast.parse(file.read_text("utf-8"))))


def _first_paragraph(docstring: str | None) -> str:
  """Returns a docstring's first paragraph in one line."""
  return " ".join((docstring or "").partition("\n\n")[0].split())


def config_file(name: str) -> str:
  """Finds the file of a packaged config, or checks a path to a file.

  The text behind a colon is ignored. The name of a job without a packaged config is
  returned as it is.
  """
  path = name.partition(":")[0]
  configs = packaged_configs()
  if path in configs:
    return str(configs[path])
  if path in JOBS:
    return path
  if not path.endswith(".py"):
    near = difflib.get_close_matches(path, configs, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
      f"--config: no packaged config {path!r};"
      f" {hint}`--help` lists them, and a file ends in .py"
    )
  if not os.path.isfile(path):
    stem = pathlib.Path(path).stem
    hint = f"; --config={stem} is the packaged config" if stem in configs else ""
    raise InputError(f"--config: no file {path}{hint}")
  return path


def load_config(name: str) -> ConfigDict:
  """Runs `get_config` of a config file, with the text behind a colon as its argument.

  For the name of a job without a config file, returns the base config of the job.
  """
  file = config_file(name)
  _, colon, argument = name.partition(":")
  if file in JOBS:
    return with_argument(base(file), argument)
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise InputError(f"{file}: has no function get_config")
  config = get_config(argument) if colon else get_config()
  if not isinstance(config, ConfigDict):
    kind = type(config).__name__
    raise InputError(f"{file}: get_config returns a {kind}, expected a ConfigDict")
  return config


def help_text() -> str:
  """Returns the text of `--help`: jobs, packaged configs, fields by group, options."""
  configs = {name: summary(file) for name, file in packaged_configs().items()}
  lines = ["Jobs (--config=JOB, or --config.job=JOB):", *_columns(summaries())]
  lines += ["", "Configs (--config=NAME):", *_columns(configs)]
  lines += ["", "Fields (--config.FIELD=VALUE), with their defaults:"]
  for title, text, rows in groups_of_fields():
    lines += ["", f"  {title}: {text}"]
    for field, row in rows.items():
      lines.append(f"  --config.{field}={row.default!r}: {row.metadata['help']}")
  return "\n".join([*lines, "", _PARSER.format_help().strip()]) + "\n"


def _columns(texts: Mapping[str, str]) -> list[str]:
  width = max(map(len, texts))
  return [f"  {name:{width}}  {text}" for name, text in texts.items()]


def groups_of_fields() -> Iterator[tuple[str, str, dict[str, dataclasses.Field]]]:
  """Yields title, summary with the jobs that read it, and rows of a class of fields."""
  jobs_of: dict[Part, list[str]] = {}
  for job in JOBS:
    for part in parts_of(job):
      jobs_of.setdefault(part, []).append(job)
  for part, jobs in jobs_of.items():
    text = _first_paragraph(part.kind.__doc__)
    of_jobs = "" if len(jobs) == len(JOBS) else f" Jobs: {', '.join(jobs)}."
    yield part.title, text + of_jobs, part.rows
