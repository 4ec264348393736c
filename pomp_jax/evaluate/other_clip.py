"""Checks whether a prompt was learned on the CLIP with which it is used.

A file of other code names no CLIP. On another CLIP of the same width its prompt would
give bad class vectors without an error. Dassl's buffers `token_prefix` and
`token_suffix` hold token embeddings, which identify their CLIP exactly. Without these
buffers only indirect signs are left: training moves class vectors apart, but on a CLIP
on which the prompt was not learned the vectors stay about as near as under plain names.
docs/how-to/certainty.md has the margins.

Shapes: N classes, S of them in the sample, E embedding, M context vectors, D width of
the text tower, V tokens of the table, T token embeddings of a file.
"""

from collections.abc import Sequence
import functools
import logging
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from pomp_jax.clip.text import token_table
from pomp_jax.encoder import Encoder, unit_rows
from pomp_jax.files.prompt_file import Prompt

PLAIN = "{}."  # the text that class vectors are compared with
# Fewer names than the least say nothing about distances; more than the most add
# nothing.
_LEAST_NAMES = 10
_MOST_NAMES = 64
# Least distance of class vectors, as a multiple of their distance under plain names,
# for a prompt that was learned on the CLIP. Measured for 14 prompts: 1.38 to 2.94 on a
# prompt's own CLIP, one of them below 1.5; 1.47 or less on other CLIPs
# (docs/studies/wrong_clip.py).
LEAST_DISTANCE = 1.5
# Limits of a context vector's norm, as a multiple of the token table's mean norm.
# Trainings start from 0.4 or 1 and end between 4 and 20.
LEAST_NORM = 0.05
MOST_NORM = 100.0
# Relative rounding error of the values of a file, which may be float16 or bfloat16.
_ROUNDING = 2.0**-8

_warn_once = functools.cache(logging.getLogger(__name__).warning)


class Signs(NamedTuple):
  """Measures of whether a prompt was learned on a CLIP."""

  norm: float  # mean norm of the context vectors, over the token table's mean norm
  cosine: float  # mean cosine of class vectors under the prompt and under plain names
  # mean of 1 - cosine over pairs of classes, over the same mean under plain names
  distance: float

  @property
  def usual(self) -> bool:
    """Whether a prompt that was learned on this CLIP has such values."""
    return LEAST_NORM <= self.norm <= MOST_NORM and self.distance >= LEAST_DISTANCE


def signs_of(
  context: Float[np.ndarray, "*N M D"],
  table_VxD: Float[np.ndarray, "V D"],
  features_SxE: Float[np.ndarray, "S E"],
  plain_SxE: Float[np.ndarray, "S E"],
) -> Signs:
  """Compares a prompt with plain words under a CLIP.

  Args:
    context: context vectors.
    table_VxD: embeddings of all tokens.
    features_SxE: unit features of some classes under the prompt.
    plain_SxE: unit features of the same classes under `PLAIN`.
  """
  mean_norm = lambda rows: float(np.linalg.norm(rows, axis=-1).mean())
  return Signs(
    norm=mean_norm(context) / mean_norm(table_VxD),
    cosine=float(np.sum(features_SxE * plain_SxE, axis=1).mean()),
    distance=_distance(features_SxE) / _distance(plain_SxE),
  )


def _distance(rows_SxE: Float[np.ndarray, "S E"]) -> float:
  """Mean of 1 - cosine over the pairs of unit rows; at least 1e-12, for a divisor."""
  n_rows = len(rows_SxE)
  total_E = rows_SxE.sum(axis=0, dtype=np.float64)
  # |sum|^2 adds the cosines of all pairs, with each row's cosine of 1 to itself.
  mean_cosine = (total_E @ total_E - n_rows) / (n_rows * (n_rows - 1))
  return max(1 - float(mean_cosine), 1e-12)


def unknown_tokens(
  tokens_TxD: Float[np.ndarray, "T D"], table_VxD: Float[np.ndarray, "V D"]
) -> int:
  """Counts the token embeddings of a file that are not in a CLIP's table.

  The file may have rounded its values to float16 or bfloat16.

  Args:
    tokens_TxD: token embeddings of the file.
    table_VxD: embeddings of all tokens of the CLIP.
  """
  count = 0
  for token_D in tokens_TxD:
    nearest = np.abs(table_VxD - token_D).max(axis=1).min()
    count += bool(nearest > _ROUNDING * np.abs(token_D).max())
  return count


def warn_of_other_clip(
  encoder: Encoder,
  names: Sequence[str],
  prompt: Prompt,
  features_NxE: Float[np.ndarray, "N E"],
) -> None:
  """Warns once of a prompt that does not seem to be learned on this CLIP.

  A prompt whose file names this CLIP is not compared.

  Args:
    encoder: the CLIP in use.
    names: names of the classes.
    prompt: learned prompt.
    features_NxE: features of the classes under the prompt.
  """
  clip = encoder.clip
  if prompt.clip_model == clip.name or not len(prompt.context):
    return
  where = prompt.file or "the prompt"
  table_VxD = np.asarray(token_table(clip.params), np.float32)
  if prompt.class_tokens is not None:
    tokens_TxD = np.unique(prompt.class_tokens, axis=0)
    n_unknown = unknown_tokens(tokens_TxD, table_VxD)
    if n_unknown:
      _warn_once(
        "%s: was learned on another CLIP than %r: of the %d token embeddings in its"
        " token_prefix and token_suffix this CLIP has %d; set config.clip.model to its"
        " CLIP",
        where,
        clip.name,
        len(tokens_TxD),
        len(tokens_TxD) - n_unknown,
      )
    # The token embeddings decide; the indirect signs are not needed.
    return
  if len(names) < _LEAST_NAMES:
    return
  rows = np.linspace(0, len(names) - 1, min(len(names), _MOST_NAMES)).astype(int)
  plain_SxE = encoder.class_features([names[row] for row in rows], PLAIN)
  signs = signs_of(prompt.context, table_VxD, unit_rows(features_NxE[rows]), plain_SxE)
  if not signs.usual:
    _warn_once(
      "%s: does not act as a prompt that was learned on %r (its file names %s): class"
      " vectors are %.2f times as far apart as under the plain names (expected %g or"
      " more), with a cosine of %.2f to those; context norms are %.2f times the token"
      " table's (expected %g to %g). It was learned on another CLIP, or hardly trained",
      where,
      clip.name,
      f"{prompt.clip_model!r}",
      signs.distance,
      LEAST_DISTANCE,
      signs.cosine,
      signs.norm,
      LEAST_NORM,
      MOST_NORM,
    )
