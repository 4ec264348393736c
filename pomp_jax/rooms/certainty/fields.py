"""Fields of the jobs calibrate and near_names, and those that `predict` and `export` get
from this room."""

import dataclasses

from pomp_jax.config.declare import between, one_of, require, row
from pomp_jax.config.fields import Data, Eval
from pomp_jax.config.group import Group
from pomp_jax.config.settings import Config
from pomp_jax.files.calibration import SETS

_share = between(0.001, 0.999)


@dataclasses.dataclass(frozen=True)
class Calibrate(Group):
  """The job calibrate: a prompt's temperature, floor and sets from validation images."""

  prompt: str = row("", "prompt file, run's folder, or hand-written text with {}")
  error: float = row(0.05, "share of right answers that the floor may refuse", _share)
  coverage: float = row(0.9, "share of images whose set holds the right name", _share)
  sets: str = row(
    "pooled", "thresholds of the sets that the prompt file gets", one_of(*SETS)
  )
  test: str = row("", "split of known classes on which the promises are measured")
  unknown: str = row("", "split of other classes, to be told from the known ones")

  def check(self) -> None:
    """Raises ConfigError without a prompt."""
    expected = "a prompt file, a run's folder or a text with {}"
    require(self.prompt, "calibrate.prompt", self.prompt, expected)


@dataclasses.dataclass(frozen=True)
class CalibrateConfig(Config):
  """The job calibrate."""

  data: Data = Data()
  eval: Eval = Eval()
  calibrate: Calibrate = Calibrate()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    self.data.check_source(self.eval.images, self.dry_run)
