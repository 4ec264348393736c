"""The embedded world at a size where every baseline takes seconds on two cores: field
-> value.

Images are shown as they are: the world's are 40 pixels wide, of which a crop of 8%
leaves little.
"""

SMALL = {
  "clip.model": "world",
  "data.source": "world",
  "data.shots": 0,
  "data.classes": "all",
  "data.augment": "none",
  "data.n_classes": 500,
  "data.images_per_class": 16,
  "eval.images": 1000,
  "batch_size": 32,
  "steps": 200,
  "optim.lr": 0.05,
  "optim.schedule": "step",
  "optim.warmup": 0.0,
  "checkpoint.every": 100,
  "clip.image_chunk": 0,
}
