"""The configs of the core's jobs: one frozen dataclass for each job.

A room writes the configs of its own jobs in its `fields.py`.
"""

import dataclasses
from typing import Any

from pomp_jax import hooks
from pomp_jax.config.errors import require
from pomp_jax.config.every_job import HERE, Config
from pomp_jax.config.fields import (
  BEST,
  Checkpoint,
  Contrast,
  Data,
  Eval,
  Evaluate,
  Export,
  Log,
  Loop,
  Optim,
  Predict,
  Prompt,
  Sampling,
)
from pomp_jax.prompt.sampling.samplers import SAMPLERS
from pomp_jax.registry import METHODS


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Loop, Contrast, Config):
  """The config of pretrain, one training of a prompt or a baseline.

  Jobs that run trainings, such as `ablate`, extend it.
  """

  data: Data = Data()
  prompt: Prompt = Prompt()
  sampling: Sampling = Sampling()
  optim: Optim = Optim()
  eval: Eval = Eval()
  checkpoint: Checkpoint = Checkpoint()
  log: Log = Log()

  @property
  def contrast(self) -> Contrast:
    """The method and the classes of its loss."""
    return self.only(Contrast)

  @property
  def loop(self) -> Loop:
    """Batches and length of the training."""
    return self.only(Loop)

  @property
  def encodes_images(self) -> bool:
    """See `Config.encodes_images`."""
    return self.data.source != "features"

  @property
  def by_steps(self) -> bool:
    """See `Config.by_steps`."""
    return bool(METHODS[self.method].steps)

  def check(self) -> None:
    """Checks the fields of a training together; opens no data.

    Raises:
      ConfigError: a field does not fit the method, the loss or the data.
    """
    super().check()
    values = self.flat()
    for field, only_value in self._fixed_by_method().items():
      # A method may fix a field of a room that is not installed.
      if field in values:
        expected = f"{only_value!r} where method={self.method!r}"
        require(values[field] == only_value, field, values[field], expected)
    self._check_loss()
    fits = hooks.WORDS or self.prompt.init != BEST
    require(fits, "prompt.init", self.prompt.init, "words or a file")
    self.data.check_views(self.batch_size)
    self.data.check_source(self.eval.images, self.dry_run)

  def _fixed_by_method(self) -> dict[str, Any]:
    """The only value that the method accepts, by field."""
    method = METHODS[self.method]
    fixed = dict(method.fixes)
    if not method.saves_prompt:
      fixed["prompt.class_specific"] = False
      fixed["dry_run"] = ""
      # The bank holds class features that depend on a context alone. Features of these
      # methods depend on more, or on no context.
      if "bank" in SAMPLERS[self.sampling.name].needs:
        fixed["sampling.name"] = "uniform"
      if self.sampling.exclude == "similar":
        fixed["sampling.exclude"] = "none"
    if method.pixels:
      fixed["data.features"] = "online"
    # A method may exclude only a dry run on this machine. For another machine the step
    # of any method can be compiled.
    if self.dry_run != HERE:
      fixed.pop("dry_run", None)
    return fixed

  def _check_loss(self) -> None:
    """Raises ConfigError for a correction or a term that the loss does not have."""
    where = f"where loss={self.loss!r}"
    if self.loss == "sigmoid":
      fits = self.correction in ("log", "none")
      expected = f"'log', importance weights, or 'none' {where}"
      require(fits, "correction", self.correction, expected)
    if self.margin:
      values = {"correction": "none", "loss": "softmax", "negatives": "sampled"}
      fits = all(getattr(self, field) == value for field, value in values.items())
      beside = ", ".join(f"{field}={value}" for field, value in values.items())
      require(fits, "margin", self.margin, f"0.0 but beside {beside}")
    if self.loss != "softmax":
      weight = self.sampling.ancestors_weight
      require(weight == 0, "sampling.ancestors_weight", weight, f"0.0 {where}")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Config):
  """The job evaluate."""

  data: Data = Data()
  eval: Eval = Eval()
  evaluate: Evaluate = Evaluate()

  @property
  def encodes_images(self) -> bool:
    """See `Config.encodes_images`."""
    return "features" not in (self.data.source, self.evaluate.source)

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    self.data.check_source(self.eval.images, self.dry_run)


@dataclasses.dataclass(frozen=True)
class PredictConfig(Config):
  """The job predict."""

  data: Data = Data()
  predict: Predict = Predict()


@dataclasses.dataclass(frozen=True)
class ExportConfig(Config):
  """The job export."""

  data: Data = Data()
  export: Export = Export()

  @property
  def encodes_images(self) -> bool:
    """See `Config.encodes_images`."""
    return False
