"""Jobs with every path in a bucket leave what they leave in a local folder, and nothing local.

In the first tier `predict` and `detect` hold this in each store; their files are in tests/files.
"""

import json
import os
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.config import Settings, load_job, validate
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.errors import InputError
from pomp_jax.files import paths
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.regions.files import RegionHeader, Regions, RegionWriter
from tests.support import stores
from tests.support.detection_cases import random_annotations, random_detections
from tests.support.pixel_sets import segment_config, write_pixel_set
from tests.support.small_run import small_config

emulated = pytest.mark.slow("minutes of requests to an emulator, one job after the other")

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
  context = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
  save_prompt(root / "prompt.npz", Prompt(context, "world"))
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


def both(pair, config, name):
  """Runs a job in both places, BASE in its fields; returns its two results, which are the same."""
  found = []
  for base in pair:
    fields = json.loads(json.dumps(config.flat()).replace("BASE", base))
    found.append(run(Settings().replace(fields), f"{base}/runs/{name}"))
  # An ablation's figures are its cells'.
  plain = [json.loads(json.dumps(one.get("cells", one))) for one in found]
  local, url = (json.dumps(without_times(one)) for one in plain)
  assert local == url.replace(pair[1], pair[0])
  return found


def without_times(value):
  """JSON without measured times, and without the two places' sizes."""
  if isinstance(value, dict):
    dropped = ("seconds", "per_second", "bytes", "key", "date", "time")
    return {k: without_times(v) for k, v in value.items() if not any(d in k for d in dropped)}
  return [without_times(item) for item in value] if isinstance(value, list) else value


def training(**changes):
  settings = {
    "clip.model": "BASE/clip",
    "data.source": "folder",
    "data.root": "BASE/images",
    "data.n_classes": 0,
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 2,
    "data.feature_cache": "BASE/features",
    "data.features": "cached",
    "eval.cache": "BASE/cache",
    "k": 4,
    "batch_size": 8,
  }
  return small_config(**settings | changes)


@pytest.fixture(scope="module")
def trained(pair):
  """The results of `cache` and of a training from it, in both places."""
  cached = both(pair, training(job="cache", **{"data.features": "online"}), "cache")
  assert cached[0]["computed_features"] == cached[1]["computed_features"] > 0
  return both(pair, training(), "trained")


def contexts(pair, file):
  return [load_prompt(f"{base}/runs/{file}").context.tobytes() for base in pair]


@emulated
def test_a_training_is_the_same_bit_for_bit(pair, trained):
  local, bucket = contexts(pair, "trained/prompt.npz")
  assert local == bucket
  scalars = [RunFolder(f"{base}/runs/trained").scalars() for base in pair]
  assert scalars[0]["loss"] == scalars[1]["loss"]


@emulated
def test_it_resumes_from_its_checkpoint(pair, trained):
  before = contexts(pair, "trained/prompt.npz")
  for base in pair:
    folder = RunFolder(f"{base}/runs/trained")
    for path in (folder.results, folder.prompt, folder.checkpoints / "12" / "commit_success.txt"):
      path.unlink()
  both(pair, training(), "trained")
  assert contexts(pair, "trained/prompt.npz") == before


@emulated
def test_prompts_and_sets_are_evaluated(pair, trained):
  prompts = ("BASE/runs/trained/prompt.npz", "BASE/runs/trained", "{}.")
  fields = {"evaluate.sets_file": "BASE/sets.toml", "evaluate.prompts": prompts}
  config = small_config(job="evaluate", **fields | {"clip.model": "BASE/clip"})
  # The second start finds all sets done.
  for _ in range(2):
    assert len(both(pair, config, "evaluated")[1]["prompts"]) == 5


@emulated
def test_an_ablation(pair, trained):
  fields = {"ablate.grid": "k=2|all", "steps": 2, "checkpoint.every": 2}
  both(pair, training(job="ablate", **fields), "ablation")
  assert paths.is_file(f"{pair[1]}/runs/ablation/report.html")


@emulated
@pytest.mark.parametrize("kind", ["detic", "open_clip", "safetensors", "pth"])
def test_files_of_other_programs(pair, kind):
  fields = {"prompt": "BASE/prompt.npz", "names": "BASE/names.txt", "format": kind}
  fields = {f"export.{name}": value for name, value in fields.items()}
  config = small_config(job="export", **fields | {"clip.model": "BASE/clip"})
  output = both(pair, config, f"export_{kind}")[1]["output"]
  local, bucket = (f"{base}/runs/export_{kind}/{output}" for base in pair)
  if kind in ("detic", "open_clip"):
    assert paths.read_bytes(local) == paths.read_bytes(bucket)
  else:  # in which the name of the CLIP differs by the place
    context = load_prompt(f"{pair[0]}/prompt.npz").context
    np.testing.assert_array_equal(load_prompt(bucket).context, context)


def detection(**changes):
  fields = {"source": "coco", "annotations": "BASE/boxes/coco.json", "output": True}
  fields |= {"images": "BASE/boxes", "prompts": ("a photo of a {}.", "{}.")} | changes
  return small_config(job="detect", **{f"detect.{name}": value for name, value in fields.items()})


def of_file(path, **more):
  return {"regions.source": "file", "regions.path": f"BASE/{path}", **more}


TRUTH = {"regions.source": "truth"}
PIXELS = segment_config(pathlib.PurePosixPath("BASE/pixels"), **{"clip.model": "world"})
NAMED = {"images": "BASE/images/test/owl", "names": "BASE/names.txt", "prompt": "BASE/prompt.npz"}
NAMED = {"clip.model": "BASE/clip"} | {f"predict.{name}": value for name, value in NAMED.items()}
# The config, and a file of the run that is equal byte for byte.
CASES = {
  "predicted": (small_config(job="predict", **NAMED), "results.csv"),
  "pixels": (PIXELS, "labels/0/0.png"),
  "regions": (PIXELS.replace(of_file("pixels/regions")), "labels/0/0.png"),
  "boxes": (detection().replace(TRUTH), "detections/0.json"),
  "proposals": (detection().replace(of_file("boxes/proposals.json")), "detections/0.json"),
  # The scores of the detector alone: no image is read.
  "dump": (
    detection(images="", prompts=("BASE/boxes/classes.npy",)).replace(
      of_file("boxes/dump", **{"regions.e_base": 0.0, "regions.e_novel": 0.0})
    ),
    "detections/0.json",
  ),
}


QUICK = ("predicted", "dump")


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=() if name in QUICK else emulated) for name in CASES]
)
def test_pictures_pixels_and_boxes(pair, name):
  config, file = CASES[name]
  both(pair, config, name)
  local, bucket = (paths.read_bytes(f"{base}/runs/{name}/{file}") for base in pair)
  assert local == bucket and len(local) > 50


@emulated
def test_a_damaged_cache_is_one_line(pair, trained):
  path = paths.to_path(f"{pair[1]}/features/block-00000.npy")
  content = path.read_bytes()
  path.write_bytes(content[:-8])
  try:
    with pytest.raises(InputError, match="block-00000.npy"):
      both(pair[1:] * 2, training(), "damaged")
  finally:
    path.write_bytes(content)


def test_prepare_needs_a_local_folder(pair):
  config = small_config(job="prepare", **{"prepare.input": f"{pair[1]}/images"})
  with pytest.raises(InputError, match="local"):
    run(config, f"{pair[1]}/runs/prepared")
  assert not paths.exists(f"{pair[1]}/runs/prepared")
