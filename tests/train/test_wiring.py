"""From config to training: each field does what it says, and splits are of their own
images.

Each field has one row: which pieces of what reaches the training another value changes,
all others staying the same to the bit, and what it becomes. The step is lowered, not
compiled, for that.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.config import METHODS, SOURCES, fields_of
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import batches, loop, pretrain, results, setup, training
from pomp_jax.train.fill_features import fill_features
from pomp_jax.train.resume import FREE_FIELDS, first_state
from pomp_jax.train.training import PromptRun
from tests.support.checks import assert_close, spy
from tests.support.clips import HAS_FLAX_CLIP, write_fewer_layers
from tests.support.data_files import write_set
from tests.support.small_run import small_config

# Two steps an epoch, three epochs, the first of them the warm-up; from cached features.
BASE = {"data.n_classes": 16, "data.images_per_class": 1, "data.augment": "crop_flip"}
BASE |= {
  "data.view_epochs": 3,
  "data.features": "stored",
  "k": 4,
  "prompt.m": 2,
  "batch_size": 8,
}
BASE |= {
  "steps": 0,
  "epochs": 3,
  "eval.images": 16,
  "checkpoint.every": 6,
  "log.every": 10,
}
BASE |= {"optim.schedule": "epoch", "optim.warmup": 1.0, "optim.warmup_lr": 0.02}
BASE |= {"optim.weight_decay": 0.1}
WRONG = {"top1": 0.0, "macro_top1": 0.0}  # validation
ONLINE = {"data.features": "online"}
# Words in capitals stand for folders and files that a fixture writes.
STORED = ONLINE | {"data.source": "folder", "data.root": "PICTURES"}
STORED |= {"data.n_classes": 9, "data.shots": 4}
DRAWN = STORED | {"data.source": "world"}
FLAT = STORED | {"data.root": "FLAT", "data.shots": 0}
# A training picture is among those of validation and of the test, too.
DOUBLES = STORED | {"data.root": "DOUBLES", "data.shots": 0}
BASE_CLASSES = STORED | {"data.base": "NAMES"}
IN_COOP = STORED | {
  "data.source": "coop",
  "data.root": "COOP",
  "data.dataset": "eurosat",
}
REGIONS = STORED | {
  "data.source": "regions",
  "data.annotations": "OBJECTS",
  "data.shots": 0,
}
HARD = {"sampling.name": "hard"}
BIASED = {"logit_bias": -15.0}
NEAR = {"consistency_squared": 8.0}
GAUSSIAN = {"optim.average": "gaussian"}
SIMILAR = {"sampling.exclude": "similar"}
SHALLOW = ONLINE | {"method": "vpt_shallow"}
KDPL = ONLINE | {"method": "kdpl", "kdpl.teacher": "CLIP"}
DEEP = ONLINE | {"method": "vpt_deep", "clip.model": "CLIP"}

# Parameters of the context, and of CoCoOp's network.
COCOOP = [(2, 64), (8,), (128, 8), (64,), (8, 64)]


def _shown(
  images, epoch, tested=None, validated=None, n_classes=None
) -> dict[str, Any]:
  """Figures that depend on the number of images: steps of an epoch, and of the three
  epochs."""
  figures = {"images": images, "epoch": epoch, "steps": 3 * epoch}
  figures |= {"tested": tested, "validated": validated, "n_classes": n_classes}
  return {name: figure for name, figure in figures.items() if figure is not None}


FOURS = {"batch": 4, "group_size": 4}
CLASSES_7 = {"images": 24, "tested": [7], "validated": [7], "n_classes": 7}
OTHERS_SHOWN = "program batches frozen splits"
# Arguments of the optimizers; tests/prompt/test_step.py and test_protext.py compare
# with torch.
SGD, ADAMW = ("momentum", "weight_decay", "clip_norm"), {"beta2": 0.98, "epsilon": 1e-8}
# field -> another value; what both trainings have beside the base's; the pieces that
# change, all others being equal to the bit; the figures that change, and what they
# become.
CHANGES = {
  "method": ("cocoop", {}, "program state", {"parameters": COCOOP}),
  "seed": (1, {}, "batches state", {}),
  "clip.model": ("CLIP", ONLINE, "program frozen", {}),
  "clip.activation": ("gelu", ONLINE, "program", {}),
  "clip.dtype": ("bfloat16", ONLINE, "program", {}),
  "data.source": ("folder", DRAWN, OTHERS_SHOWN, _shown(30, 3, [9], [9])),
  "data.dataset": ("dtd", IN_COOP, "program frozen splits", {}),
  "data.annotations": ("SMALLER", REGIONS, "batches", {}),
  "data.names": ("NAMES", STORED, OTHERS_SHOWN, CLASSES_7),
  "data.shots": (1, STORED, "program batches", _shown(9, 1)),
  "data.shots_seed": (4, STORED, "batches", {}),
  "data.classes": ("base", STORED, OTHERS_SHOWN, _shown(17, 2, [5, 4], [5], 5)),
  "data.base": ("NAMES", STORED, OTHERS_SHOWN, CLASSES_7 | {"tested": [7, 2]}),
  "data.novel": ("NOVEL", BASE_CLASSES, "splits", {"tested": [7, 1]}),
  "data.test_share": (0.4, FLAT, "program batches splits", _shown(20, 2, [14])),
  "data.validation_share": (
    0.4,
    FLAT,
    "program batches splits",
    _shown(11, 1, None, [14]),
  ),
  "data.duplicates": ("keep", DOUBLES, "splits", {"tested": [10], "validated": [10]}),
  "data.upright": (True, STORED, "batches", {}),
  "data.images_per_class": (2, ONLINE, "program batches", _shown(32, 4)),
  "data.n_classes": (12, ONLINE, OTHERS_SHOWN, _shown(12, 1, [24, 24, 24], [24], 12)),
  "data.augment": ("recipe", ONLINE, "batches", {"kind": "recipe"}),
  "data.crop_area": (0.5, ONLINE, "batches", {"crop_area": 0.5}),
  "data.views": (2, ONLINE, "program batches", _shown(None, 4) | {"n_views": 2}),
  "data.augment_seed": (1, ONLINE, "batches", {"seed": 1}),
  "data.view_epochs": (1, ONLINE, "batches", {"view_epochs": 1}),
  "prompt.m": (3, {}, "program state", {"parameters": [(3, 64)]}),
  "prompt.position": ("front", {}, "program", {"position": "front"}),
  "prompt.init": ("a photo", {}, "state", {}),
  "prompt.class_specific": (True, {}, "program state", {"parameters": [(16, 2, 64)]}),
  "prompt.depth": (2, DEEP, "program state", {"parameters": [(2, 8, 128)]}),
  "prompt.visual_tokens": (4, SHALLOW, "program state", {"parameters": [(1, 4, 128)]}),
  "kdpl.teacher": ("ONE", KDPL, "program frozen", {}),
  "kdpl.prompt": ("{}.", KDPL, "frozen", {}),
  "kdpl.classes": ("likeliest", KDPL, "program", {}),
  "eval.template": ("{}.", SHALLOW, "frozen", {}),
  "eval.images": (20, {}, "splits", {"tested": [32, 32, 32], "validated": [32]}),
  "negatives": ("all", {}, "program", {"k": 16}),
  "k": (8, {}, "program", {"k": 8}),
  "correction": ("none", {}, "program", {"correction": "none"}),
  "margin": (1.5, {"correction": "none"}, "program", {"margin": 1.5}),
  "loss": ("sigmoid", BIASED, "program", {"loss": "sigmoid", "logit_bias": -15.0}),
  "logit_bias": (-9.0, BIASED | {"loss": "sigmoid"}, "program", {"logit_bias": -9.0}),
  **{
    f"consistency_{kind}": (4.0, beside, pieces, {"consistency": ((kind, 4.0),)})
    for kind, beside, pieces in (
      *((kind, {}, "program frozen") for kind in ("squared", "l1", "kl")),
      ("images", SHALLOW, "program frozen"),
    )
  },
  "anchors": ("{}.", NEAR, "frozen", {}),
  "sampling.name": ("hard", {}, "program state", {"name": "hard", "renewed": 16}),
  "sampling.mix": (1.0, HARD, "program", {"mix": 1.0}),
  "sampling.temperature": (1.0, HARD, "program", {"temperature": 1.0}),
  "sampling.anchors": ("images", HARD, "program", {"anchors": "images"}),
  "sampling.renew": (3, HARD, "program", {"renewed": 3}),
  "sampling.power": (1.0, STORED | {"sampling.name": "frequency"}, "frozen", {}),
  "sampling.exclude": ("kin", {}, "program frozen", {"exclude": "kin"}),
  "sampling.exclude_threshold": (0.0, SIMILAR, "program", {"exclude_threshold": 0.0}),
  "sampling.batch_positives": (True, {}, "program", {"batch_positives": True}),
  "sampling.ancestors_weight": (0.5, {}, "program frozen", {"ancestors_weight": 0.5}),
  "batch_size": (4, {}, "program batches", _shown(None, 4) | FOURS),
  "accumulate": (2, HARD, "program", {"accumulate": 2, "group_size": 4, "renewed": 8}),
  "steps": (5, {}, "program batches", {"steps": 5, "epochs": 2.5}),
  "epochs": (4, {}, "program batches", {"steps": 8, "epochs": 4}),
  "optim.lr": (0.04, {}, "program", {"base": 0.04}),
  "optim.momentum": (0.5, {}, "program", {"momentum": 0.5}),
  "optim.weight_decay": (0.3, {}, "program", {"weight_decay": 0.3}),
  "optim.schedule": ("step", {}, "program", {"schedule": "step"}),
  "optim.warmup": (2.0, {}, "program", {"warmup": 2.0}),
  "optim.warmup_lr": (0.01, {}, "program", {"warmup_rate": 0.01}),
  "optim.clip_norm": (0.05, {}, "program state", {"clip_norm": 0.05}),
  "optim.name": ("adamw", {}, "program state", dict.fromkeys(SGD) | ADAMW),
  "optim.beta2": (0.5, {"optim.name": "adamw"}, "program", {"beta2": 0.5}),
  "optim.epsilon": (0.1, {"optim.name": "adamw"}, "program", {"epsilon": 0.1}),
  "optim.average": ("ema", {}, "program state", {}),
  "optim.average_mean": (2.0, GAUSSIAN, "program", {}),
  "optim.average_sigma": (2.0, GAUSSIAN, "program", {}),
  "optim.average_decay": (0.5, {"optim.average": "ema"}, "program", {}),
}
# tests/prompt/test_step.py compares these with torch.
SCHEDULE = ("schedule", "base", "epochs", "warmup", "warmup_rate")
# The same computation in another order: equal but for rounding; of pixels, and of
# names.
ROUNDING_OF_IMAGES = {"clip.image_chunk": 3, "data.features": "stored"}
ROUNDING = {"clip.text_tower": "reference"}
# Read by the training, and of no effect on what it learns.
SAME = {
  **{"clip.memory_gib": 5.0, "compilation_cache": ""},
  **{"data.root": "COPY", "data.cache": "FOLDER", "data.feature_store": "FOLDER"},
  **{"data.threads": 3, "data.workers": 1, "data.max_corrupt": 0.5},
  "roll_backs": 5,
  **{"checkpoint.every": 4, "checkpoint.keep": 1, "checkpoint.on_failure": "retry"},
  **{"log.every": 1, "log.tracker": "wandb", "profile_steps": "2+2"},
}
# What is run, which of its checkpoints is the prompt (tests/train/test_pretrain.py),
# the words that it starts from (tests/rooms/regularisation), the text tower alone
# (tests/rooms/data_sets/test_feature_folder.py), and the devices.
CHOOSE = (
  "job",
  "dry_run",
  "dry_run_rate",
  "checkpoint.select",
  "clip.image_tower",
  "prompt.candidates",
)
CHOOSE += ("mesh.class_size",)
# Of methods that don't learn by steps.
METHODS_WITHOUT_STEPS = ("probe.", "tip.")


def test_each_field_has_one_row():
  """Other jobs, and what the fields without effect reach, are in
  tests/rooms/test_each_field.py."""
  known = [
    field
    for field in fields_of("pretrain")
    if not field.startswith(METHODS_WITHOUT_STEPS)
  ]
  rows = [*CHANGES, *ROUNDING_OF_IMAGES, *ROUNDING, *SAME, *CHOOSE]
  assert sorted(rows) == sorted(known)


def test_a_run_that_goes_on_may_change_what_does_not_matter():
  # The run's program depends on the others, and what it leaves out.
  asked_again = {"clip.memory_gib"}
  free = {field for field in [*CHANGES, *SAME] if field in FREE_FIELDS}
  assert free == set(SAME) - asked_again


CLASSES = world.class_names("base")[::2500]  # 9 of them


def _write_pictures(folder: pathlib.Path, split: str, counts, shift=0) -> None:
  """The world's own images, a folder a class; with a shift, in the folder of another
  class."""
  for place, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
    shown = CLASSES[(place + shift) % len(CLASSES)]
    source = world.source(split, images_per_class=count)
    first = source.names.index(shown) * count
    (folder / name).mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, if `data.upright`
    for i, image in enumerate(source.images(first + np.arange(count))):
      Image.fromarray(image).save(folder / name / f"{shift}-{i}.png", exif=exif)


def _write_objects(path: pathlib.Path, pictures: pathlib.Path, side: int) -> None:
  """Annotations of an object in each training picture."""
  files = sorted(pictures.glob("train/*/*.png"))
  images = [
    {"id": i, "file_name": str(file.relative_to(pictures)), "height": 40, "width": 40}
    for i, file in enumerate(files)
  ]
  rows = [
    {"id": i, "image_id": i, "category_id": CLASSES.index(file.parent.name) + 1}
    | {"bbox": [0, 0, side, side]}
    for i, file in enumerate(files)
  ]
  categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
  path.write_text(
    json.dumps({"images": images, "annotations": rows, "categories": categories})
  )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """What the names in capitals above stand for."""
  root = tmp_path_factory.mktemp("wiring")
  # Of unequal classes, for the frequencies; at least three images, for the shots.
  _write_pictures(root / "pictures" / "train", "train", (3, 4, 9, 3, 3, 3, 4, 3, 3))
  for split, images in (("val", "validation"), ("test", "base")):
    _write_pictures(root / "pictures" / split, images, (1,) * 9)
  pictures = np.zeros((1, 8, 8, 3), np.uint8)
  for name in ("eurosat", "dtd"):
    write_set(root / "coop", name, pictures, np.zeros(1, int))
  (root / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES[:7]))
  (root / "novel.txt").write_text(f"{CLASSES[8]}\n")
  write_fewer_layers(root / "one", 1)
  shutil.copytree(root / "pictures", root / "copy of pictures")
  shutil.copytree(root / "pictures", root / "doubles")
  for split in ("val", "test"):
    again = root / "doubles" / split / CLASSES[0] / "again.png"
    shutil.copy(root / "doubles" / "train" / CLASSES[0] / "0-0.png", again)
  for name, side in (("objects", 40), ("smaller", 30)):
    _write_objects(root / f"{name}.json", root / "pictures", side)
  return {
    "ONE": str(root / "one"),
    "CLIP": write_fewer_layers(root / "two", 2),
    "PICTURES": str(root / "pictures"),
    "COOP": str(root / "coop"),
    "OBJECTS": str(root / "objects.json"),
    "SMALLER": str(root / "smaller.json"),
    "DOUBLES": str(root / "doubles"),
    "FLAT": str(root / "pictures" / "train"),
    "NAMES": str(root / "names.txt"),
    "NOVEL": str(root / "novel.txt"),
    "FEATURES": str(root / "features"),
  }


def _config(changes, folders, **more):
  settings = BASE | {"clip.model": folders["ONE"]} | changes | more
  if settings["data.features"] == "stored":
    settings.setdefault("data.feature_store", folders["FEATURES"])
  settings = {
    field: folders.get(value, value) if isinstance(value, str) else value
    for field, value in settings.items()
  }
  return small_config(**settings)


@pytest.fixture(scope="module")
def reached(folders, tmp_path_factory):
  """A function: fields -> what reaches a training with them; see `_reached`."""
  found = {}

  def find(changes):
    key = repr(sorted(changes.items()))
    if key not in found:
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_, **__: None)
        folder = RunFolder(tmp_path_factory.mktemp("run"))
        found[key] = _reached(_config(changes, folders), folder, patch)
    return found[key]

  return find


def _reached(config, folder, patch) -> tuple[dict[str, str], dict[str, Any]]:
  """Digests of the pieces that reach a training, by name, and figures that say what
  they are.

  The loop runs with a step that records what it is given. The real step is lowered with
  that.
  """
  optimizers = [(setup, name) for name in ("sgd", "adamw", "learning_rate")]
  seen = spy(patch, [*optimizers, (training, "make_train_step")])
  run = setup.prepare(config, folder)
  fill_features(run.data, run.clip, folder, run.source, run.encoder)
  step, given, splits = run.build_step(), [], []

  def take(state, frozen, batch):
    given.append((state, frozen, batch))
    return state, dict.fromkeys(("loss", "accuracy"), jnp.zeros(()))

  def opened(data, encoder, source, folder):
    splits.append((source.names, source.labels, source.keys))
    return SplitFeatures(
      tuple(source.names), source.labels, None, np.arange(len(source))
    )

  patch.setattr(batches, "readable_features", opened)
  results.open_splits(config.data, config.eval.images, run.encoder, folder, None)
  tested = list(splits)
  run.validation()
  patch.setattr(PromptRun, "build_step", lambda run: take)
  patch.setattr(PromptRun, "validation", lambda run: lambda state: WRONG)
  loop.train(run)
  (state, frozen, batch), *_ = given
  pieces = {
    "program": step.lower(state, frozen, batch).as_text(),
    "batches": [batch for _, _, batch in given],
    "frozen": frozen,
    "state": state,
    "splits": splits,
  }
  contrast, parts = (
    dataclasses.asdict(run.contrast_settings),
    seen["make_train_step.parts"],
  )
  figures = {
    "steps": len(given),
    "epoch": seen["learning_rate.steps_per_epoch"],
    "batch": len(batch["label"]),
    "images": len(run.source),
    "consistency": tuple(
      (field.removeprefix("consistency_"), weight)
      for field, weight in run.contrast.flat().items()
      if field.startswith("consistency_") and weight
    ),
    "position": run.module.position,
    "accumulate": parts.accumulate,
    "group_size": run.group_size,
    "renewed": parts.renewal and parts.renewal.rows,
    "parameters": [np.shape(leaf) for leaf in jax.tree.leaves(state.params)],
    "tested": [len(labels) for _, labels, _ in tested],
    "validated": [len(labels) for _, labels, _ in splits[len(tested) :]],
  }
  # Of the contrast, its sampler, and the views.
  figures |= contrast.pop("sampling") | contrast
  figures |= dataclasses.asdict(batches.augmentation(config.data))
  figures |= {name: seen.get(f"sgd.{name}") for name in SGD}
  figures |= {name: seen.get(f"adamw.{name}") for name in ADAMW}
  figures |= {name: seen[f"learning_rate.{name}"] for name in SCHEDULE}
  return {name: _digest(piece) for name, piece in pieces.items()}, figures


def _digest(tree) -> str:
  """Digest of all leaves, with their types, shapes and places in the tree."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
    found.update(header.encode() + array.tobytes())
  return found.hexdigest()


