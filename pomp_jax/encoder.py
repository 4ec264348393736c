"""A frozen CLIP on the devices: features of class names under a prompt, and of images.

A training step is built from `image_tower`, `text_tower`, `vocabulary`, `frozen` and
`capacity`; the rest computes features of whole class lists and image sets.

Shapes: N classes, C classes of a device, n images, B images of a batch, S pixels of an
image's side, M context vectors, L tokens, D width, E embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import math
import operator
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

# Shapes are rounded up, so that other lists of names and longer sentences use a program
# that is already compiled: compiling takes seconds. A class has 1 + a multiple of
# `_LENGTHS` own tokens.
_LENGTHS = 16
# Least number of tokens on a device, and of embeddings that are read from the host.
_LEAST_TOKENS, _LEAST_EMBEDDINGS = 512, 1024
_DIGEST_TOKENS = 64  # number of tokens whose embeddings tell two CLIPs apart
CHUNK = 1024  # classes or images that all devices together compute at a time


class Encoder:
  """A CLIP whose weights are replicated on all devices; training and evaluation share
  it."""

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
    """Copies the weights of a loaded CLIP to the devices of a mesh.

    Args:
      clip: CLIP with its weights on the host.
      mesh: devices that compute; all devices if None.
      tower: implementation of the text tower, one of `clip.text.TEXT_TOWERS`.
      dtype: type of the computation, one of `clip.precision.DTYPES`.
      chunk: classes or images that all devices together compute at a time.
      image_chunk: most images that one device computes at once; 0 for no limit.
      cache: store of class features; a new store in memory if None.
    """
    if mesh is None:
      mesh = make_mesh()
    if cache is None:
      cache = ArrayCache()
    self.clip = clip
    self.mesh = mesh
    self._tower = tower
    self._dtype = dtype
    self._chunk = chunk
    self._cache = cache
    self._compiled = functools.cache(self._compile)
    self.image_tower = image_tower(clip, dtype, image_chunk)
    # A table of embeddings that is mapped from a file stays on the host. `frozen`
    # copies only the rows that are used.
    self._mapped = isinstance(token_table(clip.params), np.memmap)
    self._text = clip.text_params
    if self._mapped:
      no_embeddings = np.zeros((0, clip.text_width), np.float32)
      self._text = with_embeddings(clip.text_params, no_embeddings)
    self._text_params = replicate(self._text, mesh)
    self.vision_params = replicate(clip.vision_params, mesh)
    self._sos = replicate(np.asarray(clip.sos_embedding), mesh)

    # A named function, because the log shows the names of compiled functions.
    def image_features(params: Any, images_B: jax.Array) -> jax.Array:
      return normalize(self.image_tower(params, images_B))

    self._images = map_rows(mesh, image_features, n_replicated=1)
    self._tower_images = map_rows(mesh, self.image_tower, n_replicated=1)

  @property
  def resize(self) -> Resize:
    """How this CLIP's images become S x S pixels."""
    return Resize(self.clip.squash, self.clip.bilinear)

  def sized(self, source: Source) -> Source:
    """Sets the size of stored images to this CLIP's; returns other sources as is."""
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
    """Own tokens that fit in a block of the text tower; None if it has no blocks.

    The vectors of the context are own tokens or part of the prefix, see `module.n_own`.
    """
    if self.block is None:
      return None
    return self.block - len(self.clip.sos_embedding) - module.n_vectors + module.n_own

  @property
  def platform(self) -> str:
    """Kind of the devices, as JAX names it: cpu, gpu or tpu."""
    return self.mesh.devices.flat[0].platform

  @property
  def block(self) -> int | None:
    """Rows of a block of the text tower on these devices; None without blocks."""
    return block_of(self._tower, self.clip.config.text_config, self.platform)

  def vocabulary(self, names: Sequence[str], n_vectors: int) -> ClassTokens:
    """Tokenizes "{name}." for every class, beside a context of M vectors.

    Raises VocabularyError or TokenizeError if there are no names, or if a name is
    unusable or too long.
    """
    sentences = [f"{name}." for name in normalized_names(names)]
    # Usually the last two tokens are "." and EOT. If a name ends in punctuation, "."
    # may share a token with the punctuation.
    n_after = getattr(self.clip.tokenizer, "n_after_name", 2)
    return self._tokenize(sentences, n_vectors, n_after)

  def frozen(self, tokens: ClassTokens) -> Frozen:
    """Returns the frozen arrays of a training step for tokens from `vocabulary`."""
    text_params = self._text_params
    if self._mapped:
      tokens, embeddings = self._used_embeddings(tokens)
      text_params = with_embeddings(text_params, replicate(embeddings, self.mesh))
    return Frozen(
      text_params, self.vision_params, self._sos, replicate(tokens, self.mesh)
    )

  def _used_embeddings(self, tokens: ClassTokens) -> tuple[ClassTokens, np.ndarray]:
    """Returns only the embeddings that occur, and tokens with ids into these."""
    used_ids, places = np.unique(tokens.ids, return_inverse=True)
    ids_NxL = places.reshape(tokens.ids.shape).astype(np.int32)
    used = token_embeddings(self.clip.params, used_ids)
    # Lists of names that use about as many embeddings get the same rounded size, and
    # share a compiled program.
    n_rows = rounded_up(len(used_ids), _LEAST_EMBEDDINGS)
    embeddings = np.zeros((n_rows, *used.shape[1:]), np.float32)
    embeddings[: len(used_ids)] = used
    return tokens._replace(ids=ids_NxL), embeddings

  def class_features(
    self,
    names: Sequence[str],
    prompt: Prompt | str,
    *,
    unit: bool = True,
    cut: bool = False,
  ) -> Float[np.ndarray, "N E"]:
    """Returns text features of class names; computes them once for a prompt and names.

    Args:
      names: names of the N classes.
      prompt: learned prompt, or a template such as "a photo of a {}.".
      unit: whether the features are normalised.
      cut: whether the end of a template's sentence is cut off if it is too long.

    Raises:
      PromptFileError: the prompt does not fit the CLIP or the number of names, or the
        template does not have exactly one {}.
      VocabularyError: see `vocabulary`.
      TokenizeError: a sentence is too long.
    """
    if isinstance(prompt, str):
      return self._under_template(names, prompt, unit=unit, cut=cut)
    if prompt.sentences is not None:
      return self._beside_sentences(names, prompt)
    check_fits(prompt, self.clip.text_width, self.clip.name, len(names))
    tokens = self.vocabulary(names, prompt.context.shape[-2])
    return self._cached_features(
      tokens, prompt.context, prompt.position, unit=unit, label="learned prompt"
    )

  def _under_template(
    self, names: Sequence[str], template: str, *, unit: bool, cut: bool
  ) -> Float[np.ndarray, "N E"]:
    """Features under a template. The whole sentence is treated as a name without a
    context."""
    if template.count("{}") != 1:
      raise PromptFileError(
        f"template: got {template!r}, expected a text with exactly one {{}}"
      )
    sentences = [template.replace("{}", name) for name in normalized_names(names)]
    tokens = self._tokenize(sentences, cut=cut)
    no_context = np.zeros((0, self.clip.text_width), np.float32)
    return self._cached_features(
      tokens, no_context, "end", unit=unit, label=quoted(template)
    )

  def _cached_features(
    self,
    tokens: ClassTokens,
    context: np.ndarray,
    position: str,
    *,
    unit: bool,
    label: str,
  ) -> Float[np.ndarray, "N E"]:
    """Returns features of tokens under a context, from the cache if it has them."""
    key_parts = [self._text_fingerprint, position, context, *tokens]
    if not unit:
      key_parts.append("of the tower")
    if self._mapped:
      key_parts.append(token_embeddings(self.clip.params, np.unique(tokens.ids)))
    key = fingerprint(key_parts)
    cached_NxE = self._cache.find(key)
    missing = cached_NxE is None
    if jax.process_count() > 1:
      # All hosts compute together: if one lacks the features, all compute them.
      missing = bool(np.any(multihost_utils.process_allgather(np.array(missing))))
    if cached_NxE is not None and not missing:
      return cached_NxE
    features_NxE = self.features_of_classes(
      replicate({"context": context}, self.mesh),
      self.frozen(tokens),
      position,
      unit=unit,
      what=f"class features of {len(tokens.ids):,}: {label}",
    )
    return self._cache.keep(key, features_NxE, write=jax.process_index() == 0)

  def _beside_sentences(
    self, names: Sequence[str], prompt: Prompt
  ) -> Float[np.ndarray, "N E"]:
    """Unit features of a prompt with sentences: a mixture with features of its context.

    The mixture is weight * (mean over the sentences) + (1 - weight) * (context). Both
    terms and the result have unit length.

    Args:
      names: names of the N classes.
      prompt: learned prompt with sentences.

    Raises:
      PromptFileError: the prompt does not fit the CLIP or the number of names.
    """
    check_fits(prompt, self.clip.text_width, self.clip.name, len(names))
    assert prompt.sentences is not None
    templates, weight = prompt.sentences
    sum_NxE = self.class_features(names, templates[0])
    for template in templates[1:]:
      sum_NxE = sum_NxE + self.class_features(names, template)
    sentences_NxE = unit_rows(sum_NxE)
    if weight == 1:
      return sentences_NxE
    context_alone = dataclasses.replace(prompt, sentences=None)
    context_NxE = self.class_features(names, context_alone)
    return unit_rows((1 - weight) * context_NxE + weight * sentences_NxE)

  @functools.cached_property
  def _text_fingerprint(self) -> str:
    """Cache key of all that class features depend on, except the prompt and the
    tokens."""
    settings = self.clip.config.text_settings()
    return _fingerprint((self._text, self._sos), settings, self._tower, self._dtype)

  @functools.cached_property
  def image_fingerprint(self) -> str:
    """Cache key of all that image features depend on, except the images."""
    return _fingerprint(self.clip.vision_params, self.clip.settings, self._dtype)

  @functools.cached_property
  def clip_digest(self) -> str:
    """Digest that tells two CLIPs apart, of the logit scale and the first tokens'
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
    """Computes the text features of the classes of `frozen`.

    Args:
      params: {"context": [M,D] or [N,M,D]}, on the mesh.
      frozen: tokens of the classes, and parameters of the text tower.
      position: place of the name in the context.
      unit: whether the features are normalised.
      what: description for the progress bar.
    """
    shape = params["context"].shape
    n_classes = None
    if len(shape) == 3:
      n_classes = shape[0]
    module = PromptContext(shape[-2], shape[-1], position, n_classes)
    tokens = self._padded(jax.tree.map(np.asarray, frozen.tokens), module)
    budget = self._chunk_budget(tokens, module)
    compute = self._compiled(module, budget, unit)
    # Leave out the tokens of all classes: their number would be part of the compiled
    # program.
    no_tokens = ClassTokens((), (), ())
    without_tokens = Frozen(frozen.text, {}, frozen.sos, no_tokens)

    def features_of_chunk(rows: tuple[ClassTokens, jax.Array]) -> jax.Array:
      return compute(params, without_tokens, rows)

    ids_N = np.arange(len(tokens.lengths), dtype=np.int32)
    return self.in_chunks(features_of_chunk, (tokens, ids_N), what)

  def _chunk_budget(self, tokens: ClassTokens, module: PromptContext) -> int:
    """Most own tokens that a device gets in any chunk, rounded up."""
    own_N = tokens.lengths + np.int32(module.n_own)
    taken_N = taken_of(own_N, self.capacity(module))
    fullest = 0
    for chunk, _ in chunks(taken_N, self._chunk, self.mesh, "tokens"):
      taken_of_devices = chunk.reshape(self.mesh.size, -1).sum(axis=-1)
      fullest = max(fullest, math.ceil(taken_of_devices.max()))
    return rounded_up(fullest, _LEAST_TOKENS)

  def _padded(self, tokens: ClassTokens, module: PromptContext) -> ClassTokens:
    """Pads tokens after EOT, where padding has no effect, to a rounded length.

    Args:
      tokens: tokens of the classes [N,L].
      module: context. Its `n_own` vectors count as own tokens of each class.
    """
    n_tokens = tokens.ids.shape[1]
    n_own = module.n_own
    n_prefix = len(self.clip.sos_embedding) + module.n_vectors - n_own
    # Round up to 1 + a multiple of _LENGTHS, but not beyond the tower's positions.
    n_multiples = math.ceil((n_own + n_tokens - 1) / _LENGTHS)
    width = min(1 + _LENGTHS * n_multiples, self.clip.positions - n_prefix)
    n_padding = max(0, width - n_own - n_tokens)
    return tokens._replace(ids=np.pad(tokens.ids, ((0, 0), (0, n_padding))))

  def image_features(
    self, images: np.ndarray, *, unit: bool = True
  ) -> Float[np.ndarray, "n E"]:
    """Computes features of images on the host.

    Args:
      images: uint8 [n,S,S,3].
      unit: whether the features are normalised.
    """
    tower = self._images if unit else self._tower_images
    compute = functools.partial(tower, self.vision_params)
    return self.in_chunks(compute, images, "image features")

  def features_of_images(self, images: jax.Array) -> jax.Array:
    """Computes unit features [B,E] of a batch on the mesh, replicated, asynchronously.

    The images [B,S,S,3] are uint8, or float32 in 0..255. Their rows are split over all
    devices.
    """
    return self._images(self.vision_params, images)

  def _tokenize(
    self, texts: Sequence[str], n_vectors: int = 0, n_after: int = 0, cut: bool = False
  ) -> ClassTokens:
    """Tokenizes texts that leave M positions for vectors.

    The last `n_after` tokens of a text are not part of the name. For a bidirectional
    tower, texts are padded to the last position.
    """
    config = self.clip.config.text_config
    tokenizer = self.clip.tokenizer
    budget = self.clip.positions - len(self.clip.sos_embedding) - n_vectors
    ids_NxL, lengths_N = tokenize(texts, tokenizer, config, budget, cut=cut)
    name_lengths_N = (lengths_N - n_after).astype(np.int32)
    if not self.clip.config.bidirectional:
      return ClassTokens(ids_NxL, name_lengths_N, lengths_N)
    width = ids_NxL.shape[1]
    is_token_NxL = np.arange(width) < lengths_N[:, None]
    padded_NxL = np.full((len(texts), budget), tokenizer.pad_token_id, np.int32)
    padded_NxL[:, :width][is_token_NxL] = ids_NxL[is_token_NxL]
    return ClassTokens(padded_NxL, name_lengths_N, np.full_like(lengths_N, budget))

  def _compile(self, module: PromptContext, token_budget: int, unit: bool) -> Callable:
    """Compiles the computation of class features for a context and a token budget."""
    tower = self.text_tower(token_budget)

    # The log shows this name when the function is compiled.
    def class_features(
      params: Any, frozen: Frozen, rows: tuple[ClassTokens, jax.Array]
    ) -> jax.Array:
      """Features of a device's classes.

      Args:
        params: {"context": [M,D] or [N,M,D]}.
        frozen: parameters of the text tower.
        rows: tokens of the device's classes, and their ids.
      """
      tokens, ids_C = rows
      sequences = sequences_of_tokens(module, params, frozen, tokens, ids_C)
      features_CxE = tower(frozen.text, *sequences)
      if unit:
        return normalize(features_CxE)
      return features_CxE

    return map_rows(self.mesh, class_features, n_replicated=2)

  def in_chunks(self, compute: Callable, rows: Any, what: str) -> np.ndarray:
    """Computes rows a chunk at a time, and returns the results [n,..] on the host.

    Args:
      compute: function of a chunk of rows: a result of `map_rows` whose other arguments
        are bound.
      rows: rows on the host, an array or a tree of arrays with n rows each.
      what: description for the progress bar.
    """

    def results() -> Iterator[tuple[jax.Array, int]]:
      for chunk, n_real in chunks(rows, self._chunk, self.mesh, what):
        yield compute(split_rows(chunk, self.mesh)), n_real

    parts = []
    for result, n_real in fetched(results()):
      parts.append(result[:n_real])
    return np.concatenate(parts)


def unit_rows(features_NxE: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
  """Divides each row by its norm."""
  return features_NxE / np.linalg.norm(features_NxE, axis=-1, keepdims=True)


def rounded_up(number: int, least: int) -> int:
  """Rounds up to at least `least`, and to 4, 5, 6 or 7 times a power of 2.

  Beyond `least` the result is less than a quarter larger; numbers below 4 stay. Shapes
  that are rounded in this way have few values, so few programs are compiled.
  """
  number = max(number, least)
  n_bits = (number - 1).bit_length()
  unit = 2 ** max(0, n_bits - 3)  # keep the first three bits
  return unit * -(-number // unit)  # round up to a multiple of the unit


def _fingerprint(params: Any, *settings: str) -> str:
  """Cache key of parameters and settings."""
  leaves, structure = jax.tree.flatten(params)
  arrays = [np.asarray(leaf) for leaf in leaves]
  return fingerprint([*settings, str(structure), *arrays])


def chunks(rows: Any, most: int, mesh: Mesh, what: str) -> Iterator[tuple[Any, int]]:
  """Yields chunks of one static size, each with the number of its rows before padding.

  The last chunk is padded with copies of its own first row.

  Args:
    rows: array or tree of arrays with n rows each.
    most: most rows of a chunk, before rounding up to an equal share for every device.
    mesh: devices that share a chunk.
    what: description for the progress bar.
  """
  n_rows = len(jax.tree.leaves(rows)[0])
  per_device = math.ceil(min(most, n_rows) / mesh.size)
  size = per_device * mesh.size
  for start in steps_of(range(0, n_rows, size), what, "chunks"):
    n_real = min(size, n_rows - start)
    places = np.arange(start, start + size)
    places[n_real:] = start
    chunk = jax.tree.map(operator.itemgetter(places), rows)
    yield chunk, n_real


def fetched(results: Iterable[Any]) -> Iterator[Any]:
  """Yields results as NumPy arrays, one behind: devices compute the next result while
  this one is copied."""
  waiting: list[Any] = []
  for result in results:
    # Taking `result` started its computation, so now copy the result before it.
    waiting.append(result)
    if len(waiting) == 2:
      yield jax.device_get(waiting.pop(0))
  for result in waiting:
    yield jax.device_get(result)


def map_rows(
  mesh: Mesh, function: Callable, n_replicated: int, gather: bool = True
) -> Callable:
  """Compiles a function whose last argument is split by rows over all devices.

  Each device computes its own rows under `shard_map`, because the compiler can't split
  the packing of names, which joins all rows into one sequence of tokens.

  Args:
    mesh: devices that share the rows.
    function: function of replicated arguments and the rows; rows and result may be
      trees.
    n_replicated: number of replicated arguments before the rows.
    gather: whether all devices get the whole result; if not, the result stays split.
  """
  replicated = P()
  by_rows = P((DATA, CLASS))
  in_specs = [replicated] * n_replicated
  in_specs.append(by_rows)
  per_device = jax.shard_map(
    function, mesh=mesh, in_specs=tuple(in_specs), out_specs=by_rows
  )
  result_spec = replicated if gather else by_rows
  return jax.jit(per_device, out_shardings=NamedSharding(mesh, result_spec))
