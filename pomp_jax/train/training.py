"""A training: the settings and data that stay the same, and what the loop calls.

`Run` is any training by steps, `PromptRun` a training that learns from the contrast
with classes. `train.setup` builds a `PromptRun` from a config.
"""

import abc
from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from pomp_jax.clip.packed import AT_ONCE, MemoryPlan
from pomp_jax.config import METHODS, ConfigError, fields
from pomp_jax.config.fields import (
  Checkpoint,
  Clip,
  Contrast,
  Data,
  Eval,
  Loop,
  Optim,
  Sampling,
)
from pomp_jax.data.loader import Fetch, Loader, Readers, choose_readers
from pomp_jax.data.source import Labelled, Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import CONSISTENCY
from pomp_jax.prompt.bank import renewal_token_budget
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner, Term
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import CLASS, DATA
from pomp_jax.prompt.optimizer import result_of
from pomp_jax.prompt.step import (
  Renewal,
  StepParts,
  TrainState,
  make_train_step,
  step_token_budget,
)
from pomp_jax.train import batches, methods
from pomp_jax.train.batches import bytes_of_view, own_shard
from pomp_jax.train.memory import memory_plan
from pomp_jax.train.sampling_data import sampling_of


@dataclasses.dataclass(frozen=True)
class Run(abc.ABC):
  """Settings and data that stay the same during a training by steps, and the functions
  that the loop calls."""

  # all fields, as config.json, checkpoints and prompt files record them
  config: dict[str, Any]
  seed: int
  data: Data
  loop: Loop
  checkpoint: Checkpoint
  log_every: int
  clip: Clip
  folder: RunFolder
  encoder: Encoder
  source: Labelled  # training images
  # Reads a batch's images: views of pixels, stored features, or features of a file.
  fetch: Fetch
  frozen: Any  # arrays that a step reads
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  steps_per_epoch: int  # steps that show all images once
  total_steps: int

  @property
  @abc.abstractmethod
  def n_groups(self) -> int:
    """Number of groups of a batch that draw random numbers of their own."""

  @abc.abstractmethod
  def learner(self) -> Any:
    """Returns the object to learn, with the `init` of `prompt.learner.Learner`."""

  @abc.abstractmethod
  def build_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step `(state, frozen, batch) -> (state, metrics)`, compiled at its
    first call.

    `loss` and `accuracy` are among the metrics.
    """

  def validation(self) -> Callable[[TrainState], Accuracy | None]:
    """Returns a function from a state to its accuracy on validation images, or to None.

    The mean over classes, `macro_top1`, decides which checkpoints are kept. Top-1 over
    images can rise while most classes get worse, if classes have different numbers of
    images.
    """
    return lambda state: None

  @property
  def readers(self) -> Readers:
    """Threads and worker processes that read the batches; see `choose_readers`."""
    _, n_shards = own_shard(self.encoder.mesh)
    batch_size = self.loop.batch_size
    is_in_files = hasattr(self.source, "where")  # only stored images have this method
    return choose_readers(
      self.data.threads,
      self.data.workers,
      decodes=is_in_files and self.data.features == "online",
      n_batches=len(self.source) * self.data.views // batch_size,
      batch_bytes=batch_size // n_shards * bytes_of_view(self.fetch),
    )

  def open_batches(
    self, start: int = 0, unreadable: frozenset[int] = frozenset()
  ) -> Loader:
    """Opens this process's shard of the batches; see `data.loader.Loader`.

    Each epoch is shuffled by the seed. A batch holds the next images of the epoch, the
    views of an image side by side.

    Args:
      start: number of the first batch; a resumed run skips those of earlier steps.
      unreadable: indices of images that earlier starts could not read.
    """
    return Loader(
      self.source,
      self.fetch,
      batch_size=self.loop.batch_size,
      seed=self.seed,
      n_views=self.data.views,
      start=start,
      shard=own_shard(self.encoder.mesh),
      readers=self.readers,
      max_corrupt=self.data.max_corrupt,
      unreadable=unreadable,
    )


@dataclasses.dataclass(frozen=True)
class PromptRun(Run):
  """Training of a prompt, or of another method that learns from the contrast with
  classes."""

  source: Source
  contrast: Contrast
  prompt: fields.Prompt
  sampling: Sampling
  optim: Optim
  eval: Eval
  method: methods.Pomp
  module: PromptContext
  # Validation accuracy of `prompt.candidates` by name; None unless training starts from
  # the best candidate.
  candidates: Mapping[str, float] | None = None
  # Remat and chunks of a step; None for the fastest that fit the memory.
  plan: MemoryPlan | None = None

  @property
  def k(self) -> int:
    """K, the number of classes per image in the contrast; N with all negatives."""
    if self.contrast.negatives == "all":
      return len(self.source.names)
    return self.contrast.k

  @property
  def n_groups(self) -> int:
    """Number of groups of a batch that draw their own negatives."""
    return self.encoder.mesh.shape[DATA] * self.loop.accumulate

  @property
  def group_size(self) -> int:
    """B, images per group."""
    return self.loop.batch_size // self.n_groups

  @property
  def n_prefix(self) -> int:
    """Tokens that all classes share: SOS and the shared context vectors."""
    return 1 + self.module.n_vectors - self.module.n_own

  @property
  def contrast_settings(self) -> ContrastSettings:
    """Numbers of the loss."""
    scale = self.encoder.clip.logit_scale
    return ContrastSettings(
      self.k,
      n_classes=len(self.source.names),
      correction=self.contrast.correction,
      logit_scale=scale,
      sampling=sampling_of(self.sampling, scale),
      ancestors_weight=self.sampling.ancestors_weight,
      loss=self.contrast.loss,
      logit_bias=logit_bias_of(self.contrast, self.encoder),
      margin=self.contrast.margin,
    )

  @property
  def needs_bank(self) -> bool:
    """Whether the sampler reads a bank of features under recent prompts, rather than a
    teacher's bank."""
    return (
      "bank" in self.contrast_settings.sampling.needs
      and self.frozen.sampling.bank is None
    )

  @functools.cached_property
  def token_budget(self) -> int:
    """Own tokens of the classes that one device computes in a step."""
    return step_token_budget(
      self.module,
      np.asarray(self.frozen.tokens.lengths),
      settings=self.contrast_settings,
      group_size=self.group_size,
      class_size=self.encoder.mesh.shape[CLASS],
      capacity=self.encoder.capacity(self.module),
    )

  @property
  def images(self) -> Encoder:
    """Encoder of the training images."""
    return self.method.images or self.encoder

  def learner(self) -> Learner:
    """Learner of the method with the run's token budget, terms of the loss and image
    tower."""
    learner = self._learner(self.token_budget, self.step_memory)
    terms: dict[str, Term] = {}
    if CONSISTENCY:
      consistency = CONSISTENCY.open()(self.contrast)
      if consistency:
        terms["consistency"] = consistency
    # By default, `data.features` is `online`: the step computes the frozen tower's features,
    # unless no term reads them and the method sees images through a tower that it learns.
    tower = None
    reads_frozen = any(term.reads_frozen for term in terms.values())
    if self.data.features == "online" and (reads_frozen or not learner.learns_images):
      tower = self.images.image_tower
    return dataclasses.replace(learner, terms=terms, image_tower=tower)

  @property
  def step_memory(self) -> MemoryPlan:
    """Remat and chunks of a step."""
    if self.plan is not None:
      return self.plan
    # If each image has its own class features, all images of a group share the memory.
    # If two towers are trained, they share it as well.
    n_times = self.group_size if self.method.per_image_text else 1
    n_times *= 2 if METHODS[self.contrast.method].pixels else 1
    return self._memory_plan(self.token_budget, n_times)

  def _memory_plan(self, token_budget: int, n_times: int = 1) -> MemoryPlan:
    return memory_plan(self.clip, self.encoder, self.n_prefix, token_budget, n_times)

  def _learner(
    self, token_budget: int | None = None, memory: MemoryPlan = AT_ONCE
  ) -> Learner:
    text_tower = self.encoder.text_tower(token_budget, memory)
    capacity = self.encoder.capacity(self.module)
    plain = ContextLearner(self.module, text_tower, token_budget, capacity)
    # POMP learns `plain` itself; a baseline returns a learner of its own.
    return self.method.make_learner(plain, self.encoder, self.prompt, self.clip)

  def build_step(self, correction: str | jax.Array | None = None) -> Any:
    """Builds the step, with `correction` if it is given."""
    settings = self.contrast_settings
    if correction is not None:
      settings = dataclasses.replace(settings, correction=correction)
    parts = StepParts(
      mesh=self.encoder.mesh,
      learner=self.learner(),
      optimizer=self.optimizer,
      settings=settings,
      accumulate=self.loop.accumulate,
      renewal=self._renewal(),
    )
    return make_train_step(parts)

  def _renewal(self) -> Renewal | None:
    """Share of `sampling.renew` for each device and micro-step, rounded up; None for no
    renewal."""
    n_parts = self.encoder.mesh.size * self.loop.accumulate
    rows = -(-min(self.sampling.renew, len(self.source.names)) // n_parts)
    if not self.needs_bank or not rows:
      return None
    lengths_N = np.asarray(self.frozen.tokens.lengths)
    capacity = self.encoder.capacity(self.module)
    budget = renewal_token_budget(lengths_N, self.module.n_own, n_parts, rows, capacity)
    return Renewal(self._learner(budget, self._memory_plan(budget)), rows)

  def validation(self) -> Callable[[TrainState], Accuracy | None]:
    """Returns a function from a state to its accuracy on validation images.

    The accuracy is over all training classes. Without validation images the function
    returns None.
    """
    if not opening.has_validation(self.data):
      return lambda state: None

    source = opening.open_source(self.data, "validation", n_images=self.eval.images)
    split = batches.readable_features(self.data, self.encoder, source, self.folder)
    score = self.accuracy()
    if score is not None:
      return lambda state: score(self.result(state), split, source)

    def accuracy_of(state: TrainState) -> Accuracy:
      features_NxE = self.class_features(self.result(state))
      return topk_accuracy(
        split.features, features_NxE, split.labels, mesh=self.encoder.mesh
      )

    return accuracy_of

  def class_features(self, params: Any) -> np.ndarray:
    """Unit features of all training classes under a prompt [N,E]."""
    return self.encoder.features_of_classes(params, self.frozen, self.module.position)

  def result(self, state: TrainState) -> Any:
    """The parameters that are validated, saved and evaluated: averaged if
    `optim.average` asks for it."""
    return result_of(state.params, state.opt_state)

  def prompt_of(self, state: TrainState) -> Prompt:
    """The learned prompt, as it is saved."""
    context = np.asarray(self.result(state)["context"])
    return Prompt(
      context,
      self.encoder.clip.name,
      position=self.module.position,
      config=self.config,
    )

  def accuracy(self) -> Callable[[Any, SplitFeatures, Source], Accuracy] | None:
    """Builds the function that scores a split under a method that learns no prompt.

    Returns:
      Function of the parameters, the features of a split and its images, to top-1 and
      top-5. None for a method that learns a prompt.
    """
    score = self.method.accuracy(self.encoder, self._learner(), self.data)
    if score is None:
      return None

    # Each validation asks for the arrays of the same split, so keep the last arrays.
    @functools.lru_cache(maxsize=1)
    def frozen_of(names: tuple[str, ...]) -> Frozen:
      return self.method.frozen_arrays(
        self.prompt, self.eval.template, self.encoder, names
      )

    def accuracy_of(params: Any, split: SplitFeatures, source: Source) -> Accuracy:
      return score(params, frozen_of(split.names), split, source)

    return accuracy_of


def logit_bias_of(contrast: Contrast, encoder: Encoder) -> float:
  """Bias of the sigmoid loss's logits: the config's, or the CLIP's; 0 for another loss.

  Raises:
    ConfigError: the loss needs a bias, but neither the config nor the CLIP has one.
  """
  if contrast.loss != "sigmoid":
    return 0.0
  bias = contrast.logit_bias or float(encoder.clip.params.get("logit_bias", 0))
  if not bias:
    expected = "a bias such as -17: this CLIP has none of its own"
    raise ConfigError("logit_bias", 0.0, expected)
  return bias
