"""Libraries of the clients, which pip installs as extras."""

import re

from pomp_jax.files.provenance import release_of

# Scheme of URLs -> library and its oldest tested release, the bound of the extra.
LIBRARIES = {"gs": ("gcsfs", "2026.2"), "s3": ("s3fs", "2026.2")}


def missing_library(scheme: str) -> str | None:
  """Describes the library of a scheme if it is missing or too old; else None."""
  library, oldest = LIBRARIES[scheme]
  release = release_of(library)
  # Compare year and month, with which the releases of both libraries begin.
  calendar = lambda text: [int(number) for number in re.findall(r"\d+", text)[:2]]
  if release is not None and calendar(release) >= calendar(oldest):
    return None
  found = f"{release} is installed" if release else "it is not installed"
  needed = f"{library}>={oldest}"
  return f"the library {needed} for {scheme}:// (pip install '{needed}'); {found}"
