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

# Name of the prompt that is inside the file of `propose.network`.
_NETWORK_PROMPT = "network"


def network_path(path: str) -> Path:
  """File of a network; a run's folder stands for the network that it has trained."""
  if is_dir(path):
    return to_path(path) / "masks.safetensors"
  return to_path(path)


def check_network(propose: Propose, clip_model: str) -> None:
  """Reads the network; checks its embedding width and the prompt of its classes.

  Raises:
    InputError: the file is unusable, or the network or the prompt misfits the CLIP.
  """
  clip_config = opening.clip_config(clip_model)
  network = published_weights.read_mask_former(network_path(propose.network))
  width = network.config.embedding
  require(
    width == clip_config.projection_dim,
    "clip.model",
    clip_model,
    f"a CLIP of {width} numbers, as {propose.network}",
  )
  named = _prompt_of_classes(propose)
  if network.trained_classes:
    synonyms = [(name,) for name in network.trained_classes]
    check_prompt(named, synonyms, clip_config, clip_model)


def open_network(
  propose: Propose, clip: Clip, mask_threshold: float, encoder: Encoder
) -> "Proposer":
  """Opens the network, with the features of the classes that it was trained on.

  Args:
    propose: file, sizes, and the prompt of the trained classes.
    clip: fields of the CLIP.
    mask_threshold: probability above which a pixel is inside a mask.
    encoder: the CLIP, on the devices that the network will use.

  Raises:
    InputError: the file is unusable, or a checkpoint holds a CLIP other than the run's.
  """
  path = network_path(propose.network)
  published_weights.check_clip(path, encoder.clip)
  network = published_weights.read_mask_former(path)
  classes_NxE = None
  if network.trained_classes:
    # A trained class has one name.
    synonyms = [(name,) for name in network.trained_classes]
    prompt = _prompt_of_classes(propose)
    classes_NxE = class_matrix(encoder, synonyms, prompt).features
  return Proposer(network, encoder.mesh, classes_NxE, propose, clip, mask_threshold)


def network_key_parts(propose: Propose, mask_threshold: float, dtype: str) -> list[Any]:
  """Parts of the cache key of a network's regions.

  The caller adds parts for the CLIP and the images.

  Args:
    propose: file, sizes, and the prompt of the trained classes.
    mask_threshold: probability above which a pixel is inside a mask.
    dtype: type that the network computes in.

  Raises:
    InputError: the network's file or its prompt can't be read.
  """
  network_file = network_path(propose.network)
  # Class names are left out: they are in the network's file, whose stamp is a part.
  prompt_parts = key_parts(_prompt_of_classes(propose), [])
  return [
    str(propose),
    str(mask_threshold),
    dtype,
    file_stamps([network_file]),
    *prompt_parts,
  ]


def prompts_of(settings: Detect | Segment, propose: Propose) -> list[NamedPrompt]:
  """Reads the prompts of a job's fields.

  Raises:
    InputError: a prompt is unusable, or it is the network's but there is no network.
  """
  field = f"{type(settings).__name__.lower()}.prompts"
  if _NETWORK_PROMPT in settings.prompts:
    accepted = f"a network where {field} has {_NETWORK_PROMPT!r}"
    require(bool(propose.network), "propose.network", "", accepted)
  prompts = read_prompts([_file_of(name, propose) for name in settings.prompts], field)
  # Boxes and label images fit the pictures as they are stored, not turned by EXIF.
  warn_of_turns(prompts, False, f"{field}: annotated images")
  return prompts


def _prompt_of_classes(propose: Propose) -> NamedPrompt:
  """The prompt of the classes that the network was trained on."""
  return read_prompt(_file_of(propose.prompt, propose), "propose.prompt")


def _file_of(prompt: str, propose: Propose) -> str:
  """File of a prompt; the name `network` stands for the network's file."""
  if prompt == _NETWORK_PROMPT:
    return str(network_path(propose.network))
  return prompt


