"""Methods by their rows in `config.METHODS`: learners of gradient steps, fitted classifiers.

What several methods share follows the flags of the row.
Shapes: n images, N classes, B images of a shard, R classes of P chunks, M context vectors, F fixed
tokens, E embedding.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from pomp_jax.clip import Clip, tokenize
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.text import token_embeddings
from pomp_jax.config import METHODS, ConfigError, Settings, fields
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.data.loader import SkippedImages
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.image_batches import image_batches
from pomp_jax.evaluate.metrics import Accuracy, accuracy_of_ranks, ranks
from pomp_jax.evaluate.named_prompts import ENSEMBLE, HAND_WRITTEN, features_under
from pomp_jax.evaluate.predictions import classifier_accuracy, rank_rows, topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import check_fits, format_of_name, load_prompt
from pomp_jax.files.prompt_formats import UNKNOWN_CLIP
from pomp_jax.files.run_folder import RunFolder, prompt_path
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen, ImageLearner, Learner
from pomp_jax.prompt.loss import normalize
from pomp_jax.prompt.mesh import replicate
from pomp_jax.train.batches import open_fetch, readable_features, view_features
from pomp_jax.train.fill_features import fill_features

# Classes in a chunk, for per-image class features.
_CLASSES = 256
# Images decoded at a time over all processes, and images scored at a time with per-image class
# features.
_IMAGES = 512
_IMAGES_WITH_CLASSES = 32
# Hand-written prompts of a zero-shot CLIP: the template of the data set, the name alone, and CLIP's
# ensembles of 7 and of 80 templates.
_ZERO_SHOT = {
  "hand_written": HAND_WRITTEN,
  "class_name": "{}.",
  "ensemble_7": f"{ENSEMBLE}:imagenet_7",
  "ensemble_80": f"{ENSEMBLE}:imagenet",
}


def check(config: Settings, clip: ClipConfig) -> None:
  """Checks that the method fits the CLIP; ConfigError if it does not."""
  method = METHODS[config.method]
  if method.pixels and isinstance(clip.vision_config, ResNetConfig):
    raise ConfigError("method", config.method, "a CLIP with a ViT; this one has a ResNet")
  if method.deep:
    towers = {"vision": clip.vision_config, "text": clip.text_config}
    most = min(towers[tower].num_hidden_layers for tower in method.deep)
    if config.prompt.depth > most:
      limit = f"at most {most}, the layers of this CLIP's {' or '.join(method.deep)} tower"
      raise ConfigError("prompt.depth", config.prompt.depth, limit)


def initial_words(
  config: Settings, clip: Clip
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " F"]]:
  """Token ids of `prompt.init`: of the M learned vectors, and of F fixed words behind them.

  Both are empty for a random start and a prompt file. ConfigError for words of fewer than M tokens,
  or of more where the method has no `fixed_words`.
  """
  words, n_vectors = config.prompt.init, config.prompt.m
  if not words or _is_prompt(words):
    return np.zeros(0, np.int32), np.zeros(0, np.int32)
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]
  may_be_longer = METHODS[config.method].fixed_words
  if len(ids_T) < n_vectors or (len(ids_T) > n_vectors and not may_be_longer):
    or_more = " or more" if may_be_longer else ""
    limit = f"words of prompt.m = {n_vectors} tokens{or_more}; these have {len(ids_T)}"
    raise ConfigError("prompt.init", words, limit)
  return ids_T[:n_vectors], ids_T[n_vectors:]


def initial_context(config: Settings, clip: Clip, n_classes: int) -> np.ndarray | None:
  """Context [M,D] or [N,M,D] that `prompt.init` names for the start; None for a random one.

  ConfigError for another M or position than the file's, PromptFileError for another D or N.
  """
  path, prompt = config.prompt.init, config.prompt
  if not _is_prompt(path):
    ids_M, _ = initial_words(config, clip)
    return np.asarray(token_embeddings(clip.params, ids_M)) if len(ids_M) else None
  stored = load_prompt(path)
  check_fits(stored, clip.text_width, clip.name, n_classes, path)
  if stored.context.shape[-2] != prompt.m:
    raise ConfigError("prompt.m", prompt.m, f"{stored.context.shape[-2]}, as in {path}")
  if stored.context.ndim == 3 and not prompt.class_specific:
    raise ConfigError("prompt.class_specific", False, f"True, as in {path}")
  # Checkpoints of other code do not tell their position.
  if stored.position != prompt.position and stored.clip_model != UNKNOWN_CLIP:
    raise ConfigError("prompt.position", prompt.position, f"{stored.position!r}, as in {path}")
  return stored.context


def _is_prompt(text: str) -> bool:
  """Whether `prompt.init` names a prompt file or a folder; all other texts are words."""
  return format_of_name(prompt_path(text)) is not None


def frozen_arrays(config: Settings, encoder: Encoder, names: Sequence[str]) -> Frozen:
  """Arrays that the method's steps read, for a list of classes; errors as `vocabulary`'s."""
  _, fixed_F = initial_words(config, encoder.clip)
  frozen = encoder.frozen(encoder.vocabulary(names, config.prompt.m + len(fixed_F)))
  if len(fixed_F):
    tokens = jax.tree.map(np.asarray, frozen.tokens)
    tokens = ClassTokens(
      np.concatenate([np.tile(fixed_F, (len(tokens.ids), 1)), tokens.ids], axis=1),
      tokens.name_lengths + len(fixed_F),
      tokens.lengths + len(fixed_F),
    )
    frozen = frozen._replace(tokens=replicate(tokens, encoder.mesh))
  if METHODS[config.method].fixed_text:
    classes_NxE = encoder.class_features(names, config.eval.template)
    frozen = frozen._replace(classes=replicate(classes_NxE, encoder.mesh))
  return frozen


def make_learner(
  method: str, plain: ContextLearner, clip: Clip, prompt: fields.Prompt, own: fields.Clip
) -> Learner:
  """Builds a method's learner from CoOp's; `own` is `config.clip`."""
  row = METHODS[method]
  return row.load()(plain, clip, prompt, own) if row.path else plain


def accuracy_of_learner(
  config: Settings, encoder: Encoder, module: PromptContext
) -> Callable[[Any, SplitFeatures, Source], Accuracy]:
  """Returns a function (parameters, features of a split, its images) -> top-1 and top-5."""
  method = METHODS[config.method]
  plain = ContextLearner(module, encoder.text_tower())
  learner = make_learner(config.method, plain, encoder.clip, config.prompt, config.clip)
  compiled = compiled_accuracy(encoder, learner, method.per_image_text, config.data)
  frozen = functools.lru_cache(maxsize=1)(lambda names: frozen_arrays(config, encoder, names))
  return lambda params, split, source: compiled(params, frozen(split.names), split, source)


def compiled_accuracy(
  encoder: Encoder, learner: Learner, per_image: bool, data: Data
) -> Callable[[Any, Frozen, SplitFeatures, Source], Accuracy]:
  """Returns the accuracy of any parameters on any split, compiled once for all.

  The learner has no token budget; `per_image` is whether its class features depend on the image.
  The function takes parameters on the mesh, frozen arrays with the split's classes, features of the
  split, and its images, which only an `ImageLearner` reads.
  """

  def of_images(params, frozen, images_B):
    return normalize(learner.image_features(params, frozen, images_B))

  def of_classes(params, frozen, ids_R):
    no_images = jnp.zeros((0, 1))
    return normalize(learner.text_features(params, frozen, ids_R, no_images).features)

  def ranks_of_pairs(params, frozen, ids_N, rows):
    features_BxE, labels_B = rows
    unit_BxE = normalize(features_BxE)
    # The last chunk is padded with the first class.
    ids_PxR = jnp.pad(ids_N, (0, -ids_N.size % _CLASSES)).reshape(-1, _CLASSES)

    def of_part(ids_R):
      classes = learner.text_features(params, frozen, ids_R, features_BxE)
      return jnp.einsum(
        "be,rbe->br", unit_BxE, normalize(classes.features), precision=jax.lax.Precision.HIGHEST
      )

    scores_PxBxR = jax.lax.map(of_part, ids_PxR)
    scores_BxN = jnp.moveaxis(scores_PxBxR, 0, 1).reshape(features_BxE.shape[0], -1)
    return ranks(scores_BxN[:, : ids_N.size], labels_B)

  # Split over the devices, as `rank_rows` takes them.
  mesh = encoder.mesh
  images = map_rows(mesh, of_images, n_replicated=2, gather=False)
  classes, pairs = encoder.over_rows(of_classes, 2), encoder.over_rows(ranks_of_pairs, 3)

  def ranks_of_images(params, frozen, split, source, classes_NxE) -> np.ndarray:
    """Reads the images again; those that can't be read any more are dropped."""
    if isinstance(source, StoredImages):
      source = source.replace(image_size=encoder.clip.image_size)
    skipped, classes_NxE = SkippedImages(source, data.max_corrupt), replicate(classes_NxE, mesh)
    task = "features of images"
    read = image_batches(encoder, source, skipped, _IMAGES, data.threads, task, split.indices)
    rows = ((images(params, frozen, x.images), x.labels, x.n_images) for x in read)
    ranked = ((rank_rows(mesh)(classes_NxE, row), n) for *row, n in rows)
    ranks_n = np.concatenate([rank_B[:n] for rank_B, n in fetched(ranked)])
    skipped.gather()
    return ranks_n[~np.isin(split.indices, list(skipped.reasons))]

  def accuracy(params: Any, frozen: Frozen, split: SplitFeatures, source: Source) -> Accuracy:
    ids_N = np.arange(len(split.names), dtype=np.int32)
    if not per_image:
      classes_NxE = classes(params, frozen, ids_N)
      if not isinstance(learner, ImageLearner):
        return topk_accuracy(split.features, classes_NxE, split.labels, mesh=mesh)
      rank_n = ranks_of_images(params, frozen, split, source, classes_NxE)
      return accuracy_of_ranks(rank_n, ids_N.size)
    found = []
    starts = range(0, len(split.labels), _IMAGES_WITH_CLASSES)
    for start in steps_of(starts, "scoring", "parts"):
      part = slice(start, start + _IMAGES_WITH_CLASSES)
      rows = split.features[part], split.labels[part].astype(np.int32)
      found.append(pairs(params, frozen, ids_N, rows))
    return accuracy_of_ranks(np.concatenate(found), ids_N.size)

  return accuracy


