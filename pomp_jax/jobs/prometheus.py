"""Metrics for Prometheus: its text format, and a small server for it.

https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4. A sample is a gauge
`pomp_NAME`, with a label `process` where each process has its own.
"""

from collections.abc import Mapping
import contextlib
import http.server
import socket
import socketserver
import threading
from typing import SupportsFloat

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = 5.0


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
    self._server = _Server(family, address)
    self.port = self._server.server_address[1]
    threading.Thread(
      target=self._server.serve_forever, args=[0.1], name="metrics", daemon=True
    ).start()

  def publish(self, text: str) -> None:
    """Replaces what is answered."""
    self._server.text = text

  def __exit__(self, *exception: object) -> None:
    self._server.shutdown()
    self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
  allow_reuse_address = True
  daemon_threads = True
  # At the end no answer is waited for.
  block_on_close = False

  def __init__(self, family: int, address: tuple):
    self.address_family = family
    self.text = ""
    super().__init__(address, _Handler)

  def handle_error(self, request: object, client_address: object) -> None:
    """A client that goes away is nobody's concern."""


class _Handler(http.server.BaseHTTPRequestHandler):
  timeout = _SECONDS

  def do_GET(self) -> None:
    if self.path != "/metrics":
      self.send_error(404)
      return
    body = self.server.text.encode()
    self.send_response(200)
    self.send_header("Content-Type", _CONTENT_TYPE)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def version_string(self) -> str:
    return "pomp_jax"

  def log_message(self, *arguments: object) -> None:
    """Requests are not logged."""
