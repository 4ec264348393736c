"""Fields of the page in the browser; part of the table of `config.fields`."""

import dataclasses
import re

from pomp_jax.config.every_job import Config
from pomp_jax.config.fields import Data
from pomp_jax.config.group import Group
from pomp_jax.config.rows import Check, above, at_least, between, row

_address = Check(bool, "an address of this machine")
_names = Check(
  lambda names: all(re.fullmatch(r"[a-z0-9_.-]+", name) for name in names),
  "host names in small letters, without a port",
)


@dataclasses.dataclass(frozen=True)
class Page(Group):
  """The job page: pictures and runs in the browser; see docs/how-to/page.md."""

  host: str = row(
    "127.0.0.1", "address of the page; 0.0.0.0 opens it to the network", _address
  )
  hosts: tuple[str, ...] = row(
    (), "names that the page answers to beside this machine's", _names
  )
  port: int = row(8765, "port of the page; 0: a free one", between(0, 2**16 - 1))
  prompts: tuple[str, ...] = row(
    ("a photo of a {}.", "{}."), "prompts, see evaluate.prompts"
  )
  runs: str = row("runs", "local folder whose runs are shown; empty: none")
  top: int = row(5, "names shown under each prompt", at_least(1))
  max_names: int = row(
    1000, "names that a picture is compared with, at most", at_least(1)
  )
  max_upload: float = row(10.0, "picture file at most, MiB", above(0, 1024))


@dataclasses.dataclass(frozen=True)
class PageConfig(Config):
  """The job page."""

  data: Data = Data()
  page: Page = Page()