def _difference(before, after) -> tuple[list[str], dict[str, Any]]:
  """Names of the pieces that differ, and the figures of `after` that do."""
  pieces = [name for name in before[0] if after[0][name] != before[0][name]]
  return pieces, {name: now for name, now in after[1].items() if now != before[1][name]}


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_that_matters_changes_its_pieces_alone(reached, field):
  value, beside, pieces, becomes = CHANGES[field]
  assert value != fields_of()[field].default
  after = beside | {field: value}
  if (
    after.get("method", "pomp") not in METHODS
    or after.get("data.source", "world") not in SOURCES
  ):
    pytest.skip("its room is taken off: tests/rooms/test_taken_off.py")
  found = _difference(reached(beside), reached(after))
  assert found == (pieces.split(), becomes)


def test_all_negatives_are_k_equal_to_n(reached):
  assert _difference(reached({"k": 16}), reached({"negatives": "all"})) == ([], {})


def _learned(config, folder) -> tuple[np.ndarray, str]:
  """All parameters after three steps, as one vector; and the program of a step."""
  run = setup.prepare(config, folder)
  fill_features(run.data, run.clip, folder, run.source, run.encoder)
  state, step, program = first_state(run), run.build_step(), ""
  with contextlib.closing(run.open_batches()) as loader:
    for batch in itertools.islice(loader, 3):
      program = program or step.lower(state, run.frozen, batch).as_text()
      state, _ = step(state, run.frozen, batch)
  return np.concatenate(
    [np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]
  ), program


