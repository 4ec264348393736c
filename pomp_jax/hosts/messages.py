"""JSON messages between the processes of a run, over the coordinator's key-value store.

Messages work before any program is compiled, and each wait has a timeout. All processes
make the same calls in the same order, except for `post` and `posted`.
"""

from collections.abc import Mapping
import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import socket
import time
from typing import Any

import jax

# The store has no public name; Orbax imports it the same way.
from jax._src import distributed

from pomp_jax.errors import InputError, TryAgain

_calls = itertools.count()
_SECONDS = 300.0
LISTEN_SECONDS = 1.0  # longest wait inside JAX, where Python does not handle signals
_POSTS = "pomp_jax_posted"
_MAX_NAMED = 4  # processes on each side of a disagreement
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")


class HostError(InputError, RuntimeError):
  """A host that can't start, or that differs from the others; one line."""


class LostHostError(TryAgain, RuntimeError):
  """A host that does not answer; one line. The same command resumes the run."""


def client() -> Any:
  """Returns the key-value store, or None for a process that runs alone."""
  return distributed.global_state.client


def own_index() -> int:
  """Index of this process. Unlike `jax.process_index()` it initialises no device."""
  return distributed.global_state.process_id


def n_processes() -> int:
  """Number of processes; initialises no device."""
  return distributed.global_state.num_processes


def is_first() -> bool:
  """Whether this is process 0, which writes all shared files."""
  return own_index() == 0


def gather(value: Any, what: str, seconds: float = _SECONDS) -> list[tuple[str, Any]]:
  """Returns (host name, JSON value) of each process, in order, on all processes.

  After the timeout a LostHostError has the name of the value, `what`, and the missing
  processes. Process 0 collects and distributes the values, so n processes make 2n
  requests, not n^2.

  Args:
    value: JSON value of this process.
    what: name of the value, for the error.
    seconds: time to wait for each process; 0.1 s after the first that is missing.

  Raises:
    LostHostError: a process did not answer.
  """
  store, found = client(), [[socket.gethostname(), value]]
  missing: list[int] = []
  if store is not None:
    key = f"pomp_jax/{next(_calls)}"
    if not is_first():
      store.key_value_set(f"{key}/{own_index()}", json.dumps(found[0]))
    else:
      for index in range(1, n_processes()):
        # After the first timeout the other processes have had their time too.
        text = _get(store, f"{key}/{index}", 0.1 if missing else seconds)
        missing += [index] if text is None else []
        found.append(json.loads(text or "null"))
  if missing:
    raise LostHostError(
      f"{what}: process {', '.join(map(str, missing))} of {n_processes()} did not answer"
      f" within {seconds:.0f} s"
    )
  return [tuple(pair) for pair in from_first(found, what, 2 * seconds)]


def from_first(value: Any, what: str, seconds: float = _SECONDS) -> Any:
  """Returns process 0's JSON value on all processes; arguments as `gather`'s.

  Args:
    value: JSON value; that of process 0 counts.
    what: name of the value, for the error.
    seconds: time to wait for process 0.

  Raises:
    LostHostError: process 0 did not answer.
  """
  text: str | None = json.dumps(value)
  if (store := client()) is not None:
    key = f"pomp_jax/{next(_calls)}"
    if is_first():
      store.key_value_set(key, text)
    elif (text := _get(store, key, seconds)) is None:
      raise LostHostError(f"{what}: process 0 did not answer within {seconds:.0f} s")
  return json.loads(text or "null")


def post(name: str, value: Any) -> None:
  """Leaves a JSON value for process 0, replacing the previous one; never waits or
  raises."""
  if (store := client()) is not None:
    key = f"{_POSTS}/{name}/{own_index()}"
    # A lost coordinator is detected elsewhere.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(key, json.dumps(value), allow_overwrite=True)


def posted(name: str) -> dict[int, Any]:
  """Latest posted value of each of several processes that has posted one."""
  texts = {}
  if (store := client()) is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      for key, text in store.key_value_dir_get(f"{_POSTS}/{name}/"):
        texts[int(key.rpartition("/")[2])] = text
  return {index: json.loads(texts[index]) for index in sorted(texts)}


def agree(facts: Mapping[str, object], *, seconds: float = _SECONDS) -> None:
  """Checks that all processes have the same facts, as text: the same config, code and
  data.

  A host with an older checkout or another class list would not fail by itself: it would
  average the gradient of another loss into all. HostError names the first that differs,
  its values and hosts.
  """
  mine = {name: str(value) for name, value in facts.items()}
  found = gather(mine, "comparing the hosts", seconds)
  for name in dict.fromkeys(name for _, theirs in found for name in theirs):
    holders: dict[str, list[str]] = {}
    for index, (host, theirs) in enumerate(found):
      holders.setdefault(theirs.get(name, "nothing"), []).append(
        f"process {index} on {host}"
      )
    if len(holders) > 1:
      sides = []
      for value, who in holders.items():
        more = f" and {len(who) - _MAX_NAMED} more" if len(who) > _MAX_NAMED else ""
        sides.append(f"{value} for {', '.join(who[:_MAX_NAMED])}{more}")
      raise HostError(
        f"the hosts disagree on {name}: {'; '.join(sides)}. All must start from the same"
      )


def fingerprint_of_package() -> dict[str, str]:
  """Versions of Python and of the libraries, and a checksum of all files of this
  package."""
  package = pathlib.Path(__file__).parent.parent
  digest = hashlib.sha256()
  for file in sorted(package.rglob("*")):
    if file.is_file() and "__pycache__" not in file.parts:
      content = file.read_bytes()
      digest.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode())
      digest.update(content)
  versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
  return {
    "the code of pomp_jax": digest.hexdigest()[:12],
    "Python": platform.python_version(),
    **{f"the version of {name}": version for name, version in versions.items()},
  }


def _get(store: Any, key: str, seconds: float) -> str | None:
  """Waits for a key of the store; None after the timeout."""
  end = time.monotonic() + seconds
  first = max(1, int(1000 * min(seconds, LISTEN_SECONDS)))
  ask = functools.partial(store.blocking_key_value_get, key, first)
  while True:
    try:
      return ask()
    except jax.errors.JaxRuntimeError as error:
      if not any(reason in str(error) for reason in ("DEADLINE_EXCEEDED", "NOT_FOUND")):
        raise LostHostError(
          f"the coordinator is lost ({str(error).splitlines()[0]})"
        ) from error
    if (left := end - time.monotonic()) <= 0:
      return None
    time.sleep(min(left, LISTEN_SECONDS))
    # Poll from here on: JAX keeps each blocking wait that timed out in memory, on both
    # sides.
    ask = functools.partial(store.key_value_try_get, key)
