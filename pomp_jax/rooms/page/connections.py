"""The page's connections: idle ones and slow uploads keep nobody out."""

from collections.abc import Iterator
import contextlib
import socket
import threading

from flask import Flask
import waitress

from pomp_jax.rooms.page.server import FORM_BYTES

# Connections that are served at a time.
_THREADS = 8
# Connections that are open, those of them that wait for a (whole) request, and silence, seconds.
_CONNECTIONS, _IDLE, _SILENCE = 200, 100, 30


@contextlib.contextmanager
def serving(app: Flask, listener: socket.socket, max_upload: float) -> Iterator[None]:
  """Serves the application in a thread; closes the oldest idle connections and slow uploads."""
  server = waitress.create_server(
    app,
    sockets=[listener],
    threads=_THREADS,
    ident=None,
    connection_limit=_CONNECTIONS,
    channel_timeout=_SILENCE,
    cleanup_interval=1,
    asyncore_use_poll=True,
    # Uploads that are too large are told so by the page. What is far larger is not read.
    max_request_body_size=int(4 * max_upload * 2**20) + FORM_BYTES,
  )
  close_silent = server.maintenance

  def maintenance(now: float) -> None:
    """Called every second in the server's own thread."""
    waiting = [channel for channel in server.active_channels.values() if not channel.requests]
    waiting.sort(key=lambda channel: -channel.creation_time)
    for channel in waiting[_IDLE:]:
      channel.will_close = True
    close_silent(now)

  server.maintenance = maintenance
  threading.Thread(target=server.run, name="page", daemon=True).start()
  try:
    yield
  finally:
    # In the server's own thread. Connections that are open end with the process.
    server.trigger.pull_trigger(server.close)
