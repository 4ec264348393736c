"""Whether a prompt was learned on the CLIP that it is read on.

A file of other code names no CLIP, and two CLIPs may have the same width: the classes
then get bad vectors without a message. Dassl's buffers `token_prefix` and
`token_suffix` hold token embeddings, which name their CLIP exactly. Without them only
signs are left. A training moves class vectors apart; on a CLIP on which a prompt was
not learned they stay about as near as under plain words. docs/how-to/certainty.md has
the margins.

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
# Fewer names say nothing of a spread; more say no more.
_LEAST_NAMES = 10
_MOST_NAMES = 64
# Distance of class vectors, as a multiple of that under plain words, from which a prompt
# acts as a learned one. Measured: 1.38 to 2.94 on its own CLIP, below 1.5 in one of 14;
# 1.47 or less on others (docs/studies/wrong_clip.py).
LEAST_DISTANCE = 1.5
# Norm of a context vector, as a multiple of the mean one of the token table. Trainings
# start from 0.4 or 1 and end between 4 and 20.
LEAST_NORM = 0.05
MOST_NORM = 100.0
# Files may hold float16 or bfloat16.
_ROUNDING = 2.0**-8

_warn_once = functools.cache(logging.getLogger(__name__).warning)


class Signs(NamedTuple):
  """What class vectors under a prompt say of its CLIP."""

  norm: float  # mean norm of the context vectors, the token table's mean being 1
  cosine: float  # mean cosine of a class's vector and that under plain words
  # mean of 1 - cosine over pairs of classes, that under plain words being 1
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
  """Compares a prompt with the words of a CLIP.

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
  """Mean of 1 - cosine over the pairs of unit rows; above 0."""
  n_rows = len(rows_SxE)
  total_E = rows_SxE.sum(axis=0, dtype=np.float64)
  mean_cosine = (total_E @ total_E - n_rows) / (n_rows * (n_rows - 1))
  return max(1 - float(mean_cosine), 1e-12)


def unknown_tokens(
  tokens_TxD: Float[np.ndarray, "T D"], table_VxD: Float[np.ndarray, "V D"]
) -> int:
  """Counts the token embeddings of a file that are not in a CLIP's table.

  Values may be rounded to float16 or bfloat16.

  Args:
    tokens_TxD: embeddings of a file.
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
    features_NxE: features of the classes under it.
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
    # They name the CLIP, whatever the signs are.
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
