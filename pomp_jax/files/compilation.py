"""The persistent cache of JAX's compiled programs, and log lines of slow compilations.

JAX's cache key covers program, devices, flags and compiler. For an unreadable entry JAX
only prints a warning.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import threading
from typing import Any
import uuid

import jax

from pomp_jax import hosts
from pomp_jax.files.atomic import why_unwritable
from pomp_jax.files.paths import Path, cache_folder, is_bucket, is_file, join, to_path
from pomp_jax.files.terminal import Progress, waiting

log = logging.getLogger(__name__)

AUTO = "auto"
_MIN_SECONDS = 0.1  # programs that take longer to compile are stored
_MAX_BYTES = 2**30  # above this size the oldest programs are removed

# Event that JAX reports for each compilation.
_COMPILATION = "/jax/core/compile/backend_compile_duration"
_SHOWN_SECONDS = 2.0  # shorter compilations are not shown


def use_compilation_cache(folder: str, workdir: str) -> None:
  """Switches JAX's cache of compiled programs on or off, before anything is compiled.

  All processes call this function together. Several processes use the cache only if all
  of them see the same folder. Otherwise a process that has to compile would keep the
  others waiting. On GPUs the processes tune a program together, so either all of them
  or none should compile the program.

  Args:
    folder: folder of the cache, on a disk or in a bucket. Empty switches the cache off.
      `auto` is `JAX_COMPILATION_CACHE_DIR` if that is set, else the folder `programs`
      in `workdir` if `workdir` is in a bucket, else a folder in the user's cache folder
      `pomp_jax`.
    workdir: folder of the run.

  Raises:
    PathError: the folder is a path that can't be used.
  """
  is_auto = folder == AUTO
  if is_auto and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return  # JAX reads the variable itself

  path = _shared_folder(folder, workdir)
  if path is None:
    jax.config.update("jax_compilation_cache_dir", None)
    return
  jax.config.update("jax_compilation_cache_dir", str(path))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
  if is_bucket(path):
    # XLA writes its own caches without JAX, and can't write to a bucket.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  elif is_auto and hosts.is_first():
    # Clear the default folder alone: a folder that the user names is the user's.
    _remove_oldest(pathlib.Path(path))


def _shared_folder(folder: str, workdir: str) -> Path | None:
  """Folder of the cache, see `use_compilation_cache`.

  None if the cache is off or, with a log line, if not all processes can use the folder.
  """
  if not folder:
    return None
  if folder == AUTO:
    path = _default_folder(workdir)
  else:
    path = to_path(folder)
  problem = _problem(path)
  if problem:
    log.info("programs are compiled at each start: %s", problem)
    return None
  return path


def _default_folder(workdir: str) -> Path:
  """Folder for `auto`: in the workdir's bucket, or else in the user's cache folder.

  Programs contain the processor's instructions, so in the user's cache folder each kind
  of processor has its own folder.
  """
  if is_bucket(workdir):
    return join(workdir, "programs")
  cpu = f"{platform.machine()} {platform.processor()}"
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      # The processor's instruction sets, on x86 ("flags") and on Arm ("Features").
      if line.startswith(("flags", "Features")):
        cpu += line
        break
  return cache_folder() / f"programs-{hashlib.sha256(cpu.encode()).hexdigest()[:8]}"


def _problem(path: Path) -> str | None:
  """Reason why not all processes can use the folder, or None.

  All processes call this function together.
  """
  problem = why_unwritable(path)
  if hosts.n_processes() == 1:
    return problem
  # Process 0 writes a file with a random name, and every process looks for the file.
  name = f"{uuid.uuid4().hex}.mark"
  if hosts.is_first() and not problem:
    with contextlib.suppress(OSError):
      path.mkdir(parents=True, exist_ok=True)
      (path / name).write_text("")
  mark = path / hosts.from_first(name, "the folder of compiled programs")
  sightings = hosts.gather(is_file(mark), "who sees the folder of programs")
  if hosts.is_first():
    with contextlib.suppress(OSError):
      mark.unlink()
  if all(is_seen for _, is_seen in sightings):
    return None
  return f"not all processes see the same {path}"


def _remove_oldest(folder: pathlib.Path) -> None:
  """Removes the oldest programs, so that at most _MAX_BYTES of programs remain."""
  # End at the first error: another run may be removing the same files.
  with contextlib.suppress(OSError):
    programs = []
    for path in folder.glob("*-cache"):
      status = path.stat()
      programs.append((status.st_mtime, status.st_size, path))
    total = 0
    for _, size, path in sorted(programs, reverse=True):
      total += size
      if total > _MAX_BYTES:
        path.unlink()


@contextlib.contextmanager
def shown_compilations() -> Iterator[None]:
  """Shows and logs each program whose compilation takes two seconds or more.

  JAX reports the beginning of a compilation as a scalar and its end as a duration, both
  in the thread that compiles. Several threads may compile at the same time.
  """
  progress_of_thread: dict[int, Progress] = {}

  def begin(event: str, value: float, **facts: Any) -> None:
    """Starts to show a compilation; a short compilation prints nothing."""
    if event != _COMPILATION:
      return
    description = f"compiling {_program(facts)}"
    progress = waiting(description, after=_SHOWN_SECONDS)
    progress_of_thread[threading.get_ident()] = progress

  def end(event: str, duration_secs: float, **facts: Any) -> None:
    """Logs a compilation that took long."""
    if event != _COMPILATION:
      return
    # A compilation that began before the listeners were registered has no progress.
    progress = progress_of_thread.pop(threading.get_ident(), None)
    if progress is not None:
      progress.close()
    if duration_secs >= _SHOWN_SECONDS:
      log.info("compiled %s in %.1f s", _program(facts), duration_secs)

  jax.monitoring.register_scalar_listener(begin)
  jax.monitoring.register_event_duration_secs_listener(end)
  try:
    yield
  finally:
    jax.monitoring.unregister_scalar_listener(begin)
    jax.monitoring.unregister_event_duration_listener(end)


def _program(facts: Mapping[str, Any]) -> str:
  """A function's name in words: "train step" for "jit(train_step)" or "jit_train_step"."""
  name = facts.get("fun_name", "").removeprefix("jit_")
  name = name.removeprefix("jit(").removesuffix(")").replace("<lambda>", "")
  return " ".join(name.split("_")).strip() or "a program"
