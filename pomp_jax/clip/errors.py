"""What loading a CLIP raises."""

from pomp_jax.errors import InputError


class ClipError(InputError, ValueError):
  """A CLIP that cannot be loaded or does not fit; the message is one line."""
