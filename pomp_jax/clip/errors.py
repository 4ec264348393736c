"""What loading a CLIP raises."""


class ClipError(ValueError):
  """A CLIP that cannot be loaded or does not fit; the message is one line."""
