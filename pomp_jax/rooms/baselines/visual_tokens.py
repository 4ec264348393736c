"""Learned tokens in the vision tower: VPT (Jia et al., 2022), MaPLe, IVLP (Khattak et
al., 2023).

All of them train on pixels.

VPT-shallow adds tokens before the first layer, VPT-deep adds new tokens before each of
J layers. Text features are fixed.

MaPLe's text tower has M vectors before the name, and replaces them before each of its
layers 1..J-1. Its vision tower has M tokens at the same depths. Each token is a linear
map of a text vector: p_j = Linear_j(t_j), from width D to width W. As in the released
code, the context starts from the first M = 2 tokens of "a photo of a", and "of a"
precedes each name (`initial_words`).

IVLP, PromptSRC's learner, has MaPLe's text tower and VPT-deep's vision tower: V tokens
that are learned independently, without a map.

Shapes: B images of a draw, R classes of a device, J layers with tokens, V or M tokens
in a layer, F fixed words, D width of the text tower, W width of the vision tower, E
embedding. Images are [B,H,W,3] with H and W in pixels.
"""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

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
from pomp_jax.train.initial_context import initial_words
from pomp_jax.train.memory import activation_memory

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
    """Returns the pixels, and the frozen tower's features if used; see `Learner`."""
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
    """Encodes the images of a draw; the devices of the class axis divide them.

    Args:
      params: learned parameters.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].
      labels_B: class of each image.
      frozen_BxE: features of the frozen image tower, passed on.
    """
    image_features = functools.partial(self.image_features, params, frozen)
    features_BxE = split_over_class(image_features, images_B)
    return Seen(
      features=features_BxE,
      labels=labels_B,
      for_sampler=features_BxE,
      frozen=frozen_BxE,
    )


@dataclasses.dataclass(frozen=True)
class VPTLearner(PixelLearner):
  """Learns {"visual": [J,V,W]}, from N(0, 0.02^2); text features are fixed."""

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
    """Looks up the features of the classes, which do not depend on the parameters.

    Args:
      params: not read.
      frozen: features of all classes [N,E].
      class_ids_R: int32 [R], the classes of this device.
      image_features_BxE: not read.
    """
    del params, image_features_BxE
    features_RxE = frozen.classes[class_ids_R]
    return TextFeatures(features_RxE)


@dataclasses.dataclass(frozen=True)
class DeepTextLearner(Learner):
  """Learns {"context": [M,D], "deep": [J-1,M,D]}; image features are the frozen CLIP's.

  If J = 1 there is no "deep", because checkpoints hold no empty arrays.
  """

  plain: ContextLearner  # a context before the name, and the text tower "shared"
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
    """Runs the text tower with learned vectors in its deeper layers too.

    Args:
      params: context, and the vectors of the deeper layers.
      frozen: text tower and tokens.
      class_ids_R: int32 [R], the classes of this device.
      image_features_BxE: not read: the features are the same for all images.
    """
    shared_tower: Any = self.plain.text_tower
    deep = params.get("deep")

    def deep_tower(*inputs: Any) -> jax.Array:
      return shared_tower(*inputs, deep)

    plain = dataclasses.replace(self.plain, text_tower=deep_tower)
    return plain.text_features(params, frozen, class_ids_R, image_features_BxE)


