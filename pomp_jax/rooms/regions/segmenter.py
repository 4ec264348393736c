"""Label maps of images, of their regions or patches, as `config.segment` describes them."""

from collections.abc import Callable, Iterator, Sequence

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.fields import Segment
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.region_scorer import RegionScorer
from pomp_jax.rooms.regions.region_sources import Images
from pomp_jax.rooms.regions.segmentation import DenseSegmenter, DenseSettings, PixelMap


def check_patches(segment: Segment, clip_config: ClipConfig) -> None:
  """Raises ConfigError unless a CLIP has patches, and an image and a window hold one."""
  if isinstance(clip_config.vision_config, ResNetConfig):
    raise ConfigError("regions.source", "none", "regions for a ResNet: recipes need a ViT")
  patch = clip_config.vision_config.patch_size
  for field in ("size", "window"):
    if 0 < (side := getattr(segment, field)) < patch:
      raise ConfigError(f"segment.{field}", side, f"0, or a patch of {patch} pixels or more")


def open_segmenter(config: Settings, encoder: Encoder) -> DenseSegmenter:
  """Opens the dense CLIP of `config.segment`; features of patches serve all prompts."""
  segment = config.segment
  scale = segment.logit_scale or encoder.clip.logit_scale
  sizes = segment.size, segment.window, segment.stride
  settings = DenseSettings(segment.recipe, *sizes, scale, segment.pamr, segment.background_below)
  return DenseSegmenter(encoder, settings, dtype=config.clip.dtype)


def open_label_maps(
  config: Settings,
  encoder: Encoder,
  images: Images,
  classes: ClassSplit,
  matrices: Sequence[ClassMatrix],
) -> Callable[[Sequence[int]], Iterator[tuple[int, list[PixelMap]]]]:
  """Builds `numbers of images -> number and label map under each prompt`, of patches or regions.

  Raises:
    InputError: an unusable file of regions or network.
  """
  if config.regions.source == "none":
    segmenter = open_segmenter(config, encoder)
    return lambda block: zip(
      block, segmenter.label_maps([images.pixels(row) for row in block], matrices), strict=True
    )
  scale = config.segment.logit_scale
  scorer = RegionScorer(config, encoder, images, classes, matrices, logit_scale=scale, tight=True)

  def of_regions(block):
    for row, _, regions, scores in scorer.scored(block):
      masks = regions.drawn(f"image {images.keys[row]}")
      maps = label_maps_of_regions(scores, masks, *images.shape(row))
      yield row, [PixelMap(labels_HxW) for labels_HxW in maps]

  return of_regions
