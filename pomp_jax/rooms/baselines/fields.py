"""Fields of the baselines, and of the jobs over seeds and methods."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from pomp_jax.config.errors import require
from pomp_jax.config.group import Group
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.config.rows import MAX_SEED, Check, at_least, one_of, row
from pomp_jax.registry import METHODS

_seeds = Check(
  lambda seeds: (
    bool(seeds)
    and len(set(seeds)) == len(seeds)
    and 0 <= min(seeds) <= max(seeds) <= MAX_SEED
  ),
  f"one or more different integers from 0 to {MAX_SEED}",
)


LIKELIEST = "likeliest"  # value of `kdpl.classes`


def _method(text: str) -> tuple[str, dict[str, str]]:
  """Reads a method from a text: `label: field=value, field=value`."""
  label, colon, items = text.partition(":")
  if not colon:
    raise ValueError(text)
  pairs = [item.split("=", 1) for item in items.split(",") if item.strip()]
  return label.strip(), {name.strip(): value.strip() for name, value in pairs}


@dataclasses.dataclass(frozen=True)
class Kdpl(Group):
  """KDPL: a prompt learned from a teacher's probabilities, without labels."""

  teacher: str = row("open_clip:ViT-H-14-quickgelu/dfn5b", "the teacher, as clip.model")
  prompt: str = row("hand_written", "the teacher's prompt, as evaluate.prompts'")
  classes: str = row(
    "drawn",
    "classes of a step where negatives=sampled: drawn, or the K-1 likeliest in the batch (KDPL-CA)",
    one_of("drawn", LIKELIEST),
  )


@dataclasses.dataclass(frozen=True)
class Probe(Group):
  """The linear probe."""

  iterations: int = row(
    1000, "L-BFGS iterations for each strength of the penalty", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class Tip(Group):
  """Tip-Adapter; a 0 stands for the published value of data.dataset, or else for
  ImageNet's."""

  views: int = row(
    10, "augmented views of an image whose mean feature is its key", at_least(1)
  )
  epochs: int = row(0, "epochs in which tip_adapter_f learns the keys", at_least(0))
  alpha: float = row(0.0, "weight of the cache while the keys are learned", at_least(0))
  alpha_max: float = row(
    0.0, "upper end of the search for alpha, from 0.1", at_least(0)
  )
  beta_max: float = row(0.0, "upper end of the search for beta, from 0.1", at_least(0))
  beta: float = row(
    1.0, "sharpness of the cache while the keys are learned", at_least(0)
  )
  alpha_steps: int = row(20, "steps of the search for alpha", at_least(1))
  beta_steps: int = row(200, "steps of the search for beta", at_least(1))


@dataclasses.dataclass(frozen=True)
class Tokens(Group):
  """Prompts of deeper layers, and of the image tower."""

  depth: int = row(
    1, "layers with own prompts, for vpt_deep, maple, ivlp, protext", at_least(1)
  )
  visual_tokens: int = row(
    8, "prompt tokens in the image tower, for vpt_*, ivlp", at_least(1)
  )

  def unread(self) -> tuple[str, ...]:
    """See `Group.unread`: ablations refuse the methods that read the visual tokens."""
    return ("prompt.visual_tokens",)

  def check_in(self, config: Any) -> None:
    """Checks that `prompt.depth` is 1 for a method without prompts in deeper layers."""
    assert isinstance(config, TrainingConfig)
    fits = METHODS[config.method].deep or self.depth == 1
    require(fits, "prompt.depth", self.depth, f"1 where method={config.method!r}")


@dataclasses.dataclass(frozen=True)
class Repeat(Group):
  """The job repeat: a training once per seed."""

  seeds: tuple[int, ...] = row((0, 1, 2), "random seeds", _seeds)


@dataclasses.dataclass(frozen=True)
class Baselines(Group):
  """The job baselines: methods side by side, each over the seeds of `repeat`."""

  methods: tuple[tuple[str, Mapping], ...] = row(
    (), "methods: (label, {field: value}), ..", parse=_method
  )


def check_method(method: str) -> None:
  """Raises ConfigError for a method that does not train by steps."""
  by_steps = [name for name, row in METHODS.items() if row.steps]
  expected = f"one of {', '.join(by_steps)} where job='repeat'; see job='baselines'"
  require(method in by_steps, "method", method, expected)


@dataclasses.dataclass(frozen=True)
class RepeatConfig(TrainingConfig):
  """The job repeat."""

  repeat: Repeat = Repeat()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    check_method(self.method)


@dataclasses.dataclass(frozen=True)
class BaselinesConfig(TrainingConfig):
  """The job baselines."""

  repeat: Repeat = Repeat()
  baselines: Baselines = Baselines()
