"""Training of a network that finds regions, made ready for the loop: `train_masks`."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.config import ConfigError, Settings
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.class_matrix import class_matrix
from pomp_jax.evaluate.named_prompts import NamedPrompt, only_prompt, read_prompts
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.step import TrainState
from pomp_jax.rooms.regions.fields import TrainMasks
from pomp_jax.rooms.regions.mask_former.losses import LossWeights
from pomp_jax.rooms.regions.mask_former.model import VARIANTS, MaskFormer, MaskFormerConfig
from pomp_jax.rooms.regions.mask_former.optimizer import adamw, poly_schedule
from pomp_jax.rooms.regions.mask_former.step import MaskLearner, make_mask_step
from pomp_jax.rooms.regions.mask_former.weights import read_mask_former
from pomp_jax.rooms.regions.mask_sets import open_mask_set
from pomp_jax.rooms.regions.mask_views import MaskAugmentation, MaskViews
from pomp_jax.train.setup import Training


@dataclasses.dataclass(frozen=True)
class MaskTraining(Training):
  """Training of a MaskFormer; `frozen` is the class matrix [N,E] of its classes under `prompt`."""

  sizes: MaskFormerConfig
  prompt: NamedPrompt

  @property
  def n_groups(self) -> int:
    """One: dropout has a stream for the whole batch, on any number of devices."""
    return 1

  def learner(self) -> MaskLearner:
    """Parameters of `train_masks.init`, or random ones."""
    path = self.config.train_masks.init
    start = read_mask_former(path).params if path else None
    return MaskLearner(MaskFormer(self.sizes), start)

  def build_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `rooms.regions.mask_former.step.make_mask_step` in `clip.dtype`."""
    own = self.config.train_masks
    dtype, products = precision_of(self.config.clip.dtype)
    step = make_mask_step(
      mesh=self.encoder.mesh,
      model=MaskFormer(self.sizes, dtype),
      optimizer=self.optimizer,
      weights=LossWeights(own.classes, own.focal, own.dice, own.no_object),
    )
    return with_products(products, step)


def network_sizes(own: TrainMasks, embedding: int) -> MaskFormerConfig:
  """Sizes of the network of `config.train_masks`, for a CLIP of this E.

  Raises:
    ConfigError: another E or fewer queries than targets.
    MaskFormerError: an unusable `train_masks.init`.
  """
  sizes = dataclasses.replace(VARIANTS[own.network], embedding=embedding)
  if own.init:
    sizes = read_mask_former(own.init).config
    if sizes.embedding != embedding:
      found = f"a network with embeddings of {embedding}; this one has {sizes.embedding}"
      raise ConfigError("train_masks.init", own.init, found)
  if own.targets > sizes.n_queries:
    raise ConfigError("train_masks.targets", own.targets, f"at most {sizes.n_queries}, the queries")
  return sizes


def prompt_of_classes(own: TrainMasks) -> NamedPrompt:
  """The one prompt that `train_masks.prompt` names."""
  return only_prompt(read_prompts([own.prompt], "train_masks.prompt"), "train_masks.prompt")


def prepare(config: Settings, folder: RunFolder) -> MaskTraining:
  """Opens everything that a training needs, and writes nothing; errors are one line each."""
  own = config.train_masks
  encoder = inputs.open_encoder(config)
  source = open_mask_set(own, config.seed)
  sizes = network_sizes(own, encoder.clip.config.projection_dim)
  # The first name of each class.
  names = [(name,) for name in source.names]
  prompt = prompt_of_classes(own)
  classes_NxE = class_matrix(encoder, names, prompt).features
  steps_per_epoch = max(1, len(source) // config.batch_size)
  total_steps = config.steps or config.epochs * steps_per_epoch
  rate = poly_schedule(own.lr, own.power, total_steps, own.warmup)
  augmentation = MaskAugmentation(own.augment, config.seed, (own.min_scale, own.max_scale))
  return MaskTraining(
    config=config,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=MaskViews(source, own.size, own.targets, augmentation),
    frozen=replicate(jnp.asarray(classes_NxE), encoder.mesh),
    optimizer=adamw(
      rate, weight_decay=own.weight_decay, backbone=own.backbone, clip_norm=own.clip_norm
    ),
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    sizes=sizes,
    prompt=prompt,
  )
