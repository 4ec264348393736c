r"""ProText (Khattak et al., 2024): a prompt learned from sentences about classes,
without images.

  python -m docs.scripts.dump_sentences --sentences cupl.json --out FEATURES
  python -m pomp_jax.main --config=configs/protext.py:root=FEATURES --workdir=runs/protext

The prompt with a class's name is drawn to each of the class's sentences, of a JSON such
as CuPL's (docs/scripts/dump_sentences.py). `clip=` is the CLIP of the features. If
FEATURES also has test images (docs/scripts/dump_open_clip.py), 4,096 of them are
evaluated, else 4,096 sentences in their place.

Numbers: the released config for transfer from ImageNet
(configs/trainers/ProText/cross_datasets): M = 4 from "a photo of a" in each of 9 layers
of the text tower, squared distance, 10 epochs of batches of 256, AdamW at 0.03 after 5
epochs at 1e-5. docs/reproduce/recipes.md has every value beside ours.

  :root=FEATURES,all_imagenet1k    all of a data set's classes: here the paper's prompt for ImageNet
                                   and its variants, 16 vectors from noise, 200 epochs
  :root=FEATURES,base_dtd          the base classes of a data set, evaluated on base and new ones
  :root=FEATURES,shallow           vectors in the first layer alone: a prompt.npz, for other jobs

FEATURES are of the data set's own sentences, for all of its classes in the order of its
class list (`docs.scripts.dump_sentences --names dtd`).

docs/studies/world_sentences.py has sentences for the embedded world, and what is
learned from them.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("baselines", "data_sets")

SHALLOW = {"method": "pomp", "prompt.depth": 1}
# configs/trainers/ProText/base2novel and text_only_supervised by data set: vectors,
# learning rate, epochs. All else is equal. Up to four vectors start from "a photo of
# a", more from noise.
BASE_TO_NEW = {
  "caltech101": (16, 0.0025, 30),
  "dtd": (4, 0.03, 200),
  "eurosat": (16, 0.0025, 30),
  "fgvc_aircraft": (4, 0.03, 200),
  "flowers102": (4, 0.0025, 150),
  "food101": (8, 0.0025, 50),
  "imagenet1k": (4, 0.03, 30),
  "oxford_pets": (4, 0.03, 50),
  "stanford_cars": (8, 0.0025, 30),
  "sun397": (8, 0.03, 30),
  "ucf101": (16, 0.03, 30),
}
ALL_CLASSES = {
  "caltech101": (16, 0.03, 30),
  "dtd": (16, 0.03, 200),
  "eurosat": (4, 0.0025, 300),
  "fgvc_aircraft": (4, 0.03, 200),
  "flowers102": (4, 0.0025, 300),
  "food101": (16, 0.03, 30),
  "imagenet1k": (16, 0.0025, 200),
  "oxford_pets": (4, 0.03, 50),
  "stanford_cars": (8, 0.03, 20),
  "sun397": (16, 0.03, 150),
  "ucf101": (8, 0.0025, 100),
}


def _variants():
  """Fields of each variant by its name."""
  variants = {"shallow": SHALLOW}
  for classes, published in (("base", BASE_TO_NEW), ("all", ALL_CLASSES)):
    for dataset, (m, rate, epochs) in published.items():
      words = "a photo of a" if m <= 4 else ""
      fields = {
        "data.names": dataset,
        "data.classes": classes,
        "prompt.m": m,
        "prompt.init": words,
      }
      variants[f"{classes}_{dataset}"] = fields | {"optim.lr": rate, "epochs": epochs}
  return variants


def get_config(argument: str = ""):
  """The published recipe for transfer, and its variants above; `root` remains to be
  given."""
  config = base()
  config.clip.model = "openai/clip-vit-base-patch16"
  config.clip.image_tower = False
  config.data.source = "features"
  config.data.features = "file"
  # All sentences are learned from.
  config.data.test_share = 0.0
  config.data.validation_share = 0.0
  config.eval.images = 4096
  config.method = "protext"
  config.loss = "l2"
  config.k = 2  # the distance has no negatives
  config.batch_size = 256
  config.epochs = 10
  config.prompt.m = 4
  config.prompt.init = "a photo of a"
  config.prompt.depth = 9
  config.optim.name = "adamw"
  config.optim.lr = 0.03
  config.optim.beta2 = 0.98
  # 1e-8 beside the published loss, which is 1,000 times ours
  config.optim.epsilon = 1e-11
  config.optim.weight_decay = 0.1
  config.optim.warmup = 5.0
  config.optim.warmup_lr = 1e-5
  short = {"root": "data.root", "clip": "clip.model", "m": "prompt.m", "lr": "optim.lr"}
  return with_argument(config, argument, variants=_variants(), **short)
