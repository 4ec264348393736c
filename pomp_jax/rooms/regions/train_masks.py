"""Trains a network that finds regions, MaskFormer with an embedding head, on base
classes.

The network learns to fit the class features of a frozen prompt, so that it can later be
evaluated with any prompt. The loop, its checkpoints and its restarts are those of
`pretrain`. Leaves `results.json`, `plots/training.png` and `masks.safetensors`, which
the job `propose` reads, in the run's folder.
"""

from collections.abc import Callable, Sequence
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.precision import precision_of
from pomp_jax.config import ConfigError
from pomp_jax.config.errors import require
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import (
  AnyPrompt,
  NamedPrompt,
  check_prompt,
  read_prompt,
)
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import exists
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.step import TrainState
from pomp_jax.report import plots
from pomp_jax.rooms.regions.class_matrix import class_matrix, key_parts
from pomp_jax.rooms.regions.fields import TrainMasks, TrainMasksConfig
from pomp_jax.rooms.regions.image_sets import open_mask_set
from pomp_jax.rooms.regions.mask_former import published_weights
from pomp_jax.rooms.regions.mask_former.losses import LossWeights
from pomp_jax.rooms.regions.mask_former.mask_step import (
  adamw,
  make_mask_step,
  poly_schedule,
)
from pomp_jax.rooms.regions.mask_former.model import STRIDE, MaskFormer
from pomp_jax.rooms.regions.mask_former.sizes import VARIANTS, MaskFormerConfig
from pomp_jax.rooms.regions.mask_views import MaskViews
from pomp_jax.train import loop
from pomp_jax.train.pretrain import check_mesh
from pomp_jax.train.resume import Checkpoint, check_same_run
from pomp_jax.train.setup import length_of
from pomp_jax.train.training import Run

log = logging.getLogger(__name__)

_PROMPT = "train_masks.prompt"
# MaskFormer's recipe: bounds of the scale of a view (shorter side of an image / size),
# weight decay, and the exponent of the learning rate's decay.
_SCALES = (0.5, 1.5)
_DECAY = 1e-4
_POWER = 0.9
# Scalars whose last values are written to `results.json`.
_SCALARS = ("loss", "class_loss", "focal_loss", "dice_loss", "accuracy")


def check(config: TrainMasksConfig, workdir: str) -> None:
  """Opens images, classes, prompt and network; writes nothing.

  Raises:
    InputError: an image set, the classes, the prompt or the network is unusable, or
      another run is in the folder.
  """
  folder = RunFolder(workdir)
  fields = config.train_masks
  source = open_mask_set(fields, config.seed)
  clip_config = opening.clip_config(config.clip.model)
  _network_sizes(fields, clip_config.projection_dim)
  prompt = read_prompt(fields.prompt, _PROMPT)
  check_prompt(prompt, _synonyms(source.names), clip_config, config.clip.model)
  check_mesh(config.mesh.class_size, config.loop)
  check_same_run(config.flat(), folder)
  if not hosts.is_first():
    return
  # A resumed run must have the classes and the prompt of its start. The content of
  # their files may have changed.
  classes = _classes(folder, prompt, source.names)
  if exists(classes.path("classes")) and classes.load("classes") is None:
    accepted = f"the prompt and the classes with which {folder.path} was started"
    raise ConfigError(_PROMPT, fields.prompt, f"{accepted} (or another --workdir)")


def run(config: TrainMasksConfig, workdir: str) -> dict:
  """Trains, writes the run's folder, and returns the content of `results.json`."""
  folder = RunFolder(workdir)
  fields = config.train_masks
  finished = folder.finished()
  if finished is not None:
    return finished
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  source = open_mask_set(fields, config.seed)
  prompt = read_prompt(fields.prompt, _PROMPT)
  classes_NxE = class_matrix(encoder, _synonyms(source.names), prompt).features
  steps_per_epoch, total_steps = length_of(config.loop, config.data, source)
  rate = poly_schedule(fields.lr, _POWER, total_steps)
  training = MaskRun(
    config=config.to_dict(),
    seed=config.seed,
    data=config.data,
    loop=config.loop,
    checkpoint=config.checkpoint,
    log_every=config.log.every,
    clip=config.clip,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=MaskViews(
      source, fields.size, fields.targets, fields.augment, config.seed, _SCALES
    ),
    frozen=replicate(jnp.asarray(classes_NxE), encoder.mesh),
    optimizer=adamw(
      rate,
      weight_decay=_DECAY,
      backbone=fields.backbone,
      clip_norm=fields.clip_norm,
    ),
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    fields=fields,
    sizes=_network_sizes(fields, encoder.clip.config.projection_dim),
  )
  if hosts.is_first():
    folder.create(config.to_dict())
    _classes(folder, prompt, source.names).save("classes", {})
  checkpoint = loop.train(training)
  results = None
  if hosts.is_first():
    _write(training, checkpoint, prompt)
    results = folder.read_results()
  # Barrier: process 0 has written the results.
  return hosts.from_first(results, "the results")


