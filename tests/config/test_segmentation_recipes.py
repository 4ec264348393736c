"""The configs of segmentation load, and have the values that ZSSeg, POMP and NACLIP published."""

import importlib

import pytest

from pomp_jax.config import unpack, validate
from pomp_jax.configs import coco_stuff_156, world_masks
from pomp_jax.data.class_splits import read_class_split
from pomp_jax.regions.resize import resized_sides
from pomp_jax.regions.scores import FUSIONS

# ZSSeg's configs as POMP runs them: fusion, MASK_THR, number of classes, of novel ones,
# MIN_SIZE_TEST and MAX_SIZE_TEST.
PUBLISHED = {
  "coco_stuff_156": ("zsseg_coco_stuff", 0.5, 171, 15, 640, 2560),
  "voc_15": ("zsseg_voc", 0.5, 20, 5, 512, 2048),
  "ade20k": ("zsseg_ade20k", 0.4, 150, 0, 512, 2048),
  "pascal_context": ("pomp_pascal_context", 0.5, 59, 0, 512, 2048),
}


def settings_of(name, tmp_path, argument=""):
  config = importlib.import_module(f"pomp_jax.configs.{name}").get_config(argument)
  config.segment.images = config.segment.labels = config.propose.network = str(tmp_path)
  if config.regions.source == "file":
    config.regions.path = str(tmp_path)
  settings = unpack(config)
  validate(settings)
  return settings


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name, tmp_path):
  fusion, threshold, n_classes, n_novel, shorter, longest = PUBLISHED[name]
  settings = settings_of(name, tmp_path)
  assert settings.job == "segment" and settings.clip.model == "openai/clip-vit-base-patch16"
  regions = settings.regions
  assert (regions.e_base, regions.e_novel, regions.null) == tuple(FUSIONS[fusion])
  assert (regions.mask_threshold, regions.crop, regions.expand) == (threshold, "masked", 1.0)
  assert regions.source == "network" and settings.segment.prompts[0] == "network"
  assert (settings.propose.size, settings.propose.stride) == (shorter, 1)
  assert regions.size == shorter and max(resized_sides(100, 1000, shorter)) == longest
  assert regions.max_regions == 100
  classes = read_class_split(settings.segment.names)
  assert (len(classes), len(classes.indices("novel"))) == (n_classes, n_novel)


def test_naclips_values(tmp_path):
  segment = settings_of("segment_training_free", tmp_path, "names=ade20k").segment
  assert (segment.recipe, segment.size, segment.window, segment.stride) == ("naclip", 336, 224, 112)
  assert (segment.logit_scale, segment.pamr) == (40.0, 10)


def test_variants_with_other_regions():
  config = coco_stuff_156.get_config("source=truth,n=20")
  assert (config.regions.source, config.segment.n_images) == ("truth", 20)
  config = coco_stuff_156.get_config("network=a.pth")
  assert (config.propose.network, config.regions.source) == ("a.pth", "network")


@pytest.mark.parametrize(
  "variant,job",
  [("", "train_masks"), ("propose_segment", "propose"), ("segment", "segment")]
  + [("propose_detect", "propose"), ("detect", "detect")],
)
def test_the_worlds_network(variant, job, tmp_path):
  """Each variant is another job of one experiment, on the same scenes and prompts."""
  config = world_masks.get_config(variant)
  network = config.propose.network
  config.propose.network = str(tmp_path)
  if config.regions.path:
    assert config.regions.path.startswith(f"{network}/")
    config.regions.path = str(tmp_path)
  settings = unpack(config)
  validate(settings)
  assert settings.job == job
  assert settings.segment.prompts == settings.detect.prompts
  assert settings.train_masks.prompt in settings.segment.prompts
  assert settings.segment.n_images == settings.detect.n_images == 400
