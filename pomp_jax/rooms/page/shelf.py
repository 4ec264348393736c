"""Pictures in memory by random keys, so that the browser can show one and send its key again."""

from collections import OrderedDict
import secrets
import threading


class Shelf:
  """PNG files in memory, the newest ones up to a total size. No file is read or written."""

  def __init__(self, max_bytes: int = 64 * 2**20):
    """Starts empty; beyond `max_bytes` the picture that was used longest ago is dropped."""
    self._max_bytes = max_bytes
    self._held: OrderedDict[str, bytes] = OrderedDict()
    self._fixed: dict[str, bytes] = {}
    self._lock = threading.Lock()

  def add(self, content: bytes, *, keep: bool = False) -> str:
    """Adds a PNG and returns its key, which can't be guessed; `keep`: it is never dropped."""
    key = secrets.token_urlsafe(16)
    with self._lock:
      if keep:
        self._fixed[key] = content
        return key
      self._held[key] = content
      while sum(map(len, self._held.values())) > self._max_bytes and len(self._held) > 1:
        self._held.popitem(last=False)
    return key

  def get(self, key: str) -> bytes | None:
    """Returns a picture; None if it was dropped or never there."""
    with self._lock:
      if key in self._held:
        self._held.move_to_end(key)
      return self._fixed.get(key) or self._held.get(key)