class Fitted(NamedTuple):
  """A fitted classifier."""

  classifier: Any  # NamedTuple of arrays with a method `scores`: features [n,E] -> [n,N]
  names: tuple[str, ...]
  found: dict[str, Any]  # what the search for its settings found, as JSON


def fit(config: Settings, encoder: Encoder, folder: RunFolder) -> Fitted:
  """Fits the classifier of `config.method`; the run's folder stores features of images.

  FloatingPointError if no setting gives a finite classifier.
  """
  source = inputs.open_training_source(config.data, encoder.clip.image_size)
  fill_features(config, folder, source, encoder)
  fetch = open_fetch(config.data, source, encoder, folder)
  validation = inputs.open_source(config.data, "validation", n_images=config.eval.images)
  classifier, found = METHODS[config.method].load()(
    config,
    encoder,
    source,
    readable_features(config, encoder, validation, folder),
    view_epochs=functools.partial(view_features, config.data, source, encoder, fetch),
    text_features=functools.partial(features_under, encoder, _class_list(config, source.names)),
  )
  return Fitted(classifier, tuple(source.names), found)


def scores_of_features(
  config: Settings, encoder: Encoder, split: SplitFeatures, fitted: Fitted | None
) -> dict[str, Accuracy]:
  """Accuracy of a classifier by its method's name, and of hand-written prompts; all if None."""
  scores = {config.method: classifier_accuracy(fitted.classifier, split)} if fitted else {}
  classes = _class_list(config, split.names)
  for prompt, text in _ZERO_SHOT.items():
    if not fitted or prompt in ("hand_written", "class_name"):
      features_NxE = features_under(encoder, classes, text)
      scores[prompt] = topk_accuracy(split.features, features_NxE, split.labels, mesh=encoder.mesh)
  return scores


def _class_list(config: Settings, names: Sequence[str]) -> ClassList:
  """Classes with the templates of their data set, if it has any."""
  template = config.eval.template
  known = ClassList((), None, template, (template,), config.data.source)
  if config.data.dataset in CLASS_LISTS:
    known = load_class_list(config.data.dataset)
  return dataclasses.replace(known, names=tuple(names), synsets=None)
