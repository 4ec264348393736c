"""The network of `config.propose`, a MaskFormer, and the regions that it finds.

Shapes: B images of H x W pixels, Q queries, h x w pixels of a mask, E embedding, N
classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from faster_coco_eval.core import mask as mask_api
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float16, Int, Num, UInt8
import numpy as np

from pomp_jax.config.errors import require
from pomp_jax.config.fields import Clip
from pomp_jax.encoder import Encoder, map_rows
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import (
  NamedPrompt,
  check_prompt,
  read_prompt,
  read_prompts,
  warn_of_turns,
)
from pomp_jax.files.paths import Path, file_stamps, is_dir, to_path
from pomp_jax.prompt.mesh import replicate, split_rows
from pomp_jax.rooms.regions.class_matrix import class_matrix, key_parts
from pomp_jax.rooms.regions.fields import Detect, Propose, Segment
from pomp_jax.rooms.regions.mask_former import model, published_weights
from pomp_jax.rooms.regions.masks import ONE, boxes_of_masks, hard_masks, resized_image
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions

# Name of a prompt: the one inside the file of `propose.network`.
_NETWORK_PROMPT = "network"


def network_path(path: str) -> Path:
  """File of a network; a run's folder stands for the network that it has trained."""
  return to_path(path) / "masks.safetensors" if is_dir(path) else to_path(path)


def check_network(propose: Propose, clip_model: str) -> None:
  """Reads the network; checks its width, and the prompt of its classes."""
  clip_config = opening.clip_config(clip_model)
  network = published_weights.read_mask_former(network_path(propose.network))
  accepted = f"a CLIP of {network.config.embedding} numbers, as {propose.network}"
  fits = network.config.embedding == clip_config.projection_dim
  require(fits, "clip.model", clip_model, accepted)
  named = _prompt_of_classes(propose)
  if network.trained_classes:
    check_prompt(
      named, [(name,) for name in network.trained_classes], clip_config, clip_model
    )


def open_network(
  propose: Propose, clip: Clip, mask_threshold: float, encoder: Encoder
) -> "Proposer":
  """Opens the network; InputError if it is unusable, or a checkpoint has another
  CLIP inside."""
  path = network_path(propose.network)
  published_weights.check_clip(path, encoder.clip)
  network, classes_NxE = published_weights.read_mask_former(path), None
  if network.trained_classes:
    synonyms = [(name,) for name in network.trained_classes]
    classes_NxE = class_matrix(encoder, synonyms, _prompt_of_classes(propose)).features
  return Proposer(network, encoder.mesh, classes_NxE, propose, clip, mask_threshold)


def network_key_parts(propose: Propose, mask_threshold: float, dtype: str) -> list[Any]:
  """Cache key parts of a network's regions, beside those of the CLIP and the images."""
  parts = [
    str(propose),
    str(mask_threshold),
    dtype,
    file_stamps([network_path(propose.network)]),
  ]
  # The names of its classes are in the file.
  return parts + key_parts(_prompt_of_classes(propose), [])


def prompts_of(own: Detect | Segment, propose: Propose) -> list[NamedPrompt]:
  """Reads the prompts of a job's fields."""
  field = f"{type(own).__name__.lower()}.prompts"
  fits = propose.network or _NETWORK_PROMPT not in own.prompts
  require(
    fits, "propose.network", "", f"a network where {field} has {_NETWORK_PROMPT!r}"
  )
  prompts = read_prompts([_file_of(name, propose) for name in own.prompts], field)
  # Boxes and label images are those of the pictures as they are stored.
  warn_of_turns(prompts, False, f"{field}: annotated images")
  return prompts


def _prompt_of_classes(propose: Propose) -> NamedPrompt:
  return read_prompt(_file_of(propose.prompt, propose), "propose.prompt")


def _file_of(prompt: str, propose: Propose) -> str:
  return str(network_path(propose.network)) if prompt == _NETWORK_PROMPT else prompt


