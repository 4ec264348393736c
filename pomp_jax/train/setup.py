"""A training run made ready: what it reads, what it learns, and its step.

The pretrain job walks through it, the dry run measures it, and ablations train several together.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from pomp_jax import inputs
from pomp_jax.clip.text import MemoryPlan, activation_bytes, plan_memory, token_embeddings
from pomp_jax.config import Settings
from pomp_jax.config.fields import Clip
from pomp_jax.data.loader import Fetch
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen, ImageLearner, Learner
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import CLASS, DATA, replicate
from pomp_jax.prompt.optimizer import learning_rate, sgd
from pomp_jax.prompt.step import TrainState, create_state, make_train_step, step_token_budget
from pomp_jax.train import batches, methods
from pomp_jax.train.sampling_data import Bank, sampling_arrays, sampling_of


@dataclasses.dataclass(frozen=True)
class Run:
  """A run made ready: everything that does not change during it."""

  config: Settings
  folder: RunFolder
  encoder: Encoder
  source: Source
  fetch: Fetch
  module: PromptContext
  frozen: Frozen
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  steps_per_epoch: int
  total_steps: int


def prepare(
  config: Settings,
  folder: RunFolder,
  *,
  encoder: Encoder | None = None,
  source: Source | None = None,
  frozen: Frozen | None = None,
) -> Run:
  """Opens everything, and writes nothing.

  Args:
    config: of the run.
    folder: of the run.
    encoder: of another run with the same CLIP on the same devices; opened if None.
    source: of another run with the same images.
    frozen: of another run with the same CLIP, names and M.

  Raises:
    ConfigError, VocabularyError, TokenizeError, FeatureCacheError: one line each.
  """
  encoder = encoder or inputs.open_encoder(config)
  source = source or inputs.open_training_source(config.data, encoder.clip.image_size)
  fetch = batches.open_fetch(config.data, source, encoder)
  steps_per_epoch = max(1, len(source) * config.data.views // config.batch_size)
  total_steps = config.steps or config.epochs * steps_per_epoch
  optimizer, rate = optimizer_of(config.optim, steps_per_epoch, total_steps)
  module = PromptContext(
    config.prompt.m,
    encoder.clip.text_width,
    config.prompt.position,
    n_classes=len(source.names) if config.prompt.class_specific else None,
    init_value=_initial_context(config, encoder),
  )
  return Run(
    config=config,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=fetch,
    module=module,
    frozen=(frozen or methods.frozen_of(config, encoder, source.names))._replace(
      sampling=replicate(sampling_arrays(config, source.names, source.labels), encoder.mesh)
    ),
    optimizer=optimizer,
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def optimizer_of(
  optim: Any, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer and its learning rate.

  Args:
    optim: `config.optim`, or what has its fields; rates, momentum and decay may be traced.
    steps_per_epoch: batches that show all images once.
    total_steps: of the whole run.
  """
  rate = learning_rate(
    schedule=optim.schedule,
    base=optim.lr,
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=optim.warmup_lr,
  )
  return sgd(rate, optim.momentum, optim.weight_decay), rate


def _initial_context(config: Settings, encoder: Encoder) -> np.ndarray | None:
  """The embeddings of `prompt.init`'s words; None for a random start."""
  clip = encoder.clip
  ids_M, _ = methods.initial_words(config, clip)
  return np.asarray(token_embeddings(clip.params, ids_M)) if len(ids_M) else None


def first_state(job: Run) -> TrainState:
  """The state of step 0, on the devices."""
  state = create_state(_learner(job, _settings(job)), job.optimizer, job.config.seed)
  return replicate(open_bank(job).start(state), job.encoder.mesh)


def open_bank(job: Run, params_of: Callable[[Any], Any] = lambda params: params) -> Bank:
  """The bank that the step's sampler reads, if it reads one.

  Args:
    job: the run.
    params_of: the run's parameters, out of those that are given to the bank.
  """
  return Bank(
    job.config.sampling.refresh_every,
    job.encoder.mesh,
    lambda params: class_features(job, params_of(params)),
    needed=needs_bank(job),
  )


def needs_bank(job: Run) -> bool:
  """Whether the step's sampler compares features of all classes, under this run's prompt."""
  return "bank" in _settings(job).sampling.needs


