"""The three kinds of errors that a run ends with, each with its exit status.

Every exception that a user may meet is one of these kinds. Its message is one line that
says what failed, where, what was found and what is accepted; `main` prints it and exits
with `status`.
"""


class InputError(Exception):
  """Bad input, found before anything was written: a field, a file, hosts that
  disagree."""

  status = 2


class RunError(Exception):
  """A run that failed on the way; a restart would meet the same."""

  status = 1


class TryAgain(Exception):
  """A run that another start may finish: a host was lost."""

  status = 75
