"""Builds a training from a config: its data, its learner, its optimizer."""

from collections.abc import Mapping
from typing import Any

import optax

from pomp_jax.config import fields
from pomp_jax.config.fields import Data, Loop, Optim
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data.source import Labelled, Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import AVERAGING, WORDS
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.optimizer import adamw, learning_rate, sgd
from pomp_jax.train import batches, methods
from pomp_jax.train.initial_context import initial_context
from pomp_jax.train.sampling_data import sampling_arrays
from pomp_jax.train.training import PromptRun, logit_bias_of


def length_of(loop: Loop, data: Data, source: Labelled) -> tuple[int, int]:
  """Steps of an epoch, at least 1, and of the whole training.

  Args:
    loop: `config.loop`, with the batch size and the steps or epochs.
    data: `config.data`, with the number of views.
    source: training images.
  """
  n_views = len(source) * data.views
  steps_per_epoch = max(1, n_views // loop.batch_size)
  total_steps = loop.steps or loop.epochs * steps_per_epoch
  return steps_per_epoch, total_steps


def prepare(
  config: TrainingConfig,
  folder: RunFolder,
  *,
  encoder: Encoder | None = None,
  source: Source | None = None,
  frozen: Frozen | None = None,
) -> PromptRun:
  """Opens everything that a run needs; writes only features of validation images.

  Several runs can share what is slow to open: the CLIP, the images, the frozen arrays.

  Args:
    config: config of the training.
    folder: folder of the run.
    encoder: CLIP of another run with the same CLIP and devices; opened if None.
    source: training images of another run; opened if None.
    frozen: frozen arrays of another run with the same classes and M; built if None.

  Raises:
    InputError: fields, files and data don't fit together.
  """
  data = config.data
  loop = config.loop
  if encoder is None:
    encoder = opening.open_encoder(
      config.clip, config.mesh.class_size, data.feature_store
    )
  if source is None:
    source = encoder.sized(opening.open_source(data, "train"))
  # Raises a ConfigError before anything is written.
  logit_bias_of(config.contrast, encoder)
  steps_per_epoch, total_steps = length_of(loop, data, source)
  optimizer, rate = optimizer_of(config.optim, steps_per_epoch, total_steps)
  sampling = sampling_arrays(config.sampling, data, source.names, source.labels)

  classes = opening.class_list(data, config.eval.template, source.names)
  method = methods.method_of(config.method, config.contrast)
  method = method.opened(config.clip, data, encoder, classes)

  contrast = config.contrast
  prompt = config.prompt
  candidates = None
  anchors = None
  if WORDS:
    words = WORDS.open()
    contrast = words.with_automatic_weight(contrast, encoder.clip.logit_scale)
    if prompt.init == fields.BEST:
      prompt, candidates = words.start(
        prompt, data, config.eval, encoder, classes, folder
      )
    anchors_NxE = words.anchors(contrast, candidates, encoder, classes)
    if anchors_NxE is not None:
      anchors = replicate(anchors_NxE, encoder.mesh)
  n_classes = len(source.names)
  module = PromptContext(
    prompt.m,
    encoder.clip.text_width,
    prompt.position,
    n_classes=n_classes if prompt.class_specific else None,
    init_value=initial_context(prompt, encoder.clip, n_classes, method.fixed_words),
  )

  # Another run's arrays were built for `config.prompt.m`, but the best candidate may
  # have another M.
  if frozen is None or candidates:
    # For POMP: the tokens of all names, and the parameters of both towers.
    frozen = method.frozen_arrays(prompt, config.eval.template, encoder, source.names)
  sampling = sampling._replace(bank=frozen.sampling.bank)
  frozen = frozen._replace(sampling=replicate(sampling, encoder.mesh), anchors=anchors)
  return PromptRun(
    config=config.to_dict(),
    seed=config.seed,
    data=data,
    loop=loop,
    checkpoint=config.checkpoint,
    log_every=config.log.every,
    clip=config.clip,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=batches.open_fetch(data, source, method.images or encoder, folder),
    frozen=frozen,
    optimizer=optimizer,
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    contrast=contrast,
    prompt=prompt,
    sampling=config.sampling,
    optim=config.optim,
    eval=config.eval,
    method=method,
    module=module,
    candidates=candidates,
  )


def optimizer_of(
  optim: Optim,
  steps_per_epoch: int,
  total_steps: int,
  traced: Mapping[str, Any] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer and its learning-rate schedule.

  Args:
    optim: `config.optim`.
    steps_per_epoch: steps that show all images once.
    total_steps: steps of the training.
    traced: traced numbers by name (`lr`, `momentum`, `weight_decay`, `warmup_lr`) that
      replace the values of `optim`. One compiled program then serves several values.
  """
  numbers = {
    "lr": optim.lr,
    "momentum": optim.momentum,
    "weight_decay": optim.weight_decay,
    "warmup_lr": optim.warmup_lr,
  }
  if traced:
    numbers |= traced

  rate = learning_rate(
    schedule=optim.schedule,
    base=numbers["lr"],
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=numbers["warmup_lr"],
  )
  momentum = numbers["momentum"]
  weight_decay = numbers["weight_decay"]
  if optim.name == "adamw":
    optimizer = adamw(
      rate, momentum, optim.beta2, optim.epsilon, weight_decay, optim.clip_norm
    )
  else:
    optimizer = sgd(rate, momentum, weight_decay, optim.clip_norm)

  if AVERAGING:
    average = AVERAGING.open()(optim, steps_per_epoch)
    if average is not None:
      optimizer = optax.chain(optimizer, average)
  return optimizer, rate
