"""What files hold, as it may stand in a one-line message."""


def printable(found: str, limit: int = 300) -> str:
  """Text cut to `limit` characters, "?" for those that would break the line or can't be shown."""
  return "".join(letter if letter.isprintable() else "?" for letter in found[:limit])


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can hold it: JSON and file names can bring halves of characters."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True
