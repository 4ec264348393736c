"""A training made ready for the loop: its data, its learner, its optimizer, its compiled step."""

import abc
from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from pomp_jax.clip.text import MemoryPlan, plan_memory
from pomp_jax.config import METHODS, Settings
from pomp_jax.config.fields import Clip
from pomp_jax.data.loader import Fetch
from pomp_jax.data.source import Labelled, Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.predictions import topk_accuracy
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.bank import place_rows, renewal_token_budget
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen, ImageLearner, Initialised, Learner
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import CLASS, DATA, replicate
from pomp_jax.prompt.optimizer import learning_rate, sgd
from pomp_jax.prompt.step import (
  Renewal,
  TrainState,
  create_state,
  make_train_step,
  step_token_budget,
)
from pomp_jax.train import batches, methods
from pomp_jax.train.memory import activation_memory
from pomp_jax.train.sampling_data import sampling_arrays, sampling_of


@dataclasses.dataclass(frozen=True)
class Training(abc.ABC):
  """Everything that stays the same during a training by steps, and what the loop asks of it."""

  config: Settings
  folder: RunFolder
  encoder: Encoder
  source: Labelled  # training images
  fetch: Fetch  # reads the views of images
  frozen: Any  # arrays that a step reads
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  steps_per_epoch: int  # steps that show all images once
  total_steps: int

  @property
  @abc.abstractmethod
  def n_groups(self) -> int:
    """Number of groups of a batch that draw random numbers of their own."""

  @property
  def needs_bank(self) -> bool:
    """Whether the state holds features of all classes."""
    return False

  @abc.abstractmethod
  def learner(self) -> Initialised:
    """What is learned."""

  @abc.abstractmethod
  def build_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step `(state, frozen, batch) -> (state, metrics)`, compiled at its first call.

    `loss` and `accuracy` are among the metrics.
    """

  def validation(self) -> Callable[[TrainState], float | None]:
    """Returns a function from state to a figure by which checkpoints are kept, or to None."""
    return lambda state: None


@dataclasses.dataclass(frozen=True)
class Run(Training):
  """Training of a prompt, or of another method that learns from the contrast with classes."""

  module: PromptContext

  @property
  def k(self) -> int:
    """K, the number of classes per image in the contrast; N with all negatives."""
    return len(self.source.names) if self.config.negatives == "all" else self.config.k

  @property
  def n_groups(self) -> int:
    """Number of groups of a batch that draw their own negatives."""
    return self.encoder.mesh.shape[DATA] * self.config.accumulate

  @property
  def group_size(self) -> int:
    """B, images per group."""
    return self.config.batch_size // self.n_groups

  @property
  def n_prefix(self) -> int:
    """Tokens that all classes share: SOS and the shared context vectors."""
    return 1 + self.module.n_vectors - self.module.n_own

  @property
  def contrast(self) -> ContrastSettings:
    """Settings of the contrast."""
    config, scale = self.config, self.encoder.clip.logit_scale
    drawing, weight = sampling_of(config.sampling, scale), config.sampling.ancestors_weight
    return ContrastSettings(
      self.k, len(self.source.names), config.correction, scale, drawing, weight
    )

  @property
  def needs_bank(self) -> bool:
    """Whether the sampler compares features of all classes under recent prompts."""
    return "bank" in self.contrast.sampling.needs

  @property
  def step_tokens(self) -> int:
    """Tokens that the text tower of one device computes in a step."""
    return self.n_prefix + self.token_budget

  @functools.cached_property
  def token_budget(self) -> int:
    """Own tokens of the classes that one device computes in a step."""
    return step_token_budget(
      self.module,
      np.asarray(self.frozen.tokens.lengths),
      settings=self.contrast,
      group_size=self.group_size,
      class_size=self.encoder.mesh.shape[CLASS],
    )

  def learner(self) -> Learner:
    """Learner of `config.method` with the run's token budget."""
    return self._learner(self.token_budget, step_memory(self))

  def _learner(self, token_budget: int, memory: MemoryPlan) -> Learner:
    text_tower = self.encoder.text_tower(token_budget, memory)
    plain = ContextLearner(self.module, text_tower, token_budget)
    return methods.make_learner(
      self.config.method, plain, self.encoder.clip, self.config.prompt, self.config.clip
    )

  def build_step(self, correction: str | jax.Array | None = None) -> Any:
    """Builds the step, with `correction` if it is given."""
    config, contrast, learner = self.config, self.contrast, self.learner()
    if correction is not None:
      contrast = dataclasses.replace(contrast, correction=correction)
    frozen_images = config.data.features == "online" and not isinstance(learner, ImageLearner)
    return make_train_step(
      mesh=self.encoder.mesh,
      learner=learner,
      image_tower=self.encoder.image_tower if frozen_images else None,
      optimizer=self.optimizer,
      settings=contrast,
      accumulate=config.accumulate,
      renewal=self._renewal(),
    )

  def _renewal(self) -> Renewal | None:
    """The share of `sampling.renew` of each device and micro-step, rounded up."""
    n_parts = self.encoder.mesh.size * self.config.accumulate
    rows = -(-min(self.config.sampling.renew, len(self.source.names)) // n_parts)
    if not self.needs_bank or not rows:
      return None
    lengths_N = np.asarray(self.frozen.tokens.lengths)
    budget = renewal_token_budget(lengths_N, self.module.n_own, n_parts, rows)
    text_config = self.encoder.clip.config.text_config
    memory = memory_plan(self.config.clip, text_config, self.n_prefix, budget)
    return Renewal(self._learner(budget, memory), rows)

  def validation(self) -> Callable[[TrainState], float | None]:
    """Returns state -> top-1 on validation images over all training classes; None without any."""
    config = self.config
    if not inputs.has_validation(config.data):
      return lambda state: None
    source = inputs.open_source(config.data, "validation", n_images=config.eval.images)
    split = batches.readable_features(config, self.encoder, source, self.folder)
    if not METHODS[config.method].saves_prompt:
      accuracy = methods.accuracy_of_learner(config, self.encoder, self.module)
      return lambda state: accuracy(state.params, split, source)["top1"]

    def top1(state: TrainState) -> float:
      features_NxE = training_class_features(self, state.params)
      mesh = self.encoder.mesh
      return topk_accuracy(split.features, features_NxE, split.labels, mesh=mesh)["top1"]

    return top1


def prepare(
  config: Settings,
  folder: RunFolder,
  *,
  encoder: Encoder | None = None,
  source: Source | None = None,
  frozen: Frozen | None = None,
) -> Run:
  """Opens everything that a run needs, and writes nothing.

  `encoder`, `source` and `frozen` may be another run's with the same CLIP, devices, images and M.
  """
  encoder = encoder or inputs.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  source = source or inputs.open_training_source(config.data, encoder.clip.image_size)
  fetch = batches.open_fetch(config.data, source, encoder, folder)
  steps_per_epoch = max(1, len(source) * config.data.views // config.batch_size)
  total_steps = config.steps or config.epochs * steps_per_epoch
  optimizer, rate = optimizer_of(config.optim, steps_per_epoch, total_steps)
  module = PromptContext(
    config.prompt.m,
    encoder.clip.text_width,
    config.prompt.position,
    n_classes=len(source.names) if config.prompt.class_specific else None,
    init_value=methods.initial_context(config, encoder.clip, len(source.names)),
  )
  frozen = frozen or methods.frozen_arrays(config, encoder, source.names)
  sampling = sampling_arrays(config, source.names, source.labels)
  return Run(
    config=config,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=fetch,
    module=module,
    frozen=frozen._replace(sampling=replicate(sampling, encoder.mesh)),
    optimizer=optimizer,
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def optimizer_of(
  optim: Any, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer and its learning-rate schedule.

  `optim` has the fields of `config.optim`, of which rates, momentum and decay may be traced.
  """
  rate = learning_rate(
    schedule=optim.schedule,
    base=optim.lr,
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=optim.warmup_lr,
  )
  return sgd(rate, optim.momentum, optim.weight_decay, optim.clip_norm), rate


def first_state(run: Training) -> TrainState:
  """State of step 0, on the devices; with a bank, this computes the features of all classes."""
  state = blank_state(run)
  if state.bank is None:
    return state
  return place_bank(run, state.replace(bank=training_class_features(run, state.params)))


def blank_state(run: Training) -> TrainState:
  """State of step 0 as it is stored, but for the bank's rows, which are zero."""
  state = replicate(create_state(run.learner(), run.optimizer, run.config.seed), run.encoder.mesh)
  if not run.needs_bank:
    return state
  shape = (len(run.source.names), run.encoder.clip.config.projection_dim)
  return state.replace(bank=np.zeros(shape, np.float32))


def place_bank(run: Training, state: TrainState) -> TrainState:
  """Shards the bank of a stored state, [N,E] on every host, over the mesh."""
  if state.bank is None:
    return state
  rows = place_rows(np.asarray(state.bank), run.encoder.mesh, run.config.sampling.bank_dtype)
  return state.replace(bank=rows)


def gather_bank(run: Training, state: TrainState) -> TrainState:
  """State as it is stored, for any mesh: the bank whole, float32 [N,E], on every host."""
  if state.bank is None:
    return state
  n_classes = len(run.source.names)
  whole = jax.jit(
    lambda rows: rows[:n_classes].astype(jnp.float32),
    out_shardings=NamedSharding(run.encoder.mesh, PartitionSpec()),
  )
  return state.replace(bank=whole(state.bank))


def step_memory(run: Run) -> MemoryPlan:
  """Remat and chunks of a step of the run."""
  # Images with class features of their own share the memory, and so do two trained towers.
  method = METHODS[run.config.method]
  n_times = (run.group_size if method.per_image_text else 1) * (2 if method.pixels else 1)
  text_config = run.encoder.clip.config.text_config
  return memory_plan(run.config.clip, text_config, run.n_prefix, run.token_budget, n_times)


def memory_plan(
  clip: Clip, text_config: Any, n_prefix: int, token_budget: int, n_times: int = 1
) -> MemoryPlan:
  """Returns `clip.remat` and `clip.n_chunks`, or what fits the memory where they are automatic.

  `n_times` text towers share `memory.activation_memory`; see `plan_memory`.
  """
  plan = plan_memory(text_config, n_prefix, token_budget, activation_memory(clip) / n_times)
  remat = plan.remat if clip.remat == "auto" else clip.remat
  return MemoryPlan(clip.n_chunks or plan.n_chunks, remat)


def training_class_features(run: Run, params: Any) -> np.ndarray:
  """Unit features of all training classes under a prompt [N,E]."""
  return run.encoder.features_of_tokens(params, run.frozen.tokens, run.module.position)


def prompt_of(run: Run, state: TrainState) -> Prompt:
  """The learned prompt, as it is saved."""
  return Prompt(
    context=np.asarray(state.params["context"]),
    clip_model=run.encoder.clip.name,
    position=run.module.position,
    config=run.config.to_dict(),
  )
