"""Training steps of a MaskFormer per second, beside the same network and losses in torch.

python -m docs.studies.mask_speed [--seconds=60] [--images=4] [--size=128]

One process, interleaved. Both have DeepLab's ResNet of two bottlenecks a stage, three decoder
layers and 25 queries in float32, from random weights, and six targets an image of 400 classes.
Torch: HuggingFace's decoders, losses and matching, torchvision's bottlenecks, AdamW, all as the
tests of the network compare them with ours. Reading images is not part of it.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.maskformer import modeling_maskformer

from pomp_jax.benchmark.images import print_rates
from pomp_jax.masks.backbone import ResNetSizes
from pomp_jax.masks.losses import LossWeights
from pomp_jax.masks.model import LOGIT_SCALE, MaskFormer, MaskFormerConfig
from pomp_jax.masks.optimizer import adamw
from pomp_jax.masks.step import MaskLearner, make_mask_step
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.step import create_state
from tests.support.torch_mask_former import torch_mask_former, torch_pixels

TARGETS, CLASSES, EMBEDDING, RATE, DECAY = 6, 400, 64, 1e-4, 1e-4
SIZES = {
  "layers": (2, 2, 2, 2),
  "width": 32,
  "stem": 64,
  "dim": 128,
  "mask_dim": 128,
  "n_queries": 25,
  "n_layers": 3,
  "n_heads": 8,
  "mlp": 512,
  "embedding_mlp": 256,
  "embedding": EMBEDDING,
}
Batch = dict[str, np.ndarray]


def main() -> None:
  """Prints the rates."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=60, help="seconds of each measurement")
  parser.add_argument("--images", type=int, default=4, help="images of a step")
  parser.add_argument("--size", type=int, default=128, help="side of an image, pixels")
  arguments = parser.parse_args()
  batch = _batch(arguments.images, arguments.size)
  classes_NxE = np.random.default_rng(1).standard_normal((CLASSES, EMBEDDING), np.float32)
  classes_NxE /= np.linalg.norm(classes_NxE, axis=1, keepdims=True)
  programs = {"ours": _ours(batch, classes_NxE), "torch": _torch(batch, classes_NxE)}
  print(f"{arguments.images} images of {arguments.size} pixels; medians, images per second")
  print_rates("training step", programs, arguments.seconds)


def _batch(n_images: int, size: int) -> Batch:
  """Random pixels, and squares of random classes."""
  rng = np.random.default_rng(0)
  side = size // 8
  owners = np.kron(rng.integers(-1, TARGETS, (n_images, 8, 8)), np.ones((side, side)))
  return {
    "image": rng.integers(0, 256, (n_images, size, size, 3), np.uint8),
    "sides": np.full((n_images, 2), size, np.int32),
    "owners": owners.astype(np.int16),
    "labels": rng.integers(CLASSES, size=(n_images, TARGETS)).astype(np.int32),
  }


def _ours(batch: Batch, classes_NxE: np.ndarray) -> Callable[[], int]:
  sizes = MaskFormerConfig(
    embedding=EMBEDDING,
    backbone=ResNetSizes(SIZES["layers"], SIZES["width"], SIZES["stem"], (1, 2)),
    width=SIZES["dim"],
    mask_width=SIZES["mask_dim"],
    n_queries=SIZES["n_queries"],
    n_layers=SIZES["n_layers"],
    n_heads=SIZES["n_heads"],
    mlp=SIZES["mlp"],
    embedding_mlp=SIZES["embedding_mlp"],
    dropout=0.0,
  )
  mesh, model = make_mesh(devices=jax.devices()[:1]), MaskFormer(sizes)
  optimizer = adamw(lambda step: RATE, weight_decay=DECAY, backbone=0.1, clip_norm=0.01)
  step = make_mask_step(mesh=mesh, model=model, optimizer=optimizer, weights=LossWeights())
  state = [replicate(create_state(MaskLearner(model), optimizer, seed=0), mesh)]
  classes = replicate(jnp.asarray(classes_NxE), mesh)

  def run():
    state[0], metrics = step(state[0], classes, batch)
    jax.block_until_ready(metrics)
    return len(batch["image"])

  return run


def _torch(batch: Batch, classes_NxE: np.ndarray) -> Callable[[], int]:
  model = torch_mask_former(SIZES, dilations=(1, 2))
  weights, classes = LossWeights(), torch.tensor(classes_NxE)
  matcher = modeling_maskformer.MaskFormerHungarianMatcher(
    weights.classes, weights.focal, weights.dice
  )
  criterion = modeling_maskformer.MaskFormerLoss(CLASSES, matcher, {}, weights.no_object)
  non_object = torch.nn.Parameter(torch.randn(1, EMBEDDING))
  parameters = [p for p in model.parameters() if p.requires_grad] + [non_object]
  optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
  masks = [
    torch.tensor(row == np.arange(TARGETS)[:, None, None]).float()
    for row in batch["owners"][:, None]
  ]
  labels = list(torch.tensor(batch["labels"], dtype=torch.int64))
  decoder, states = model.model.transformer_module.decoder, []

  def keep(module, inputs, output):
    states.append(output[0] if isinstance(output, tuple) else output)

  for layer in decoder.layers:
    layer.register_forward_hook(keep)

  def run():
    states.clear()
    features = model(torch_pixels(batch["image"])).pixel_decoder_last_hidden_state
    rows = torch.cat([classes, torch.nn.functional.normalize(non_object)])
    layers = []
    for state in states:
      queries = decoder.layernorm(state)
      embeddings = torch.nn.functional.normalize(model.class_predictor(queries), dim=-1)
      layers.append(
        {
          "class_queries_logits": LOGIT_SCALE * embeddings @ rows.T,
          "masks_queries_logits": torch.einsum(
            "bqc,bchw->bqhw", model.mask_embedder(queries), features
          ),
        }
      )
    *auxiliary, last = layers
    found = criterion(
      last["masks_queries_logits"], last["class_queries_logits"], masks, labels, auxiliary
    )
    factors = {"cross": weights.classes, "mask": weights.focal, "dice": weights.dice}
    total = sum(factors[name.split("_")[1]] * value for name, value in found.items())
    optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.01)
    optimizer.step()
    return len(batch["image"])

  return run


if __name__ == "__main__":
  main()