class Proposer:
  """A network on the devices, read as `network`; every query is a region.

  By `header` embeddings of its regions are compared with a class matrix.
  """

  def __init__(
    self,
    network: published_weights.MaskFormerFile,
    mesh: Mesh,
    classes_NxE: Float[Array | np.ndarray, "N E"] | None,
    propose: Propose,
    clip: Clip,
    threshold: float,
  ):
    """Copies the parameters to the devices of `mesh`, which split a batch.

    The objectness is by the classes that the network was trained on; None: by the masks
    alone. A pixel is inside a mask, for boxes and objectness, above the `threshold`.
    With `propose.stride` of 4 the sides of an image become multiples of 4 pixels; with
    1 the logits of the masks are interpolated to the size of the image in the network.
    """
    null = tuple(np.asarray(network.params["non_object"][0], np.float64).tolist())
    names, width = tuple(network.trained_classes), network.config.embedding
    self.network, stride = network, propose.stride
    self.header = RegionHeader(
      "MaskFormer", clip.model, 1, width, "softmax", model.LOGIT_SCALE, null, names
    )
    self._params = replicate((network.params, classes_NxE), mesh)
    self._mesh, self._size, self._stride, self._threshold = (
      mesh,
      propose.size,
      stride,
      threshold,
    )
    self._batch_size = -(-propose.batch_size // mesh.size) * mesh.size
    predict = model.mask_predictor(network.config, clip.dtype)

    def of_batch(
      params: tuple[model.Params, Float[Array, "N E"] | None],
      batch: tuple[UInt8[Array, "B H W 3"], Int[Array, "B 2"]],
    ) -> tuple[Num[Array, "B Q h w"], Float16[Array, "B Q E"], Float[Array, "B Q"]]:
      network_params, classes_NxE = params
      images_BxHxWx3, sizes_Bx2 = batch
      logits, embeddings_BxQxE = predict(network_params, images_BxHxWx3, sizes_Bx2)
      if stride != model.MASK_STRIDE:
        # Bilinear, as torch without align_corners.
        shape = (
          *logits.shape[:2],
          *(model.MASK_STRIDE * side for side in logits.shape[2:]),
        )
        logits = jax.image.resize(logits, shape, "bilinear")
      p = jax.nn.sigmoid(logits.astype(jnp.float32))
      # No mask has pixels in the padding.
      rows_Bxh, columns_Bxw = (
        jnp.arange(n) < sizes_Bx2[:, axis, None] // stride
        for axis, n in enumerate(p.shape[2:])
      )
      p = jnp.where((rows_Bxh[:, :, None] & columns_Bxw[:, None])[:, None], p, 0)
      # Mean probability of the pixels inside a mask; 0 for an empty one.
      inside = p > threshold
      n_inside = jnp.sum(inside, axis=(-2, -1))
      objectness_BxQ = jnp.sum(jnp.where(inside, p, 0.0), axis=(-2, -1)) / jnp.maximum(
        n_inside, 1
      )
      if classes_NxE is not None:
        scores = model.class_logits(
          embeddings_BxQxE, classes_NxE, network_params["non_object"][0]
        )
        objectness_BxQ *= 1 - jax.nn.softmax(scores)[..., -1]
      # A mean of ones may be above 1 by rounding.
      objectness_BxQ = jnp.minimum(objectness_BxQ, 1)
      return (
        decisive_masks(logits),
        embeddings_BxQxE.astype(jnp.float16),
        objectness_BxQ,
      )

    self._of_batch = map_rows(mesh, of_batch, n_replicated=1)

  def regions(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Regions]:
    """Regions of images of any sizes, all queries of each; boxes are in pixels of
    the images."""
    resized = [resized_image(image, self._size, self._stride) for image in images]
    found: list[Any] = [None] * len(images)
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(resized):
      frame = tuple(model.STRIDE * -(-side // model.STRIDE) for side in image.shape[:2])
      rows_of.setdefault(frame, []).append(row)
    most = self._batch_size
    for frame, of_frame in rows_of.items():
      for start in range(0, len(of_frame), most):
        rows = of_frame[start : start + most]
        batch, sizes = (
          np.zeros((most, *frame, 3), np.uint8),
          np.ones((most, 2), np.int32),
        )
        # Batches are padded with their last image.
        for slot in range(most):
          image = resized[rows[min(slot, len(rows) - 1)]]
          height, width = sizes[slot] = image.shape[:2]
          batch[slot, :height, :width] = image
        placed = split_rows((batch, sizes), self._mesh)
        results = jax.device_get(self._of_batch(self._params, placed))
        for slot, row in enumerate(rows):
          masks, embeddings, objectness = (part[slot] for part in results)
          rows_of_mask, columns = sizes[slot] // self._stride
          masks = np.ascontiguousarray(masks[:, :rows_of_mask, :columns])
          height, width, _ = images[row].shape
          boxes = mask_boxes(masks, height, width, self._threshold)
          found[row] = Regions(boxes, objectness, masks, embeddings[:, None])
    return found


def decisive_masks(
  logits_BxQxhxw: Float[Array, "B Q h w"],
) -> Float16[Array, "B Q h w"]:
  """2^15 times the probabilities, in 16 bits that keep the ratios by which a pixel gets
  its class.

  float16 loses digits below 2^-14: where the largest of a pixel's masks is lower, all
  are scaled up until it is not. Masks below 2^-12 of the largest become 0, so that
  files stay small.
  """
  log_p = jax.nn.log_sigmoid(logits_BxQxhxw.astype(jnp.float32))
  largest = log_p.max(axis=1, keepdims=True)
  ratio = jnp.exp(log_p - largest)
  masks = ratio * jnp.maximum(ONE[np.float16] * jnp.exp(largest), 2.0**-14)
  return jnp.where(ratio < 2.0**-12, 0, masks).astype(jnp.float16)


def mask_boxes(
  masks: Num[np.ndarray, "R h w"], height: int, width: int, threshold: float
) -> Float[np.ndarray, "R 4"]:
  """Boxes of soft masks in an image of height x width; coarser masks are enlarged
  first."""
  rows, columns = masks.shape[1:]
  if rows < height or columns < width:
    return boxes_of_masks(hard_masks(masks, height, width, threshold))
  scale = np.array([width / columns, height / rows] * 2, np.float32)
  return boxes_of_masks(hard_masks(masks, rows, columns, threshold)) * scale


def found_objects(
  masks: Iterable[Bool[np.ndarray, "H W"]],
  objects: Sequence[Mapping[str, Any]],
  least_iou: float = 0.5,
) -> Bool[np.ndarray, " D"]:
  """Whether each of D objects has a mask with at least this intersection over union.

  Masks are in memory one at a time; objects are those of `Annotations.run_lengths`.
  """
  found = [mask_api.encode(np.asfortranarray(mask_HxW, np.uint8)) for mask_HxW in masks]
  if not found or not len(objects):
    return np.zeros(len(objects), bool)
  iou_RxD = mask_api.iou(found, list(objects), [0] * len(objects))
  return iou_RxD.max(axis=0) >= least_iou
