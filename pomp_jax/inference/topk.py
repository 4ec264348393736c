"""Top-k accuracy on the devices: no host holds the scores of images over all classes.

Shapes: B images, N classes, E embedding.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.encoder import map_rows
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.metrics import Accuracy, accuracy_of_ranks, ranks
from pomp_jax.prompt.mesh import make_mesh, replicate, split_rows

# Scores that a device computes at a time: 64 MB.
_SCORES = 2**24


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  *,
  mesh: Mesh | None = None,
  chunk: int = 0,
) -> Accuracy:
  """Computes the share of images whose class is among the k most similar, on the devices.

  Ties count as wrong: a constant classifier scores 0.

  Args:
    image_features_BxE: unit rows, the same on all hosts.
    class_features_NxE: likewise.
    labels_B: right classes.
    ks: values of k.
    mesh: devices, each of which scores its share of the images; this process's if None.
    chunk: images scored at a time, over all devices; 0: 64 MB of scores on each device.

  Returns:
    {"images": n, "top1": .., "top1_interval": [low, high], "top5": ..}; the interval is
    `wilson_interval`'s.
  """
  mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
  n_images, n_classes = len(labels_B), len(class_features_NxE)
  at_a_time = min(chunk or mesh.size * max(_SCORES // n_classes, 1), n_images)
  size = mesh.size * -(-at_a_time // mesh.size)
  classes = replicate(np.asarray(class_features_NxE, np.float32), mesh)
  rows = np.asarray(image_features_BxE, np.float32), np.asarray(labels_B, np.int32)
  compute, found = rank_rows(mesh), []
  for start in steps_of(range(0, n_images, size), "scoring", "parts"):
    part = [row[start : start + size] for row in rows]
    padding = size - len(part[0])
    part = [np.pad(row, [(0, padding)] + [(0, 0)] * (row.ndim - 1)) for row in part]
    found.append(compute(classes, split_rows(part, mesh)))
    # Fetched one part late, so that the devices can work on the next meanwhile.
    found[-2:-1] = map(np.asarray, found[-2:-1])
  return accuracy_of_ranks(np.concatenate(found)[:n_images], n_classes, ks)


@functools.cache
def rank_rows(mesh: Mesh) -> Callable[..., Int[jax.Array, " B"]]:
  """Compiles `ranks` of unit rows: class features [N,E], (image features [B,E], labels [B]) -> [B].

  Class features are on all devices of the mesh, images and labels are split over them, and the
  ranks are on all again.
  """

  def ranks_of_rows(class_features_NxE, rows):
    image_features_BxE, labels_B = rows
    # HIGHEST: accelerators would round the product to bfloat16, and thousands of classes lie close.
    precision = jax.lax.Precision.HIGHEST
    scores_BxN = jnp.matmul(image_features_BxE, class_features_NxE.T, precision=precision)
    return ranks(scores_BxN, labels_B)

  return map_rows(mesh, ranks_of_rows, n_replicated=1)
