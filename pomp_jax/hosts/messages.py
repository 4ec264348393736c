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
from typing import Any, NamedTuple

import jax

# The store has no public name; Orbax imports it the same way.
from jax._src import distributed

from pomp_jax.errors import InputError, TryAgain

_calls = itertools.count()
_SECONDS = 300.0
LISTEN_SECONDS = 1.0  # longest wait inside JAX, where Python does not handle signals
_POSTS = "pomp_jax_posted"
_MAX_NAMED = 4  # processes that a message names on each side of a disagreement
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")


class HostError(InputError, RuntimeError):
  """A host that can't start, or that differs from the others; one line."""


class LostHostError(TryAgain, RuntimeError):
  """A host that does not answer; one line. The same command resumes the run."""


class HostValue(NamedTuple):
  """JSON value of one process."""

  host: str
  value: Any


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


def gather(value: Any, what: str, seconds: float = _SECONDS) -> list[HostValue]:
  """Collects a JSON value of each process; all processes return the same list.

  Process 0 collects and distributes the values, so n processes make 2n requests, not
  n^2.

  Args:
    value: JSON value of this process.
    what: name of the value, for the error.
    seconds: time to wait for each process. After the first missing process the wait for
      each of the others is 0.1 s.

  Returns:
    The values, in the order of the processes.

  Raises:
    LostHostError: a process did not answer; the message names all that are missing.
  """
  store = client()
  values: list[Any] = [[socket.gethostname(), value]]
  missing: list[int] = []
  if store is not None:
    key = f"pomp_jax/{next(_calls)}"
    if not is_first():
      store.key_value_set(f"{key}/{own_index()}", json.dumps(values[0]))
    else:
      for index in range(1, n_processes()):
        # After the first timeout the other processes have had `seconds` too.
        patience = 0.1 if missing else seconds
        text = _get(store, f"{key}/{index}", patience)
        if text is None:
          missing.append(index)
        else:
          values.append(json.loads(text))
  if missing:
    indices = ", ".join(map(str, missing))
    raise LostHostError(
      f"{what}: process {indices} of {n_processes()} did not answer"
      f" within {seconds:.0f} s"
    )

  # The others wait for process 0 to collect, up to `seconds`, and as long to
  # distribute.
  values = from_first(values, what, 2 * seconds)
  return [HostValue(host, of_process) for host, of_process in values]


def from_first(value: Any, what: str, seconds: float = _SECONDS) -> Any:
  """Returns process 0's JSON value on all processes.

  A process that runs alone gets its own value after a round trip through JSON, which
  turns tuples into lists.

  Args:
    value: JSON value; only that of process 0 counts.
    what: name of the value, for the error.
    seconds: time to wait for process 0.

  Raises:
    LostHostError: process 0 did not answer.
  """
  store = client()
  if store is None:
    return json.loads(json.dumps(value))

  key = f"pomp_jax/{next(_calls)}"
  if is_first():
    text = json.dumps(value)
    store.key_value_set(key, text)
    return json.loads(text)
  answer = _get(store, key, seconds)
  if answer is None:
    raise LostHostError(f"{what}: process 0 did not answer within {seconds:.0f} s")
  return json.loads(answer)


def post(name: str, value: Any) -> None:
  """Leaves a JSON value for process 0, replacing the previous one; never waits or
  raises."""
  if (store := client()) is not None:
    key = f"{_POSTS}/{name}/{own_index()}"
    # A lost coordinator is detected elsewhere.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(key, json.dumps(value), allow_overwrite=True)


def posted(name: str) -> dict[int, Any]:
  """Latest posted values by process; empty for a process that runs alone."""
  texts = {}
  if (store := client()) is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      for key, text in store.key_value_dir_get(f"{_POSTS}/{name}/"):
        texts[int(key.rpartition("/")[2])] = text
  return {index: json.loads(texts[index]) for index in sorted(texts)}


def agree(facts: Mapping[str, object], *, seconds: float = _SECONDS) -> None:
  """Checks that all processes have the same config, code and data.

  A host with an older checkout or another class list would raise no error by itself.
  The mean gradient of all hosts would contain the gradient of another loss.

  Args:
    facts: facts of this process by name; they are compared as text.
    seconds: time to wait for each process.

  Raises:
    HostError: a fact differs; the message has its values and their hosts.
    LostHostError: a process did not answer.
  """
  texts = {name: str(value) for name, value in facts.items()}
  facts_of_processes = gather(texts, "comparing the hosts", seconds)
  names: dict[str, None] = {}  # without repetition, in order
  for _, of_process in facts_of_processes:
    names |= dict.fromkeys(of_process)

  for name in names:
    processes_of_value: dict[str, list[str]] = {}
    for index, (host, of_process) in enumerate(facts_of_processes):
      value = of_process.get(name, "nothing")
      processes_of_value.setdefault(value, []).append(f"process {index} on {host}")
    if len(processes_of_value) > 1:
      sides = "; ".join(
        f"{value} for {_some_of(processes)}"
        for value, processes in processes_of_value.items()
      )
      raise HostError(
        f"the hosts disagree on {name}: {sides}. All must start from the same"
      )


def _some_of(processes: list[str]) -> str:
  """Names of processes for a message: the first ones, and how many more there are."""
  text = ", ".join(processes[:_MAX_NAMED])
  n_more = len(processes) - _MAX_NAMED
  if n_more > 0:
    text += f" and {n_more} more"
  return text


def fingerprint_of_package() -> dict[str, str]:
  """Facts for `agree`: a checksum of this package's files, and versions of Python and
  of the libraries."""
  package = pathlib.Path(__file__).parent.parent
  digest = hashlib.sha256()
  for file in sorted(package.rglob("*")):
    if not file.is_file() or "__pycache__" in file.parts:
      continue
    content = file.read_bytes()
    # The length marks where a file ends and the name of the next file starts.
    header = f"{file.relative_to(package).as_posix()} {len(content)}\n"
    digest.update(header.encode())
    digest.update(content)

  facts = {
    "the code of pomp_jax": digest.hexdigest()[:12],
    "Python": platform.python_version(),
  }
  for name in _LIBRARIES:
    facts[f"the version of {name}"] = importlib.metadata.version(name)
  return facts


def _get(store: Any, key: str, seconds: float) -> str | None:
  """Waits for a key of the store.

  Args:
    store: key-value store of the coordinator.
    key: key to wait for.
    seconds: timeout.

  Returns:
    The value, or None after the timeout.

  Raises:
    LostHostError: the coordinator does not answer.
  """
  end = time.monotonic() + seconds
  blocking_ms = max(1, int(1000 * min(seconds, LISTEN_SECONDS)))
  ask = functools.partial(store.blocking_key_value_get, key, blocking_ms)
  while True:
    try:
      return ask()
    except jax.errors.JaxRuntimeError as error:
      message = str(error)
      is_missing = "DEADLINE_EXCEEDED" in message or "NOT_FOUND" in message
      if not is_missing:
        first_line = message.splitlines()[0]
        raise LostHostError(f"the coordinator is lost ({first_line})") from error
    remaining = end - time.monotonic()
    if remaining <= 0:
      return None
    time.sleep(min(remaining, LISTEN_SECONDS))
    # Poll from here on: JAX keeps each blocking wait that timed out in memory, on both
    # sides.
    ask = functools.partial(store.key_value_try_get, key)
