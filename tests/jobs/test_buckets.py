"""Jobs with every path in a bucket leave what they leave in a local folder, and nothing local."""

import json
import os
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.config import load_job, validate
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.errors import InputError
from pomp_jax.files import paths
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.regions.files import RegionHeader, Regions, RegionWriter
from tests.support import stores
from tests.support.detection_cases import random_annotations, random_detections
from tests.support.pixel_sets import segment_config, write_pixel_set
from tests.support.small_run import small_config

NAMES = ("beaver", "castle", "daisy", "lamp", "owl", "violin")
SETS = """
[[set]]
name = "animals"
root = "images"
names = "names.txt"
base = ["beaver", "owl", "daisy"]
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  """A folder with a CLIP, images, label images, regions, and lists of names."""
  root = tmp_path_factory.mktemp("local") / "base"
  write_pixel_set(root / "pixels", "CLIP")
  header = root / "pixels" / "regions" / "regions.json"
  # CLIP's scores alone.
  header.write_text(json.dumps(json.loads(header.read_text()) | {"embeddings": None}))
  shutil.copytree(world.CLIP_PATH, root / "clip")
  for label, name in enumerate(NAMES):
    for split, count in (("train", 4), ("test", 2)):
      folder = root / "images" / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encode(natural_image(10 * label + number, 60, 80)))
  (root / "names.txt").write_text("\n".join(NAMES))
  (root / "sets.toml").write_text(SETS)
  write_boxes(root / "boxes")
  return root


def write_boxes(root):
  """Annotations of boxes, their images, proposals, and a folder of regions with embeddings."""
  root.mkdir()
  rng, annotations = np.random.default_rng(0), random_annotations(0)
  (root / "coco.json").write_text(json.dumps(annotations))
  (root / "proposals.json").write_text(json.dumps(random_detections(annotations, 1)))
  writer = RegionWriter(root / "dump", RegionHeader("a detector", "world", 1, 128, "sigmoid", 5.0))
  for image in annotations["images"]:
    pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
    (root / image["file_name"]).write_bytes(encode(Image.fromarray(pixels), "PNG"))
    boxes = np.float32([[4, 5, 60, 70], [30, 20, 110, 90]])
    embeddings = rng.normal(size=(2, 1, 128)).astype(np.float16)
    writer.write(image["id"], Regions(boxes, np.float32([0.9, 0.5]), None, embeddings))
  np.save(root / "classes.npy", rng.normal(size=(6, 128)).astype(np.float16))


@pytest.fixture(scope="module", params=stores.SCHEMES)
def pair(request, local, tmp_path_factory):
  """The local folder and its copy in a bucket; the current folder stays empty."""
  before, empty = os.getcwd(), tmp_path_factory.mktemp("current")
  os.chdir(empty)
  # A copy: what a job writes there is not read by the jobs beside another store.
  local = shutil.copytree(local, tmp_path_factory.mktemp(request.param) / "base")
  with stores.running(request.param) as found, pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    url = found[request.param].url("base")
    paths.store_of(url).put(f"{local}/", f"{url}/", recursive=True)
    yield str(local), url
  assert not list(empty.iterdir())
  os.chdir(before)


def run(config, workdir):
  validate(config)
  job = load_job(config.job)
  job.check(config, workdir)
  return job.run(config, workdir)


def both(pair, config_of, name):
  """Runs a job in both places; returns its two results."""
  return [run(config_of(base), f"{base}/runs/{name}") for base in pair]


def training(base, **changes):
  settings = {
    "clip.model": f"{base}/clip",
    "data.source": "folder",
    "data.root": f"{base}/images",
    "data.n_classes": 0,
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 2,
    "data.feature_cache": f"{base}/features",
    "data.features": "cached",
    "eval.cache": f"{base}/cache",
    "k": 4,
    "batch_size": 8,
    "steps": 12,
  }
  return small_config(**settings | changes)


@pytest.fixture(scope="module")
def trained(pair):
  """The results of `cache` and of a training from it, in both places."""
  online = {"data.features": "online"}
  cached = both(pair, lambda base: training(base, job="cache", **online), "cache")
  assert cached[0]["computed_features"] == cached[1]["computed_features"] > 0
  results = both(pair, training, "trained")
  return pair, results


def contexts(pair, name):
  return [load_prompt(f"{base}/runs/{name}/prompt.npz").context for base in pair]


def without_times(value):
  """JSON without measured times, and without the two places' names."""
  if isinstance(value, dict):
    dropped = ("seconds", "per_second", "bytes", "key", "date", "time")
    return {k: without_times(v) for k, v in value.items() if not any(d in k for d in dropped)}
  if isinstance(value, list | tuple):
    return [without_times(item) for item in value]
  return value


def assert_same_results(pair, found):
  local, url = (json.dumps(without_times(json.loads(json.dumps(one)))) for one in found)
  assert local == url.replace(pair[1], pair[0])


def test_a_training_is_the_same_bit_for_bit(trained):
  pair, results = trained
  assert_same_results(pair, results)
  local, bucket = contexts(pair, "trained")
  assert local.tobytes() == bucket.tobytes()
  scalars = [RunFolder(f"{base}/runs/trained").scalars() for base in pair]
  assert scalars[0]["loss"] == scalars[1]["loss"]


