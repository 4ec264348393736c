"""From config to training: each field does what it says, the updates are torch's, splits are own.

Each field of the base config has one row below. A field that may change what is learned does so in
a training of six steps; one that must not leaves every bit as it is.
"""

import dataclasses
import json
import pathlib
import shutil
import socket
import typing

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest
import torch

from pomp_jax import inputs, world
from pomp_jax.config import FIELDS, Settings
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import cache, pretrain
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import loop, setup
from pomp_jax.train.resume import leaves_result_as_it_is
from tests.support.checks import assert_close
from tests.support.data_files import write_set
from tests.support.flax_clip import flax_clip
from tests.support.oracles import dassl_scheduler
from tests.support.small_run import small_config

# Two steps an epoch, three epochs, the first of them the warm-up; from cached features.
BASE = {
  "data.n_classes": 16,
  "data.images_per_class": 1,
  "data.augment": "crop_flip",
  "data.view_epochs": 3,
  "data.features": "cached",
  "k": 4,
  "prompt.m": 2,
  "batch_size": 8,
  "steps": 0,
  "epochs": 3,
  "optim.schedule": "epoch",
  "optim.warmup": 1.0,
  "optim.warmup_lr": 0.02,
  "optim.weight_decay": 0.1,
  "eval.images": 16,
  "checkpoint.every": 6,
  "log.every": 10,
}
ONLINE = {"data.features": "online"}
# Words in capitals stand for folders and files that a fixture writes.
STORED = ONLINE | {
  "data.source": "folder",
  "data.root": "PICTURES",
  "data.n_classes": 9,
  "data.shots": 4,
}
FLAT = STORED | {"data.root": "FLAT", "data.shots": 0}
BASE_CLASSES = STORED | {"data.base": "NAMES"}
IN_COOP = STORED | {"data.source": "coop", "data.root": "COOP", "data.dataset": "eurosat"}
REGIONS = ONLINE | {
  "data.source": "regions",
  "data.root": "PICTURES",
  "data.annotations": "OBJECTS",
  "data.n_classes": 9,
}
# One layer tells classes apart but little.
HARD = {"sampling.name": "hard", "sampling.temperature": 0.002}
SIMILAR = {"sampling.exclude": "similar"}
SHALLOW = ONLINE | {"method": "vpt_shallow"}
DEEP = ONLINE | {"method": "vpt_deep", "clip.model": "CLIP"}

