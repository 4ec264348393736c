"""Every field of `train_masks` reaches what it names, and images, objects and scenes are read."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs
from pomp_jax.config import FIELDS, ConfigError, validate
from pomp_jax.data.annotations import AnnotationError
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.inputs.mask_sets import open_mask_set
from pomp_jax.jobs import train_masks
from pomp_jax.masks.model import VARIANTS, MaskFormer
from pomp_jax.masks.step import MaskLearner
from pomp_jax.masks.weights import MaskFormerFile, write_mask_former
from pomp_jax.train import mask_training
from pomp_jax.world.scenes import open_scenes
from tests.support.clips import write_random_clip
from tests.support.mask_sets import train_masks_config, write_objects
from tests.support.pixel_sets import write_pixel_set

WHOLE = {"train_masks.augment": "none"}
WORLD = {
  "train_masks.source": "world",
  "train_masks.n_images": 2,
  **{f"train_masks.{name}": "" for name in ("images", "labels", "names")},
}
# Field -> another value, and what both have beside the usual config. ROOT is the folder of the set,
# OTHER that of another one.
CHANGES = {
  "source": ("coco", {"train_masks.annotations": "ROOT/objects.json"}),
  "images": ("OTHER/images", {}),
  "labels": ("OTHER/labels", {}),
  "annotations": (
    "OTHER/objects.json",
    {"train_masks.source": "coco", "train_masks.annotations": "ROOT/objects.json"},
  ),
  "names": ("OTHER/names.txt", {}),
  "label_values": ("reduce_zero_label", {}),
  "ignore": (3, {"train_masks.names": "OTHER/three.txt", "train_masks.labels": "OTHER/low"}),
  "n_images": (2, {}),
  "scene_classes": (480, WORLD),
  "network": ("r101c", {}),
  "init": ("ROOT/start.pth", {}),
  "prompt": ("{}!", {}),
  "size": (96, WHOLE),
  "augment": ("none", {}),
  "min_scale": (1.9, {}),
  "max_scale": (0.6, {}),
  "targets": (1, WHOLE),
  "lr": (0.5, {}),
  "backbone": (0.7, {}),
  "weight_decay": (0.7, {}),
  "power": (0.1, {}),
  "warmup": (3, {}),
  "clip_norm": (0.5, {}),
  "classes": (7.0, {}),
  "focal": (7.0, {}),
  "dice": (7.0, {}),
  "no_object": (0.7, {}),
}


def test_each_field_has_a_row_and_a_run_keeps_its_values():
  fields = [field for field in FIELDS if field.startswith("train_masks.")]
  assert sorted(fields) == sorted(f"train_masks.{name}" for name in CHANGES)
  assert not any(map(train_masks._may_change, fields))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("fields")
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_pixel_set(root / "other", str(root / "clip"), seed=1)
  for folder in (root, root / "other"):
    write_objects(folder)
  (root / "other" / "names.txt").write_text("tree\nroad\nlake\nstar\n")
  (root / "other" / "three.txt").write_text("tree\nroad\nlake\n")
  _write_low_labels(root / "other")
  sizes = dataclasses.replace(VARIANTS["small"], embedding=24)
  params = MaskLearner(MaskFormer(sizes)).init(jax.random.key(7))
  with open(root / "start.pth", "wb") as file:
    write_mask_former(file, MaskFormerFile(sizes, params))
  return root


def _write_low_labels(folder):
  """Labels 0 to 2 of all images, and 255 and 3, one of which is ignored."""
  (folder / "low").mkdir()
  for file in (folder / "labels").glob("*.png"):
    labels = np.asarray(Image.open(file))
    Image.fromarray(np.where(labels == 3, 255, labels)).save(folder / "low" / file.name)


@pytest.fixture(scope="module")
def effects(root, tmp_path_factory):
  """A function: fields -> bytes of what a training does with them, or the line of an error."""
  opened, encoders, found = inputs.open_encoder, {}, {}

  def open_once(config):
    if config.clip not in encoders:
      encoders[config.clip] = opened(config)
    return encoders[config.clip]

  def effects(changes):
    own = {
      field: value.replace("ROOT", str(root)).replace("OTHER", str(root / "other"))
      if isinstance(value, str)
      else value
      for field, value in changes.items()
    }
    key = repr(sorted(own.items()))
    if key not in found:
      config = train_masks_config(root, **own)
      try:
        validate(config)
        found[key] = _effects(config, RunFolder(tmp_path_factory.mktemp("run")))
      except Exception as error:
        found[key] = f"{type(error).__name__}: {error}"
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inputs, "open_encoder", open_once)
    patch.setattr(mask_training, "make_mask_step", lambda **given: lambda: given)
    yield effects


def _effects(config, folder):
  """Views, classes, sizes, start, rates, the update of one gradient, weights of the losses."""
  training = mask_training.prepare(config, folder)
  views, _ = training.fetch(np.arange(len(training.source)), np.zeros(len(training.source), int))
  params = {"backbone": {"a": np.ones(3, np.float32)}, "b": np.ones(3, np.float32)}
  state, updates = training.optimizer.init(params), []
  for factor in (1.0, -3.0, 0.01):
    gradient = jax.tree.map(lambda leaf, f=factor: f * leaf, params)
    update, state = training.optimizer.update(gradient, state, params)
    updates += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(update)]
  start = training.learner().start
  return (
    [views[name].tobytes() for name in views.dtype.names],
    np.asarray(training.frozen).tobytes(),
    training.sizes,
    [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(start)],
    [float(training.rate(step)) for step in range(3)],
    updates,
    training.build_step()()["weights"],
  )


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_what_it_names(effects, name):
  value, beside = CHANGES[name]
  before, after = effects(beside), effects(beside | {f"train_masks.{name}": value})
  assert isinstance(before, tuple), before
  # A value that is no longer ignored, or is a class now, is refused.
  assert isinstance(after, tuple) or name == "ignore", after
  assert before != after


def test_label_images_have_a_region_for_each_base_class(root):
  source = open_mask_set(train_masks_config(root).train_masks, 0)
  assert tuple(source.names) == ("the cat", "sky") and len(source) == 5
  for index, file in enumerate(sorted((root / "labels").glob("*.png"))):
    labels, whole = np.asarray(Image.open(file)), source.region_map(index)
    for label in (0, 1):
      region = np.flatnonzero(whole.labels == label)
      np.testing.assert_array_equal(np.isin(whole.owners, region), labels == label)


def test_objects_lie_over_larger_ones_and_crowds_are_dropped(root):
  changes = {
    "train_masks.source": "coco",
    "train_masks.annotations": str(root / "objects.json"),
    "train_masks.names": "",
  }
  source = open_mask_set(train_masks_config(root, **changes).train_masks, 0)
  assert tuple(source.names) == ("the cat", "sky", "star", "house")
  whole = source.region_map(0)
  assert whole.labels[0] == -1 and (whole.labels[1:] >= 0).all()
  assert whole.owners.max() < len(whole.labels)


def test_objects_without_masks_are_refused_at_once(root, tmp_path):
  value = json.loads((root / "objects.json").read_text())
  del value["annotations"][3]["segmentation"]
  (tmp_path / "boxes.json").write_text(json.dumps(value))
  changes = {"source": "coco", "annotations": str(tmp_path / "boxes.json"), "names": ""}
  own = {f"train_masks.{name}": text for name, text in changes.items()}
  with pytest.raises(AnnotationError, match="annotation 4 has no segmentation"):
    open_mask_set(train_masks_config(root, **own).train_masks, 0)


def test_scenes_of_the_world_show_base_classes_alone():
  config = train_masks_config(
    pathlib.Path("nowhere"),
    **WORLD | {"train_masks.n_images": 3, "train_masks.scene_classes": 480},
  )
  source, scenes = open_mask_set(config.train_masks, 5), open_scenes("train", 3, 480, seed=5)
  names = np.array(scenes.names)
  assert set(source.names) == set(names[np.array(scenes.groups) == "base"])
  for index in range(3):
    whole, scene = source.region_map(index), scenes.scene(index)
    np.testing.assert_array_equal(whole.image, scene.image)
    assert [source.names[c] for c in whole.labels] == names[scene.labels].tolist()
    for region, mask in enumerate(scene.masks):
      np.testing.assert_array_equal(whole.owners == region, mask)


@pytest.mark.parametrize(
  "changes,field",
  [
    ({"mesh.class_size": 2}, "mesh.class_size"),
    ({"accumulate": 2}, "accumulate"),
    ({"train_masks.max_scale": 0.1}, "train_masks.max_scale"),
    ({"train_masks.images": "/nowhere"}, "train_masks.images"),
    ({"train_masks.labels": "/nowhere"}, "train_masks.labels"),
    ({"train_masks.source": "coco"}, "train_masks.annotations"),
    ({"train_masks.source": "world"}, "train_masks.n_images"),
  ],
)
def test_fields_that_do_not_fit_together(root, changes, field):
  with pytest.raises(ConfigError) as error:
    validate(train_masks_config(root, **changes))
  assert error.value.field == field