@pytest.mark.parametrize(
  ("beside", "rounding"), [(ONLINE, ROUNDING_OF_IMAGES), ({}, ROUNDING)]
)
def test_another_program_learns_the_same(folders, tmp_path, beside, rounding):
  learned = lambda changes: _learned(
    _config(beside | changes, folders), RunFolder(tmp_path)
  )
  expected, usual = learned({})
  for field, value in rounding.items():
    if field != "clip.text_tower" or HAS_FLAX_CLIP:
      found, program = learned({field: value})
      assert_close(found, expected, 1e-4)
      assert program != usual, field


def test_fields_that_do_not_matter_leave_every_bit(reached, folders, tmp_path):
  expected = reached({})
  shutil.copytree(folders["FEATURES"], tmp_path / "features")
  changed = SAME | {"data.root": "", "data.cache": str(tmp_path / "labels")}
  changed |= {"data.feature_store": str(tmp_path / "features")}
  assert _difference(expected, reached(changed)) == ([], {})
  # A set of images that has moved.
  moved = {"data.root": folders["PICTURES"].replace("pictures", "copy of pictures")}
  assert _difference(reached(STORED), reached(STORED | moved)) == ([], {})


def test_validation_is_on_validation_images_and_the_test_on_test_images(tmp_path):
  """All training images are in the right folders, no validation image, every second
  test image."""
  root = tmp_path / "pictures"
  _write_pictures(root / "train", "train", (4,) * 9)
  _write_pictures(root / "val", "validation", (2,) * 9, shift=1)
  _write_pictures(root / "test", "base", (2,) * 9)
  _write_pictures(root / "test", "base", (2,) * 9, shift=1)
  data = {"data.source": "folder", "data.root": str(root), "data.n_classes": 0}
  config = small_config(k=9, **data, **{"eval.images": 0, "probe.iterations": 20})
  run = setup.prepare(config, RunFolder(tmp_path / "run"))
  assert run.validation()(first_state(run))["top1"] == 0.0
  found = pretrain.run(
    config.replace({"method": "linear_probe"}), str(tmp_path / "probe")
  )
  assert list(found["top1"]) == ["test"] and 0.4 < found["top1"]["test"] < 0.6
  assert set(found["found"]["validation_top1"].values()) <= {0.0, 1 / 9}