# field -> another value, and what both trainings have beside the base's.
CHANGES = {
  "method": ("cocoop", {}),
  "seed": (1, {}),
  "clip.model": ("CLIP", ONLINE),
  "clip.activation": ("gelu", ONLINE),
  "clip.dtype": ("bfloat16", ONLINE),
  "data.source": ("folder", STORED | {"data.source": "world"}),
  "data.dataset": ("dtd", IN_COOP),
  "data.annotations": ("SMALLER", REGIONS),
  "data.names": ("NAMES", STORED),
  "data.shots": (1, STORED),
  "data.shots_seed": (4, STORED),
  "data.classes": ("base", STORED),
  "data.base": ("NAMES", STORED),
  "data.test_share": (0.4, FLAT),
  "data.validation_share": (0.4, FLAT),
  "data.images_per_class": (2, ONLINE),
  "data.n_classes": (12, ONLINE),
  "data.augment": ("recipe", ONLINE),
  "data.crop_area": (0.5, ONLINE),
  "data.views": (2, ONLINE),
  "data.augment_seed": (1, ONLINE),
  "data.view_epochs": (1, ONLINE),
  "prompt.m": (3, {}),
  "prompt.position": ("front", {}),
  "prompt.init": ("a photo", {}),
  "prompt.class_specific": (True, {}),
  "prompt.depth": (2, DEEP),
  "prompt.visual_tokens": (4, SHALLOW),
  "eval.template": ("{}.", SHALLOW),
  "negatives": ("all", {}),
  "k": (8, {}),
  "correction": ("none", {}),
  "sampling.name": ("hard", {}),
  "sampling.mix": (1.0, HARD),
  "sampling.temperature": (1.0, HARD),
  "sampling.anchors": ("images", HARD),
  "sampling.renew": (0, HARD),
  "sampling.bank_dtype": ("bfloat16", HARD),
  "sampling.power": (1.0, STORED | {"sampling.name": "frequency"}),
  "sampling.exclude": ("kin", {}),
  "sampling.exclude_threshold": (0.0, SIMILAR),
  "sampling.batch_positives": (True, {}),
  "sampling.ancestors_weight": (0.5, {}),
  "batch_size": (4, {}),
  "accumulate": (2, {}),
  "steps": (5, {}),
}
# Fields of the optimizer, by the torch statement of it below: a value other than the base's.
UPDATES = {
  "epochs": 5,
  "optim.lr": 0.04,
  "optim.momentum": 0.5,
  "optim.weight_decay": 0.3,
  "optim.schedule": "step",
  "optim.warmup": 2.0,
  "optim.warmup_lr": 0.01,
}
# The same computation in another order: equal but for rounding.
ROUNDING = {
  "clip.text_tower": "reference",
  "clip.remat": "layers",
  "clip.n_chunks": 2,
  "clip.image_chunk": 3,
  "data.features": "online",
  "mesh.class_size": 2,
}
# Read by the training, and of no effect on what it learns.
SAME = {
  "clip.memory_gib": 5.0,
  "clip.chunk": 5,
  "data.root": "COPY",
  "data.novel": "NOVEL",
  "data.cache": "FOLDER",
  "data.feature_cache": "COPY",
  "data.threads": 3,
  "data.workers": 1,
  "data.max_corrupt": 0.5,
  "on_bad_loss": "roll_back",
  "loss_spike": 1e9,
  "max_roll_backs": 5,
  "eval.images": 9,
  "eval.cache": "FOLDER",
  "checkpoint.every": 4,
  "checkpoint.keep": 1,
  "checkpoint.on_failure": "retry",
  "log.every": 1,
  "log.tracker": "wandb",
  "profile_steps": "2+2",
  "compilation_cache": "",
  "prometheus.port": 1,  # a free one
  "prometheus.host": "localhost",
}
# What is run, and fields of other jobs and of methods that don't learn by steps.
CHOOSE = ("job", "dry_run")
OTHERS = (
  *("evaluate.", "analyse.", "predict.", "export.", "prepare.", "baselines.", "repeat."),
  *("ablate.", "gradient_bias.", "benchmark.", "probe.", "tip."),
  *("regions.", "segment.", "detect.", "train_masks.", "propose.", "page."),
)


def test_each_field_has_one_row():
  known = set(FIELDS)
  of_others = {field for field in known if field.startswith(OTHERS)}
  rows = [*CHANGES, *UPDATES, *ROUNDING, *SAME, *CHOOSE, *of_others]
  assert sorted(rows) == sorted(known)


@pytest.mark.parametrize("field", [*CHANGES, *UPDATES, *SAME])
def test_a_run_that_goes_on_may_change_what_does_not_matter(field):
  free = leaves_result_as_it_is(field)
  assert free == (field in SAME and field not in ASKED_AGAIN)


# Of no effect on what is learned; but the run's figures or its program depend on them.
ASKED_AGAIN = ("clip.memory_gib", "clip.chunk", "data.max_corrupt", "data.novel", "eval.images")


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
  """Programs run for six steps here, so that compiling well costs more than it saves."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _fewer_layers(folder: pathlib.Path, layers: int) -> str:
  """The world's CLIP with its first layers alone."""
  shutil.copytree(world.CLIP_PATH, folder)
  config = json.loads((folder / "config.json").read_text())
  for tower in ("text_config", "vision_config"):
    config[tower]["num_hidden_layers"] = layers
  (folder / "config.json").write_text(json.dumps(config))
  weights = folder / "flax_model.msgpack"
  flat = flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(weights.read_bytes()))
  dropped = {str(layer) for layer in range(layers, 3)}
  flat = {path: leaf for path, leaf in flat.items() if not dropped & set(path)}
  tree = flax.traverse_util.unflatten_dict(flat)
  weights.write_bytes(flax.serialization.msgpack_serialize(tree))
  return str(folder)


CLASSES = world.class_names("base")[::2500]  # 9 of them


