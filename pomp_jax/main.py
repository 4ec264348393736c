"""Runs the job of a config: `pomp --config=NAME --workdir=DIR`.

`python -m pomp_jax.main` is the same command. The config is a file, or the name of one
that comes with the package. A string behind a colon picks a variant
(`--config=demo:k=64`), `--config.FIELD=VALUE` overrides a field. Without `--workdir`
the folder is `runs/NAME`.

With several processes each is started with the same command: on a Cloud TPU, under
SLURM, in a JobSet or by Open MPI they find each other; elsewhere each gets
`--coordinator=HOST:PORT`, `--num_processes=N` and its own `--process_id=I`.

Exit status: 0 done; 1 the run failed; 2 bad input, found before anything was written;
75 stopped by SIGTERM or SIGHUP (while it trains also by SIGINT) with everything saved,
or by the loss of another process, and 130 interrupted by hand: the same command
resumes.
"""

import argparse
from collections.abc import Sequence
import contextlib
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

if __name__ == "__main__":
  # `run` sets handlers of signals, then imports this file as `pomp_jax.main` and ends
  # the process, so nothing below is executed as `__main__`.
  from pomp_jax.command import run

  run()

# transformers reads this variable at import. Otherwise transformers 5 would report that
# PyTorch is missing, which is not needed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax

from pomp_jax import hosts
from pomp_jax.config import HERE, JOBS, load_job, validate
from pomp_jax.config.command_line import help_text, parse
from pomp_jax.errors import InputError, RunError, TryAgain
from pomp_jax.files.atomic import disk_failure
from pomp_jax.files.compilation import shown_compilations, use_compilation_cache
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.provenance import commit
from pomp_jax.files.run_folder import RunFolder, noting_failure
from pomp_jax.files.terminal import Output, drop_native_output, one_line, set_up_logging
from pomp_jax.registry import JobModule

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
  """Runs the job of a command line.

  Args:
    arguments: the command line without the program's name.

  Returns:
    The exit status.
  """
  set_up_logging()  # first: a config file may open data, which logs warnings
  try:
    options = parse(arguments)
  except InputError as error:
    return _end(error, error.status)

  stop = hosts.StopSignals(lambda: _what_remains(options))
  try:
    stop.start()
    return _run_job(options, stop)
  except hosts.Preempted as error:
    # The signal came while `_run_job` returned, or handled another error.
    return _status_after(error, TryAgain.status, stop, options)


def _what_remains(options: argparse.Namespace) -> str:
  """Says in words what a stopped run has left behind."""
  workdir = options.workdir
  if options.settings.dry_run or not (is_bucket(workdir) or os.path.isdir(workdir)):
    return "nothing was written"
  return f"the same command resumes from {workdir}"


def _run_job(options: argparse.Namespace, stop: hosts.StopSignals) -> int:
  """Runs the job and returns the exit status.

  Ignores signals once the exit status is known.
  """
  status = InputError.status
  try:
    job = _checked_job(options, stop)
    status = RunError.status
    _run_checked(job, options)
    hosts.finish()
    stop.ignore()
    return 0
  except BaseException as error:
    return _status_after(error, status, stop, options)


def _checked_job(options: argparse.Namespace, stop: hosts.StopSignals) -> JobModule:
  """Joins the other processes and checks the run; writes nothing.

  Returns:
    The module of the job, or of its dry run.

  Raises:
    InputError: a field, the folder or the number of processes does not fit.
  """
  config = options.settings
  workdir = options.workdir
  validate(config)
  compiles_only = config.dry_run not in ("", HERE)
  if compiles_only:  # for devices that this machine does not have
    jax.config.update("jax_platforms", "cpu")
  _join(options, stop)
  count = hosts.n_processes()
  if count > 1 and not JOBS[config.job].processes:
    raise InputError(f"job {config.job!r} runs in one process; {count} were started")
  # Check the folder before the compilation cache, which may be inside it and would
  # report the same problem less clearly.
  RunFolder(workdir).check(config.job)
  # A dry run here and the benchmark measure compilation, so they use no cache.
  if config.dry_run != HERE and config.job != "benchmark":
    use_compilation_cache(config.compilation_cache, workdir)
  # The module that the job's row of `JOBS` names, such as `train.pretrain`.
  job = load_job("dry_run" if config.dry_run else config.job)
  job.check(config, workdir)
  if workdir == options.default_workdir:
    log.info("workdir: %s", workdir)
  has_joined = jax.distributed.is_initialized()  # if so, `_join` logged the devices
  if JOBS[config.job].devices and not compiles_only and not has_joined:
    log.info(hosts.describe(None, config.mesh.class_size, config.clip.dtype))
  return job


