"""Where a result comes from: command, commit, versions, devices, date."""

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from pomp_jax import __version__, hosts

_PACKAGE = pathlib.Path(__file__).parent.parent
_LIBRARIES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "numpy",
  "scipy",
  "Pillow",
  "transformers",
)
_GIT_SECONDS = 10.0


def provenance() -> dict[str, Any]:
  """Describes this process and its devices, for results.

  The version of a missing library is None.
  """
  devices = hosts.devices()
  versions: dict[str, str | None] = {
    "python": platform.python_version(),
    "pomp_jax": __version__,
  }
  return {
    "command": command(sys.argv),
    "commit": commit(),
    "versions": versions | {name: release_of(name) for name in _LIBRARIES},
    "devices": {
      "platform": devices[0].platform,
      "kind": ", ".join(sorted({device.device_kind for device in devices})),
      "number": len(devices),
      "processes": jax.process_count(),
    },
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


@functools.cache
def release_of(library: str) -> str | None:
  """Release of a library that is installed, or None."""
  try:
    return importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return None


def command(argv: list[str]) -> str:
  """Command line with the words of `sys.argv`, quoted for a shell."""
  if pathlib.Path(argv[0]) == _PACKAGE / "main.py":
    # What `python -m` leaves of its own words.
    argv = ["python", "-m", "pomp_jax.main", *argv[1:]]
  return shlex.join(argv)


@functools.cache
def commit() -> str | None:
  """Commit of the repository that tracks this package, with `+` if files differ from it.

  Of an installed package the one that pip installed it from, if that was a repository.
  None without either: then `versions` has the release. Cached, because the checkout of
  a long run may change after its code was imported: call it early.
  """
  # A repository around an installed package does not track `__init__.py`, and git
  # fails.
  names = _git("rev-parse", "HEAD", "HEAD:./__init__.py")
  if names is None or names.returncode:
    return _installed_commit()
  head = names.stdout.split()[0]
  difference = _git("diff", "--no-ext-diff", "--quiet", "HEAD", "--", ".")
  if difference is None or difference.returncode:
    return f"{head}+"
  return head


def _installed_commit() -> str | None:
  """Commit that pip wrote beside the package, for `pip install git+URL`."""
  for folder in _PACKAGE.parent.glob("pomp_jax-*.dist-info"):
    # PEP 610.
    origin = importlib.metadata.Distribution.at(folder).read_text("direct_url.json")
    return json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
  return None


def _git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
  try:
    return subprocess.run(
      ["git", "-C", str(_PACKAGE), *arguments],
      capture_output=True,
      text=True,
      check=False,
      timeout=_GIT_SECONDS,
      env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # reads only
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
