"""How the memory of a step in the packed text tower is spent, and how much it takes.

Shapes: P prefix tokens, T packed tokens, D width, F width of the MLP. Imports nothing.
"""

import math
from typing import Any, NamedTuple

# What the forward pass leaves for the backward pass, from fast to small. `activations`: the input
# of every layer norm, activation function and attention, so that nothing costly is computed
# twice. `layers`: the input of each layer. `chunks`: nothing; peak memory is that of one chunk.
KEEP = ("activations", "layers", "chunks")


class MemoryPlan(NamedTuple):
  """How a step's memory is spent.

  Attributes:
    n_chunks: parts that the rows are computed in.
    keep: one of KEEP.
  """

  n_chunks: int = 1
  keep: str = "activations"


KEEP_ALL = MemoryPlan()


def plan_memory(config: Any, n_prefix: int, n_tokens: int, limit_bytes: float) -> MemoryPlan:
  """The fastest plan whose activations stay below a limit, roughly.

  Beyond the limit the rows go in chunks that are computed again in the backward pass.

  Args:
    config: the text tower's configuration.
    n_prefix: P.
    n_tokens: T, own tokens of the rows of a device.
    limit_bytes: of activations on a device.
  """
  needed = activation_bytes(config, n_prefix, n_tokens)
  if needed <= limit_bytes:
    return KEEP_ALL
  return MemoryPlan(math.ceil(needed / limit_bytes), "chunks")


def activation_bytes(config: Any, n_prefix: int, n_tokens: int) -> float:
  """What keeping everything for the backward pass takes, roughly; arguments as `plan_memory`'s.

  For each token and layer about nine vectors of width D and F/D more (inputs of the norms, query,
  key, value, attention's result, the MLP), and the attention weights.
  """
  floats = 9 * config.hidden_size + config.intermediate_size
  floats += config.num_attention_heads * (n_prefix + 16)
  return 4.0 * floats * config.num_hidden_layers * n_tokens