def _write_pictures(folder: pathlib.Path, split: str, counts, shift=0) -> None:
  """The world's own images, a folder a class; with a shift, in the folder of another class."""
  for place, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
    shown = CLASSES[(place + shift) % len(CLASSES)]
    source = world.source(split, images_per_class=count)
    first = source.names.index(shown) * count
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(source.images(first + np.arange(count))):
      Image.fromarray(image).save(folder / name / f"{shift}-{i}.png")


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
  path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))


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
  config = _config({}, {"ONE": _fewer_layers(root / "one", 1)}, job="cache", **ONLINE)
  config = config.replace({"data.feature_cache": str(root / "features")})
  cache.run(config, str(root / "cache"))
  shutil.copytree(root / "pictures", root / "copy of pictures")
  for name, side in (("objects", 40), ("smaller", 30)):
    _write_objects(root / f"{name}.json", root / "pictures", side)
  return {
    "ONE": str(root / "one"),
    "CLIP": _fewer_layers(root / "two", 2),
    "PICTURES": str(root / "pictures"),
    "COOP": str(root / "coop"),
    "OBJECTS": str(root / "objects.json"),
    "SMALLER": str(root / "smaller.json"),
    "FLAT": str(root / "pictures" / "train"),
    "NAMES": str(root / "names.txt"),
    "NOVEL": str(root / "novel.txt"),
    "FEATURES": str(root / "features"),
  }


def _config(changes, folders, **more):
  settings = BASE | {"clip.model": folders["ONE"]} | changes | more
  if settings["data.features"] == "cached":
    settings.setdefault("data.feature_cache", folders["FEATURES"])
  settings = {
    field: folders.get(value, value) if isinstance(value, str) else value
    for field, value in settings.items()
  }
  return small_config(**settings)


@pytest.fixture(scope="module")
def learned(folders, tmp_path_factory):
  """A function: fields -> all parameters after a training with them, as one vector."""
  encoders, found = {}, {}
  patch = pytest.MonkeyPatch()
  # Of no effect on what is learned, and with a test of its own below.
  patch.setattr(setup.Run, "validation", lambda job: lambda state: 0.0)

  def encoder_of(config):
    key = repr(
      [(f, v) for f, v in config.flat().items() if f.startswith(("clip.", "mesh.", "eval.cache"))]
    )
    if key not in encoders:
      mesh = make_mesh(config.mesh.class_size, devices=jax.devices()[: config.mesh.class_size])
      encoders[key] = inputs.open_encoder(config, mesh)
    return encoders[key]

  def train(changes):
    key = repr(sorted(changes.items()))
    if key not in found:
      config = _config(changes, folders)
      folder = RunFolder(tmp_path_factory.mktemp("run"))
      job = setup.prepare(config, folder, encoder=encoder_of(config))
      state = loop.train(job).state
      found[key] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    return found[key]

  yield train
  patch.undo()


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_that_matters_changes_what_is_learned(learned, field):
  value, beside = CHANGES[field]
  before, after = learned(beside), learned(beside | {field: value})
  assert np.isfinite(before).all() and np.isfinite(after).all()
  # Not by rounding alone.
  assert before.shape != after.shape or np.abs(before - after).max() > 1e-6


@pytest.mark.parametrize("field", ROUNDING)
def test_another_order_of_the_sums_learns_the_same(learned, field):
  beside = {"clip.image_chunk": ONLINE, "mesh.class_size": {}}.get(field, {})
  if field == "clip.text_tower":
    flax_clip()
  assert_close(learned(beside | {field: ROUNDING[field]}), learned(beside), 1e-4)


def test_fields_that_do_not_matter_leave_every_bit(learned, folders, tmp_path):
  shutil.copytree(folders["FEATURES"], tmp_path / "features")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  known = Settings().flat()
  others = {field: _another(field, known[field]) for field in known if field.startswith(OTHERS)}
  others.pop("probe.iterations")
  changed = (
    SAME
    | others
    | {
      "data.root": "",
      "data.cache": str(tmp_path / "labels"),
      "data.feature_cache": str(tmp_path / "features"),
      "eval.cache": str(tmp_path / "class features"),
      "prometheus.port": port,
    }
  )
  np.testing.assert_array_equal(learned(changed), learned({}))
  # A set of images that has moved.
  moved = {"data.root": folders["PICTURES"].replace("pictures", "copy of pictures")}
  np.testing.assert_array_equal(learned(STORED | moved), learned(STORED))
  novel = {"data.novel": "NOVEL"}
  np.testing.assert_array_equal(learned(BASE_CLASSES | novel), learned(BASE_CLASSES))