class Proposer:
  """Finds regions by a network on the devices; every query is a region.

  `network` is the content of the network's file. `header` says how the embeddings of
  the regions are compared with a class matrix.
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

    Args:
      network: content of the network's file.
      mesh: devices.
      classes_NxE: features of the classes that the network was trained on, for the
        factor 1 - p("no object") of the objectness; None: the masks alone decide it.
      propose: sizes of images and batches. With a stride of 4 the sides of an image
        become multiples of 4 pixels; with 1 the network interpolates the logits of the
        masks to the size of the image.
      clip: name and type of the CLIP.
      threshold: probability above which a pixel is inside a mask, for boxes and
        objectness.
    """
    non_object_E = np.asarray(network.params["non_object"][0], np.float64)
    self.network = network
    self.header = RegionHeader(
      made_by="MaskFormer",
      clip_model=clip.model,
      stages=1,
      width=network.config.embedding,
      activation="softmax",
      scale=model.LOGIT_SCALE,
      null=tuple(non_object_E.tolist()),
      trained_classes=tuple(network.trained_classes),
    )
    self._params = replicate((network.params, classes_NxE), mesh)
    self._mesh = mesh
    self._size = propose.size
    self._stride = propose.stride
    self._threshold = threshold
    # Round up to a multiple of the devices.
    self._batch_size = -(-propose.batch_size // mesh.size) * mesh.size
    predict = model.mask_predictor(network.config, clip.dtype)

    def of_batch(
      params: tuple[model.Params, Float[Array, "N E"] | None],
      batch: tuple[UInt8[Array, "B H W 3"], Int[Array, "B 2"]],
    ) -> tuple[Num[Array, "B Q h w"], Float16[Array, "B Q E"], Float[Array, "B Q"]]:
      network_params, classes_NxE = params
      images_BxHxWx3, sizes_Bx2 = batch
      logits, embeddings_BxQxE = predict(network_params, images_BxHxWx3, sizes_Bx2)
      if propose.stride != model.MASK_STRIDE:
        # Enlarge bilinearly, as torch does without align_corners.
        n_images, n_queries, height, width = logits.shape
        sides = (model.MASK_STRIDE * height, model.MASK_STRIDE * width)
        logits = jax.image.resize(logits, (n_images, n_queries, *sides), "bilinear")
      p = jax.nn.sigmoid(logits.astype(jnp.float32))
      p = _without_padding(p, sizes_Bx2, propose.stride)
      objectness_BxQ = _mean_inside(p, threshold)
      if classes_NxE is not None:
        scores = model.class_logits(
          embeddings_BxQxE, classes_NxE, network_params["non_object"][0]
        )
        objectness_BxQ *= 1 - jax.nn.softmax(scores)[..., -1]
      # Rounding may bring a mean of ones above 1.
      objectness_BxQ = jnp.minimum(objectness_BxQ, 1)
      masks = decisive_masks(logits)
      return masks, embeddings_BxQxE.astype(jnp.float16), objectness_BxQ

    self._of_batch = map_rows(mesh, of_batch, n_replicated=1)

  def regions(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Regions]:
    """Finds the regions of images of any sizes, with boxes in pixels of each image."""
    resized = [resized_image(image, self._size, self._stride) for image in images]
    # Group the images by their sides, rounded up: each frame is compiled once.
    rows_of_frame: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(resized):
      frame = tuple(model.STRIDE * -(-side // model.STRIDE) for side in image.shape[:2])
      rows_of_frame.setdefault(frame, []).append(row)
    regions: list[Any] = [None] * len(images)
    for frame, all_rows in rows_of_frame.items():
      for start in range(0, len(all_rows), self._batch_size):
        rows = all_rows[start : start + self._batch_size]
        batch, sizes = self._padded_batch([resized[row] for row in rows], frame)
        placed = split_rows((batch, sizes), self._mesh)
        masks, embeddings, objectness = jax.device_get(
          self._of_batch(self._params, placed)
        )
        # Slots behind those of `rows` are padding.
        for slot, row in enumerate(rows):
          n_rows, n_columns = sizes[slot] // self._stride
          masks_Qxhxw = np.ascontiguousarray(masks[slot, :, :n_rows, :n_columns])
          height, width, _ = images[row].shape
          boxes = mask_boxes(masks_Qxhxw, height, width, self._threshold)
          regions[row] = Regions(
            boxes,
            objectness=objectness[slot],
            masks=masks_Qxhxw,
            embeddings=embeddings[slot][:, None],
          )
    return regions

  def _padded_batch(
    self, images: Sequence[np.ndarray], frame: tuple[int, ...]
  ) -> tuple[UInt8[np.ndarray, "B H W 3"], Int[np.ndarray, "B 2"]]:
    """A full batch of images in the upper left corners of a frame, and their sides.

    Batches are padded with their last image.
    """
    batch = np.zeros((self._batch_size, *frame, 3), np.uint8)
    sizes = np.ones((self._batch_size, 2), np.int32)
    for slot in range(self._batch_size):
      image = images[min(slot, len(images) - 1)]
      height, width = image.shape[:2]
      sizes[slot] = (height, width)
      batch[slot, :height, :width] = image
    return batch, sizes


def _without_padding(
  p_BxQxhxw: Float[Array, "B Q h w"], sizes_Bx2: Int[Array, "B 2"], stride: int
) -> Float[Array, "B Q h w"]:
  """Probabilities of masks, 0 in the padding of each image."""
  height, width = p_BxQxhxw.shape[2:]
  is_row_Bxh = jnp.arange(height) < sizes_Bx2[:, 0, None] // stride
  is_column_Bxw = jnp.arange(width) < sizes_Bx2[:, 1, None] // stride
  is_image_Bxhxw = is_row_Bxh[:, :, None] & is_column_Bxw[:, None]
  return jnp.where(is_image_Bxhxw[:, None], p_BxQxhxw, 0)


def _mean_inside(
  p_BxQxhxw: Float[Array, "B Q h w"], threshold: float
) -> Float[Array, "B Q"]:
  """Mean probability of the pixels inside a mask; 0 for an empty mask."""
  is_inside = p_BxQxhxw > threshold
  n_inside_BxQ = jnp.sum(is_inside, axis=(-2, -1))
  total_BxQ = jnp.sum(jnp.where(is_inside, p_BxQxhxw, 0.0), axis=(-2, -1))
  return total_BxQ / jnp.maximum(n_inside_BxQ, 1)


def decisive_masks(
  logits_BxQxhxw: Float[Array, "B Q h w"],
) -> Float16[Array, "B Q h w"]:
  """Probabilities of masks times 2^15, whose ratios at each pixel survive in float16.

  The ratios of its Q values decide the class of a pixel, but float16 loses digits below
  2^-14. If the largest value of a pixel would be below 2^-14, all its values are scaled
  up until the largest is 2^-14. Values below 2^-12 of the largest become 0, so that
  files compress well.

  Args:
    logits_BxQxhxw: logit of each pixel in each query's mask.
  """
  log_p_BxQxhxw = jax.nn.log_sigmoid(logits_BxQxhxw.astype(jnp.float32))
  largest_Bx1xhxw = log_p_BxQxhxw.max(axis=1, keepdims=True)
  ratio_BxQxhxw = jnp.exp(log_p_BxQxhxw - largest_Bx1xhxw)
  scale_Bx1xhxw = jnp.maximum(ONE[np.float16] * jnp.exp(largest_Bx1xhxw), 2.0**-14)
  masks_BxQxhxw = ratio_BxQxhxw * scale_Bx1xhxw
  is_faint_BxQxhxw = ratio_BxQxhxw < 2.0**-12
  return jnp.where(is_faint_BxQxhxw, 0, masks_BxQxhxw).astype(jnp.float16)


def mask_boxes(
  masks: Num[np.ndarray, "R h w"], height: int, width: int, threshold: float
) -> Float[np.ndarray, "R 4"]:
  """Boxes of soft masks. Masks that are coarser than the image are enlarged first.

  Args:
    masks: soft masks of the whole image, see `masks.ONE`.
    height: height of the image in pixels.
    width: width of the image in pixels.
    threshold: probability above which a pixel is inside.

  Returns:
    x0, y0, x1, y1 in pixels of the image, ends exclusive.
  """
  n_rows, n_columns = masks.shape[1:]
  if n_rows < height or n_columns < width:
    return boxes_of_masks(hard_masks(masks, height, width, threshold))
  boxes = boxes_of_masks(hard_masks(masks, n_rows, n_columns, threshold))
  return boxes * np.array([width / n_columns, height / n_rows] * 2, np.float32)


def found_objects(
  masks: Iterable[Bool[np.ndarray, "H W"]],
  objects: Sequence[Mapping[str, Any]],
  least_iou: float = 0.5,
) -> Bool[np.ndarray, " D"]:
  """Whether each of D objects has a mask with at least this intersection over union.

  Args:
    masks: masks of regions; only one needs to be in memory at a time.
    objects: masks of the objects as `Annotations.run_lengths` has them.
    least_iou: intersection over union, 0..1.
  """
  run_lengths = [mask_api.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
  if not run_lengths or not len(objects):
    return np.zeros(len(objects), bool)
  # The zeros say that no object is a crowd.
  iou_RxD = mask_api.iou(run_lengths, list(objects), [0] * len(objects))
  return iou_RxD.max(axis=0) >= least_iou
