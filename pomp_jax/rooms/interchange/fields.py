"""Fields that this room adds: for a tracker, for an upload, and for the synonyms of
names."""

import dataclasses
import importlib.util
import re
from typing import Any

from pomp_jax.config.errors import require
from pomp_jax.config.group import Group
from pomp_jax.config.jobs import ExportConfig
from pomp_jax.config.rows import one_of, row
from pomp_jax.files.prompt_file import is_hub

TRACKERS = ("wandb",)


@dataclasses.dataclass(frozen=True)
class Tracking(Group):
  """An experiment tracker."""

  tracker: str = row(
    "none", "experiment tracker; see docs/how-to/watching.md", one_of("none", *TRACKERS)
  )

  def check_in(self, config: Any) -> None:
    """Checks that the tracker's package is installed."""
    if self.tracker == "none":
      return
    package = importlib.util.find_spec(self.tracker)
    expected = f"'none' without its package: pip install \"pomp-jax[{self.tracker}]\""
    # A folder of the package's name is found too, but has no origin.
    require(package and package.origin, "log.tracker", self.tracker, expected)


@dataclasses.dataclass(frozen=True)
class Synonyms(Group):
  """Features of names that have synonyms."""

  synonyms: bool = row(False, "average over the synonyms of an LVIS JSON")


@dataclasses.dataclass(frozen=True)
class Upload(Group):
  """Upload of a prompt to a hub."""

  hub: str = row(
    "", "repository to upload the prompt to, hf:OWNER/NAME; see docs/how-to/reuse.md"
  )
  license: str = row("", "licence of the uploaded prompt: apache-2.0, mit, ..")
  private: bool = row(
    False, "private repository, where it is created; a public one is refused"
  )

  def check_in(self, config: Any) -> None:
    """Checks that the prompt of `export` can be uploaded, if a repository is named.

    Raises:
      ConfigError: the repository or the licence is malformed, or a field of `export`
        asks for something else than an upload as npz.
    """
    if not self.hub:
      return
    assert isinstance(config, ExportConfig)
    export = config.export
    where = "where export.hub is given"
    require(is_hub(self.hub), "export.hub", self.hub, "hf:OWNER/NAME")
    require(export.format == "npz", "export.format", export.format, f"npz {where}")
    require(not export.output, "export.output", export.output, f"'' {where}")

    # The hub shows a licence by its identifier. Any identifier of the form is accepted.
    has_form = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license)
    accepted = (
      "a licence by the hub's identifiers, such as mit, cc-by-4.0, other, " + where
    )
    require(has_form, "export.license", self.license, accepted)
