"""Learned tokens in the vision tower: VPT (Jia et al., 2022), MaPLe, IVLP (Khattak et
al., 2023).

All train on pixels. VPT-shallow adds tokens before the first layer, VPT-deep new ones
before each of J layers; its text features are fixed. MaPLe's text tower has M vectors
before the name, and replaces them before each of its layers 1..J-1. The vision tower
has M tokens at the same depths, each a linear map of the text's: p_j = Linear_j(t_j), D
to W. As released, the context starts from the first M = 2 tokens of "a photo of a", and
"of a" precedes each name (`initial_words`). IVLP, PromptSRC's learner, is VPT-deep
beside MaPLe's text tower: no map, and V tokens of its own. Shapes: B images of a draw,
R classes of a device, J layers with tokens, V or M tokens in each, D width of the text
tower, W of the vision tower, E embedding.
"""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.vision import image_tower
from pomp_jax.config import ConfigError, fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Prompt
from pomp_jax.encoder import Encoder
from pomp_jax.prompt.context import INIT_STDDEV, ClassTokens
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner, Seen, TextFeatures
from pomp_jax.prompt.mesh import replicate, split_over_class
from pomp_jax.rooms.baselines.cocoop import dense, init_dense
from pomp_jax.rooms.baselines.fields import Tokens
from pomp_jax.rooms.baselines.learner_accuracy import Baseline
from pomp_jax.train.memory import activation_memory
from pomp_jax.train.methods import initial_words

