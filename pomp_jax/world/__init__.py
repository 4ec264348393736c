"""A procedural world of named things, and a tiny CLIP that has seen pictures of it.

The embedded default of the project: it stands in for ImageNet-21K where no data set and no network
is at hand. Names are compositions (`names`), images are drawn from a seed (`render`), the CLIP in
`CLIP_PATH` was trained on web-like captions (`captions`, `train_clip`).
"""

from pomp_jax.world.names import class_names
from pomp_jax.world.render import IMAGE_SIZE
from pomp_jax.world.splits import CLIP_PATH, WorldSource, source

__all__ = ["CLIP_PATH", "IMAGE_SIZE", "WorldSource", "class_names", "source"]
