"""Texts to token ids, with HuggingFace's two rules for where a text's feature is read.

Shapes: N texts, L the longest of them in tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int32
import numpy as np
from transformers import CLIPTextConfig

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import quoted


@runtime_checkable
class Tokenizer(Protocol):
  """What is used of a tokenizer: HuggingFace's, or `clip.bpe`'s.

  Attributes:
    bos_token_id: of SOS. Not declared below: HuggingFace's makes it up when it is asked for, and
      from Python 3.12 on a check of the type looks without asking.
  """

  def __call__(self, texts: Any, add_special_tokens: bool = True) -> Mapping[str, Any]:
    """`input_ids`: token ids of each text, with SOS and EOT around them."""

  def convert_ids_to_tokens(self, ids: Any) -> list[str]:
    """How the vocabulary writes tokens, one string an id."""


class TokenizeError(InputError, ValueError):
  """A text that the tower cannot take; the message is one line."""


def tokenize(
  texts: Sequence[str],
  tokenizer: Tokenizer,
  config: CLIPTextConfig,
  budget: int | None = None,
) -> tuple[Int32[np.ndarray, "N L"], Int32[np.ndarray, " N"]]:
  """Token ids of each text without SOS, up to and with EOT, zero-padded.

  Args:
    texts: one string a row.
    tokenizer: the checkpoint's own.
    config: the text tower's; its `eos_token_id` selects HuggingFace's rule for EOT.
    budget: the most tokens a text may take, EOT included; all positions but SOS's if not given.

  Returns:
    ids [N, L] and lengths [N]: the feature of text i is read at ids[i, lengths[i] - 1].

  Raises:
    TokenizeError: no texts, or one longer than the budget.
  """
  if not texts:
    raise TokenizeError("there are no texts to tokenize; at least one is needed")
  budget = config.max_position_embeddings - 1 if budget is None else budget
  rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
  lengths_N = np.array([_eot_position(row, config.eos_token_id) for row in rows], np.int32)
  longest = int(np.argmax(lengths_N))
  if lengths_N[longest] > budget:
    raise TokenizeError(
      f"{quoted(texts[longest])} takes {lengths_N[longest]} tokens with EOT;"
      f" at most {budget} fit the text tower's {config.max_position_embeddings} positions"
      " beside SOS and the context"
    )
  ids_NxL = np.zeros((len(rows), lengths_N[longest]), np.int32)
  for i, (row, length) in enumerate(zip(rows, lengths_N, strict=True)):
    ids_NxL[i, :length] = row[1 : length + 1]
  return ids_NxL, lengths_N


def _eot_position(row: Sequence[int], eos_token_id: int) -> int:
  """The position whose feature HuggingFace pools.

  Configurations older than transformers' pull request 24773 say eos_token_id=2, and mean the
  highest id of the row; newer ones name the true id, and mean its first occurrence.
  """
  if eos_token_id == 2:
    return int(np.argmax(row))
  if eos_token_id not in row:
    raise TokenizeError(
      f"the tokenizer never writes the config's eos_token_id {eos_token_id}; they do not belong"
      " to the same checkpoint"
    )
  return row.index(eos_token_id)
