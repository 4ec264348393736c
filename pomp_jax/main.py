"""Runs the job of a config: `pomp --config=NAME --workdir=DIR`.

`python -m pomp_jax.main` is the same command. The config is a file, or the name of one that comes
with the package. A string behind a colon picks a variant (`--config=demo:k=64`),
`--config.FIELD=VALUE` overrides a field. Without `--workdir` the folder is `runs/NAME`.

With several processes each is started with the same command: on a Cloud TPU, under SLURM, in a
JobSet or by Open MPI they find each other; elsewhere each gets `--coordinator=HOST:PORT`,
`--num_processes=N` and its own `--process_id=I`.

Exit status: 0 done; 1 the run failed; 2 bad input, found before anything was written; 75 stopped by
SIGTERM or SIGHUP (while it trains also by SIGINT) with everything saved, or by the loss of another
process, and 130 interrupted by hand: the same command resumes.
"""

from collections.abc import Sequence
import contextlib
import logging
import os
import pathlib
import signal
import sys
import traceback
from typing import NoReturn

if __name__ == "__main__":
  # Imports this file by its name, once its handlers of signals are set, and ends the process.
  from pomp_jax.command import run

  run()

# Read when transformers is imported: 5 would report that PyTorch, which is not needed, is missing.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags
import jax
from ml_collections import config_flags

from pomp_jax import hosts
from pomp_jax.config import JOBS, METHODS, Settings, load_job, unpack, validate
from pomp_jax.config.command_line import explain, help_text, with_tuple
from pomp_jax.config.packaged import with_file
from pomp_jax.errors import InputError, RunError, TryAgain
from pomp_jax.files.atomic import disk_failure
from pomp_jax.files.compilation_cache import use_compilation_cache
from pomp_jax.files.compilation_log import shown_compilations
from pomp_jax.files.paths import problem_of
from pomp_jax.files.provenance import commit
from pomp_jax.files.run_folder import noting_failure
from pomp_jax.files.terminal import printable, set_up_logging, set_up_streams

log = logging.getLogger(__name__)

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="The experiment: the name of a packaged config, or a file."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder: results, checkpoints, plots. Default: runs/NAME."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where it listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; 1: this alone.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_START_TIMEOUT = flags.DEFINE_integer(
  "start_timeout", 300, "Seconds within which all processes must have arrived.", 1
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout", 60, "Seconds of silence after which a process counts as lost.", 1
)


def main(argv: Sequence[str]) -> int:
  """Validates the config, joins the other processes if there are any, and runs the job."""
  del argv
  set_up_logging()
  stop = hosts.StopSignals(_WORKDIR.value)
  try:
    stop.start()
    return _run_job(stop)
  except hosts.Preempted as error:  # `_run_job` was about to return, or to handle another error
    return _status_after(error, TryAgain.status, stop)


def _run_job(stop: hosts.StopSignals) -> int:
  """Returns the exit status, with signals ignored from then on."""
  workdir, status = _WORKDIR.value, InputError.status
  try:
    config = unpack(_CONFIG.value)
    validate(config)
    _join(config, workdir, stop)
    _check_processes(config.job)
    if not config.dry_run and config.job != "benchmark":  # they measure compilation
      use_compilation_cache(config.compilation_cache, workdir)
    module = load_job("dry_run" if config.dry_run else config.job)
    module.check(config, workdir)
    if workdir == _default_workdir():
      log.info("workdir: %s", workdir)
    if not jax.distributed.is_initialized() and JOBS[config.job].devices:
      log.info(hosts.describe(None, config.mesh.class_size, config.clip.dtype))
    status = RunError.status
    commit()  # read now: the checkout may change while the run lasts
    with _noting_failure(config, workdir), shown_compilations():
      module.run(config, workdir)
    hosts.finish()
    stop.ignore()
    return 0
  except BaseException as error:
    return _status_after(error, status, stop)


