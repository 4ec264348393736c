"""A WSGI application on the loopback interface."""

from collections.abc import Iterator
import contextlib
import threading

from werkzeug.serving import WSGIRequestHandler, make_server


class _Handler(WSGIRequestHandler):
  # Answers are sent at once, and not when the client has confirmed their headers, 40 ms
  # later.
  disable_nagle_algorithm = True

  def log_request(self, *_):
    pass


@contextlib.contextmanager
def served(app) -> Iterator[str]:
  """Serves an application in threads; yields its URL."""
  with make_server(
    "127.0.0.1", 0, app, threaded=True, request_handler=_Handler
  ) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.port}"
    finally:
      server.shutdown()
      thread.join()