@dataclasses.dataclass(frozen=True)
class MaPLeLearner(DeepTextLearner, PixelLearner):
  """Learns `DeepTextLearner`'s vectors and linear maps to the image tower's tokens.

  The maps are {"coupling": {"kernel": [J,D,W], "bias": [J,W]}}.
  """

  vision_width: int

  def init(self, key: jax.Array) -> Any:
    """See `Learner`; as published, the maps of layers 1..J-1 start equal."""
    _, _, first_key, other_key = jax.random.split(key, 4)
    width = self.plain.module.width
    first = init_dense(first_key, width, self.vision_width)
    other = init_dense(other_key, width, self.vision_width)
    # Stack the first layer's map and J - 1 copies of the other.
    coupling = jax.tree.map(
      lambda *layers: jnp.stack(layers), first, *[other] * (self.depth - 1)
    )
    return {**super().init(key), "coupling": coupling}

  def image_features(
    self, params: Any, frozen: Frozen, images_B: jax.Array
  ) -> jax.Array:
    """Runs the image tower with tokens that are linear maps of the text vectors.

    Each layer has its own map (MaPLe, Khattak et al., 2023).

    Args:
      params: vectors of the text tower, and the maps.
      frozen: the image tower.
      images_B: images, uint8 [B,H,W,3].

    Returns:
      Features [B,E], of any length.
    """
    text_JxMxD = params["context"][None]
    if "deep" in params:
      text_JxMxD = jnp.concatenate([text_JxMxD, params["deep"]])
    dense_of_each_layer = jax.vmap(dense)
    visual_JxMxW = dense_of_each_layer(params["coupling"], text_JxMxD)
    return self.prompted_tower(frozen.image, images_B, visual_JxMxW)


@dataclasses.dataclass(frozen=True)
class IVLPLearner(DeepTextLearner, VPTLearner):
  """Learns `DeepTextLearner`'s vectors and `VPTLearner`'s tokens independently."""

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    *_, visual_key = jax.random.split(key, 4)
    return DeepTextLearner.init(self, key) | VPTLearner.init(self, visual_key)


class VPT(Baseline):
  """VPT as a method of a training."""

  # Towers whose layers have tokens.
  towers: tuple[str, ...] = ("vision",)

  def check(self, prompt: Prompt, clip: ClipConfig) -> None:
    """Checks that a CLIP's towers can have learned tokens at this depth.

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
    """Adds the class features of the hand-written prompt to `Pomp`'s arrays.

    Args:
      prompt: fields of the prompt.
      template: hand-written prompt.
      encoder: the CLIP.
      names: names of the classes.
    """
    frozen = super().frozen_arrays(prompt, template, encoder, names)
    class_features_NxE = encoder.class_features(names, template)
    on_all_devices = replicate(class_features_NxE, encoder.mesh)
    return frozen._replace(classes=on_all_devices)

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds the learner of tokens in the image tower, see `Pomp`.

    Args:
      plain: POMP's learner, not read, because the class features are fixed.
      encoder: the CLIP.
      prompt: numbers of tokens and layers.
      clip: type of the image tower, and its memory.
    """
    vision = _vision(encoder, clip)
    tokens = prompt.of(Tokens)
    return VPTLearner(
      vision.tower,
      width=vision.width,
      n_tokens=tokens.visual_tokens,
      depth=tokens.depth,
    )


class MaPLe(VPT):
  """MaPLe as a method of a training."""

  towers: tuple[str, ...] = ("vision", "text")
  fixed_words = True

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """Puts the fixed words before the name in each class's own tokens.

    The context replaces the first M initial words. The other F words are fixed, and
    come after the learned vectors.

    Args:
      prompt: number of context vectors, and their initial words.
      template: hand-written prompt, which is not read.
      encoder: the CLIP.
      names: names of the classes.
    """
    words = initial_words(prompt, encoder.clip, fixed_words=True)
    fixed_F = words[prompt.m :]
    n_fixed = len(fixed_F)
    vocabulary = encoder.vocabulary(names, prompt.m + n_fixed)
    frozen = encoder.frozen(vocabulary)

    tokens = jax.tree.map(np.asarray, frozen.tokens)
    n_classes = len(tokens.ids)
    fixed_NxF = np.tile(fixed_F, (n_classes, 1))
    longer = ClassTokens(
      ids=np.concatenate([fixed_NxF, tokens.ids], axis=1),
      name_lengths=tokens.name_lengths + n_fixed,
      lengths=tokens.lengths + n_fixed,
    )
    return frozen._replace(tokens=replicate(longer, encoder.mesh))

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds the learner of text vectors, and of their maps to the image tower.

    Args:
      plain: POMP's learner, whose context and text tower this learner uses.
      encoder: the CLIP.
      prompt: number of layers with tokens.
      clip: type of the image tower, and its memory.
    """
    vision = _vision(encoder, clip)
    depth = prompt.of(Tokens).depth
    return MaPLeLearner(vision.tower, plain, depth, vision_width=vision.width)


class IVLP(MaPLe):
  """IVLP as a method of a training."""

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds the learner of vectors in the text tower and of tokens in the image tower.

    Args:
      plain: POMP's learner, whose context and text tower this learner uses.
      encoder: the CLIP.
      prompt: numbers of tokens and layers.
      clip: type of the image tower, and its memory.
    """
    vision = _vision(encoder, clip)
    tokens = prompt.of(Tokens)
    return IVLPLearner(
      vision.tower,
      width=vision.width,
      n_tokens=tokens.visual_tokens,
      depth=tokens.depth,
      plain=plain,
    )


