r"""Compiles the text half of a training step for TPUs that are not there; prints its
cycles.

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
  python -m docs.studies.text_tower_on_tpu --topology=v5e:2x2

Needs libtpu (`pip install 'jax[tpu]'`), and no TPU. ViT-B/16's text tower in bfloat16,
forward and backward to the context: 1,128 rows of at most 24 tokens after a prefix of
5, and names of 5,904 tokens, which take 2.6% more in blocks. `--blocks=false` compiles
the layout of CPUs.

Cycles are the compiler's estimates, `estimated_cycles` of each fusion, times the trips
of loops. A fusion counts as the operation at its root. Nothing here is measured on a
device.
"""

import argparse
import collections
import math
import re
import time
from types import SimpleNamespace

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pomp_jax.clip.blocks import block_width
from pomp_jax.clip.packed import shared_text_tower, taken_of
from pomp_jax.rooms.benchmark.synthetic_clip import token_lengths

_CLASSES, _LONGEST, _PREFIX, _TOKENS = 1128, 24, 5, 5904
_WIDTH, _INNER, _HEADS, _EMBEDDING, _POSITIONS = 512, 2048, 8, 512, 77

# Row of the table for the last part of an operation's name.
_ROWS = {
  "selections": ("gather", "select_n", "scatter"),
  "slices, joins, transposes": (
    *(
      "slice",
      "concatenate",
      "pad",
      "transpose",
      "reshape",
      "broadcast_in_dim",
      "squeeze",
      "copy",
    ),
  ),
  "reductions, conversions, sums": (
    *(
      "reduce_sum",
      "reduce_max",
      "convert_element_type",
      "add_any",
      "add",
      "sub",
      "mul",
      "div",
    ),
    "rsqrt",
  ),
}


def main() -> None:
  """Compiles, and prints memory, CPU seconds and the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--blocks", choices=("true", "false"), default="true")
  arguments = parser.parse_args()
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=arguments.topology
  )
  block = block_width("tpu", _POSITIONS) if arguments.blocks == "true" else None

  start = time.process_time()
  compiled = _lowered(topology.devices[0], arguments.layers, block).compile()
  print(f"{arguments.topology}, {arguments.layers} layers, blocks of {block}")
  print(f"{time.process_time() - start:.0f} CPU seconds to trace and compile")
  mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
  print(f"{mib:,.0f} MiB of temporaries")
  cycles = cycles_by_row(compiled.as_text())
  print(f"{sum(cycles.values()) / 1e6:8.2f} M cycles")
  for row, number in cycles.most_common():
    print(f"{number / 1e6:8.2f} {row}")


def _lowered(
  device: jax.Device, n_layers: int, block: int | None
) -> jax.stages.Lowered:
  config = SimpleNamespace(
    max_position_embeddings=_POSITIONS,
    num_attention_heads=_HEADS,
    num_hidden_layers=n_layers,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
  )
  sharding = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())

  def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  names = token_lengths()
  capacity = None if block is None else block - _PREFIX
  budget = math.ceil(_TOKENS * taken_of(names, capacity).mean() / names.mean())
  tower = shared_text_tower(config, jnp.bfloat16, budget, block=block)

  def loss(prefix_PxD, params, suffix_CxLxD, lengths_C, cotangent_CxE):
    return jnp.sum(tower(params, prefix_PxD, suffix_CxLxD, lengths_C) * cotangent_CxE)

  return jax.jit(jax.value_and_grad(loss)).lower(
    array(_PREFIX, _WIDTH),
    _parameters(array, n_layers),
    array(_CLASSES, _LONGEST, _WIDTH),
    array(_CLASSES, dtype=jnp.int32),
    array(_CLASSES, _EMBEDDING),
  )


def _parameters(array, n_layers: int) -> dict:
  """Shapes of FlaxCLIP's text tower."""
  dense = lambda n_in, n_out: {"kernel": array(n_in, n_out), "bias": array(n_out)}
  norm = {"scale": array(_WIDTH), "bias": array(_WIDTH)}
  projections = ("q_proj", "k_proj", "v_proj", "out_proj")
  layer = {
    "layer_norm1": norm,
    "self_attn": {name: dense(_WIDTH, _WIDTH) for name in projections},
    "layer_norm2": norm,
    "mlp": {"fc1": dense(_WIDTH, _INNER), "fc2": dense(_INNER, _WIDTH)},
  }
  return {
    "text_model": {
      "embeddings": {"position_embedding": {"embedding": array(_POSITIONS, _WIDTH)}},
      "encoder": {"layers": {str(i): layer for i in range(n_layers)}},
      "final_layer_norm": norm,
    },
    "text_projection": {"kernel": array(_WIDTH, _EMBEDDING)},
  }


def cycles_by_row(program: str) -> collections.Counter:
  """Estimated cycles of a compiled program by row of the table."""
  trips = _trips(program)
  cycles: collections.Counter = collections.Counter()
  computation = ""
  for line in program.splitlines():
    if opened := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
      computation = opened[1]
    estimated = re.search(r'"estimated_cycles":"(\d+)"', line)
    if not estimated:
      continue
    name = re.search(r'op_name="([^"]*)"', line)
    row = _row(name[1] if name else "", computation in trips)
    cycles[row] += int(estimated[1]) * trips.get(computation, 1)
  return cycles


def _trips(program: str) -> dict[str, int]:
  """Bodies of loops and how often they run: as often as the condition's constant
  says."""
  trips = {}
  for condition, body in re.findall(r"condition=%([\w.]+), body=%([\w.]+)", program):
    text = program[program.index(f"%{condition} (") :]
    limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", text[: text.index("\n}")])
    trips[body] = max(map(int, limits), default=1)
  return trips


def _row(name: str, in_loop: bool) -> str:
  if in_loop:
    return "packing"
  last = name.split("/")[-1]
  if last == "dot_general":
    return "products of attention" if "->" in name else "dense products"
  rows = [row for row, operations in _ROWS.items() if last in operations]
  return rows[0] if rows else "the rest"


if __name__ == "__main__":
  main()
