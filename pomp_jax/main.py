"""The only entry: `python -m pomp_jax.main --config=configs/X.py --workdir=DIR`.

Exit status: 0 done; 1 the run failed; 2 bad input, found before anything was written; 130
interrupted (start it again to go on).
"""

from collections.abc import Sequence
import logging
import os
import re
import sys

# Read when transformers is imported: its notices on Flax concern version 5, which we exclude.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from pomp_jax import config as config_lib
from pomp_jax.clip import ClipError, TokenizeError
from pomp_jax.data.images import ImageError
from pomp_jax.data.vocabulary import VocabularyError
from pomp_jax.files.categories import CategoryFileError
from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.class_features import ClassFeatureError
from pomp_jax.files.prompt_file import PromptFileError
from pomp_jax.files.run_folder import RunFolderError
from pomp_jax.jobs import job
from pomp_jax.jobs.benchmark import BenchmarkError
from pomp_jax.jobs.watch import TrainingError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment: configs/X.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: results, checkpoints, plots.")

_BAD_INPUT = (
  config_lib.ConfigError,
  ClipError,
  TokenizeError,
  ImageError,
  VocabularyError,
  CategoryFileError,
  PromptFileError,
  RunFolderError,
  BenchmarkError,
)
_FAILED = (TrainingError, CheckpointError, ClassFeatureError)


def main(argv: Sequence[str]) -> int:
  """Validates the config and runs its job."""
  del argv
  _speak_plainly()
  config, workdir = _CONFIG.value, _WORKDIR.value
  try:
    config_lib.validate(config)
    module = job(config.job)
    module.check(config, workdir)
    module.run(config, workdir)
  except _BAD_INPUT as error:
    return _complain(error, 2)
  except _FAILED as error:
    return _complain(error, 1)
  except KeyboardInterrupt:
    return _complain(f"interrupted; the same command goes on from {workdir}", 130)
  return 0


def _speak_plainly() -> None:
  """Our own lines as they are; of the libraries only warnings."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  ours = logging.getLogger("pomp_jax")
  ours.handlers = [logging.StreamHandler(sys.stdout)]
  ours.setLevel(logging.INFO)
  ours.propagate = False


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line; every mistake in it is one line and exit status 2."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise flags.Error("--config: nothing given; takes a file such as configs/demo.py")
    if not _WORKDIR.value:
      raise flags.Error("--workdir: nothing given; takes the folder for what the run leaves")
    list(_CONFIG.value)  # a config file that is missing shows at the first access
    if rest[1:]:
      raise flags.Error(f"unknown argument {rest[1]!r}; overrides look like --config.k=64")
    return rest
  except config_lib.ConfigError as error:
    sys.exit(_complain(error, 2))
  except AttributeError as error:
    sys.exit(_complain(_unknown_field(argv) or _config_file_error(error), 2))
  except flags.IllegalFlagValueError as error:
    sys.exit(_complain(_wrong_value(error), 2))
  except (flags.Error, OSError, TypeError, ValueError, KeyError) as error:
    sys.exit(_complain(_config_file_error(error), 2))


def _unknown_field(argv: Sequence[str]) -> str | None:
  """One line for the first override of a field that does not exist, with the nearest that does."""
  known = config_lib.base()
  for argument in argv[1:]:
    name = re.match(r"--?config\.([\w.]+)", argument)
    # Fields beside the base's are a config file's own.
    if name and (name[1].split(".")[0] in known or name[1].split(".")[0] == name[1]):
      try:
        config_lib.check_field(known, name[1])
      except config_lib.ConfigError as error:
        return str(error)
  return None


def _wrong_value(error: flags.IllegalFlagValueError) -> str:
  """One line for `--config.field=value` of the wrong type."""
  found = re.match(r"flag --(config\.([\w.]+))=(.*?): ", str(error), re.DOTALL)
  known = dict(config_lib.fields(config_lib.base()))
  if found and found[2] in known:
    kind = type(known[found[2]]).__name__
    return f"{found[1]}: got {found[3]!r}, takes a value of type {kind}"
  return _config_file_error(error)


def _config_file_error(error: Exception) -> str:
  """The last line that says something: ml_collections puts whole tracebacks into messages."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  if isinstance(error, AttributeError):
    # Key "x" does not exist ... / Did you mean "y"?
    return " ".join(re.sub(r"and cannot be added.*", "", line) for line in lines)
  line = lines[-1] if lines else type(error).__name__
  return re.sub(r"^[\w.]*(Error|Exception): ", "", line)


def _complain(message: object, status: int) -> int:
  print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
  return status


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
