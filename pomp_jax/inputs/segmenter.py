"""Label maps without regions, as `config.segment` describes them; for `segment` and `predict`."""

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import ConfigError, Settings
from pomp_jax.config.region_fields import Segment
from pomp_jax.encoder import Encoder
from pomp_jax.inference.segmentation import DenseSegmenter, DenseSettings


def check_patches(segment: Segment, clip_config: ClipConfig) -> None:
  """Checks that a CLIP has patches, and that an image and a window hold one.

  Raises:
    ConfigError: a ResNet, or a side below a patch's.
  """
  if isinstance(clip_config.vision_config, ResNetConfig):
    raise ConfigError("regions.source", "none", "regions for a ResNet: recipes need a ViT")
  patch = clip_config.vision_config.patch_size
  for field in ("size", "window"):
    if 0 < (side := getattr(segment, field)) < patch:
      raise ConfigError(f"segment.{field}", side, f"0, or a patch of {patch} pixels or more")


def open_segmenter(config: Settings, encoder: Encoder) -> DenseSegmenter:
  """Opens the dense CLIP of `config.segment`; features of patches serve all prompts."""
  segment = config.segment
  settings = DenseSettings(
    segment.recipe,
    segment.size,
    segment.window,
    segment.stride,
    segment.logit_scale or encoder.clip.logit_scale,
    segment.pamr,
    segment.background_below,
  )
  return DenseSegmenter(encoder, settings, dtype=config.clip.dtype)
