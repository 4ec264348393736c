r"""COCO-Stuff, 156 base and 15 novel classes: ZSSeg's network and POMP's tuned prompt
in one file.

Images are COCO's val2017 (5,000), labels those of stuffthingmaps_trainval2017.zip, as
distributed. model_final.pth is the published
coco-stuff-164k-156_zero_shot_maskformer_R101c_pomp_tuned model. It has the network, the
prompt and a copy of CLIP, which must be that of clip.model:

python -m pomp_jax.main --config=configs/coco_stuff_156.py --workdir=runs/coco_stuff_156 \
  --config.segment.images=COCO/val2017 --config.segment.labels=COCO/stuffthingmaps/val2017 \
  --config.propose.network=model_final.pth

Published (POMP, docs/MODELS.md): hIoU 39.1, novel mIoU 38.2. The sizes are those of
ZSSeg's test: a shorter side of 640 pixels, a longer one of 2,560 at most, for the
network and for the crops.

Not as published: masks and the network's embeddings are rounded to 16-bit floats.
Nothing else is known to differ, but no published file was at hand, and the command has
not been run on one.

Other prompts beside the tuned one: `--config.segment.prompts="network;a photo of a
{}.;PROMPT.npz"` (the default has the first two). Stored regions: `--config.job=propose`
with the same command and another --workdir=FOLDER writes them,
`:source=file,path=FOLDER/regions` reads them. Without a network: `:source=truth` and
--config.segment.prompts give the crops of the true regions to CLIP.

Cost: days on 2 cores, so try `:n=20` there.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)

SHORT = {
  "source": "regions.source",
  "path": "regions.path",
  "network": "propose.network",
  "n": "segment.n_images",
}


def get_config(argument: str = ""):
  """The published values."""
  config = recipe(640)
  config.segment.names = "coco_stuff"
  config.segment.label_values = "listed"
  config.regions.e_base, config.regions.e_novel = 0.2, 0.8
  return with_argument(config, argument, **SHORT)


def recipe(size: int):
  """What all sets share: masked crops on ViT-B/16, and the fusion of ZSSeg.

  Args:
    size: shorter side of an image, pixels (INPUT.MIN_SIZE_TEST; MAX_SIZE_TEST is 4
    times that).
  """
  config = base("segment")
  config.clip.model = "openai/clip-vit-base-patch16"
  config.segment.source = "folder"
  config.segment.prompts = ("network", "a photo of a {}.")
  config.segment.logit_scale = 100.0
  config.propose.size = size
  config.propose.stride = 1
  config.propose.batch_size = 1
  config.regions.source = "network"
  config.regions.crop = "masked"
  config.regions.size = size
  config.regions.mask_threshold = 0.5
  return config
