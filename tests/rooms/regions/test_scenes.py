"""Scenes: repeatable, disjoint visible masks, tight boxes, base classes alone in
training."""

import numpy as np
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax.rooms.regions.scenes import Scenes
from pomp_jax.world import class_names, render
from pomp_jax.world.names import COLOURS


@pytest.fixture(scope="module")
def drawn():
  scenes = Scenes("test", 40)
  return scenes, [scenes.scene(i) for i in range(40)]


def test_a_scene_depends_on_seed_split_and_number_alone(drawn):
  again = Scenes("test", 8).scene(7)
  for own, other in zip(drawn[1][7], again, strict=True):
    np.testing.assert_array_equal(own, other)
  others = [Scenes("test", 8, seed=1), Scenes("train", 8)]
  images = [scene.image for scene in drawn[1][:8]] + [o.scene(7).image for o in others]
  assert len({image.tobytes() for image in images}) == 10
  with pytest.raises(IndexError):
    Scenes("test", 2).scene(2)


def test_colours_are_those_of_the_names(drawn):
  """The nearest colour of the palette is the named one; light and tint move a few."""

  def nearest(pixels):
    distance = np.abs(np.median(pixels, axis=0) / 255 - render._PALETTE).max(1)
    return COLOURS[distance.argmin()]

  scenes, shown = drawn
  right = {"ground": [], "object": []}
  for scene in shown:
    words = [scenes.names[c].split(" on ") for c in scene.labels]
    (ground,) = {ground for _, ground in words}
    right["ground"].append(nearest(scene.image[scene.label_map() < 0]) == ground)
    for mask, (thing, _) in zip(scene.masks, words, strict=True):
      if " plain " in thing:
        right["object"].append(thing.startswith(nearest(scene.image[mask])))
  assert np.mean(right["ground"]) > 0.9
  assert len(right["object"]) > 5 and np.mean(right["object"]) > 0.7


def test_classes(drawn):
  scenes, shown = drawn
  assert len(set(scenes.names)) == len(scenes.names) == 2400
  base, novel = set(class_names("base")), set(class_names("novel"))
  for name, group in zip(scenes.names, scenes.groups, strict=True):
    assert name in (base if group == "base" else novel)
  assert scenes.groups.count("novel") == 600
  seen = {scenes.groups[c] for scene in shown for c in scene.labels}
  assert seen == {"base", "novel"}

  fewer = Scenes("test", 1, 48)
  assert len(fewer.names) == 48 and fewer.groups.count("novel") == 12
  one, other = (
    set(zip(some.names, some.groups, strict=True)) for some in (fewer, scenes)
  )
  assert one < other


def test_label_map_and_annotations_hold_the_masks(drawn):
  """One label a pixel, which no two objects share; boxes by pycocotools."""
  scenes, shown = drawn
  value = scenes.annotations()
  assert [category["name"] for category in value["categories"]] == list(scenes.names)
  for row in value["annotations"]:
    scene = shown[row["image_id"] - 1]
    mask = pycoco_mask.decode(row["segmentation"]).astype(bool)
    np.testing.assert_array_equal(scene.label_map()[mask], row["category_id"] - 1)
    assert row["area"] == mask.sum() > 50
    np.testing.assert_array_equal(pycoco_mask.toBbox(row["segmentation"]), row["bbox"])
  assert len(value["annotations"]) == sum(len(scene.labels) for scene in shown)
