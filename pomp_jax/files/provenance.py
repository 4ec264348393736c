"""Provenance of a result: command, commit, versions, devices, date."""

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

  Returns:
    A JSON object of the command line, the commit, the versions (None for a library that
    is missing), the devices of all processes, and the date in UTC.
  """
  versions: dict[str, str | None] = {
    "python": platform.python_version(),
    "pomp_jax": __version__,
  }
  for library in _LIBRARIES:
    versions[library] = release_of(library)

  devices = hosts.devices()
  kinds = {device.device_kind for device in devices}
  now = datetime.datetime.now(datetime.UTC)
  return {
    "command": command(sys.argv),
    "commit": commit(),
    "versions": versions,
    "devices": {
      "platform": devices[0].platform,
      "kind": ", ".join(sorted(kinds)),
      "number": len(devices),
      "processes": jax.process_count(),
    },
    "date": now.isoformat(timespec="seconds"),
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
    # `python -m pomp_jax.main` puts the path of main.py into `sys.argv`.
    argv = ["python", "-m", "pomp_jax.main", *argv[1:]]
  return shlex.join(argv)


@functools.cache
def commit() -> str | None:
  """Commit of the repository that tracks this package, with `+` if files differ from it.

  For an installed package it is the commit that pip installed from a repository. None
  if pip installed a release instead: the field `versions` has the number of the
  release. The result is cached: the checkout of a long run may change after its code
  was imported, so call this function early.
  """
  # Ask for `__init__.py` too: a repository around an installed package does not track
  # the file, so git fails.
  rev_parse = _git("rev-parse", "HEAD", "HEAD:./__init__.py")
  if rev_parse is None or rev_parse.returncode:
    return _installed_commit()
  head = rev_parse.stdout.split()[0]
  diff = _git("diff", "--no-ext-diff", "--quiet", "HEAD", "--", ".")
  if diff is None or diff.returncode:
    return f"{head}+"
  return head


def _installed_commit() -> str | None:
  """Commit that pip wrote beside the package, for `pip install git+URL` (PEP 610)."""
  for folder in _PACKAGE.parent.glob("pomp_jax-*.dist-info"):
    distribution = importlib.metadata.Distribution.at(folder)
    # A release from an index has no `direct_url.json`.
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    repository = origin.get("vcs_info", {})
    return repository.get("commit_id")
  return None


def _git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
  """Runs git in the package's folder, with a time limit.

  Args:
    *arguments: git's command and its options.

  Returns:
    The finished process, whatever its exit status; None if git can't be started or
    exceeds the limit, on a network disk for example.
  """
  # Without this variable `git diff` would write to the repository, in which another git
  # may be at work.
  environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
  try:
    return subprocess.run(
      ["git", "-C", str(_PACKAGE), *arguments],
      capture_output=True,
      text=True,
      check=False,
      timeout=_GIT_SECONDS,
      env=environment,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