def _status_after(error: BaseException, status: int, stop: hosts.StopSignals) -> int:
  """Reports what ended the job, one line if it has a name; returns the exit status.

  Args:
    error: exception that is being handled.
    status: exit status of a disk's failure.
    stop: the signals, ignored from now on.

  Raises:
    BaseException: `error`, of a process that runs alone, if it is unknown.
  """
  stop.ignore()
  error = stop.received or error  # whatever it has become on the way
  if isinstance(error, InputError | RunError | TryAgain):
    return _end(error, error.status)
  if isinstance(error, hosts.Preempted):
    if not error.together:
      return _end(error, TryAgain.status)
    # All processes stop at the same step, each by itself.
    hosts.finish()
    return _complain(error, TryAgain.status)
  if isinstance(error, KeyboardInterrupt):
    return _end(f"interrupted; the same command resumes from {_WORKDIR.value}", 130)
  if not isinstance(error, Exception):
    raise error
  if line := disk_failure(error):
    return _end(line, status)
  if not jax.distributed.is_initialized():
    raise error
  if hosts.is_lost_contact(error):
    hosts.fail_after_lost_contact(error)
  traceback.print_exception(error)
  hosts.fail(_one_line(f"{type(error).__name__}: {error}"), 1)
  return status


def _join(config: Settings, workdir: str, stop: hosts.StopSignals) -> None:
  """Starts JAX's distributed runtime where this run has more than one process."""
  timeout = _START_TIMEOUT.value
  cluster = hosts.detect(
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    timeout=timeout,
  )
  if cluster is None:
    return
  hosts.start(cluster, start_timeout=timeout, heartbeat_timeout=_HEARTBEAT_TIMEOUT.value)
  if not _stops_together(config):
    # Joining gave the signal to JAX, which only tells those who ask for it.
    stop.handle(signal.SIGTERM)
  elif stop.handles(signal.SIGHUP):
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  hosts.watch_failures()
  fields = {f"config.{name}": repr(value) for name, value in config.flat().items()}
  hosts.agree(fields | {"workdir": workdir} | hosts.fingerprint_of_package(), seconds=timeout)
  hosts.share_cores(timeout)
  log.info(hosts.describe(cluster, config.mesh.class_size, config.clip.dtype))
  if not hosts.is_first():
    # Only the first process logs what all have in common.
    logging.getLogger("pomp_jax").setLevel(logging.WARNING)


def _check_processes(job: str) -> None:
  """Refuses a job of one process, on all processes that were started for it."""
  count = hosts.n_processes()
  if count > 1 and not JOBS[job].processes:
    raise InputError(f"job {job!r} runs in one process; {count} were started")


def _noting_failure(config: Settings, workdir: str) -> contextlib.AbstractContextManager:
  """What leaves the reason of a failure in the folder, in the process that writes there."""
  writes = hosts.is_first() and not config.dry_run
  return noting_failure(workdir) if writes else contextlib.nullcontext()


def _stops_together(config: Settings) -> bool:
  trains = JOBS[config.job].trains and METHODS[config.method].by_steps
  return trains and not config.dry_run


def _end(message: object, status: int) -> int:
  """Complains; and where there are other processes, ends with all of them."""
  status = _complain(message, status)
  if jax.distributed.is_initialized():
    hosts.fail(_one_line(message), status)
  return status


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line; every mistake in it is one line and exit status 2."""
  try:
    rest = flags.FLAGS([with_tuple(argument) for argument in with_file(argv)])
    if _CONFIG.value is None:
      raise flags.Error("--config: nothing given; takes a file, or a name such as demo")
    if _WORKDIR.value is None:
      flags.FLAGS.workdir = _default_workdir()
    if not _WORKDIR.value:
      raise flags.Error("--workdir: nothing given; takes the folder for what the run leaves")
    if problem := problem_of(_WORKDIR.value):
      raise flags.Error(f"--workdir: got {_WORKDIR.value!r}, takes {problem}")
    list(_CONFIG.value)  # a config file that is missing shows at the first access
    if rest[1:]:
      raise flags.Error(f"unknown argument {rest[1]!r}; overrides look like --config.k=64")
    return rest
  except Exception as error:  # config files are programs
    sys.exit(_complain(explain(error, argv), 2))


def _default_workdir() -> str:
  """The folder `runs/NAME` of the config file `NAME.py`."""
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  return os.path.join("runs", pathlib.Path(file.partition(":")[0]).stem)


def _complain(message: object, status: int) -> int:
  print(f"error: {_one_line(message)}", file=sys.stderr)
  return status


def _one_line(message: object) -> str:
  """Without line breaks, nor anything else that directs a terminal."""
  return printable(" ".join(str(message).split()), None)


def start() -> NoReturn:
  """Runs the command line `sys.argv`; ends the process with its exit status."""
  set_up_streams()
  if {"-h", "-help", "--help"} & {*sys.argv[1:]}:
    print(f"{__doc__}\n{help_text()}\nFlags:\n{flags.FLAGS.module_help(sys.modules[__name__])}")
    sys.exit()
  app.run(main, flags_parser=parse_flags)
