"""Runs a function in a process of its own."""

from collections.abc import Callable
import multiprocessing
import signal
from typing import Any

from pomp_jax.hosts import Preempted


class ProcessError(RuntimeError):
  """The process ended without a result; the message is one line."""


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
  """Calls a function in a new process, so that its peak memory is measured alone.

  If an exception ends the wait, the new process gets SIGTERM, so that a training saves
  a checkpoint before it ends.

  Args:
    function: function that a new process can import.
    *arguments: arguments of the function, which are pickled.

  Returns:
    What the function returns.

  Raises:
    ProcessError: the process ended without a result.
    Preempted: the process got SIGTERM.
    Exception: the function raised it.
  """
  context = multiprocessing.get_context("spawn")
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(target=_answer, args=(sender, function, arguments))
  process.start()
  # Only the new process holds the sending end from here on: if the process dies, `recv`
  # raises EOFError.
  sender.close()
  try:
    succeeded, answer = receiver.recv()
  except EOFError:
    process.join()
    if process.exitcode == -signal.SIGTERM:
      raise Preempted("stopped by SIGTERM; the same command resumes") from None
    raise ProcessError(f"its process ended with status {process.exitcode}") from None
  except BaseException:
    process.terminate()
    raise
  finally:
    process.join()
  if succeeded:
    return answer
  raise answer


def _answer(
  sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
  try:
    answer = True, function(*arguments)
  except (Exception, Preempted) as error:
    answer = False, error
  sender.send(answer)
