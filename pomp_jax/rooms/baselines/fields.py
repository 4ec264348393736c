"""Fields of the baselines, and of the jobs over seeds and methods."""

from collections.abc import Mapping
import dataclasses

from pomp_jax.config.declare import MAX_SEED, Check, at_least, one_of, row

_seeds = Check(
  lambda seeds: (
    bool(seeds) and len(set(seeds)) == len(seeds) and 0 <= min(seeds) <= max(seeds) <= MAX_SEED
  ),
  f"one or more different integers from 0 to {MAX_SEED}",
)


LIKELIEST = "likeliest"  # of `kdpl.classes`


def _method(text: str) -> tuple[str, dict[str, str]]:
  """A method as a text: `label: field=value, field=value`."""
  label, colon, items = text.partition(":")
  if not colon:
    raise ValueError(text)
  pairs = [item.split("=", 1) for item in items.split(",") if item.strip()]
  return label.strip(), {name.strip(): value.strip() for name, value in pairs}


@dataclasses.dataclass(frozen=True)
class Kdpl:
  """KDPL: a prompt learned from a teacher's probabilities, without labels."""

  teacher: str = row("open_clip:ViT-H-14-quickgelu/dfn5b", "the teacher, as clip.model")
  prompt: str = row("hand_written", "the teacher's prompt, as evaluate.prompts'")
  classes: str = row(
    "drawn",
    "classes of a step where negatives=sampled: drawn, or the K-1 likeliest in the batch (KDPL-CA)",
    one_of("drawn", LIKELIEST),
  )


@dataclasses.dataclass(frozen=True)
class Probe:
  """The linear probe."""

  iterations: int = row(1000, "L-BFGS iterations for each strength of the penalty", at_least(1))


@dataclasses.dataclass(frozen=True)
class Tip:
  """Tip-Adapter; a 0 stands for the published value of data.dataset, or else for ImageNet's."""

  views: int = row(10, "augmented views of an image whose mean feature is its key", at_least(1))
  epochs: int = row(0, "epochs in which tip_adapter_f learns the keys", at_least(0))
  alpha: float = row(0.0, "weight of the cache while the keys are learned", at_least(0))
  alpha_max: float = row(0.0, "upper end of the search for alpha, from 0.1", at_least(0))
  beta_max: float = row(0.0, "upper end of the search for beta, from 0.1", at_least(0))
  beta: float = row(1.0, "sharpness of the cache while the keys are learned", at_least(0))
  alpha_steps: int = row(20, "steps of the search for alpha", at_least(1))
  beta_steps: int = row(200, "steps of the search for beta", at_least(1))


@dataclasses.dataclass(frozen=True)
class Repeat:
  """The job repeat: a training once per seed."""

  seeds: tuple[int, ...] = row((0, 1, 2), "random seeds", _seeds)


@dataclasses.dataclass(frozen=True)
class Baselines:
  """The job baselines: methods side by side, each over the seeds of `repeat`."""

  methods: tuple[tuple[str, Mapping], ...] = row(
    (), "methods: (label, {field: value}), ..", parse=_method
  )
