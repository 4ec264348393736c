"""What a tree of arrays holds, leaf by leaf: names, types, shapes, checksums."""

import json
from typing import Any
import zlib

import jax
import numpy as np


def describe(tree: Any) -> dict[str, str]:
  """Types and shapes by name: {"optimizer/0/trace": "float32 [4, 512]"}."""
  return {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in _leaves(tree)}


def of_leaves(tree: Any) -> dict[str, str]:
  """CRC-32 of each leaf's bytes by name, eight hexadecimal digits: finds what a disk gets wrong."""
  return {name: f"{zlib.crc32(np.asarray(leaf).tobytes()):08x}" for name, leaf in _leaves(tree)}


def of_json(value: dict[str, Any]) -> str:
  """CRC-32 of a JSON value, whatever the order of its keys."""
  return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
