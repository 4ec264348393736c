r"""COCO-Stuff, 156 base and 15 novel classes: masks of ZSSeg's network, POMP's tuned prompt.

Images are COCO's val2017 (5,000), labels those of stuffthingmaps_trainval2017.zip, as distributed.
REGIONS is a folder of ZSSeg's 100 masks an image, with class embeddings (docs/segmentation.md):

python -m pomp_jax.main --config=configs/coco_stuff_156.py --workdir=runs/coco_stuff_156 \
  --config.segment.images=COCO/val2017 --config.segment.labels=COCO/stuffthingmaps/val2017 \
  --config.segment.prompts="model_final.pth;a photo of a {}." --config.regions.path=REGIONS

model_final.pth is the published coco-stuff-164k-156 model, whose tuned prompt is read. Published
(POMP, docs/MODELS.md): hIoU 39.1, novel mIoU 38.2. Without REGIONS, `:source=truth` gives the crops
of the true regions to CLIP alone, and configs/segment_training_free.py needs no regions.

Not as published: a crop is cut from the stored image, not from one with a shorter side of 640
pixels; masks have 8 bits. Cost (arithmetic): 500,000 crops of 35 GFLOP; on 2 cores a day, so try
`--config.segment.n_images=20` there.
"""

from pomp_jax.config import base, with_argument

SHORT = {"source": "regions.source", "path": "regions.path", "n": "segment.n_images"}


def get_config(argument: str = ""):
  """The published values."""
  config = recipe()
  config.segment.names = "coco_stuff"
  config.segment.label_values = "listed"
  config.regions.e_base, config.regions.e_novel = 0.2, 0.8
  return with_argument(config, argument, **SHORT)


def recipe():
  """What all sets share: masked crops on ViT-B/16, and the fusion of ZSSeg."""
  config = base()
  config.job = "segment"
  config.clip.model = "openai/clip-vit-base-patch16"
  config.segment.source = "folder"
  config.segment.logit_scale = 100.0
  config.regions.source = "file"
  config.regions.crop = "masked"
  config.regions.mask_threshold = 0.5
  return config