def _run_checked(job: JobModule, options: argparse.Namespace) -> None:
  """Runs a checked job. If the job fails, process 0 notes the reason in the folder."""
  commit()  # cache the commit now: the checkout may change during the run
  noting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
  if hosts.is_first() and not options.settings.dry_run:
    noting = noting_failure(options.workdir)
  with noting, shown_compilations():
    job.run(options.settings, options.workdir)


def _status_after(
  error: BaseException,
  status: int,
  stop: hosts.StopSignals,
  options: argparse.Namespace,
) -> int:
  """Reports what ended the job, to the user and to the other processes.

  Args:
    error: exception that ended the job.
    status: exit status if the disk failed: bad input before the job ran, a failed run
      afterwards.
    stop: handlers of signals, with the signal that was received.
    options: parsed command line.

  Returns:
    The exit status.

  Raises:
    BaseException: the error itself, if no single line can explain it. Python then
      prints the stack trace.
  """
  stop.ignore()
  if stop.received is not None:
    error = stop.received  # a library may have replaced this exception by another
  match error:
    case InputError() | RunError() | TryAgain():
      return _end(error, error.status)
    case hosts.Preempted():
      if error.together:  # all processes stop at the same step, each by itself
        hosts.finish()
      return _end(error, TryAgain.status, error.together)
    case KeyboardInterrupt():
      return _end(f"interrupted; {_what_remains(options)}", 130)
    case Exception():
      pass
    case _:
      raise error

  disk_line = disk_failure(error)
  if disk_line:
    return _end(disk_line, status)
  if not jax.distributed.is_initialized():
    raise error
  # The other processes must not wait for this one.
  if hosts.is_lost_contact(error):
    hosts.fail_after_lost_contact(error)
  traceback.print_exception(error)
  hosts.fail(one_line(f"{type(error).__name__}: {error}", None), RunError.status)


def _join(options: argparse.Namespace, stop: hosts.StopSignals) -> None:
  """Joins the other processes of the run; does nothing if it has only this one.

  Args:
    options: parsed command line.
    stop: handlers of signals, which joining replaces and this function sets again.

  Raises:
    HostError: this process can't start, or its config, code or data differ from the
      others'.
    LostHostError: another process does not answer.
  """
  config = options.settings
  cluster = hosts.detect(
    coordinator=options.coordinator,
    num_processes=options.num_processes,
    process_id=options.process_id,
    timeout=options.start_timeout,
  )
  if cluster is None:
    return
  hosts.start(
    cluster,
    start_timeout=options.start_timeout,
    heartbeat_timeout=options.heartbeat_timeout,
  )
  if not config.stops_together:
    # Joining replaced our handler of SIGTERM by JAX's, which only tells jobs that ask.
    stop.handle(signal.SIGTERM)
  elif stop.handles(signal.SIGHUP):
    # JAX forwards SIGTERM to all processes, but not SIGHUP.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  if jax.default_backend() == "cpu":
    drop_native_output()  # Gloo prints a line for each connection
  hosts.watch_failures()

  facts: dict[str, object] = {}
  for field, value in config.flat().items():
    facts[f"config.{field}"] = repr(value)
  facts["workdir"] = options.workdir
  facts |= hosts.fingerprint_of_package()
  hosts.agree(facts, seconds=options.start_timeout)
  hosts.share_cores(options.start_timeout)

  log.info(hosts.describe(cluster, config.mesh.class_size, config.clip.dtype))
  if not hosts.is_first():  # only process 0 logs what is equal in all processes
    logging.getLogger("pomp_jax").setLevel(logging.WARNING)


def _end(message: object, status: int, together: bool = False) -> int:
  """Prints the error, ends the other processes, and returns the status.

  With `together` the other processes stop by themselves.
  """
  line = one_line(message, None)
  print(f"error: {line}", file=sys.stderr)
  if jax.distributed.is_initialized() and not together:
    hosts.fail(line, status)
  return status


def start() -> NoReturn:
  """Runs the command line `sys.argv`; ends the process with its exit status."""
  # `Output` keeps the run alive if the disk of a log is full.
  sys.stdout = Output(sys.stdout)
  sys.stderr = Output(sys.stderr)
  arguments = sys.argv[1:]
  if {"-h", "-help", "--help"}.intersection(arguments):
    print(f"{__doc__}\n{help_text()}")
    sys.exit()
  sys.exit(main(arguments))
