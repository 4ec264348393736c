"""Every field of `regions` and `segment` reaches what it names: figures or label maps change."""

import shutil

import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs
from pomp_jax.config import FIELDS
from pomp_jax.errors import InputError
from pomp_jax.jobs import segment
from tests.support.clips import write_random_clip
from tests.support.pixel_sets import segment_config, write_pixel_set

FILE = {"regions.source": "file"}
CONTEXT = {"regions.crop": "context"}
PATCHES = {"regions.source": "none", "segment.size": 48, "segment.window": 32, "segment.stride": 16}
# Field -> another value, and what both runs have beside the usual config. OTHER is another set.
CHANGES = {
  "regions.source": ("file", {"regions.path": "OTHER/../regions"}),
  "regions.path": ("OTHER/regions", FILE),
  "regions.max_regions": (2, FILE),
  "regions.mask_threshold": (0.8, FILE),
  "regions.crop": ("context", {}),
  "regions.size": (64, FILE | {"regions.mask_threshold": 0.45}),
  "regions.expand": (1.7, CONTEXT),
  "regions.e_base": (1.0, FILE),
  "regions.e_novel": (0.0, FILE),
  "regions.null": ("gate", FILE),
  "regions.objectness": (True, FILE),
  "regions.alone": (True, FILE),
  "segment.source": ("world", {"segment.n_images": 1}),
  "segment.images": ("OTHER/images", {}),
  "segment.labels": ("OTHER/labels", FILE),
  "segment.names": ("OTHER/names.txt", {}),
  "segment.label_values": ("reduce_zero_label", {}),
  "segment.ignore": (254, {}),
  "segment.n_images": (2, {}),
  "segment.scene_classes": (480, {"segment.source": "world", "segment.n_images": 1}),
  "segment.prompts": ("the {}", {}),
  "segment.recipe": ("clip", PATCHES),
  "segment.logit_scale": (1.0, FILE),
  "segment.size": (64, PATCHES),
  "segment.window": (16, PATCHES),
  "segment.stride": (8, PATCHES),
  "segment.pamr": (3, PATCHES),
  "segment.background": ("ground;earth", PATCHES),
  "segment.background_below": (0.9, PATCHES | {"segment.background": "ground"}),
  "segment.output": (False, {}),
}


def test_each_field_has_a_row():
  groups = ("regions.", "segment.")
  assert sorted(CHANGES) == sorted(field for field in FIELDS if field.startswith(groups))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
  """A function: fields -> figures and label maps, or the line of an error."""
  root = tmp_path_factory.mktemp("fields")
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_pixel_set(root / "other", str(root / "clip"), seed=1)
  (root / "other" / "names.txt").write_text("tree\nroad\nlake\nstar\n")
  opened, encoders, found = inputs.open_encoder, {}, {}

  def open_once(config):
    if config.clip not in encoders:
      encoders[config.clip] = opened(config)
    return encoders[config.clip]

  def run(changes):
    key = repr(sorted(changes.items()))
    if key not in found:
      workdir = tmp_path_factory.mktemp("run")
      own = {
        field: value.replace("OTHER", str(root / "other")) if isinstance(value, str) else value
        for field, value in changes.items()
      }
      config = segment_config(root, **own)
      try:
        segment.check(config, str(workdir))
        figures = segment.run(config, str(workdir))["figures"]
      except InputError as error:
        return str(error)
      maps = [np.asarray(Image.open(file)) for file in sorted(workdir.rglob("labels/*/*.png"))]
      shutil.rmtree(workdir)
      found[key] = repr(figures), [labels.tolist() for labels in maps]
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inputs, "open_encoder", open_once)
    patch.setattr(segment, "_SHOWN", 1)
    yield run


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_what_it_names(outcome, field):
  value, beside = CHANGES[field]
  before, after = outcome(beside), outcome(beside | {field: value})
  assert isinstance(before, tuple), before
  # A value of the labels that is no longer ignored is refused.
  assert isinstance(after, tuple) or field == "segment.ignore", after
  assert before != after