# Function (params, images [B,H,W,3], tokens [J,V,W]) -> features [B,E].
PromptedImageTower = Callable[[Params, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class PixelLearner(Learner):
  """A learner with tokens in the image tower."""

  prompted_tower: PromptedImageTower

  learns_images = True

  @abc.abstractmethod
  def image_features(
    self, params: Any, frozen: Frozen, images_B: jax.Array
  ) -> jax.Array:
    """Features [B,E] of images.

    Args:
      params: learned parameters.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].
    """

  def observe(
    self, frozen: Frozen, images: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """See `Learner`; the pixels."""
    if self.image_tower is None:
      return images, None
    return images, self.image_tower(frozen.image, images)

  def see(
    self,
    params: Any,
    frozen: Frozen,
    images_B: jax.Array,
    labels_B: jax.Array,
    frozen_BxE: jax.Array | None,
  ) -> Seen:
    """See `Learner`; the images are split over the class axis.

    Args:
      params: learned parameters.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].
      labels_B: class of each image.
      frozen_BxE: features of the frozen image tower, passed on.
    """
    features = functools.partial(self.image_features, params, frozen)
    features_BxE = split_over_class(features, images_B)
    return Seen(features_BxE, labels_B, for_sampler=features_BxE, frozen=frozen_BxE)


@dataclasses.dataclass(frozen=True)
class VPTLearner(PixelLearner):
  """{"visual": [J,V,W]}, from N(0, 0.02^2); text features are `Frozen.classes`."""

  width: int
  n_tokens: int
  depth: int  # 1 is VPT-shallow, all layers VPT-deep

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    shape = (self.depth, self.n_tokens, self.width)
    return {"visual": INIT_STDDEV * jax.random.normal(key, shape)}

  def image_features(
    self, params: Any, frozen: Frozen, images_B: jax.Array
  ) -> jax.Array:
    """See `PixelLearner`.

    Args:
      params: the tokens.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].
    """
    return self.prompted_tower(frozen.image, images_B, params["visual"])

  def text_features(
    self,
    params: Any,
    frozen: Frozen,
    class_ids_R: jax.Array,
    image_features_BxE: jax.Array,
  ) -> TextFeatures:
    """See `Learner`; a look-up.

    Args:
      params: not read.
      frozen: features of all classes.
      class_ids_R: classes.
      image_features_BxE: not read.
    """
    del params, image_features_BxE
    return TextFeatures(frozen.classes[class_ids_R])


@dataclasses.dataclass(frozen=True)
class DeepTextLearner(Learner):
  """{"context": [M,D], "deep": [J-1,M,D]}; image features are the frozen CLIP's.

  No "deep" where J = 1: checkpoints hold no empty arrays.
  """

  plain: ContextLearner  # a context before the name, and the shared tower
  depth: int  # J, layers of the text tower with vectors of their own

  def init(self, key: jax.Array) -> Any:
    """See `Learner`; the last two of the four keys are for learners with visual
    tokens."""
    context_key, deep_key, _, _ = jax.random.split(key, 4)
    params = self.plain.init(context_key)
    if self.depth > 1:
      shape = (self.depth - 1, self.plain.module.n_vectors, self.plain.module.width)
      params["deep"] = INIT_STDDEV * jax.random.normal(deep_key, shape)
    return params

  def text_features(
    self,
    params: Any,
    frozen: Frozen,
    class_ids_R: jax.Array,
    image_features_BxE: jax.Array,
  ) -> TextFeatures:
    """See `Learner`; the same for all images.

    Args:
      params: context, and the vectors of the deeper layers.
      frozen: text tower and tokens.
      class_ids_R: classes.
      image_features_BxE: features of the images, which change nothing.
    """
    shared: Any = self.plain.text_tower
    tower = lambda *inputs: shared(*inputs, params.get("deep"))
    plain = dataclasses.replace(self.plain, text_tower=tower)
    return plain.text_features(params, frozen, class_ids_R, image_features_BxE)


@dataclasses.dataclass(frozen=True)
class MaPLeLearner(DeepTextLearner, PixelLearner):
  """`DeepTextLearner`'s and {"coupling": {"kernel": [J,D,W], "bias": [J,W]}}."""

  vision_width: int

  def init(self, key: jax.Array) -> Any:
    """See `Learner`; as published, the maps of the deeper layers start equal."""
    _, _, first_key, other_key = jax.random.split(key, 4)
    width = self.plain.module.width
    first = init_dense(first_key, width, self.vision_width)
    other = init_dense(other_key, width, self.vision_width)
    coupling = jax.tree.map(
      lambda *layers: jnp.stack(layers), first, *[other] * (self.depth - 1)
    )
    return {**super().init(key), "coupling": coupling}

  def image_features(
    self, params: Any, frozen: Frozen, images_B: jax.Array
  ) -> jax.Array:
    """See `PixelLearner`; maps the text tower's tokens to the vision tower's.

    Args:
      params: vectors of the text tower, and the maps.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].
    """
    text_JxMxD = params["context"][None]
    if "deep" in params:
      text_JxMxD = jnp.concatenate([text_JxMxD, params["deep"]])
    visual_JxMxW = jax.vmap(dense)(params["coupling"], text_JxMxD)
    return self.prompted_tower(frozen.image, images_B, visual_JxMxW)


@dataclasses.dataclass(frozen=True)
class IVLPLearner(DeepTextLearner, VPTLearner):
  """`DeepTextLearner`'s and `VPTLearner`'s: tokens of both towers, learned
  independently."""

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    *_, visual_key = jax.random.split(key, 4)
    return DeepTextLearner.init(self, key) | VPTLearner.init(self, visual_key)


class VPT(Baseline):
  """VPT as a method of a training."""

  # Towers whose layers have tokens.
  towers: tuple[str, ...] = ("vision",)

  def check(self, prompt: Prompt, clip: ClipConfig) -> None:
    """Checks that a CLIP's towers can have the tokens.

    Raises:
      ConfigError: the image tower is no ViT, or `prompt.depth` exceeds the layers.
    """
    if "vision" in self.towers and clip.vit is None:
      raise ConfigError("method", self.name, "a CLIP with a ViT of OpenAI's kind")
    layers: dict[str, Any] = {"vision": clip.vit, "text": clip.text_config}
    most = min(layers[tower].num_hidden_layers for tower in self.towers)
    towers = " or ".join(self.towers)
    accepted = f"at most {most}, the layers of this CLIP's {towers} tower"
    if "text" in self.towers and clip.bidirectional:
      most = 1
      accepted = "1 for a CLIP whose text tower is bidirectional"
    depth = prompt.of(Tokens).depth
    require(depth <= most, "prompt.depth", depth, accepted)

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """See `Pomp`; with the class features of the hand-written prompt.

    Args:
      prompt: fields of the prompt.
      template: hand-written prompt.
      encoder: the CLIP.
      names: names of the classes.
    """
    frozen = super().frozen_arrays(prompt, template, encoder, names)
    classes_NxE = encoder.class_features(names, template)
    return frozen._replace(classes=replicate(classes_NxE, encoder.mesh))

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """See `Pomp`.

    Args:
      plain: POMP's learner, which is not read: the class features are fixed.
      encoder: the CLIP.
      prompt: numbers of tokens and layers.
      clip: type of the image tower, and its memory.
    """
    tower, width = _vision(encoder, clip)
    tokens = prompt.of(Tokens)
    return VPTLearner(tower, width, tokens.visual_tokens, tokens.depth)


class MaPLe(VPT):
  """MaPLe as a method of a training."""

  towers: tuple[str, ...] = ("vision", "text")
  fixed_words = True

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """See `Pomp`; the fixed words precede each name.

    Args:
      prompt: number of context vectors, and their initial words.
      template: hand-written prompt, which is not read.
      encoder: the CLIP.
      names: names of the classes.
    """
    fixed_F = initial_words(prompt, encoder.clip, fixed_words=True)[prompt.m :]
    n_fixed = len(fixed_F)
    frozen = encoder.frozen(encoder.vocabulary(names, prompt.m + n_fixed))
    tokens = jax.tree.map(np.asarray, frozen.tokens)
    tokens = ClassTokens(
      np.concatenate([np.tile(fixed_F, (len(tokens.ids), 1)), tokens.ids], axis=1),
      tokens.name_lengths + n_fixed,
      tokens.lengths + n_fixed,
    )
    return frozen._replace(tokens=replicate(tokens, encoder.mesh))

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """See `Pomp`.

    Args:
      plain: POMP's learner, whose context and text tower this one has.
      encoder: the CLIP.
      prompt: number of layers with tokens.
      clip: type of the image tower, and its memory.
    """
    tower, width = _vision(encoder, clip)
    return MaPLeLearner(tower, plain, prompt.of(Tokens).depth, vision_width=width)


class IVLP(MaPLe):
  """IVLP as a method of a training."""

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """See `Pomp`.

    Args:
      plain: POMP's learner, whose context and text tower this one has.
      encoder: the CLIP.
      prompt: numbers of tokens and layers.
      clip: type of the image tower, and its memory.
    """
    tower, width = _vision(encoder, clip)
    tokens = prompt.of(Tokens)
    return IVLPLearner(tower, width, tokens.visual_tokens, tokens.depth, plain)


class DeepText(MaPLe):
  """ProText's vectors (Khattak et al., 2024), in the text tower alone, as a method."""

  towers = ("text",)

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """See `Pomp`.

    Args:
      plain: POMP's learner, whose context and text tower this one has.
      encoder: the CLIP, which is not read.
      prompt: number of layers with vectors.
      clip: fields of the CLIP, which are not read.
    """
    return DeepTextLearner(plain, prompt.of(Tokens).depth)


def _vision(encoder: Encoder, clip: fields.Clip) -> tuple[PromptedImageTower, int]:
  """The image tower with tokens, and its width."""
  # The text tower gets the other half of the memory.
  memory = activation_memory(clip) / 2
  tower = prompted_image_tower(encoder.clip, clip.dtype, clip.image_chunk, memory)
  return tower, encoder.clip.config.vision_config.hidden_size


def prompted_image_tower(
  clip: Clip, dtype: Any = jnp.float32, chunk: int = 0, limit_bytes: float = 0.0
) -> PromptedImageTower:
  """Builds `(clip.vision_params, images, tokens) -> features`, not normalised.

  Layer j < J sees the V tokens tokens[j], and the previous layer's outputs of its own
  tokens are dropped (Jia et al., 2022: J = 1 is VPT-shallow, J = all layers VPT-deep).
  The first tokens enter before the tower's first layer norm. Learned tokens have no
  positions. Features are float32.

  Args:
    clip: CLIP with a ViT.
    dtype: type that the tower computes in, see `clip.vision.image_tower`.
    chunk: images computed together, see there; 0: all.
    limit_bytes: size of activations, by a rough estimate, above which each chunk is
      rematerialised in the backward pass, where the limit of `chunk` then holds too.
  """
  config: Any = clip.config.vision_config
  plain_tower = image_tower(clip, dtype, chunk, False)
  remat_tower = image_tower(clip, dtype, chunk, True)

  def tower(
    params: Params, images_BxHxWx3: jax.Array, tokens_JxVxD: jax.Array
  ) -> jax.Array:
    n_images = images_BxHxWx3.shape[0]
    n_learned = tokens_JxVxD.shape[1]
    n_bytes = prompted_activation_bytes(config, n_images, n_learned)
    # One chunk would need all of its activations at once in either case.
    has_several_chunks = 0 < chunk < n_images
    if has_several_chunks and n_bytes > limit_bytes:
      return remat_tower(params, images_BxHxWx3, tokens_JxVxD)
    return plain_tower(params, images_BxHxWx3, tokens_JxVxD)

  return tower


def prompted_activation_bytes(vit: Any, n_images: int, n_learned: int) -> float:
  """Rough size of all residuals of a prompted ViT without rematerialisation.

  For each token and layer about nine vectors of width D (inputs and outputs of the
  norms, query, key, value, the result of attention), three of the MLP's, and the
  attention weights twice.

  Args:
    vit: sizes of the ViT.
    n_images: images of a step, B.
    n_learned: learned tokens of a layer, V.
  """
  n_tokens = 1 + (vit.image_size // vit.patch_size) ** 2 + n_learned
  floats = 9 * vit.hidden_size + 3 * vit.intermediate_size
  floats += 2 * vit.num_attention_heads * n_tokens
  return 4.0 * floats * vit.num_hidden_layers * n_tokens * n_images