def test_it_resumes_from_its_checkpoint(trained):
  pair, _ = trained
  folder = RunFolder(f"{pair[1]}/runs/trained")
  before = load_prompt(folder.prompt).context
  for path in (folder.results, folder.prompt, folder.checkpoints / "12" / "commit_success.txt"):
    path.unlink()
  run(training(pair[1]), str(folder.path))
  assert load_prompt(folder.prompt).context.tobytes() == before.tobytes()


def test_prompts_and_sets_are_evaluated(trained):
  pair, _ = trained

  def config_of(base):
    prompts = (f"{base}/runs/trained/prompt.npz", f"{base}/runs/trained", "{}.")
    fields = {"sets_file": f"{base}/sets.toml", "prompts": prompts}
    fields = {f"evaluate.{name}": value for name, value in fields.items()}
    return training(base, job="evaluate", **{"data.source": "world", "data.root": ""} | fields)

  found = both(pair, config_of, "evaluated")
  assert_same_results(pair, found)
  assert len(found[1]["prompts"]) == 5
  # The second start finds all sets done.
  assert_same_results(pair, both(pair, config_of, "evaluated"))


@pytest.mark.parametrize("kind", ["detic", "open_clip", "safetensors", "pth"])
def test_files_of_other_programs(trained, kind):
  pair, _ = trained

  def config_of(base):
    fields = {"prompt": f"{base}/runs/trained/prompt.npz", "names": f"{base}/names.txt"}
    fields |= {"format": kind}
    fields = {f"export.{name}": value for name, value in fields.items()}
    return training(base, job="export", **fields)

  local, bucket = both(pair, config_of, f"export_{kind}")
  files = [
    paths.read_bytes(f"{base}/runs/export_{kind}/{one['output']}")
    for base, one in zip(pair, (local, bucket), strict=True)
  ]
  # The name of the CLIP in the text differs by the place.
  assert bucket["bytes"] == len(files[1])
  if kind == "detic":
    assert files[0] == files[1]
  elif kind != "open_clip":
    read = load_prompt(f"{pair[1]}/runs/export_{kind}/{bucket['output']}")
    assert read.context.tobytes() == contexts(pair, "trained")[0].tobytes()


def test_an_ablation(trained):
  pair, _ = trained

  def config_of(base):
    fields = {"ablate.grid": "k=2|all", "steps": 2, "checkpoint.every": 2}
    return training(base, job="ablate", **fields)

  found = both(pair, config_of, "ablation")
  assert_same_results(pair, [{"cells": one["cells"]} for one in found])
  assert paths.is_file(f"{pair[1]}/runs/ablation/report.html")


def test_a_folder_of_images_is_named(trained):
  pair, _ = trained

  def config_of(base):
    fields = {"images": f"{base}/images/test/owl", "names": f"{base}/names.txt"}
    fields |= {"prompt": f"{base}/runs/trained/prompt.npz"}
    fields = {f"predict.{name}": value for name, value in fields.items()}
    return training(base, job="predict", **fields)

  both(pair, config_of, "predicted")
  found = [read_json(f"{base}/runs/predicted/results.json")["images"] for base in pair]
  assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize("source", ["truth", "file"])
def test_label_images_and_regions(pair, source):
  def config_of(base):
    changes = {"regions.source": source, "clip.model": "world"}
    config = segment_config(pathlib.PurePosixPath("BASE"), **changes)
    return config.replace(
      {
        field: value.replace("BASE", f"{base}/pixels")
        for field, value in config.flat().items()
        if isinstance(value, str) and value.startswith("BASE")
      }
    )

  found = both(pair, config_of, f"segmented_{source}")
  assert_same_results(pair, found)
  maps = [paths.read_bytes(f"{base}/runs/segmented_{source}/labels/0/0.png") for base in pair]
  assert maps[0] == maps[1]


@pytest.mark.parametrize("regions", ["", "proposals.json", "dump"])
def test_boxes(pair, regions):
  def config_of(base):
    root = f"{base}/boxes"
    fields = {"source": "coco", "annotations": f"{root}/coco.json", "output": True}
    fields |= {"images": root, "prompts": ("a photo of a {}.", "{}.")}
    changes = {"regions.source": "file" if regions else "truth"}
    changes |= {"regions.path": f"{root}/{regions}" if regions else ""}
    if regions == "dump":
      # The scores of the detector alone: no image is read.
      fields |= {"images": "", "prompts": (f"{root}/classes.npy",)}
      changes |= {"regions.e_base": 0.0, "regions.e_novel": 0.0}
    fields = {f"detect.{name}": value for name, value in fields.items()}
    return small_config(job="detect", **fields | changes | {"clip.model": "world"})

  found = both(pair, config_of, f"detected_{regions}")
  assert_same_results(pair, found)
  rows = [read_json(f"{base}/runs/detected_{regions}/detections/0.json") for base in pair]
  assert rows[0] == rows[1] and rows[0]


def test_a_damaged_cache_is_one_line(trained):
  pair, _ = trained
  path = paths.to_path(f"{pair[1]}/features/block-00000.npy")
  content = path.read_bytes()
  try:
    path.write_bytes(content[:-8])
    with pytest.raises(InputError, match="block-00000.npy"):
      run(training(pair[1], steps=2), f"{pair[1]}/runs/damaged")
  finally:
    path.write_bytes(content)


def test_prepare_needs_a_local_folder(pair):
  config = training(pair[1], job="prepare", **{"prepare.input": f"{pair[1]}/images"})
  with pytest.raises(InputError, match="local"):
    run(config, f"{pair[1]}/runs/prepared")
  assert not paths.exists(f"{pair[1]}/runs/prepared")
