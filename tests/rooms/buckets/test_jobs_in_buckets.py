"""Jobs with every path in a bucket leave what they leave in a local folder, and
nothing local."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from pomp_jax import world
from pomp_jax.config import defaults
from pomp_jax.errors import InputError
from pomp_jax.files import paths
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions, RegionWriter
from tests.rooms.regions.region_jobs import regions_config, write_pixel_set
from tests.support import stores
from tests.support.data_files import NAMES, write_folder
from tests.support.detection_cases import random_annotations
from tests.support.small_run import run_job, small_config

emulated = pytest.mark.slow(
  "minutes of requests to an emulator, one job after the other"
)

SETS_FILE = """
set = [{name = "animals", root = "images", names = "names.txt", base = ["beaver", "owl", "daisy"]}]
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  """A folder with a CLIP, images, label images, boxes, regions, and lists of names."""
  root = tmp_path_factory.mktemp("local") / "base"
  write_pixel_set(root / "pixels", "CLIP")
  # CLIP's scores alone.
  RegionWriter(root / "pixels" / "regions", RegionHeader("no embeddings"))
  shutil.copytree(world.CLIP_PATH, root / "clip")
  for seed, (split, count) in enumerate((("train", 4), ("test", 2))):
    write_folder(root / "images" / split, NAMES, count, seed=seed)
  (root / "names.txt").write_text("\n".join(NAMES))
  (root / "sets.toml").write_text(SETS_FILE)
  context = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
  save_prompt(root / "prompt.npz", Prompt(context, "world"))
  boxes = root / "boxes"
  boxes.mkdir()
  rng, annotations = np.random.default_rng(0), random_annotations(0)
  (boxes / "coco.json").write_text(json.dumps(annotations))
  writer = RegionWriter(
    boxes / "dump", RegionHeader("a detector", "world", 1, 128, "sigmoid", 5.0)
  )
  for image in annotations["images"]:
    corners = np.float32([[4, 5, 60, 70], [30, 20, 110, 90]])
    embeddings = rng.normal(size=(2, 1, 128)).astype(np.float16)
    writer.write(
      image["id"], Regions(corners, np.float32([0.9, 0.5]), None, embeddings)
    )
  np.save(boxes / "classes.npy", rng.normal(size=(6, 128)).astype(np.float16))
  return root


@pytest.fixture(scope="module", params=stores.SCHEMES)
def pair(request, local, tmp_path_factory):
  """The local folder and its copy in a bucket; the current folder stays empty."""
  before, empty = os.getcwd(), tmp_path_factory.mktemp("current")
  os.chdir(empty)
  # A copy, so that no job reads what another store's wrote; in a folder that is called
  # like the bucket, since reports name prompts by their last folders.
  local = shutil.copytree(
    local, tmp_path_factory.mktemp(request.param) / stores.BUCKET / "base"
  )
  with stores.running(request.param) as found, pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    url = found[request.param].url("base")
    paths.store_of(url).put(f"{local}/", f"{url}/", recursive=True)
    yield str(local), url
  assert not list(empty.iterdir())
  os.chdir(before)


def both(pair, config, name):
  """Runs a job in both places, BASE in its fields; returns its two results, which
  are the same."""
  found = []
  for base in pair:
    fields = json.loads(json.dumps(config.flat()).replace("BASE", base))
    found.append(run_job(defaults().replace(fields), f"{base}/runs/{name}"))
  # An ablation's figures are its cells'.
  plain = [json.loads(json.dumps(one.get("cells", one))) for one in found]
  local, url = (json.dumps(without_times(one)) for one in plain)
  assert local == url.replace(pair[1], pair[0])
  return found


def without_times(value):
  """JSON without measured times, and without the two places' sizes."""
  if isinstance(value, dict):
    dropped = (
      "seconds",
      "per_second",
      "productive_share",
      "bytes",
      "key",
      "date",
      "time",
    )
    return {
      k: without_times(v) for k, v in value.items() if not any(d in k for d in dropped)
    }
  return [without_times(item) for item in value] if isinstance(value, list) else value


def training(**changes):
  settings = {
    "clip.model": "BASE/clip",
    "data.source": "folder",
    "data.root": "BASE/images",
  }
  settings |= {"data.n_classes": 0, "data.augment": "recipe", "data.views": 2}
  settings |= {"data.view_epochs": 2, "data.feature_store": "BASE/features"}
  settings |= {"data.features": "stored", "k": 4, "batch_size": 8}
  return small_config(**settings | changes)


