"""Parses command lines in this process as a fresh process would."""

import sys
from unittest import mock

from absl import flags

from pomp_jax import main as main_module


def forget_flags() -> None:
  """Resets all flags to their unparsed state."""
  flags.FLAGS.unparse_flags()
  for name in [name for name in flags.FLAGS if name.startswith("config.")]:
    delattr(flags.FLAGS, name)
  flags.FLAGS["config"].value = flags.FLAGS["workdir"].value = None


def parse(*arguments: object) -> None:
  """Parses a command line."""
  forget_flags()
  argv = ["pomp_jax.main", *map(str, arguments)]
  with mock.patch.object(sys, "argv", argv):  # config_flags looks overrides up there
    main_module.parse_flags(argv)
