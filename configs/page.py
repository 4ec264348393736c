"""A page in the browser: pictures under prompts side by side, and runs to browse.

  pomp --config=page   # then open http://127.0.0.1:8765/
  pomp --config=page:prompt=FILE,runs=DIR
  pomp --config=page:network=RUN   # also finds objects, by a run of `train_masks`

`prompt` is a learned prompt or a run's folder, shown beside two hand-written ones, on
the CLIP that its file names, or else OpenAI's ViT-B/16; `clip` is another one. Without
it the page has the embedded world, and the prompt of runs/demo if there is one. The
page says which prompts it compares. `:prompts=A;B` names all of them.
docs/how-to/page.md
"""

import os

from pomp_jax.config import WORLD, base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, recorded_clip
from pomp_jax.files.run_folder import prompt_path

ROOMS = ("page",)

_DEMO = "runs/demo/prompt.npz"


def get_config(argument: str = ""):
  """The embedded world, unless a prompt or a CLIP is named."""
  given = [item for item in (argument or "").split(",") if item]
  learned = [
    item.removeprefix("prompt=") for item in given if item.startswith("prompt=")
  ]
  items = ",".join(item for item in given if not item.startswith("prompt="))
  config = base("page")
  with_regions = "regions" in config
  if with_regions:
    # Boxes that a visitor gives are cropped with their surroundings.
    config.regions.crop, config.regions.expand = "context", 1.4
    # Of a network's regions those that are objects count most.
    config.regions.objectness = True
  if learned:
    config.clip.model = recorded_clip(learned[0]) or PUBLISHED_CLIP
    learned = [os.fspath(prompt_path(name)) for name in learned]
  short = {"clip": "clip.model", "network": "propose.network"} | {
    name: f"page.{name}" for name in config.page
  }
  with_argument(config, items, **short)
  if config.clip.model == WORLD:
    if with_regions:
      # Windows of the size of its pictures.
      config.segment.size, config.segment.window, config.segment.stride = 0, 40, 20
    if not learned and "prompts=" not in items and os.path.isfile(_DEMO):
      learned = [_DEMO]
  # What is given counts more than what follows.
  with_argument(config, items, **short)
  config.page.prompts = (*learned, *config.page.prompts)
  return config