@emulated
def test_a_training_is_the_same_bit_for_bit(pair):
  both(pair, training(), "trained")
  local, bucket = (
    load_prompt(f"{base}/runs/trained/prompt.npz").context for base in pair
  )
  assert local.tobytes() == bucket.tobytes()
  scalars = [RunFolder(f"{base}/runs/trained").scalars() for base in pair]
  assert scalars[0]["loss"] == scalars[1]["loss"]


PIXELS = regions_config(
  pathlib.PurePosixPath("BASE/pixels"), "segment", **{"clip.model": "world"}
)
NAMED = {
  "images": "BASE/images/test/owl",
  "names": "BASE/names.txt",
  "prompt": "BASE/prompt.npz",
}
NAMED = {"clip.model": "BASE/clip"} | {
  f"predict.{name}": value for name, value in NAMED.items()
}
# The scores of the detector alone: no image is read.
DUMP = {"detect.source": "coco", "detect.annotations": "BASE/boxes/coco.json"}
DUMP |= {"detect.prompts": ("BASE/boxes/classes.npy",), "detect.output": True}
DUMP |= {"regions.source": "file", "regions.path": "BASE/boxes/dump"}
DUMP |= {"regions.e_base": 0.0, "regions.e_novel": 0.0}
REGIONS = {"regions.source": "file", "regions.path": "BASE/pixels/regions"}
# A prompt of a file, that of a folder, and a template.
SETS = {"data.source": "world", "data.root": "", "evaluate.sets_file": "BASE/sets.toml"}
SETS |= {"evaluate.prompts": ("BASE/prompt.npz", "BASE", "{}.")}
CELLS = {"ablate.grid": "k=2|all", "steps": 2}


def row(job, changes):
  """A config that needs no features of another job."""
  return training(
    job=job, **{"data.features": "online", "data.feature_store": ""} | changes
  )


def exported(kind):
  fields = {"format": kind, "prompt": "BASE/prompt.npz", "names": "BASE/names.txt"}
  return row("export", {f"export.{name}": value for name, value in fields.items()})


@pytest.mark.parametrize(
  ("config", "file"),
  [
    (small_config(job="predict", **NAMED), "results.csv"),
    (small_config(job="detect", **DUMP), "detections/0.json"),
    pytest.param(PIXELS.replace(REGIONS), "labels/0/0.png", marks=emulated),
    # The second start finds all sets, and all cells, done.
    *[pytest.param(row("evaluate", SETS), "results.md", marks=emulated)] * 2,
    *[pytest.param(row("ablate", CELLS), "cells/*.npz", marks=emulated)] * 2,
    pytest.param(exported("detic"), "*.npy", marks=emulated),
    pytest.param(exported("open_clip"), "*.npy", marks=emulated),
    pytest.param(exported("safetensors"), "*.safetensors", marks=emulated),
    pytest.param(exported("pth"), "*.pth*", marks=emulated),
  ],
)
def test_files_hold_the_same(pair, config, file):
  name = f"export_{config.export.format}" if config.job == "export" else config.job
  results = both(pair, config, name)
  files = [sorted(paths.to_path(f"{base}/runs/{name}").glob(file)) for base in pair]
  local, bucket = (
    [content(path, base) for path in found]
    for found, base in zip(files, pair, strict=True)
  )
  assert local == bucket and all(len(one) > 50 for one in local)
  assert len(local) == (2 if config.job == "ablate" else 1)
  if config.job == "export":
    assert results[1]["bytes"] == len(files[1][0].read_bytes())


def content(path, base):
  """Bytes without the name of the place; of a prompt the vectors, as its texts have
  no order."""
  if {".npz", ".safetensors", ".pth"} & set(path.suffixes):
    return load_prompt(path).context.tobytes()
  return path.read_bytes().replace(base.encode(), b"BASE")


def test_prepare_needs_a_local_folder(pair):
  config = small_config(job="prepare", **{"prepare.input": f"{pair[1]}/images"})
  with pytest.raises(InputError, match="local"):
    run_job(config, f"{pair[1]}/runs/prepared")
  assert not paths.exists(f"{pair[1]}/runs/prepared")
