"""Whether all processes run the same thing: the same config, code and data, or none of them starts.

A host with an older checkout or another class list would not fail: it would average a gradient of
something else into everybody's prompt.
"""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import pathlib
import platform

from pomp_jax.hosts.talk import HostError, gather, name_of_process

# Hosts named on each side of a disagreement.
_NAMED = 4
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")


def agree(what: Mapping[str, object], *, seconds: float = 300.0) -> None:
  """Compares facts over all processes.

  Args:
    what: by name; values are compared, and shown, as text.
    seconds: to wait for the slowest process.

  Raises:
    HostError: they differ; the line names the first such fact, its values, and the hosts that
      have each. The same on all processes.
  """
  mine = {name: str(value) for name, value in what.items()}
  found = gather(mine, "comparing the hosts", seconds)
  names = list(dict.fromkeys(name for _, facts in found for name in facts))
  for name in names:
    holders: dict[str, list[str]] = {}
    for index, (host, facts) in enumerate(found):
      holders.setdefault(facts.get(name, "nothing"), []).append(name_of_process(index, host))
    if len(holders) > 1:
      sides = "; ".join(f"{value} for {_some(who)}" for value, who in holders.items())
      raise HostError(f"the hosts disagree on {name}: {sides}. All must start from the same")


def _some(hosts: list[str]) -> str:
  more = len(hosts) - _NAMED
  return ", ".join(hosts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def fingerprint_of_package() -> dict[str, str]:
  """Versions of Python and of the libraries, and a digest of every file of this package."""
  package = pathlib.Path(__file__).parent.parent
  digest = hashlib.sha256()
  for file in sorted(package.rglob("*")):
    if file.is_file() and "__pycache__" not in file.parts:
      content = file.read_bytes()
      digest.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode())
      digest.update(content)
  versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
  return {
    "the code of pomp_jax": digest.hexdigest()[:12],
    "Python": platform.python_version(),
    **{f"the version of {name}": version for name, version in versions.items()},
  }
