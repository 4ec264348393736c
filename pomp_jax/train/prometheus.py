"""Metrics for Prometheus: its text format, and a small server for it.

https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4. A sample is a gauge
`pomp_NAME`, with a label `process` where each process has its own.
"""

import asyncio
from collections.abc import Mapping
import contextlib
import socket
import threading
from typing import SupportsFloat

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Of all connections together, and of each.
MAX_CONNECTIONS = 64
SECONDS = 5.0
_HEAD_BYTES = 16_384


def exposition(
  of_run: Mapping[str, SupportsFloat], of_processes: Mapping[int, Mapping[str, SupportsFloat]]
) -> str:
  """The text that Prometheus reads.

  Args:
    of_run: figures of the whole run by name; letters, digits and underscores.
    of_processes: process -> its figures by name. No name is in both.
  """
  lines = []
  for name, value in of_run.items():
    lines += [f"# TYPE pomp_{name} gauge", f"pomp_{name} {_number(value)}"]
  for name in dict.fromkeys(name for figures in of_processes.values() for name in figures):
    lines.append(f"# TYPE pomp_{name} gauge")
    lines += [
      f'pomp_{name}{{process="{process}"}} {_number(figures[name])}'
      for process, figures in of_processes.items()
      if name in figures
    ]
  return "".join(f"{line}\n" for line in lines)


def _number(value: SupportsFloat) -> str:
  # Go's ParseFloat takes Python's nan and inf as they are; the format's own spelling is this.
  return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(text := repr(float(value)), text)


class Endpoint(contextlib.AbstractContextManager):
  """Answers GET /metrics with the text published last; everything else with an error.

  One thread serves all connections. Of more than MAX_CONNECTIONS the oldest is closed, and each is
  closed after SECONDS, so that slow clients hold neither threads nor sockets.

  Attributes:
    port: where it listens.
  """

  def __init__(self, host: str, port: int):
    """Listens from now on, in a thread of its own.

    Args:
      host: an address of this machine, or its name.
      port: 0: any that is free.

    Raises:
      OSError: it can't listen there.
    """
    family, _, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = _listener(family, address)
    self.port = listener.getsockname()[1]
    self._text = ""
    self._tasks: dict[asyncio.Task, None] = {}  # in order of their start
    self._loop, self._closed = asyncio.new_event_loop(), asyncio.Event()
    self._thread = threading.Thread(target=self._run, args=[listener], name="metrics", daemon=True)
    self._thread.start()

  def publish(self, text: str) -> None:
    """Replaces what is answered."""
    self._text = text

  def __exit__(self, *exception: object) -> None:
    self._loop.call_soon_threadsafe(self._closed.set)
    self._thread.join()

  def _run(self, listener: socket.socket) -> None:
    # Connections that are open at the end are cancelled by the runner.
    with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
      runner.run(self._listen(listener))

  async def _listen(self, listener: socket.socket) -> None:
    server = await asyncio.start_server(self._serve, sock=listener, limit=_HEAD_BYTES)
    await self._closed.wait()
    server.close()

  async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    own = asyncio.current_task()
    if len(self._tasks) >= MAX_CONNECTIONS:
      oldest = next(iter(self._tasks))
      # Not when it has ended: others may start before that.
      del self._tasks[oldest]
      oldest.cancel()
    self._tasks[own] = None
    try:
      # A client that goes away or says nothing is nobody's concern.
      with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        async with asyncio.timeout(SECONDS):
          head = await reader.readuntil(b"\r\n\r\n")
          writer.write(_answer(head, self._text))
          writer.close()
          await writer.wait_closed()
    except asyncio.CancelledError:
      pass  # closed for a newer one, or at the end
    finally:
      self._tasks.pop(own, None)
      writer.transport.abort()


def _listener(family: int, address: tuple) -> socket.socket:
  """A socket that listens.

  Raises:
    OSError: it can't.
  """
  listener = socket.socket(family)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()
  except OSError:
    listener.close()
    raise
  return listener


def _answer(head: bytes, text: str) -> bytes:
  """The whole answer to a request's head."""
  method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
  status, body = "200 OK", text.encode()
  if method != b"GET":
    status, body = "501 Not Implemented", b""
  elif rest.partition(b" ")[0] != b"/metrics":
    status, body = "404 Not Found", b""
  fields = [
    f"HTTP/1.1 {status}",
    "Server: pomp_jax",
    f"Content-Type: {_CONTENT_TYPE}",
    f"Content-Length: {len(body)}",
    "Connection: close",
  ]
  return "\r\n".join([*fields, "", ""]).encode() + body
