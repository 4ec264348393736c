"""The job train_masks: restarts bit for bit, what it reads, what each field reaches."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from pomp_jax import hosts
from pomp_jax.config import fields_of, validate
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regions import image_sets, train_masks
from pomp_jax.rooms.regions.mask_former.published_weights import read_mask_former
from pomp_jax.rooms.regions.mask_former.sizes import VARIANTS
from pomp_jax.rooms.regions.region_errors import RegionError
from pomp_jax.rooms.regions.scenes import Scenes
from pomp_jax.train import loop
from pomp_jax.train.resume import MAY_CHANGE
from tests.rooms.regions.region_jobs import (
  NETWORK,
  TINY,
  TRAINED,
  in_place,
  random_params,
  regions_config,
)
from tests.support.checks import spy
from tests.support.small_run import run_job


def train(config, workdir):
  """Runs with a tiny network for the small one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, "small", TINY)
    return run_job(config, workdir)


@pytest.fixture(scope="session")
def whole(region_set, shared):
  """The folder of a run that nothing has stopped."""
  return shared(
    "train_masks",
    lambda folder: train(regions_config(region_set, "train_masks"), folder),
  )


@pytest.mark.slow("25 s: three trainings of a network")
def test_a_killed_run_resumes_bit_for_bit(region_set, whole, tmp_path, monkeypatch):
  """In the third of four steps. Over 20 core-seconds without a cache: three starts
  compile."""
  real, taken = loop.Watch.step, []

  def step(watch, number, metrics):
    taken.append(number)
    if taken == [1, 2, 3]:
      raise KeyboardInterrupt
    real(watch, number, metrics)

  monkeypatch.setattr(loop.Watch, "step", step)
  with pytest.raises(KeyboardInterrupt):
    train(regions_config(region_set, "train_masks"), tmp_path)
  assert not (tmp_path / "masks.safetensors").exists()
  results = train(regions_config(region_set, "train_masks"), tmp_path)
  assert taken == [1, 2, 3, 3, 4]
  assert (tmp_path / "masks.safetensors").read_bytes() == (
    whole / "masks.safetensors"
  ).read_bytes()
  assert results["last"] == RunFolder(whole).read_results()["last"]
  # A finished run is not trained again.
  assert train(regions_config(region_set, "train_masks"), tmp_path) == results
  assert taken == [1, 2, 3, 3, 4]


def test_a_restart_with_other_classes_under_the_same_path_is_refused(
  region_set, whole, monkeypatch
):
  config, opened = regions_config(region_set, "train_masks"), train_masks.open_mask_set
  train_masks.check(config, str(whole))

  def open_renamed(*given):
    source = opened(*given)
    source.names = source.names[::-1]
    return source

  monkeypatch.setattr(train_masks, "open_mask_set", open_renamed)
  with pytest.raises(InputError, match=r"train_masks\.prompt.* classes with which"):
    train_masks.check(config, str(whole))


def test_a_stored_prompt_is_one_that_the_file_can_say():
  """A checkpoint of ZSSeg has one context, which stands before the names."""
  context = np.ones((2, 32), np.float32)
  assert train_masks._stored_context(Prompt(context, "clip", "end")) is context
  assert train_masks._stored_context(Prompt(context, "clip", "front")) is None
  assert train_masks._stored_context(Prompt(context[None], "clip", "end")) is None
  assert train_masks._stored_context("a photo of a {}.") is None


def test_what_a_run_leaves(whole):
  results, network = (
    RunFolder(whole).read_results(),
    read_mask_former(whole / "masks.safetensors"),
  )
  assert network.trained_classes == TRAINED
  assert network.config.embedding == 24
  assert results["parameters"] == sum(
    leaf.size for leaf in jax.tree.leaves(network.params)
  )
  assert results["steps"] == 4 and results["images"] == 5 and results["classes"] == 2
  assert np.isfinite(list(results["last"].values())).all()
  assert (whole / "plots" / "training.png").exists()


def test_devices_share_a_batch(region_set, tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, "devices", lambda **_: jax.devices()[:3])
  with pytest.raises(InputError, match=r"batch_size: got 8, expected a multiple of 3"):
    train_masks.check(regions_config(region_set, "train_masks"), str(tmp_path / "run"))