def train_step(
  job: Run, correction: str | jax.Array | None = None
) -> Callable[..., tuple[TrainState, dict]]:
  """The step, which is compiled when it is first called.

  Args:
    job: the run.
    correction: in place of the config's.
  """
  config, encoder, settings = job.config, job.encoder, _settings(job)
  if correction is not None:
    settings = dataclasses.replace(settings, correction=correction)
  learner = _learner(job, settings)
  frozen_images = config.data.features == "online" and not isinstance(learner, ImageLearner)
  return make_train_step(
    mesh=encoder.mesh,
    learner=learner,
    image_tower=encoder.image_tower if frozen_images else None,
    optimizer=job.optimizer,
    settings=settings,
    accumulate=config.accumulate,
  )


def step_tokens(job: Run) -> int:
  """Tokens that a device's text tower computes in a step: the prefix, and what the budget holds."""
  return _n_prefix(job) + _token_budget(job, _settings(job))


def step_memory(job: Run) -> MemoryPlan:
  """How the memory of a step is spent."""
  # Where each image has class features of its own they share what there is.
  n_times = _group_size(job) if job.config.method == "cocoop" else 1
  text_config = job.encoder.clip.config.text_config
  budget = _token_budget(job, _settings(job))
  return memory_plan(job.config.clip, text_config, _n_prefix(job), budget, n_times)


def step_bytes(job: Run) -> float:
  """What the activations of a step would take in a device's memory, all kept, roughly."""
  config = job.encoder.clip.config.text_config
  return activation_bytes(config, _n_prefix(job), _token_budget(job, _settings(job)))


def _settings(job: Run) -> ContrastSettings:
  n_classes, clip = len(job.source.names), job.encoder.clip
  sampling = job.config.sampling
  return ContrastSettings(
    k_of(job),
    n_classes,
    job.config.correction,
    clip.logit_scale,
    sampling_of(sampling),
    sampling.ancestors_weight,
  )


def _learner(job: Run, settings: ContrastSettings) -> Learner:
  """What is learned, within the step's token budget."""
  token_budget = _token_budget(job, settings)
  config, encoder = job.config, job.encoder
  text_tower = encoder.text_tower(token_budget, step_memory(job))
  return methods.make_learner(config, encoder, job.module, text_tower, token_budget)


def _token_budget(job: Run, settings: ContrastSettings) -> int:
  mesh = job.encoder.mesh
  return step_token_budget(
    job.module,
    np.asarray(job.frozen.tokens.lengths),
    settings=settings,
    group_size=_group_size(job),
    class_size=mesh.shape[CLASS],
  )


def _group_size(job: Run) -> int:
  """B, images of a draw."""
  return job.config.batch_size // (job.encoder.mesh.shape[DATA] * job.config.accumulate)


def k_of(job: Run) -> int:
  """K: with all negatives, N."""
  return len(job.source.names) if job.config.negatives == "all" else job.config.k


def memory_plan(
  clip: Clip, text_config: Any, n_prefix: int, token_budget: int, n_times: int = 1
) -> MemoryPlan:
  """`clip.remat` and `clip.n_chunks`, or the automatic choice where they leave it open.

  Args:
    clip: `config.clip`; activations may take `clip.memory_gib`.
    text_config: the text tower's.
    n_prefix: shared prefix tokens.
    token_budget: own tokens of the rows of a device.
    n_times: so many such steps share the memory.
  """
  plan = plan_memory(text_config, n_prefix, token_budget, clip.memory_gib * 2**30 / n_times)
  remat = plan.remat if clip.remat == "auto" else clip.remat
  return MemoryPlan(clip.n_chunks or plan.n_chunks, remat)


def _n_prefix(job: Run) -> int:
  return 1 + job.module.n_vectors - job.module.n_own


def class_features(job: Run, params) -> np.ndarray:
  """Unit features of all classes of the training under a prompt [N,E]."""
  return job.encoder.features_of_tokens(params, job.frozen.tokens, job.module.position)


def prompt_of(job: Run, state: TrainState) -> Prompt:
  """What a state has learned, as it is saved."""
  return Prompt(
    context=np.asarray(state.params["context"]),
    clip_model=job.encoder.clip.name,
    position=job.module.position,
    config=job.config.to_dict(),
  )
