"""Fields of the job prepare, and names of data sets."""

from collections.abc import Mapping
import dataclasses

from pomp_jax.config.every_job import Config
from pomp_jax.config.group import Group
from pomp_jax.config.rows import at_least, one_of, row
from pomp_jax.rooms.data_sets.coop import COOP_SETS
from pomp_jax.rooms.data_sets.suites import NO_SUITE, SUITES


@dataclasses.dataclass(frozen=True)
class Sets(Group):
  """Data sets of an evaluation by name, and a user's own."""

  suite: str = row(NO_SUITE, "suite of data sets", one_of(NO_SUITE, *SUITES))
  sets: tuple[str, ...] = row((), "named sets or suites; empty: the whole suite")
  sets_file: str = row("", "TOML file of one's own sets")
  own_sets: tuple[Mapping, ...] = row((), "one's own sets as dicts, in a config file")


@dataclasses.dataclass(frozen=True)
class Prepare(Group):
  """The job prepare: a TFDS data set from files as distributed; see
  docs/how-to/data.md."""

  dataset: str = row("", "data set: imagenet21k, fgvc_aircraft, coop_stanford_cars, ..")
  input: str = row("", "archive or folder that it is made from")
  names: str = row("", "for imagenet21k: a class list with synsets; empty: all classes")
  shots: int = row(0, "stored training images per class; 0: all", at_least(0))
  shots_seed: int = row(1, "random seed of the choice", at_least(0))
  held_out: int = row(
    0, "validation images per class of an undivided input", at_least(0)
  )
  workers: int = row(0, "worker processes; 0: one a core", at_least(0))


def expected_by_coop(dataset: str) -> str:
  """Describes the names that `coop` accepts; "" if it has the data set."""
  return "" if dataset in COOP_SETS else f"one of {', '.join(COOP_SETS)}"


def expected_by_tfds(dataset: str) -> str:
  """Describes the names that `tfds` accepts; "" if the data set has a name."""
  return "" if dataset else "a data set of TFDS, such as food101"


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Config):
  """The job prepare."""

  prepare: Prepare = Prepare()
