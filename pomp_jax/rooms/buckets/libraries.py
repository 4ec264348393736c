"""The clients' libraries, which are extras."""

import re

from pomp_jax.files.provenance import release_of

# Scheme of URLs -> library, and its release that was tested: the bound of the extra.
LIBRARIES = {"gs": ("gcsfs", "2026.2"), "s3": ("s3fs", "2026.2")}


def missing_library(scheme: str) -> str | None:
  """The library of a scheme, if it is missing or old; None if it can be used."""
  library, oldest = LIBRARIES[scheme]
  release = release_of(library)
  if release is not None and _calendar(release) >= _calendar(oldest):
    return None
  found = f"{release} is installed" if release else "it is not installed"
  needed = f"{library}>={oldest}"
  return f"the library {needed} for {scheme}:// (pip install '{needed}'); {found}"


def _calendar(release: str) -> list[int]:
  """Year and month, with which the releases of both libraries begin."""
  return [int(number) for number in re.findall(r"\d+", release)[:2]]
