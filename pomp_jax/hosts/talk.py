"""Small JSON values between the processes, over the coordinator's key-value store.

No device takes part, so this works before any program is compiled, and each wait has an end. All
processes make the same calls in the same order, of `post` and `posted` apart.
"""

from collections.abc import Callable
import contextlib
import itertools
import json
import socket
import time
from typing import Any

import jax
from jax._src import distributed  # the store has no public name; Orbax reaches it so as well
from jax.experimental import multihost_utils
import numpy as np

from pomp_jax.errors import InputError, TryAgain

_calls = itertools.count()
_SECONDS = 300.0
# A wait for the others' values spends no longer within JAX, where Python is deaf to signals.
LISTEN_SECONDS = 1.0
_POSTS = "pomp_jax_posted"
_own_posts: dict[str, str] = {}


class HostError(InputError, RuntimeError):
  """A host that can't start, or that is unlike the others; one line."""


class LostHostError(TryAgain, RuntimeError):
  """A host that does not answer; one line. The same command, started again, may go on."""


def client() -> Any:
  """The store, or None for a process alone."""
  return distributed.global_state.client


def own_index() -> int:
  """Which process this is. Unlike `jax.process_index()` it starts no device."""
  return distributed.global_state.process_id


def n_processes() -> int:
  """How many processes there are; starts no device either."""
  return distributed.global_state.num_processes


def is_first() -> bool:
  """Whether this process is the one that writes shared files."""
  return own_index() == 0


def name_of_process(index: int, host: str) -> str:
  """How a process is called in messages."""
  return f"process {index} on {host}"


def gather(value: Any, what: str, seconds: float = _SECONDS) -> list[tuple[str, Any]]:
  """Everybody's value, for everybody.

  Process 0 collects and hands out, so that n processes make 2n requests, not n^2.

  Args:
    value: this process's; JSON.
    what: it is, for the message.
    seconds: to wait for the slowest.

  Returns:
    For each process its host's name and its value.

  Raises:
    LostHostError: a process did not answer in time; the line names those.
  """
  store = client()
  mine = [socket.gethostname(), value]
  if store is None:
    return [tuple(json.loads(json.dumps(mine)))]
  key = f"pomp_jax/{next(_calls)}"
  if own_index() != 0:
    store.key_value_set(f"{key}/{own_index()}", json.dumps(mine))
    text = _get(store, f"{key}/all", 2 * seconds)
    if text is None:
      raise LostHostError(f"{what}: process 0 did not answer within {2 * seconds:.0f} s")
    return [tuple(pair) for pair in json.loads(text)]
  found = [mine]
  missing = []
  for index in range(1, n_processes()):
    # Those behind the first that is missing have had their time.
    text = _get(store, f"{key}/{index}", seconds if not missing else 0.1)
    missing += [index] if text is None else []
    found.append(json.loads(text or "null"))
  if missing:
    raise LostHostError(
      f"{what}: process {', '.join(map(str, missing))} of {n_processes()} did not answer"
      f" within {seconds:.0f} s"
    )
  store.key_value_set(f"{key}/all", json.dumps(found))
  return [tuple(pair) for pair in found]


def from_first(value: Any, what: str, seconds: float = _SECONDS) -> Any:
  """Process 0's value, for everybody; what the others give is not read.

  Args:
    value: JSON.
    what: it is, for the message.
    seconds: to wait for process 0.

  Raises:
    LostHostError: process 0 did not answer in time.
  """
  store = client()
  if store is None:
    return json.loads(json.dumps(value))
  key = f"pomp_jax/{next(_calls)}"
  if is_first():
    store.key_value_set(key, json.dumps(value))
    return json.loads(json.dumps(value))
  text = _get(store, key, seconds)
  if text is None:
    raise LostHostError(f"{what}: process 0 did not answer within {seconds:.0f} s")
  return json.loads(text)


def post(name: str, value: Any) -> None:
  """Leaves a value for process 0, in place of the one before; waits for nobody, and never fails.

  Args:
    name: what it is.
    value: JSON.
  """
  text = json.dumps(value)
  _own_posts[name] = text
  store = client()
  if store is not None and not is_first():
    # Whoever has lost the coordinator hears of it elsewhere.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(f"{_POSTS}/{name}/{own_index()}", text, allow_overwrite=True)


def posted(name: str) -> dict[int, Any]:
  """For process 0: what each process has posted last, by its index; of those that have."""
  texts = {own_index(): _own_posts[name]} if name in _own_posts else {}
  store = client()
  if store is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      for key, text in store.key_value_dir_get(f"{_POSTS}/{name}/"):
        texts[int(key.rpartition("/")[2])] = text
  return {index: json.loads(texts[index]) for index in sorted(texts)}


def arrays_from_first(arrays: list[np.ndarray]) -> list[np.ndarray]:
  """Process 0's arrays, for everybody, bit for bit; over the devices, so of any size.

  Args:
    arrays: the same types and shapes everywhere; only process 0's values are read.
  """
  # As bytes: the sum with the other processes' zeros would lose -0.0.
  contents = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
  contents = np.asarray(multihost_utils.broadcast_one_to_all(contents))
  ends = np.cumsum([array.nbytes for array in arrays])
  return [
    np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape)
    for array, part in zip(arrays, np.split(contents, ends[:-1]), strict=True)
  ]


def _get(store: Any, key: str, seconds: float) -> str | None:
  """What is stored there, once it is; None when the time is over."""
  end = time.monotonic() + seconds
  first = max(1, int(1000 * min(seconds, LISTEN_SECONDS)))
  text = _ask(store.blocking_key_value_get, key, first)
  # From here on it is asked: each wait that JAX gives up stays in its memory, on both sides.
  while text is None and (left := end - time.monotonic()) > 0:
    time.sleep(min(left, LISTEN_SECONDS))
    text = _ask(store.key_value_try_get, key)
  return text


def _ask(get: Callable[..., str], *arguments: Any) -> str | None:
  try:
    return get(*arguments)
  except jax.errors.JaxRuntimeError as error:
    if any(reason in str(error) for reason in ("DEADLINE_EXCEEDED", "NOT_FOUND")):
      return None
    raise LostHostError(f"the coordinator is lost ({str(error).splitlines()[0]})") from error