def _another(field, value):
  """Another value of the same type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return (*value, _element(typing.get_args(FIELDS[field].type)[0]))
  return f"{value}x" if isinstance(value, str) else value + 1


def _element(kind):
  if typing.get_origin(kind) is tuple:
    return tuple(map(_element, typing.get_args(kind)))
  return {str: "x", int: 1}.get(kind, {})


def _torch_path(config, steps_per_epoch, start, gradients):
  """The parameters after each step of torch's SGD, and its rates, given all gradients."""
  optim, n_steps = config.optim, len(gradients)
  leaf = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
  sgd = torch.optim.SGD(
    [leaf], lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
  )
  settings = {"epochs": config.epochs, "warmup": int(optim.warmup), "warmup_rate": optim.warmup_lr}
  scheduler = dassl_scheduler(sgd, **settings) if optim.schedule == "epoch" else None
  rates, path = [], []
  for step, gradient in enumerate(gradients):
    if scheduler is None:
      done = step / steps_per_epoch - optim.warmup
      cosine = np.cos(np.pi * done / (n_steps / steps_per_epoch - optim.warmup))
      rate = optim.warmup_lr if done < 0 else optim.lr * (1 + cosine) / 2
      sgd.param_groups[0]["lr"] = rate
    rates.append(sgd.param_groups[0]["lr"])
    leaf.grad = torch.tensor(gradient, dtype=torch.float64)
    sgd.step()
    path.append(leaf.detach().numpy().copy())
    if scheduler and (step + 1) % steps_per_epoch == 0:
      scheduler.step()
  return np.array(path), np.array(rates)


# An optimizer that moves nothing and keeps the gradient it was given.
_KEEP = optax.GradientTransformation(
  init=lambda params: jax.tree.map(jnp.zeros_like, params),
  update=lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, params), gradient),
)


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_each_update_is_that_of_torchs_sgd(folders, tmp_path, monkeypatch, schedule):
  config = _config(UPDATES | {"optim.schedule": schedule}, folders)
  job = setup.prepare(config, RunFolder(tmp_path))
  gradient_step = setup.build_step(dataclasses.replace(job, optimizer=_KEEP))
  path, gradients = [], []

  def recorded(job, step=setup.Run.build_step):
    update = step(job)

    def call(state, frozen, batch):
      copy = jax.tree.map(jnp.copy, state)
      path.append(np.asarray(copy.params["context"]))
      kept, _ = gradient_step(copy.replace(opt_state=_KEEP.init(copy.params)), frozen, batch)
      gradients.append(np.asarray(kept.opt_state["context"]))
      return update(state, frozen, batch)

    return call

  monkeypatch.setattr(setup.Run, "build_step", recorded)
  monkeypatch.setattr(setup.Run, "validation", lambda job: lambda state: 0.0)
  path.append(np.asarray(loop.train(job).state.params["context"]))
  assert (job.steps_per_epoch, len(gradients)) == (2, 10)
  expected, rates = _torch_path(config, 2, path[0], gradients)
  assert_close(path[1:], expected, 1e-5)
  # What is logged is what is used.
  assert_close([job.rate(step) for step in range(10)], rates, 1e-6)
  # And each field alone makes a difference that this comparison sees.
  known = BASE | {"optim.schedule": {"epoch": "step", "step": "epoch"}[schedule]}
  for field in UPDATES:
    one = _config(UPDATES | {"optim.schedule": schedule, field: known.get(field, 0.9)}, folders)
    other, _ = _torch_path(one, 2, path[0], gradients)
    if (field, schedule) != ("epochs", "step"):  # there the steps given are the run
      assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max(), field


def test_the_best_is_chosen_on_validation_images_and_told_on_test_images(tmp_path):
  """All training images are in the right folders, no validation image, every second test image."""
  root = tmp_path / "pictures"
  _write_pictures(root / "train", "train", (4,) * 9)
  _write_pictures(root / "val", "validation", (2,) * 9, shift=1)
  _write_pictures(root / "test", "base", (2,) * 9)
  _write_pictures(root / "test", "base", (2,) * 9, shift=1)
  settings = {
    "data.source": "folder",
    "data.root": str(root),
    "data.n_classes": 0,
    "k": 9,
    "batch_size": 8,
    "steps": 4,
    "optim.lr": 0.02,
    "eval.images": 0,
    "probe.iterations": 20,
  }
  config = small_config(**settings)
  pretrain.run(config, str(tmp_path / "run"))
  found = json.loads((tmp_path / "run" / "results.json").read_text())
  assert list(found["top1"]) == ["test"] and 0.4 < found["top1"]["test"] < 0.6
  _, validated = RunFolder(tmp_path / "run").scalars()["validation_top1"]
  assert validated == [0.0]
  config = config.replace({"method": "linear_probe"})
  results = pretrain.run(config, str(tmp_path / "probe"))
  assert 0.4 < results["top1"]["test"] < 0.6
  assert set(results["found"]["validation_top1"].values()) <= {0.0, 1 / 9}
