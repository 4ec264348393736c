r"""PromptSRC (Khattak et al., 2023, "Self-regulating Prompts").

Tokens in both towers (IVLP), held near the frozen CLIP by three terms: L1 of class
features to anchors, L1 of image features, KL of the logits. The anchors are the mean of
the text tower's outputs for 60 sentences. The result is a Gaussian mean over the ends
of epochs.

  python -m pomp_jax.main --config=configs/promptsrc.py --workdir=runs/promptsrc \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/promptsrc.py:few_shot,late --workdir=runs/few_shot \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/promptsrc.py:cross --workdir=runs/promptsrc_imagenet \
    --config.data.root=DATA
  python -m pomp_jax.main --config=configs/promptsrc.py:world --workdir=runs/promptsrc_world
  python -m pomp_jax.main --config=configs/promptsrc.py:world,prompt --workdir=runs/src_prompt_world

Numbers: the released configs. Base to new (vit_b16_c2_ep20_batch4_4+4ctx): four tokens
in each of 9 layers of both towers, the text's from "a photo of a", 20 epochs of batches
of 4, SGD at 0.0025, cosine after an epoch at 1e-5, random crops and flips. `few_shot`
(vit_b16_c2_ep50_..) takes all classes and 50 epochs, and weighs its epochs evenly;
`late` is its comment for StanfordCars, Flowers102, FGVCAircraft, DTD and EuroSAT.
`cross` (.._cross_datasets) is for transfer from ImageNet: 3 layers.
docs/reproduce/recipes.md has every value beside ours. `prompt` is ours: the same terms
and mean for a context alone, which `prompt.npz` holds. On the world the context starts
from noise, and the images are not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets", "regularisation")

_METHOD = {
  "negatives": "all",
  "prompt.visual_tokens": 4,
  "consistency_l1": 25.0,
  "consistency_kl": 1.0,
  "consistency_images": 10.0,
  "anchors": "outputs:imagenet_60",
  "optim.average": "gaussian",
}
# The world's CLIP has three layers, and 200 steps are 0.8 epochs: 15 and 1 of 20 in the
# mean.
WORLD = SMALL | _METHOD
WORLD |= {"method": "ivlp", "prompt.init": "", "prompt.depth": 3, "optim.lr": 0.02}
WORLD |= {"optim.average_mean": 0.6, "optim.average_sigma": 0.04}
CROSS = {
  "data.dataset": "imagenet1k",
  "data.classes": "all",
  "prompt.depth": 3,
  "optim.average_mean": 6.0,
  "optim.average_sigma": 10.0,
}
VARIANTS = {
  "world": WORLD,
  "cross": CROSS,
  "few_shot": {
    "data.classes": "all",
    "epochs": 50,
    "optim.average_mean": 30.0,
    "optim.average_sigma": 30.0,
  },
  "late": {"optim.average_mean": 45.0, "optim.average_sigma": 5.0},
  "prompt": {"method": "pomp", "prompt.depth": 1, "consistency_images": 0.0},
}


def get_config(argument: str = ""):
  """The recipe from base to new classes; `few_shot`, `late`, `cross`, `prompt`,
  `world`: above."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW | _METHOD)
  config.method = "ivlp"
  config.prompt.init = "a photo of a"
  config.prompt.depth = 9
  config.batch_size = 4
  config.epochs = 20
  config.optim.lr = 0.0025
  short = {"m": "prompt.m", "lr": "optim.lr", "shots": "data.shots"}
  return with_argument(config, argument, variants=VARIANTS, **short)
