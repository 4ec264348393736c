"""Fields of the job reproduce."""

import dataclasses

from pomp_jax.config.errors import require
from pomp_jax.config.every_job import Config
from pomp_jax.config.group import Group
from pomp_jax.config.rows import at_least, one_of, row
from pomp_jax.files.paths import is_dir

WORLD_TABLE = "world"  # the rehearsal
# Values of `reproduce.table`: the rehearsal, and tables of the paper.
TABLES = (
  WORLD_TABLE,
  "cross_dataset",
  "imagenet21k",
  "ablation",
  "segmentation",
  "detection",
  "baselines",
)


@dataclasses.dataclass(frozen=True)
class Reproduce(Group):
  """The job reproduce: is it the paper? See docs/reproduce/index.md."""

  table: str = row(
    WORLD_TABLE, "table of the paper, or world, the rehearsal", one_of(*TABLES)
  )
  root: str = row(
    "", "folder of the table's data; of world the run writes its own where empty"
  )
  data: str = row("", "of ablation: CoOp's $DATA, with the fourteen sets")
  prompts: tuple[str, ...] = row(
    (), "released prompt files, M = 4 and M = 16; of world empty: the packaged one"
  )
  runs: tuple[str, ...] = row(
    (),
    "folders of finished trainings, a seed each, or of ablate, instead of trainings here",
  )
  train: int = row(0, "seeds to train here; 0: none", at_least(0))
  quick: bool = row(False, "200 images a set and wide intervals")
  recorded_by: str = row(
    "", "name of who records what was found in digests.json; empty: nobody"
  )
  verify: str = row("", "folder of a finished reproduction to check; computes nothing")

  def check(self) -> None:
    """Raises ConfigError for fields that don't fit together."""
    if self.verify:
      expected = "a folder that exists, of a finished reproduction"
      require(is_dir(self.verify), "reproduce.verify", self.verify, expected)
      return
    if self.table != WORLD_TABLE or self.root:
      expected = "a folder that exists, with the table's data"
      require(self.root and is_dir(self.root), "reproduce.root", self.root, expected)
    if self.table == "ablation":
      expected = "a folder that exists, with the fourteen sets"
      require(self.data and is_dir(self.data), "reproduce.data", self.data, expected)
    else:
      expected = "'' but for table=ablation"
      require(not self.data, "reproduce.data", self.data, expected)
    for folder in self.runs:
      expected = "folders of finished trainings"
      require(is_dir(folder), "reproduce.runs", folder, expected)
    expected = "0 where reproduce.runs has finished trainings"
    require(not (self.runs and self.train), "reproduce.train", self.train, expected)


@dataclasses.dataclass(frozen=True)
class ReproduceConfig(Config):
  """The job reproduce."""

  reproduce: Reproduce = Reproduce()