@dataclasses.dataclass(frozen=True)
class MaskRun(Run):
  """Training of a MaskFormer; `frozen` is the matrix [N,E] of the trained classes."""

  fields: TrainMasks
  sizes: MaskFormerConfig

  @property
  def n_groups(self) -> int:
    """Always 1: dropout has one stream for the batch, on any number of devices."""
    return 1

  def learner(self) -> Any:
    """Returns itself: the network has no other parts."""
    return self

  def init(self, key: jax.Array) -> Any:
    """Reads the parameters of `train_masks.init`, or draws random parameters."""
    if self.fields.init:
      return published_weights.read_mask_former(self.fields.init).params
    pixels = jnp.zeros((1, STRIDE, STRIDE, 3))
    return jax.jit(MaskFormer(self.sizes).init)(key, pixels)["params"]

  def build_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `mask_former.mask_step.make_mask_step` in `clip.dtype`."""
    dtype, products = precision_of(self.clip.dtype)
    step = make_mask_step(
      mesh=self.encoder.mesh,
      model=MaskFormer(self.sizes, dtype),
      optimizer=self.optimizer,
      weights=LossWeights(dice=self.fields.dice),
    )
    return jax.default_matmul_precision(products)(step)


def _network_sizes(fields: TrainMasks, embedding: int) -> MaskFormerConfig:
  """Sizes of the network for a CLIP of this embedding width.

  Raises:
    ConfigError: the initial network has another embedding width, or there are more
      targets than queries.
  """
  sizes = dataclasses.replace(VARIANTS[fields.network], embedding=embedding)
  if fields.init:
    sizes = published_weights.read_mask_former(fields.init).config
    accepted = (
      f"a network with embeddings of {embedding}; this one has {sizes.embedding}"
    )
    fits = sizes.embedding == embedding
    require(fits, "train_masks.init", fields.init, accepted)
  accepted = f"at most {sizes.n_queries}, the queries"
  has_enough = fields.targets <= sizes.n_queries
  require(has_enough, "train_masks.targets", fields.targets, accepted)
  return sizes


def _synonyms(names: Sequence[str]) -> list[tuple[str, ...]]:
  """Names of each class: its first name alone."""
  return [(name,) for name in names]


def _classes(folder: RunFolder, named: NamedPrompt, names: Sequence[str]) -> Pieces:
  """The store of `classes.json`; its key covers all that the class matrix depends on,
  except for the CLIP."""
  return Pieces(folder.path, fingerprint(map(str, key_parts(named, _synonyms(names)))))


def _stored_context(prompt: AnyPrompt) -> np.ndarray | None:
  """A prompt's context if a checkpoint can hold it: shared, and before the names."""
  if not isinstance(prompt, Prompt) or prompt.sentences is not None:
    return None
  if prompt.context.ndim != 2 or prompt.position != "end":
    return None
  return prompt.context


def _write(training: MaskRun, checkpoint: Checkpoint, prompt: NamedPrompt) -> None:
  """Writes the network, the curves and the results."""
  folder = training.folder
  names = tuple(training.source.names)
  params = checkpoint.state.params
  content = published_weights.MaskFormerFile(
    training.sizes, jax.device_get(params), names
  )
  path = folder.path / "masks.safetensors"
  with writing(path), replacing(path) as file:
    published_weights.write_mask_former(file, content, _stored_context(prompt.prompt))
  scalars = folder.scalars()
  plots.training_curves(
    folder.plots / "training.png",
    scalars,
    loss_unit="weighted sum over all layers",
    classes="classes of matched masks",
  )
  n_images = training.total_steps * training.loop.batch_size
  results = {
    "job": training.config["job"],
    "seed": training.seed,
    "clip_model": training.encoder.clip.name,
    "network": "masks.safetensors",
    "images": len(training.source),
    "classes": len(names),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": training.total_steps,
    "seconds": round(checkpoint.seconds, 2),
    "images_per_second": round(n_images / checkpoint.seconds, 1),
    "roll_backs": checkpoint.roll_backs,
    "unreadable_images": len(checkpoint.unreadable),
    "last": {name: scalars[name][1][-1] for name in _SCALARS},
  }
  # Write the results last, since a folder with results is a finished run.
  folder.write_results(results)
  log.info("the network and its curves are in %s", folder.path)
