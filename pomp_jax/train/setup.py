"""Makes a training of a config: its data, its learner, its optimizer."""

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
from pomp_jax.train.sampling_data import sampling_arrays
from pomp_jax.train.training import PromptRun, logit_bias_of


def length_of(loop: Loop, data: Data, source: Labelled) -> tuple[int, int]:
  """Steps of an epoch, at least 1, and of the whole training.

  Args:
    loop: `config.loop`, with the batch size and the steps or epochs.
    data: `config.data`, with the number of views.
    source: training images.
  """
  steps_per_epoch = max(1, len(source) * data.views // loop.batch_size)
  return steps_per_epoch, loop.steps or loop.epochs * steps_per_epoch


def prepare(
  config: TrainingConfig,
  folder: RunFolder,
  *,
  encoder: Encoder | None = None,
  source: Source | None = None,
  frozen: Frozen | None = None,
) -> PromptRun:
  """Opens everything that a run needs, and writes nothing but features of validation
  images.

  `encoder`, `source` and `frozen` may be another run's with the same CLIP, devices,
  images and M.

  Args:
    config: config of the training.
    folder: folder of the run.
    encoder: CLIP of another run with the same CLIP and devices; opened if None.
    source: training images of another run; opened if None.
    frozen: frozen arrays of another run with the same classes and M; built if None.
  """
  data, loop = config.data, config.loop
  method = methods.method_of(config.method, config.contrast)
  encoder = encoder or opening.open_encoder(
    config.clip, config.mesh.class_size, data.feature_store
  )
  source = source or encoder.sized(opening.open_source(data, "train"))
  logit_bias_of(config.contrast, encoder)  # raises, before anything is written
  steps_per_epoch, total_steps = length_of(loop, data, source)
  optimizer, rate = optimizer_of(config.optim, steps_per_epoch, total_steps)
  sampling = sampling_arrays(config.sampling, data, source.names, source.labels)
  classes = opening.class_list(data, config.eval.template, source.names)
  method = method.opened(config.clip, data, encoder, classes)
  contrast = config.contrast
  if WORDS:
    contrast = WORDS.open().with_automatic_weight(contrast, encoder.clip.logit_scale)
  prompt, candidates = config.prompt, None
  if prompt.init == fields.BEST:
    prompt, candidates = WORDS.open().start(
      prompt, data, config.eval, encoder, classes, folder
    )
  anchors = None
  if WORDS:
    anchors_NxE = WORDS.open().anchors(contrast, candidates, encoder, classes)
    if anchors_NxE is not None:
      anchors = replicate(anchors_NxE, encoder.mesh)
  module = PromptContext(
    prompt.m,
    encoder.clip.text_width,
    prompt.position,
    n_classes=len(source.names) if prompt.class_specific else None,
    init_value=methods.initial_context(
      prompt, encoder.clip, len(source.names), method.fixed_words
    ),
  )
  # another run's has room for `config.prompt.m` vectors
  if frozen is None or candidates:
    frozen = method.frozen_arrays(prompt, config.eval.template, encoder, source.names)
  sampling = replicate(sampling._replace(bank=frozen.sampling.bank), encoder.mesh)
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
    frozen=frozen._replace(sampling=sampling, anchors=anchors),
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
    optim: fields of the optimizer.
    steps_per_epoch: steps that show all images once.
    total_steps: steps of the training.
    traced: traced values of rates, momentum and decay, in the place of the fields' own.
  """
  numbers = {
    "lr": optim.lr,
    "momentum": optim.momentum,
    "weight_decay": optim.weight_decay,
    "warmup_lr": optim.warmup_lr,
    **(traced or {}),
  }
  rate = learning_rate(
    schedule=optim.schedule,
    base=numbers["lr"],
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=numbers["warmup_lr"],
  )
  momentum, decay = numbers["momentum"], numbers["weight_decay"]
  if optim.name == "adamw":
    optimizer = adamw(
      rate, momentum, optim.beta2, optim.epsilon, decay, optim.clip_norm
    )
  else:
    optimizer = sgd(rate, momentum, decay, optim.clip_norm)
  if AVERAGING and (average := AVERAGING.open()(optim, steps_per_epoch)):
    optimizer = optax.chain(optimizer, average)
  return optimizer, rate
