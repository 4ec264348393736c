"""A dry run: all parts of a training on synthetic data, nothing written, the sums
right."""

import math

from flax.traverse_util import flatten_dict
import numpy as np
import open_clip
import pytest
import torch

from pomp_jax import world
from pomp_jax.clip import weights
from pomp_jax.clip.architecture import parameter_shapes
from pomp_jax.clip.tokens import tokenize
from pomp_jax.config import ConfigError, fields, unpack, validate
from pomp_jax.configs import imagenet21k_rn50, imagenet21k_vit_l14, own
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import opening
from pomp_jax.files import terminal
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import costs, dry_run, synthetic_clip
from pomp_jax.rooms.benchmark.synthetic_images import open_split
from pomp_jax.train import setup
from pomp_jax.train.training import PromptRun
from tests.support.data_files import write_folder, write_world
from tests.support.small_run import small_config


@pytest.fixture
def dry(one_layer):
  """A function: changes -> config of a dry run."""

  def config(**changes):
    found = small_config(
      dry_run=True, **{"data.n_classes": 0, "clip.model": one_layer} | changes
    )
    validate(found)
    return found

  return config


def run(config, tmp_path, caplog):
  dry_run.check(config, str(tmp_path / "run"))
  with caplog.at_level("INFO", "pomp_jax"):
    figures = dry_run.run(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
  return figures


def test_stored_images_are_synthetic(dry, tmp_path, caplog, monkeypatch):
  built = []
  build = PromptRun.build_step
  monkeypatch.setattr(
    PromptRun,
    "build_step",
    lambda run, **kwargs: built.append(run) or build(run, **kwargs),
  )
  fields = {
    "data.source": "tfds",
    "data.dataset": "food101",
    "data.root": "/not/here/yet",
  }
  fields |= {
    "data.shots": 4,
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 3,
  }
  config = dry(**fields, **{"epochs": 5, "steps": 0, "checkpoint.keep": 2})
  figures = run(config, tmp_path, caplog)
  # No part of a short step first: compilations take most of the time of a small CLIP's
  # dry run.
  assert len(built) == 1 and "step_classes" not in figures
  # Two views of each, five epochs.
  assert (
    "101 classes, 404 training images, synthetic; 250 steps of 16 views" in caplog.text
  )
  # Two views of each image in three epochs, if features were stored; they are not.
  assert costs.stored_views(built[0]) == 404 * 6
  assert figures["stored_features_bytes"] is None
  assert "stored features" not in caplog.text
  assert figures["device_temporaries_mib"] > 0 and figures["process_peak_mib"] > 100
  slower = max(figures["step_seconds"], figures["read"].seconds)
  assert figures["training_seconds"] == pytest.approx(250 * slower)
  # 63 checkpoints, each with a validation; three prompts on 64 images of one split.
  images = 64 * figures["test_images"].seconds / figures["test_images"].total
  classes = figures["class_features"].seconds
  assert figures["validation_seconds"] == pytest.approx(images + 63 * classes)
  assert figures["evaluation_seconds"] == pytest.approx(images + 3 * classes)
  parts = [
    figures[f"{part}_seconds"] for part in ("training", "validation", "evaluation")
  ]
  saves = 63 * figures["checkpoint_seconds"]
  assert figures["total_seconds"] == pytest.approx(sum(parts) + saves)
  # Context and momentum, with some facts.
  size = (
    2
    * 4
    * config.prompt.m
    * opening.clip_config(config.clip.model).text_config.hidden_size
  )
  assert size < figures["checkpoint_bytes"] < size + 50_000
  assert (
    figures["disk_bytes"] == 4 * figures["checkpoint_bytes"] + figures["prompt_bytes"]
  )


def test_a_folder_that_exists_is_measured_itself(dry, tmp_path, caplog):
  """Its classes and images count, no list of names and no number of test images are
  needed."""
  write_folder(tmp_path / "pictures", ("a cup", "a plate", "a fork"), 10)
  fields = {
    "data.source": "folder",
    "data.root": str(tmp_path / "pictures"),
    "eval.images": 0,
  }
  fields |= {"k": 3, "batch_size": 8}
  figures = run(dry(**fields), tmp_path, caplog)
  # Of ten images seven are left to train with, two are for testing.
  assert "3 classes, 21 training images; 12 steps of 8 views" in caplog.text
  assert figures["test_images"].total == 6
  assert figures["evaluation_seconds"] >= figures["test_images"].seconds
  assert figures["training_features_seconds"] == 0
  once = run(dry(**fields, **{"data.features": "stored"}), tmp_path, caplog)
  a_picture = once["test_images"].seconds / 6
  assert once["training_features_seconds"] == pytest.approx(21 * a_picture)
  width = opening.clip_config("world").projection_dim
  assert once["stored_features_bytes"] == 4 * 21 * (width + 1)
  # The program expects features: no image tower's weights are among its arguments.
  assert once["device_arguments_mib"] < figures["device_arguments_mib"]


def test_what_takes_long_is_scaled(dry, tmp_path, caplog, monkeypatch, capsys):
  """On the world, whose parts take milliseconds, as if these were long."""
  sizes = {"_IMAGES": 8, "_CLASSES": 8, "_FEATURES": 8}
  for name, value in {"_PART_SECONDS": 0.0, "_FEW_FLOPS": 0.0, **sizes}.items():
    monkeypatch.setattr(costs, name, value)
  monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
  seconds = []

  def in_proportion(call, times, warmup):
    call()
    seconds.append(len(seconds) + 1.0)
    return times * seconds[-1:]

  monkeypatch.setattr(costs, "_seconds", in_proportion)
  fields = {"batch_size": 80, "negatives": "all", "sampling.name": "hard"}
  figures = run(dry(**{"data.n_classes": 1000}, **fields), tmp_path, caplog)
  # Read, images of a step, classes of a step, features of all classes, test images,
  # checkpoint.
  assert seconds == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  assert figures["read"] == costs.Cost(5.0, 16, 80)
  assert figures["step_images"] == costs.Cost(2.0 * 80 / 8, 8, 80)
  rows = figures["step_classes"]
  assert (rows.measured, rows.total) == (8, 1080)
  # The budget of the few rows has more slack.
  assert 3.0 * 1080 / 8 / 4 < rows.seconds <= 3.0 * 1080 / 8
  assert figures["step_seconds"] == figures["step_images"].seconds + rows.seconds
  assert figures["class_features"] == costs.Cost(4.0 * 1000 / 8, 8, 1000)
  test, bank = figures["test_images"], figures["class_features"].seconds
  assert test.seconds == 5.0 * test.total / 8 and test.measured == 8
  assert figures["training_seconds"] == pytest.approx(
    12 * figures["step_seconds"] + bank
  )
  # Base, novel and shifted images, each with three prompts; one validation.
  n_images, n_validations = dry().eval.images, -(-12 // dry().checkpoint.every)
  images = n_images * test.seconds / test.total
  assert figures["evaluation_seconds"] == pytest.approx(3 * images + 9 * bank)
  assert figures["validation_seconds"] == pytest.approx(images + n_validations * bank)
  assert "images: 20 s, scaled from 8 of 80; classes: " in caplog.text
  assert "at most, the whole step not run" in caplog.text
  assert "dry run 5/5" in capsys.readouterr().err


def test_reading_takes_as_long_as_the_images_of_a_batch_have_views(
  dry, tmp_path, monkeypatch
):
  """80 views of 40 images, of which 16 images with their 32 views are read."""
  monkeypatch.setattr(costs, "_seconds", lambda call, times, warmup: [call() and 3.0])
  views = {"data.augment": "crop_flip", "data.views": 2, "data.view_epochs": 1}
  prepared = setup.prepare(dry(**{"batch_size": 80} | views), RunFolder(tmp_path))
  assert costs.reading(prepared) == {"read": costs.Cost(3.0 * 40 / 16, 32, 80)}


@pytest.mark.parametrize(
  ("seconds_a_row", "measured"),
  [(1e-6, [4, 1000]), (1e-3, [4, 50]), (1e-2, [4, 32]), (1.0, [4])],
)
def test_as_many_rows_are_measured_as_take_little_time(
  seconds_a_row, measured, monkeypatch
):
  asked = []
  monkeypatch.setattr(costs, "_seconds", lambda call, times, warmup: times * [call()])

  def of(n):
    asked.append(n)
    return lambda: n * seconds_a_row

  cost = costs._cost(of, 1000, 4)
  assert asked == measured
  assert cost.seconds == pytest.approx(1000 * seconds_a_row)
  assert (cost.measured, cost.total) == (measured[-1], 1000)


def test_a_recipe_asks_no_hub(tmp_path, monkeypatch):
  """Its retries would take minutes without a network."""
  monkeypatch.setattr(
    weights, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub")
  )
  config = unpack(imagenet21k_rn50.get_config()).replace({"dry_run": True})
  validate(config)
  dry_run.check(config, str(tmp_path / "run"))


def test_missing_weights_are_told(tmp_path, monkeypatch, caplog):
  """They are random in a dry run, whose parts are not measured here; the hub is not
  asked."""
  parts = ((dry_run.setup, "prepare"), (costs, "measure"), (dry_run, "_whole_run"))
  for owner, name in (*parts, (dry_run, "_lines")):
    monkeypatch.setattr(owner, name, lambda *_, **__: {})
  config = small_config(dry_run=True, **{"clip.model": "openai/clip-vit-base-patch16"})
  for cached in (None, "model.safetensors"):
    monkeypatch.setattr(
      dry_run, "try_to_load_from_cache", lambda *_, cached=cached: cached
    )
    dry_run.run(config, str(tmp_path / "run"))
  (line,) = caplog.messages
  assert "weights of openai/clip-vit-base-patch16 are not on this machine" in line


def test_what_a_dry_run_can_not_do(dry, tmp_path):
  folder = {"data.source": "folder"}
  for changes, message in (
    (
      {"job": "evaluate"},
      "dry_run: got 'here', expected false where config.job='evaluate'",
    ),
    (folder | {"data.root": "x"}, "data.names: got '', expected a file of names, or"),
    (folder | {"data.names": "dtd", "k": 48}, "k: got 48, expected at most the numb"),
    ({"eval.images": 0}, "eval.images: got 0, expected in a dry run"),
    (
      {"clip.model": "synthetic:x/y"},
      "clip.model: got 'synthetic:x/y', expected synthetic: and",
    ),
  ):
    with pytest.raises(ConfigError, match=message):
      dry_run.check(dry(**changes), str(tmp_path))


def test_random_weights_are_recorded_as_such(monkeypatch):
  monkeypatch.setattr(synthetic_clip, "random_params", lambda *_, **__: {})
  name = "synthetic:openai/clip-vit-base-patch16"
  assert opening.open_clip(fields.Clip(model=name)).name == name


def test_a_recipe_on_a_clip_by_open_clips_name(monkeypatch, tmp_path):
  config = unpack(imagenet21k_vit_l14.get_config("dfn,features=stored,fresh=5"))
  validate(config.replace({"dry_run": True}))
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  assert not dry_run._is_here(config.clip.model)
  found = synthetic_clip.synthetic_config(config.clip.model)
  original = open_clip.get_model_config("ViT-L-14-quickgelu")
  with torch.device("meta"):
    parameters = open_clip.CLIP(**original).parameters()
  n_ours = sum(
    math.prod(shape) for shape in flatten_dict(parameter_shapes(found)).values()
  )
  assert n_ours == sum(parameter.numel() for parameter in parameters)
  assert found.text_config.hidden_act == found.vision_config.hidden_act == "quick_gelu"
  assert not synthetic_clip.is_synthetic("open_clip:PE-Core-B-16/meta")
  assert not synthetic_clip.is_synthetic("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k")


def test_synthetic_images_are_of_true_size(tmp_path):
  (tmp_path / "names.txt").write_text("a\nb\n")
  data = fields.Data(
    source="synthetic", names=str(tmp_path / "names.txt"), images_per_class=3
  )
  source = open_split(data, "train").replace(image_size=32)
  assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
  images = source.images(np.arange(6))
  assert (
    images.shape == (6, 32, 32, 3) and len({image.tobytes() for image in images}) == 6
  )
  assert 20_000 < len(source.encoded(0)) < 200_000


def test_the_stand_in_tokenizer_has_the_right_lengths():
  names = load_class_list("imagenet21k").names[:2000]
  tokenizer = synthetic_clip.SyntheticTokenizer({f"{names[0]}.": 9})
  config = synthetic_clip.synthetic_config("openai/clip-vit-base-patch16").text_config
  ids, lengths = tokenize([f"{name}." for name in names], tokenizer, config)
  assert lengths[0] == 9
  # 4.3 tokens is the mean of all, with CLIP's own.
  assert lengths[1:].mean() == pytest.approx(4.3, rel=0.2)
  assert (ids[np.arange(2000), lengths - 1] == config.eos_token_id).all()
  assert len(np.unique(ids[:, 0])) > 1000


def test_a_picture_that_can_not_be_read_is_named(tmp_path):
  names = world.class_names("base")[:4]
  write_world(tmp_path / "pictures", "train", 5, names, ".jpg")
  (tmp_path / "pictures" / names[0] / "4.jpg").write_bytes(b"no image")
  argument = (
    f"root={tmp_path / 'pictures'},clip=world,steps=3,batch_size=8,data.max_corrupt=0"
  )
  config = unpack(own.get_config(argument)).replace({"dry_run": "here"})
  with pytest.raises(SourceError, match=r"1 of .* images .* 0 are allowed .*/4\.jpg"):
    dry_run.check(config, str(tmp_path / "run"))
