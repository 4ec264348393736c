"""Shows in the log and in the progress what JAX compiles, by JAX's own reports of each phase."""

from collections.abc import Iterator
import contextlib
import logging
import threading
from typing import Any

import jax

from pomp_jax.files.terminal import Progress, waiting

log = logging.getLogger(__name__)

_PHASES = tuple(
  f"/jax/core/compile/{phase}_duration"
  for phase in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
_SHOWN_SECONDS = 2.0  # programs that take less are not worth a line


@contextlib.contextmanager
def shown_compilations() -> Iterator[None]:
  """Logs each program that takes two seconds or more to compile, and shows it meanwhile."""
  shown = _Compilations()
  jax.monitoring.register_scalar_listener(shown.begin)
  jax.monitoring.register_event_duration_secs_listener(shown.end)
  try:
    yield
  finally:
    jax.monitoring.unregister_scalar_listener(shown.begin)
    jax.monitoring.unregister_event_duration_listener(shown.end)


class _Compilations(threading.local):
  """The programs that a thread compiles; a program can need another one while it is traced."""

  def __init__(self):
    self._open: list[Progress] = []  # the innermost last
    self._seconds: dict[str, float] = {}  # in earlier phases, by the program's name

  def begin(self, event: str, value: float, fun_name: str = "", **others: Any) -> None:
    if event in _PHASES:
      name = _program(fun_name)
      seconds = self._seconds.get(name, 0.0)
      self._open.append(waiting(f"compiling {name}", seconds, _SHOWN_SECONDS))

  def end(self, event: str, seconds: float, fun_name: str = "", **others: Any) -> None:
    if event not in _PHASES:
      return
    if self._open:
      self._open.pop().close()
    name = _program(fun_name)
    self._seconds[name] = seconds = self._seconds.get(name, 0.0) + seconds
    if event == _PHASES[-1]:
      del self._seconds[name]
      if seconds >= _SHOWN_SECONDS:
        log.info("compiled %s in %.1f s", name, seconds)


def _program(function: str) -> str:
  """A function's name in words: "train step" of "jit(train_step)" and "jit_train_step"."""
  name = function.removeprefix("jit_").removeprefix("jit(").removesuffix(")")
  return " ".join(name.replace("<lambda>", "").split("_")).strip() or "a program"
