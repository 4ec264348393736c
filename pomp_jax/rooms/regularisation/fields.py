"""Fields that this room adds to a training, and checks that they fit together."""

import dataclasses
from typing import Any

from pomp_jax.config.errors import require
from pomp_jax.config.fields import BEST
from pomp_jax.config.group import Group
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.config.rows import Check, at_least, below, between, one_of, row
from pomp_jax.registry import METHODS

# Kinds of terms of the loss, see `rooms.regularisation.consistency`. The field
# `consistency_KIND` has the weight of a term.
CONSISTENCIES = ("squared", "l1", "kl", "images")
AUTOMATIC = -1.0  # value of `consistency_squared` for a weight by the CLIP
_squared = Check(
  lambda weight: weight == AUTOMATIC or 0 <= weight < float("inf"),
  "0 or more, or -1 for automatic",
)


@dataclasses.dataclass(frozen=True)
class Consistency(Group):
  """Terms of the loss that hold features near those of the frozen CLIP."""

  consistency_squared: float = row(
    0.0,
    "weight of 1 - cosine of class features and anchors (KgCoOp); -1: by the CLIP's logit scale",
    _squared,
  )
  consistency_l1: float = row(
    0.0, "weight of their l1 distance (PromptSRC)", at_least(0)
  )
  consistency_kl: float = row(
    0.0,
    "weight of the KL from the frozen CLIP's probabilities (PromptSRC)",
    at_least(0),
  )
  consistency_images: float = row(
    0.0,
    "weight of image features' l1 distance to the frozen CLIP's (PromptSRC)",
    at_least(0),
  )
  anchors: str = row(
    "ensemble:imagenet_7",
    "anchors: a prompt as evaluate.prompts'; best: of prompt.candidates",
  )

  @property
  def weights(self) -> dict[str, float]:
    """The weights that are not 0, by kind."""
    weights = {kind: getattr(self, f"consistency_{kind}") for kind in CONSISTENCIES}
    return {kind: weight for kind, weight in weights.items() if weight}

  def unread(self) -> tuple[str, ...]:
    """See `Group.unread`."""
    return () if self.weights else ("anchors",)

  def check_in(self, config: Any) -> None:
    """Checks that a method with `consistency_images` learns image features."""
    assert isinstance(config, TrainingConfig)
    fits = METHODS[config.method].pixels or not self.consistency_images
    expected = f"0.0 where method={config.method!r}"
    require(fits, "consistency_images", self.consistency_images, expected)


@dataclasses.dataclass(frozen=True)
class Average(Group):
  """Mean of the parameters over the training, which is then the result."""

  average: str = row(
    "none",
    "mean over the training that is the result: Gaussian over epochs (PromptSRC), or exponential",
    one_of("none", "gaussian", "ema"),
  )
  # Bounds within which float32 holds the logarithms of the weights.
  average_mean: float = row(
    15.0, "epoch of the largest weight, for gaussian", between(0, 10**6)
  )
  average_sigma: float = row(
    1.0, "standard deviation of the weights, epochs, for gaussian", between(1e-6, 10**6)
  )
  average_decay: float = row(0.99, "factor of the weights a step, for ema", below(1))

  def unread(self) -> tuple[str, ...]:
    """See `Group.unread`."""
    match self.average:
      case "gaussian":
        return ("optim.average_decay",)
      case "ema":
        return ("optim.average_mean", "optim.average_sigma")
      case _:
        return ("optim.average_mean", "optim.average_sigma", "optim.average_decay")


@dataclasses.dataclass(frozen=True)
class Words(Group):
  """Sentences that a training starts from and must beat, where prompt.init='best'."""

  candidates: tuple[str, ...] = row(
    ("hand_written", "ensemble:imagenet_7", "{}."),
    "where init=best, prompts as evaluate.prompts that training must beat on validation images; an"
    " ensemble stands for its texts too",
  )

  def check_in(self, config: Any) -> None:
    """Checks the words that a training starts from, and its anchors.

    `prompt.init=best` chooses among candidates by validation. The anchors can be the
    best candidate only with `prompt.init=best`.

    Args:
      config: config of a training.

    Raises:
      ConfigError: a field does not fit the others.
    """
    assert isinstance(config, TrainingConfig)
    if config.prompt.init != BEST:
      n_vectors = config.prompt.m
      accepted = "1 or more where prompt.init is not 'best'"
      require(n_vectors, "prompt.m", n_vectors, accepted)
      _check_anchors(config.of(Consistency))
      return

    where = "where prompt.init='best'"
    saves_prompt = METHODS[config.method].saves_prompt
    require(saves_prompt, "prompt.init", BEST, f"words or '' for {config.method}")
    position = config.prompt.position
    require(position == "end", "prompt.position", position, f"'end' {where}")
    select = config.checkpoint.select
    require(select == BEST, "checkpoint.select", select, f"'best' {where}")
    candidates = self.candidates
    require(candidates, "prompt.candidates", candidates, f"one or more {where}")


def _check_anchors(consistency: Consistency) -> None:
  """Checks the anchors of a training without candidates.

  Raises:
    ConfigError: a term has a weight, and the anchors are the best candidate.
  """
  if not consistency.weights:
    return
  anchors = consistency.anchors
  accepted = "a prompt; 'best' where prompt.init='best'"
  require(anchors != BEST, "anchors", anchors, accepted)
