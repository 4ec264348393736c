"""The three kinds of errors that end a run, each with an exit status.

Every exception that a user may meet is one of these kinds. The message is one line that
says what failed, where, what was found and what is accepted. `main` prints the message
and exits with `status`.
"""


class InputError(Exception):
  """Bad input that is found before anything is written: a field, a file, or hosts that
  disagree."""

  status = 2


class RunError(Exception):
  """A run failed on the way, and a restart would fail in the same way."""

  status = 1


class TryAgain(Exception):
  """A run ended early, and a restart may finish it: a host was lost."""

  status = 75
