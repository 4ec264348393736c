"""The context that a training starts from: words, a prompt file, or random vectors.

Shapes: N classes, M context vectors, F fixed tokens, T = M + F, L positions of a text,
D width.
"""

from jaxtyping import Int
import numpy as np

from pomp_jax.clip.load import Clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import tokenize
from pomp_jax.config import ConfigError
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Prompt
from pomp_jax.files.prompt_file import (
  UNKNOWN_CLIP,
  check_fits,
  format_of_name,
  load_prompt,
)
from pomp_jax.files.run_folder import prompt_path


def initial_words(
  prompt: Prompt, clip: Clip, fixed_words: bool = False
) -> Int[np.ndarray, " T"]:
  """Token ids of the words of `prompt.init`: T = M + F tokens.

  The first M tokens become the learned vectors. The F tokens after them stay fixed.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its tokenizer.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.

  Returns:
    int32 [T]; empty for a random start and for a prompt file.

  Raises:
    ConfigError: the words have fewer than M tokens, or more without `fixed_words`.
  """
  words = prompt.init
  if not words or _is_prompt(words):
    return np.zeros(0, np.int32)

  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]  # without EOT
  n_tokens = len(ids_T)
  if fixed_words:
    fits = n_tokens >= prompt.m
    or_more = " or more"
  else:
    fits = n_tokens == prompt.m
    or_more = ""
  if not fits:
    expected = f"words of prompt.m = {prompt.m} tokens{or_more}; these have {n_tokens}"
    raise ConfigError("prompt.init", words, expected)
  return ids_T


def initial_context(
  prompt: Prompt, clip: Clip, n_classes: int, fixed_words: bool = False
) -> np.ndarray | None:
  """Context from which the training starts: words, or a prompt file.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its token embeddings.
    n_classes: N, for a class-specific context.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.

  Returns:
    float32 [M,D], or [N,M,D] for a class-specific file; None for a random start.

  Raises:
    ConfigError: the words don't have M tokens, or the file has no context, another M,
      another position, or class-specific contexts for a shared one.
    PromptFileError: the file can't be read, or its D or N differs.
  """
  if _is_prompt(prompt.init):
    return _context_of_file(prompt, clip, n_classes)
  ids_M = initial_words(prompt, clip, fixed_words)[: prompt.m]
  if not len(ids_M):
    return None
  return np.asarray(token_embeddings(clip.params, ids_M))


def _context_of_file(prompt: Prompt, clip: Clip, n_classes: int) -> np.ndarray:
  """Context of the prompt file `prompt.init`; see `initial_context`."""
  path = prompt.init
  stored = load_prompt(path)
  check_fits(stored, clip.text_width, clip.name, n_classes, path)
  if stored.sentences is not None:
    expected = "a context; this file holds sentences, or a mixture"
    raise ConfigError("prompt.init", path, expected)

  n_vectors = stored.context.shape[-2]
  require(n_vectors == prompt.m, "prompt.m", prompt.m, f"{n_vectors}, as in {path}")
  if stored.context.ndim == 3 and not prompt.class_specific:
    raise ConfigError("prompt.class_specific", False, f"True, as in {path}")
  # Checkpoints of other code do not record the position of the name.
  has_position = stored.clip_model != UNKNOWN_CLIP
  if has_position and stored.position != prompt.position:
    expected = f"{stored.position!r}, as in {path}"
    raise ConfigError("prompt.position", prompt.position, expected)
  return stored.context


def _is_prompt(text: str) -> bool:
  """Whether `prompt.init` names a prompt file or a folder; all other texts are
  words."""
  return format_of_name(prompt_path(text)) is not None
