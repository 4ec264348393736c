"""A frozen CLIP on the devices: features of class names under a prompt, and of images.

Shapes: N classes, n images, M context vectors, D width, E embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
import numpy as np

from pomp_jax.clip.load import Clip
from pomp_jax.clip.packed import AT_ONCE, MemoryPlan, taken_of
from pomp_jax.clip.text import (
  TextTower,
  block_of,
  text_tower,
  token_embeddings,
  token_table,
  with_embeddings,
)
from pomp_jax.clip.tokens import tokenize
from pomp_jax.clip.vision import image_tower
from pomp_jax.data.class_lists import normalized_names
from pomp_jax.data.images import Resize
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.files.pieces import ArrayCache, fingerprint
from pomp_jax.files.prompt_file import Prompt, PromptFileError, check_fits
from pomp_jax.files.terminal import quoted, steps_of
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import Frozen, sequences_of_tokens
from pomp_jax.prompt.loss import normalize
from pomp_jax.prompt.mesh import CLASS, DATA, make_mesh, replicate, split_rows

# Shapes are rounded up, so that sentences of other lengths and other lists of names use
# a program that is compiled already, which takes seconds. Own tokens of a class: 1 + a
# multiple of these.
_LENGTHS = 16
# Tokens of a device, and embeddings that are read from the host, at least.
_LEAST_TOKENS, _LEAST_EMBEDDINGS = 512, 1024
_DIGEST_TOKENS = 64  # whose embeddings tell two CLIPs apart
CHUNK = 1024  # classes or images that are computed at a time, for features of many


class Encoder:
  """A CLIP with its weights on the devices, replicated; shared by training and
  evaluation."""

  def __init__(
    self,
    clip: Clip,
    *,
    mesh: Mesh | None = None,
    tower: str = "shared",
    dtype: str = "float32",
    chunk: int = CHUNK,
    image_chunk: int = 0,
    cache: ArrayCache | None = None,
  ):
    """Copies the weights of a loaded CLIP to the devices of a mesh, all of them if
    None.

    `tower` is one of `clip.text.TEXT_TOWERS`, `dtype` one of `clip.precision.DTYPES`.
    `chunk` classes or images are computed at a time, over all devices, and at most
    `image_chunk` images are in a device's memory together (0: no limit). Without
    `cache` class features are held in memory.
    """
    self.clip = clip
    self.mesh = make_mesh() if mesh is None else mesh
    self._tower, self._dtype = tower, dtype
    self._compiled = functools.cache(self._compile)
    self.image_tower = image_tower(clip, dtype, image_chunk)
    self._cache = ArrayCache() if cache is None else cache
    # Embeddings that are mapped into memory stay on the host, but for the rows that are
    # used.
    self._mapped = isinstance(token_table(clip.params), np.memmap)
    none = np.zeros((0, clip.text_width), np.float32)
    text = with_embeddings(clip.text_params, none) if self._mapped else clip.text_params
    self._text, self._text_params = text, replicate(text, self.mesh)
    self.vision_params = replicate(clip.vision_params, self.mesh)
    self._sos = replicate(np.asarray(clip.sos_embedding), self.mesh)
    self._chunk = chunk

    # The log shows the names of functions that are compiled.
    def image_features(params: Any, images_B: jax.Array) -> jax.Array:
      return normalize(self.image_tower(params, images_B))

    self._images = map_rows(self.mesh, image_features, n_replicated=1)
    self._tower_images = map_rows(self.mesh, self.image_tower, n_replicated=1)

  @property
  def resize(self) -> Resize:
    """How this CLIP's images become S x S pixels."""
    return Resize(self.clip.squash, self.clip.bilinear)

  def sized(self, source: Source) -> Source:
    """The source, whose images become this CLIP's S x S pixels if they are stored."""
    if not isinstance(source, StoredImages):
      return source
    return source.replace(image_size=self.clip.image_size, resize=self.resize)

  def text_tower(
    self, token_budget: int | None = None, memory: MemoryPlan = AT_ONCE
  ) -> TextTower:
    """Builds the text tower for a token budget; see `clip.text.text_tower`."""
    config = self.clip.config.text_config
    return text_tower(
      self._tower, config, self._dtype, token_budget, memory, self.block
    )

  def capacity(self, module: PromptContext) -> int | None:
    """Own tokens that a block of the text tower holds; None where it has no blocks."""
    if self.block is None:
      return None
    return self.block - len(self.clip.sos_embedding) - module.n_vectors + module.n_own

  @property
  def platform(self) -> str:
    """The devices' kind, as JAX names it: cpu, gpu or tpu."""
    return self.mesh.devices.flat[0].platform

  @property
  def block(self) -> int | None:
    """Rows of a block of the text tower on these devices; None without blocks."""
    return block_of(self._tower, self.clip.config.text_config, self.platform)

  def vocabulary(self, names: Sequence[str], n_vectors: int) -> ClassTokens:
    """Tokenizes "{name}." for every class, with room for a context of M vectors.

    VocabularyError or TokenizeError: no names, or one that is unusable or too long.
    """
    sentences = [f"{name}." for name in normalized_names(names)]
    # Usually the last two tokens are "." and EOT; punctuation at a name's end may share
    # the first.
    n_after = getattr(self.clip.tokenizer, "n_after_name", 2)
    return self._tokenize(sentences, n_vectors, n_after)

  def frozen(self, tokens: ClassTokens) -> Frozen:
    """The frozen arrays of the training step for the classes of `vocabulary`."""
    text_params = self._text_params
    if self._mapped:
      used, ids_NxL = np.unique(tokens.ids, return_inverse=True)
      tokens = tokens._replace(ids=ids_NxL.reshape(tokens.ids.shape).astype(np.int32))
      used_rows = token_embeddings(self.clip.params, used)
      rows = np.zeros(
        (rounded_up(len(used), _LEAST_EMBEDDINGS), *used_rows.shape[1:]), np.float32
      )
      rows[: len(used)] = used_rows
      text_params = with_embeddings(text_params, replicate(rows, self.mesh))
    return Frozen(
      text_params, self.vision_params, self._sos, replicate(tokens, self.mesh)
    )

  def class_features(
    self,
    names: Sequence[str],
    prompt: Prompt | str,
    *,
    unit: bool = True,
    cut: bool = False,
  ) -> Float[np.ndarray, "N E"]:
    """Text features of class names, normalised if `unit`; computed once for a prompt
    and names.

    The prompt is a learned one, or a template such as "a photo of a {}.".
    PromptFileError: it does not fit the CLIP or the number of names, or has no {}.
    Errors of names are `vocabulary`'s; with `cut` a sentence of a template may be too
    long, and loses its end.
    """
    if isinstance(prompt, str):
      if prompt.count("{}") != 1:
        raise PromptFileError(
          f"template: got {prompt!r}, expected a text with exactly one {{}}"
        )
      context_MxD, position = np.zeros((0, self.clip.text_width), np.float32), "end"
      # The whole sentence counts as the name, without a context inside.
      sentences = [prompt.replace("{}", name) for name in normalized_names(names)]
      tokens = self._tokenize(sentences, cut=cut)
      label = quoted(prompt)
    elif prompt.sentences is not None:
      return self._beside_sentences(names, prompt)
    else:
      check_fits(prompt, self.clip.text_width, self.clip.name, len(names))
      context_MxD, position = prompt.context, prompt.position
      tokens = self.vocabulary(names, context_MxD.shape[-2])
      label = "learned prompt"
    more: list[Any] = [] if unit else ["of the tower"]
    if self._mapped:
      more.append(token_embeddings(self.clip.params, np.unique(tokens.ids)))
    key = fingerprint([self._text_fingerprint, position, context_MxD, *tokens, *more])
    found = self._cache.find(key)
    missing = found is None
    if jax.process_count() > 1:
      # All hosts compute together, or none.
      missing = bool(np.any(multihost_utils.process_allgather(np.array(missing))))
    if found is None or missing:
      params = replicate({"context": context_MxD}, self.mesh)
      frozen, what = self.frozen(tokens), f"class features of {len(names):,}: {label}"
      features_NxE = self.features_of_classes(
        params, frozen, position, unit=unit, what=what
      )
      found = self._cache.keep(key, features_NxE, write=jax.process_index() == 0)
    return found

  def _beside_sentences(
    self, names: Sequence[str], prompt: Prompt
  ) -> Float[np.ndarray, "N E"]:
    """Unit features under the sentences of a prompt, or under these and its context."""
    check_fits(prompt, self.clip.text_width, self.clip.name, len(names))
    assert prompt.sentences is not None
    templates, weight = prompt.sentences
    of_texts = (self.class_features(names, text) for text in templates)
    features_NxE = unit_rows(functools.reduce(np.add, of_texts))
    if weight == 1:
      return features_NxE
    context_alone = dataclasses.replace(prompt, sentences=None)
    learned_NxE = self.class_features(names, context_alone)
    return unit_rows((1 - weight) * learned_NxE + weight * features_NxE)

  @functools.cached_property
  def _text_fingerprint(self) -> str:
    """Cache key of all that class features depend on beside the prompt and the
    tokens."""
    settings = self.clip.config.text_settings()
    return _fingerprint((self._text, self._sos), settings, self._tower, self._dtype)

  @functools.cached_property
  def image_fingerprint(self) -> str:
    """Cache key of all that image features depend on beside the images."""
    return _fingerprint(self.clip.vision_params, self.clip.settings, self._dtype)

  @functools.cached_property
  def clip_digest(self) -> str:
    """Digest by which two CLIPs are told apart: logit scale and the first tokens'
    embeddings."""
    n_tokens = len(token_table(self.clip.params))
    rows = np.arange(min(n_tokens, _DIGEST_TOKENS), dtype=np.int32)
    embeddings = np.asarray(token_embeddings(self.clip.params, rows), np.float32)
    scale = np.float32(self.clip.params["logit_scale"])
    return fingerprint([np.asarray(scale), embeddings])[:16]

  def features_of_classes(
    self,
    params: Any,
    frozen: Frozen,
    position: str,
    *,
    unit: bool = True,
    what: str = "class features",
  ) -> Float[np.ndarray, "N E"]:
    """Text features of the classes of `frozen`.

    Args:
      params: {"context": [M,D] or [N,M,D]}, on the mesh.
      frozen: tokens of the classes, and parameters of the text tower.
      position: place of the name in the context.
      unit: whether the features are normalised.
      what: description for the progress.
    """
    shape = params["context"].shape
    n_classes = shape[0] if len(shape) == 3 else None
    module = PromptContext(shape[-2], shape[-1], position, n_classes)
    tokens = self._padded(jax.tree.map(np.asarray, frozen.tokens), module)
    # Tokens of the fullest device of the fullest chunk.
    taken_N = taken_of(tokens.lengths + np.int32(module.n_own), self.capacity(module))
    full_chunks = chunks(taken_N, self._chunk, self.mesh, "tokens")
    shares = [full.reshape(self.mesh.size, -1).sum(-1) for full, _ in full_chunks]
    compute = self._compiled(
      module, rounded_up(math.ceil(np.max(shares)), _LEAST_TOKENS), unit
    )
    # Without the tokens of all classes, whose number would be a part of the program.
    frozen = Frozen(frozen.text, {}, frozen.sos, ClassTokens((), (), ()))
    ids_N = np.arange(len(tokens.lengths), dtype=np.int32)
    in_chunk = lambda rows: compute(params, frozen, rows)
    return self.in_chunks(in_chunk, (tokens, ids_N), what)

  def _padded(self, tokens: ClassTokens, module: PromptContext) -> ClassTokens:
    """The tokens of classes with padding after EOT, which has no effect, up to a
    common width."""
    n_tokens, n_own = tokens.ids.shape[1], module.n_own
    n_prefix = len(self.clip.sos_embedding) + module.n_vectors - n_own
    rounded = 1 + _LENGTHS * -(-(n_tokens + n_own - 1) // _LENGTHS)
    padding = min(rounded, self.clip.positions - n_prefix) - n_own - n_tokens
    return tokens._replace(ids=np.pad(tokens.ids, ((0, 0), (0, max(0, padding)))))

  def image_features(
    self, images: np.ndarray, *, unit: bool = True
  ) -> Float[np.ndarray, "n E"]:
    """Features, normalised if `unit`, of images on the host: uint8 [n,S,S,3]."""
    compute = self._images if unit else self._tower_images
    return self.in_chunks(
      lambda rows: compute(self.vision_params, rows), images, "image features"
    )

  def features_of_images(self, images: jax.Array) -> jax.Array:
    """Unit features [B,E], replicated, of a batch on the mesh; dispatched
    asynchronously.

    The images are uint8, or float32 in 0..255, [B,S,S,3], their rows split over all
    devices.
    """
    return self._images(self.vision_params, images)

  def _tokenize(
    self, texts: Sequence[str], n_vectors: int = 0, n_after: int = 0, cut: bool = False
  ) -> ClassTokens:
    """Tokens of texts beside M vectors, with `n_after` tokens that are no part of a
    name.

    The texts of a bidirectional tower are padded to its last position.
    """
    config, tokenizer = self.clip.config.text_config, self.clip.tokenizer
    budget = self.clip.positions - len(self.clip.sos_embedding) - n_vectors
    ids_NxL, lengths_N = tokenize(texts, tokenizer, config, budget, cut=cut)
    name_lengths_N = lengths_N - n_after
    if self.clip.config.bidirectional:
      padded_NxL = np.full((len(texts), budget), tokenizer.pad_token_id, np.int32)
      own_NxL = np.arange(ids_NxL.shape[1]) < lengths_N[:, None]
      padded_NxL[:, : ids_NxL.shape[1]][own_NxL] = ids_NxL[own_NxL]
      ids_NxL, lengths_N = padded_NxL, np.full_like(lengths_N, budget)
    return ClassTokens(ids_NxL, name_lengths_N.astype(np.int32), lengths_N)

  def _compile(self, module: PromptContext, token_budget: int, unit: bool) -> Callable:
    """Compiles the class features of a layout and budget."""
    tower = self.text_tower(token_budget)

    def class_features(
      params: Any, frozen: Frozen, rows: tuple[ClassTokens, jax.Array]
    ) -> jax.Array:
      features_CxE = tower(
        frozen.text, *sequences_of_tokens(module, params, frozen, *rows)
      )
      return normalize(features_CxE) if unit else features_CxE

    return map_rows(self.mesh, class_features, 2)

  def in_chunks(self, compute: Callable, rows: Any, what: str) -> np.ndarray:
    """Results [n,..] on the host of a result of `map_rows`, a chunk of rows at a time.

    The rows are on the host, an array or a tree of arrays; `what` is for the progress.
    """
    parts = chunks(rows, self._chunk, self.mesh, what)
    results = ((compute(split_rows(full, self.mesh)), n_real) for full, n_real in parts)
    return np.concatenate([found[:n_real] for found, n_real in fetched(results)])


def unit_rows(features_NxE: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
  """Rows divided by their norm."""
  return features_NxE / np.linalg.norm(features_NxE, axis=-1, keepdims=True)


def rounded_up(number: int, least: int) -> int:
  """A number of at least `least` that is up to a quarter larger: 4, 5, 6 or 7 times a
  power of 2.

  Shapes that are rounded so take few values, and each value is a program to compile.
  """
  number = max(number, least)
  unit = 2 ** max(0, (number - 1).bit_length() - 3)
  return unit * -(-number // unit)


def _fingerprint(params: Any, *settings: str) -> str:
  leaves, structure = jax.tree.flatten(params)
  return fingerprint([*settings, str(structure), *map(np.asarray, leaves)])


def chunks(rows: Any, most: int, mesh: Mesh, what: str) -> Iterator[tuple[Any, int]]:
  """Yields chunks of one static size, padded with their first row, and their numbers of
  real rows.

  A chunk has about `most` rows: every device takes an equal share. `what` is for the
  progress.
  """
  n_rows = len(jax.tree.leaves(rows)[0])
  size = -(-min(most, n_rows) // mesh.size) * mesh.size
  for start in steps_of(range(0, n_rows, size), what, "chunks"):
    n_real = min(size, n_rows - start)
    places = np.where(np.arange(size) < n_real, start + np.arange(size), start)
    yield jax.tree.map(lambda leaf, places=places: leaf[places], rows), n_real


def fetched(results: Iterable[Any]) -> Iterator[Any]:
  """Yields results as NumPy arrays, each after the devices were given the next to
  compute."""
  for result, _ in itertools.pairwise(itertools.chain(results, [None])):
    yield jax.device_get(result)


def map_rows(
  mesh: Mesh, function: Callable, n_replicated: int, gather: bool = True
) -> Callable:
  """Compiles a function whose last argument is split by rows over all devices.

  Each device computes its own rows under `shard_map`, because the compiler cannot split
  the packing of names into one row of tokens. Rows and results may be trees; `gather`
  replicates the results.
  """
  rows = P((DATA, CLASS))
  local = jax.shard_map(
    function, mesh=mesh, in_specs=(*[P()] * n_replicated, rows), out_specs=rows
  )
  return jax.jit(local, out_shardings=NamedSharding(mesh, P() if gather else rows))
