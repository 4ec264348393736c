r"""LVIS v1 val, 1,203 classes, rare ones novel: regions of POMP's Detic, any prompt as
classifier.

DUMP is a folder of regions, which Detic's users write once (docs/concepts/regions.md)
from the published model Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp.pth; the
two .npy files are in the published repository, third_party/Detic/datasets/metadata:

python -m pomp_jax.main --config=configs/lvis.py --workdir=runs/lvis \
  --config.detect.annotations=lvis_v1_val.json --config.regions.path=DUMP \
  --config.detect.prompts="lvis_v1_clip_pomp+cname.npy;lvis_v1_clip_a+cname.npy;PROMPT.npz"

Published (POMP, docs/MODELS.md): mask APr 25.2, AP 32.7 under the first of them. A
prompt file or a template is computed by ViT-B/16. Images are read for pictures only:
--config.detect.images=COCO, the folder of train2017 and val2017, gives these.

The published row is mask AP, which a dump with --masks gives; without them box AP
decides a prompt against another. Without a dump, `:source=truth` with
--config.detect.images gives crops of the annotated boxes to CLIP.

The uniformity of the published vectors, without an image (lower is more even): -1.233
of the first and -1.009 of the second (COCO: -1.091 and -0.790; Objects365: -1.176 and
-0.919).

python -m pomp_jax.main --config=configs/analyse.py --workdir=runs/vectors \
  --config.evaluate.suite=none --config.clip.model=openai/clip-vit-base-patch16 \
  --config.data.source=regions --config.data.n_classes=0 --config.data.root=COCO \
  --config.data.annotations=lvis_v1_val.json \
  --config.analyse.prompts="lvis_v1_clip_pomp+cname.npy;lvis_v1_clip_a+cname.npy"

Cost (arithmetic): 15.6 GB of embeddings for 19,809 images; 19 TFLOP a prompt.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)

SHORT = {"source": "regions.source", "path": "regions.path", "n": "detect.n_images"}


def get_config(argument: str = ""):
  """The published values."""
  return with_argument(recipe(), argument, **SHORT)


def recipe():
  """What all sets share: Detic's selection, the detector's scores alone, POMP's
  CLIP."""
  config = base("detect")
  config.clip.model = "openai/clip-vit-base-patch16"
  config.detect.source = "coco"
  config.detect.min_score = 0.02
  config.detect.nms = 0.5
  config.detect.top = 300
  config.regions.source = "file"
  config.regions.max_regions = 256
  config.regions.e_base = config.regions.e_novel = 0.0
  config.regions.objectness = True
  config.regions.crop = "context"
  return config