OBJECTS = "ROOT/objects.json"
COCO = {"train_masks.source": "coco", "train_masks.annotations": OBJECTS}
WORLD = {
  "train_masks.source": "world",
  "train_masks.n_images": 2,
  **{f"train_masks.{name}": "" for name in ("images", "labels", "names")},
}
R101C = dataclasses.replace(VARIANTS["r101c"], embedding=24)
# Field -> another value, what both have beside the usual config, `function.argument`
# that the field reaches, and what this becomes; the value itself if there is no fourth.
# ROOT is the folder of the set, OTHER that of another one.
CHANGES = {
  "source": (
    "coco",
    COCO | {"train_masks.source": "folder"},
    "read_annotations.path",
    OBJECTS,
  ),
  "images": ("OTHER/images", {}, "open_pixels.images"),
  "labels": ("OTHER/labels", {}, "open_pixels.labels"),
  "annotations": ("OTHER/objects.json", COCO, "read_annotations.path"),
  "names": ("OTHER/names.txt", {}, "training.names", ("tree", "road", "lake", "star")),
  "label_values": ("reduce_zero_label", {}, "open_pixels.values"),
  "ignore": (254, {}, "open_pixels.ignore"),
  "n_images": (2, {}, "training.images"),
  "scene_classes": (480, WORLD, "Scenes.n_classes"),
  "network": ("r101c", {}, "training.sizes", R101C),
  "init": ("ROOT/net.pth", {}, "training.sizes", NETWORK),
  "prompt": ("{}!", {}, "class_matrix.prompt"),
  "size": (96, {}, "MaskViews.size"),
  "augment": ("none", {}, "MaskViews.augment"),
  "targets": (1, {}, "MaskViews.n_targets"),
  "lr": (0.5, {}, "poly_schedule.base"),
  "backbone": (0.7, {}, "adamw.backbone"),
  "clip_norm": (0.5, {}, "adamw.clip_norm"),
  "dice": (7.0, {}, "weights.dice"),
}
SPIED = (
  *((image_sets, name) for name in ("open_pixels", "read_annotations", "Scenes")),
  *((train_masks, name) for name in ("MaskViews", "poly_schedule", "adamw")),
  (train_masks, "class_matrix"),
)


def test_each_field_has_a_row_and_a_run_keeps_its_values():
  fields = [field for field in fields_of() if field.startswith("train_masks.")]
  assert sorted(fields) == sorted(f"train_masks.{name}" for name in CHANGES)
  assert not MAY_CHANGE.intersection(fields)


class Prepared(Exception):
  """Stops a run before its first step."""


@pytest.fixture(scope="module")
def prepared(region_set, tmp_path_factory):
  """A function: changes -> arguments by `function.argument` of what a training is
  made of."""
  found = {}

  def stop(training):
    raise Prepared(training)

  def prepare(changes):
    key = repr(sorted(changes.items()))
    if key not in found:
      seen.clear()
      config = regions_config(region_set, "train_masks", **changes)
      validate(config)
      with pytest.raises(Prepared) as stopped:
        train_masks.run(config, str(tmp_path_factory.mktemp("run")))
      (training,) = stopped.value.args
      given = training.build_step()()
      # What is prepared is what is used.
      assert given["optimizer"] is training.optimizer
      seen.update(
        {f"weights.{name}": value for name, value in vars(given["weights"]).items()}
      )
      assert given["model"].config == training.sizes
      seen["class_matrix.prompt"] = seen["class_matrix.named"].prompt
      seen["training.names"] = tuple(training.source.names)
      seen["training.images"], seen["training.sizes"] = (
        len(training.source),
        training.sizes,
      )
      found[key] = dict(seen), training
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    seen = spy(patch, SPIED)
    patch.setattr(loop, "train", stop)
    patch.setattr(train_masks, "make_mask_step", lambda **given: lambda: given)
    yield prepare


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_what_it_names(prepared, region_set, name):
  value, beside, argument, *becomes = CHANGES[name]
  value = in_place(region_set, value)
  beside = {field: in_place(region_set, own) for field, own in beside.items()}
  before, _ = prepared(beside)
  after, training = prepared(beside | {f"train_masks.{name}": value})
  expected = in_place(region_set, becomes[0]) if becomes else value
  assert after[argument] == expected != before.get(argument)
  if name == "init":
    params = training.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, random_params(NETWORK))


