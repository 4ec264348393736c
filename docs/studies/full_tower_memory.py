"""Memory of full text towers (SigLIP, CLIPA) for machines that are not here, and what
is planned.

JAX_PLATFORMS=cpu python -m docs.studies.full_tower_memory --machines v5e-1 h100:1

Compiles the tower alone, forward and backward to the context, with the chunks that
`clip.text.FullTowerBytes` plans for half of a device's memory; the sizes are
open_clip's, no weights are read. TPUs need the extra `aot-tpu`, GPUs `aot-cuda`.
Nothing is measured on a device.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.open_clip import tables
from pomp_jax.clip.packed import MemoryPlan
from pomp_jax.clip.text import full_tower_bytes, text_tower
from pomp_jax.rooms.benchmark import absent
from pomp_jax.rooms.benchmark.chips import GIB, machine_of
from pomp_jax.rooms.benchmark.synthetic_clip import open_clips_config
from pomp_jax.train.memory import share_of_device

_DTYPE = "bfloat16"


def main() -> None:
  """Prints a row for each model, number of classes and machine."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--models", nargs="+", default=["ViT-SO400M-14-SigLIP2"])
  parser.add_argument("--machines", nargs="+", default=["v5e-1"])
  parser.add_argument("--classes", nargs="+", type=int, default=[1127, 21969])
  parser.add_argument("--m", type=int, default=16)
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  print(
    "| machine | text tower | classes | remat, chunks | planned, GiB | arguments | temporaries |"
  )
  print("| --- " * 7 + "|")
  for model in options.models:
    for machine in options.machines:
      for n_classes in options.classes:
        print(row(model, machine, n_classes, options.m), flush=True)


def row(model: str, name: str, n_classes: int, n_prefix: int) -> str:
  """Plans and compiles the tower of open_clip's `model`; a row of the table."""
  clip = open_clips_config(tables()[model]["model_cfg"])
  machine = machine_of(name)
  device = absent.open_devices(name)[0]
  limit = share_of_device(machine.chip.memory / GIB) * GIB
  n_tokens = n_classes * (clip.text_config.max_position_embeddings - n_prefix)
  estimate = full_tower_bytes(
    clip.text_config, n_prefix, n_tokens, _DTYPE, device.platform
  )
  plan = estimate.plan(limit)
  planned = estimate.peak(plan.n_chunks) / GIB
  options = absent.GPU_OPTIONS if machine.chip.gpu else None
  cells = [
    name,
    model,
    f"{n_classes:,}",
    f"{plan.remat}, {plan.n_chunks}",
    f"{planned:.1f}",
  ]
  start = time.process_time()
  try:
    lowered = lowered_tower(clip, device, n_classes, n_prefix, plan)
    memory = lowered.compile(compiler_options=options).memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    cells += ["does not fit", str(error).partition("\n")[0]]
  else:
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = (arguments + temporaries) / GIB
    cells += [f"{arguments / GIB:.2f} GiB", f"{temporaries / GIB:.2f} GiB"]
    cells[-1] += f"; {total:.1f} of {machine.chip.memory / GIB:.1f}"
  return f"| {' | '.join(cells)} | {time.process_time() - start:.0f} CPU s"


def lowered_tower(
  clip: ClipConfig, device: jax.Device, n_classes: int, n_prefix: int, plan: MemoryPlan
) -> jax.stages.Lowered:
  """Lowers a bidirectional text tower, forward and backward to the context, for one
  device."""
  config = clip.text_config
  everywhere = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())

  def array(
    shape: tuple[int, ...], dtype: object = jnp.float32
  ) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

  n_suffix, width = config.max_position_embeddings - n_prefix, config.hidden_size
  tower = text_tower("shared", config, _DTYPE, n_classes * n_suffix, plan)

  def loss(prefix_PxD, params, table_VxD, ids_CxL, cotangent_CxE):
    lengths_C = jnp.full(n_classes, n_suffix)
    features_CxE = tower(params, prefix_PxD, table_VxD[ids_CxL], lengths_C)
    return jnp.sum(features_CxE * cotangent_CxE)

  shapes = parameter_shapes(clip)
  # only rows that are read: `table_VxD`
  shapes["text_model"]["embeddings"].pop("token_embedding")
  params = jax.tree.map(array, shapes, is_leaf=lambda node: isinstance(node, tuple))
  return jax.jit(jax.value_and_grad(loss)).lower(
    array((n_prefix, width)),
    {key: params[key] for key in ("text_model", "text_projection")},
    array((32_768, width)),
    array((n_classes, n_suffix), jnp.int32),
    array((n_classes, clip.projection_dim)),
  )


if __name__ == "__main__":
  main()
