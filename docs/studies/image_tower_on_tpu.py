r"""Compiles an image tower for TPUs that are not there; prints its cycles by operation.

JAX_PLATFORMS=cpu python -m docs.studies.image_tower_on_tpu --machine=v5e-1

Needs the extra `aot-tpu`, and no TPU. The tower of `--model` in bfloat16, forward, for
64 images on one device. Cycles are the compiler's estimates, those of a fusion at the
operation of its root. Nothing is measured on a device.
"""

import argparse
import collections
import re
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pomp_jax.clip.architecture import parameter_shapes
from pomp_jax.clip.vit import VisionTransformer
from pomp_jax.rooms.benchmark import absent, hlo
from pomp_jax.rooms.benchmark.synthetic_clip import synthetic_config


def main() -> None:
  """Compiles, and prints CPU seconds, memory and the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--machine", default="v5e-1")
  parser.add_argument("--model", default="openai/clip-vit-base-patch16")
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--layers", type=int, default=0, help="0: all")
  options = parser.parse_args()
  device = absent.open_devices(options.machine)[0]
  start = time.process_time()
  compiled = _lowered(device, options.model, options.images, options.layers).compile()
  seconds = time.process_time() - start
  cycles = cycles_by_operation(hlo.parse(compiled.as_text()))
  mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
  print(f"{seconds:.0f} CPU seconds, {mib:,.0f} MiB of temporaries")
  print(f"{sum(cycles.values()) / 1e6:8.2f} M cycles")
  for row, number in cycles.most_common(12):
    print(f"{number / 1e6:8.2f} {row}")


def _lowered(
  device: jax.Device, model: str, n_images: int, n_layers: int
) -> jax.stages.Lowered:
  clip = synthetic_config(model)
  config = clip.vision_config
  config.num_hidden_layers = n_layers or config.num_hidden_layers
  sharding = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
  array = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
  is_shape = lambda node: isinstance(node, tuple)
  params = jax.tree.map(array, parameter_shapes(clip)["vision_model"], is_leaf=is_shape)
  tower = VisionTransformer(config, jnp.bfloat16)
  side = config.image_size
  return jax.jit(lambda *given: tower(*given)).lower(
    params, array((n_images, side, side, 3))
  )


def cycles_by_operation(program: hlo.Program) -> collections.Counter:
  """Estimated cycles by the last parts of an operation's name, products apart."""
  found: collections.Counter = collections.Counter()
  for one, times in program.visited():
    if cycles := re.search(r'"estimated_cycles":"?(\d+)', one.rest):
      name = re.search(r'op_name="([^"]*)"', one.rest)
      parts = name[1].split("/")[-2:] if name else [one.name.partition(".")[0]]
      kind = "product" if program.has_product(one) else one.operation
      found[f"{kind}: {'/'.join(parts)}"] += times * int(cycles[1])
  return found


if __name__ == "__main__":
  main()
