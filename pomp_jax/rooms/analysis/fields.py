"""Fields of the jobs analyse and gradient_bias."""

import dataclasses

from pomp_jax.config.group import Group
from pomp_jax.config.jobs import EvaluateConfig, TrainingConfig
from pomp_jax.config.rows import Check, at_least, row
from pomp_jax.prompt.loss import CORRECTIONS
from pomp_jax.prompt.sampling.samplers import SAMPLERS


def _some_of(*choices: str) -> Check:
  """Checks for a tuple of one or more choices without repeats."""
  return Check(
    lambda value: 0 < len(value) == len(set(value)) == len(set(value) & set(choices)),
    f"one or more different ones of {', '.join(choices)}",
  )


@dataclasses.dataclass(frozen=True)
class Analyse(Group):
  """The job analyse: class features under prompts, on the sets of `evaluate`."""

  prompts: tuple[str, ...] = row(("hand_written",), "prompts, see evaluate.prompts")
  top: int = row(5, "nearest tokens of each learned vector", at_least(1))


@dataclasses.dataclass(frozen=True)
class GradientBias(Group):
  """The job gradient_bias: the sampled gradient against the exact one."""

  prompt: str = row(
    "",
    "prompt file, run's folder, or RUN/checkpoints/STEP: its prompt and bank as they were in"
    " training; empty: N(0, 0.02^2), the start of a training",
  )
  k: tuple[int, ...] = row((16, 64, 256, 1024, 4096), "values of K")
  samplers: tuple[str, ...] = row(
    ("uniform", "posterior", "hard", "hierarchical"),
    "samplers; the first is shown for each correction",
    _some_of(*SAMPLERS),
  )
  corrections: tuple[str, ...] = row(
    ("log", "log10", "none"),
    "corrections of the softmax, or sigmoid; the first is shown for each sampler",
    _some_of(*CORRECTIONS, "sigmoid"),
  )
  images: int = row(64, "images of a gradient", at_least(1))
  rows: int = row(
    20_000, "classes computed for a cell, over all its draws", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class AnalyseConfig(EvaluateConfig):
  """The job analyse."""

  analyse: Analyse = Analyse()


@dataclasses.dataclass(frozen=True)
class GradientBiasConfig(TrainingConfig):
  """The job gradient_bias."""

  gradient_bias: GradientBias = GradientBias()
