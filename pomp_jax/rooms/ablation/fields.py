"""Fields of the job ablate."""

import dataclasses

from pomp_jax.config.group import Group
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.config.rows import at_least, pair, row


@dataclasses.dataclass(frozen=True)
class Ablate(Group):
  """The job ablate: a training for every combination of values; see
  docs/how-to/ablations.md."""

  grid: str = row("", 'grid, such as "k=16|64|all;correction=log|none;seed=0|1|2"')
  lanes: int = row(0, "cells in one program, at most; 0: chosen by memory", at_least(0))
  curve_every: int = row(
    0, "steps between validations of a cell, for time to accuracy; 0: none", at_least(0)
  )
  part: tuple[int, ...] = row(
    (), "part of the cells: (2, 5) is the second of five", pair
  )


@dataclasses.dataclass(frozen=True)
class AblateConfig(TrainingConfig):
  """The job ablate."""

  ablate: Ablate = Ablate()