class DeepText(MaPLe):
  """ProText's vectors (Khattak et al., 2024) as a method: only in the text tower."""

  towers = ("text",)

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds the learner of vectors in the text tower alone.

    Args:
      plain: POMP's learner, whose context and text tower this learner uses.
      encoder: the CLIP, which is not read.
      prompt: number of layers with vectors.
      clip: fields of the CLIP, which are not read.
    """
    depth = prompt.of(Tokens).depth
    return DeepTextLearner(plain, depth)


class _Vision(NamedTuple):
  """An image tower that takes learned tokens."""

  tower: PromptedImageTower
  width: int  # W, width of the tokens


def _vision(encoder: Encoder, clip: fields.Clip) -> _Vision:
  """Builds the image tower of the methods with visual tokens.

  Args:
    encoder: the CLIP.
    clip: type of the tower, and its memory.
  """
  # The text tower gets the other half of the memory.
  memory = activation_memory(clip) / 2
  tower = prompted_image_tower(encoder.clip, clip.dtype, clip.image_chunk, memory)
  width = encoder.clip.config.vision_config.hidden_size
  return _Vision(tower, width)


def prompted_image_tower(
  clip: Clip, dtype: Any = jnp.float32, chunk: int = 0, limit_bytes: float = 0.0
) -> PromptedImageTower:
  """Builds `(clip.vision_params, images, tokens) -> features`, not normalised.

  Layer j < J takes the V tokens tokens[j]. The outputs of layer j - 1 at its learned
  tokens are dropped (Jia et al., 2022: J = 1 is VPT-shallow, J = all layers VPT-deep).
  The first tokens enter before the tower's first layer norm. Learned tokens have no
  positions. Features are float32.

  Args:
    clip: CLIP with a ViT.
    dtype: type that the tower computes in, see `clip.vision.image_tower`.
    chunk: images computed together, see `clip.vision.image_tower`; 0: all.
    limit_bytes: limit of the activations, by a rough estimate. Above it each chunk is
      rematerialised in the backward pass, so that only one chunk's activations are in
      memory.
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
    # With a single chunk, rematerialisation would save nothing: the backward pass needs
    # all activations at once.
    has_several_chunks = 0 < chunk < n_images
    if has_several_chunks and n_bytes > limit_bytes:
      return remat_tower(params, images_BxHxWx3, tokens_JxVxD)
    return plain_tower(params, images_BxHxWx3, tokens_JxVxD)

  return tower


def prompted_activation_bytes(vit: Any, n_images: int, n_learned: int) -> float:
  """Estimates the residuals of a prompted ViT without rematerialisation, in bytes.

  Counts float32 numbers for each token and layer: nine vectors of the tower's width
  (inputs and outputs of the norms, query, key, value, the result of attention), three
  of the MLP's width, and the attention weights twice.

  Args:
    vit: sizes of the ViT.
    n_images: images of a step, B.
    n_learned: learned tokens of a layer, V.
  """
  patches_a_side = vit.image_size // vit.patch_size
  n_tokens = 1 + patches_a_side**2 + n_learned  # class token, patches, learned tokens
  attention_weights = vit.num_attention_heads * n_tokens
  numbers = 9 * vit.hidden_size + 3 * vit.intermediate_size + 2 * attention_weights
  bytes_of_image = 4.0 * numbers * vit.num_hidden_layers * n_tokens
  return bytes_of_image * n_images