def test_the_rate_falls_until_the_last_step(prepared):
  # 5 label images in batches of 2 are 2 steps an epoch.
  seen, training = prepared({"steps": 0, "epochs": 3, "batch_size": 2})
  assert (training.steps_per_epoch, training.total_steps) == (2, 6)
  assert seen["poly_schedule.steps"] == 6


def test_label_images_have_a_region_for_each_base_class(region_set):
  source = image_sets.open_mask_set(
    regions_config(region_set, "train_masks").train_masks, 0
  )
  assert tuple(source.names) == ("the cat", "sky") and len(source) == 5
  for index, file in enumerate(sorted((region_set / "labels").glob("*.png"))):
    labels, whole = np.asarray(Image.open(file)), source.region_map(index)
    for label in (0, 1):
      region = np.flatnonzero(whole.labels == label)
      np.testing.assert_array_equal(np.isin(whole.owners, region), labels == label)


def open_objects(root, annotations, n_images=0):
  changes = {
    "source": "coco",
    "annotations": str(annotations),
    "names": "",
    "n_images": n_images,
  }
  own = {f"train_masks.{name}": value for name, value in changes.items()}
  return image_sets.open_mask_set(
    regions_config(root, "train_masks", **own).train_masks, 0
  )


def test_objects_lie_over_larger_ones_and_crowds_are_dropped(region_set):
  source = open_objects(region_set, region_set / "objects.json")
  assert tuple(source.names) == ("the cat", "sky", "star", "house")
  whole = source.region_map(0)
  assert whole.labels[0] == -1 and (whole.labels[1:] >= 0).all()
  assert whole.owners.max() < len(whole.labels)


def test_some_images_with_objects_are_evenly_spread(region_set):
  whole = open_objects(region_set, region_set / "objects.json")
  some = open_objects(region_set, region_set / "objects.json", n_images=2)
  assert (len(whole), len(some)) == (5, 2)
  assert [some.where(0), some.where(1)] == [whole.where(0), whole.where(2)]


def test_objects_without_masks_are_refused_at_once(region_set, tmp_path):
  value = json.loads((region_set / "objects.json").read_text())
  del value["annotations"][3]["segmentation"]
  (tmp_path / "boxes.json").write_text(json.dumps(value))
  with pytest.raises(RegionError, match="annotation 4 has no segmentation"):
    open_objects(region_set, tmp_path / "boxes.json")


def test_scenes_of_the_world_show_base_classes_alone():
  changes = WORLD | {"train_masks.n_images": 3, "train_masks.scene_classes": 480}
  config = regions_config(pathlib.Path("nowhere"), "train_masks", **changes)
  source = image_sets.open_mask_set(config.train_masks, 5)
  assert len(source) == 3
  scenes = Scenes("train", 3, 480, seed=5)
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
    ({"train_masks.images": "/nowhere"}, "train_masks.images"),
    ({"train_masks.labels": "/nowhere"}, "train_masks.labels"),
    ({"train_masks.names": ""}, "train_masks.names"),
    ({"train_masks.source": "coco"}, "train_masks.annotations"),
    ({"train_masks.source": "world"}, "train_masks.n_images"),
    ({"train_masks.targets": TINY.n_queries + 1}, "train_masks.targets"),
    ({"train_masks.prompt": "NOTHING"}, "train_masks.prompt"),
  ],
)
def test_what_can_not_work_is_one_line_and_writes_nothing(
  region_set, tmp_path, changes, field
):
  workdir = tmp_path / "run"
  with pytest.raises(InputError, match=field) as error:
    train(regions_config(region_set, "train_masks", **changes), workdir)
  assert "\n" not in str(error.value)
  assert not workdir.exists()
