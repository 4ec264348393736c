"""The world's CLIP with its first layers alone: the cheapest to train with."""

import json
import pathlib
import shutil

import flax

from pomp_jax import world


def write_fewer_layers(folder: pathlib.Path, layers: int) -> str:
  """Writes a CLIP with the first layers of both towers; returns its folder."""
  shutil.copytree(world.CLIP_PATH, folder)
  config = json.loads((folder / "config.json").read_text())
  for tower in ("text_config", "vision_config"):
    config[tower]["num_hidden_layers"] = layers
  (folder / "config.json").write_text(json.dumps(config))
  weights = folder / "flax_model.msgpack"
  flat = flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(weights.read_bytes()))
  dropped = {str(layer) for layer in range(layers, 3)}
  flat = {path: leaf for path, leaf in flat.items() if not dropped & set(path)}
  tree = flax.traverse_util.unflatten_dict(flat)
  weights.write_bytes(flax.serialization.msgpack_serialize(tree))
  return str(folder)
