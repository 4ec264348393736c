"""A small ImageNet-21K as it is distributed, all the way: records, features, prompt, figures.

Real JPEGs of 200 synsets, in folders or in tar files, some of them damaged.
"""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from pomp_jax.config import load_job, validate
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support.data_files import tar_bytes
from tests.support.processes import run_in_processes
from tests.support.small_run import settings

CLASSES = load_class_list("imagenet21k")
# Names that the small CLIP's 32 positions hold.
_SHORT = [c for c, name in enumerate(CLASSES.names) if len(name) < 14]
SYNSETS = [CLASSES.synsets[c] for c in _SHORT[::60][:200]]
N_IMAGES = 4  # a class
# Two of the four images of three classes: empty, no image, cut off.
DAMAGED = {
  (c, i): content
  for c, content in ((7, b""), (90, b"<html>404</html>"), (140, None))
  for i in (0, 2)
}


def pictures():
  """Synset, file name and content of every image."""
  different = [encode(natural_image(seed, 48, 64)) for seed in range(20)]
  for c, synset in enumerate(SYNSETS):
    for i in range(N_IMAGES):
      content = different[(c + 7 * i) % 20]
      damaged = DAMAGED.get((c, i), content)
      yield synset, f"{synset}_{i}.JPEG", content[:400] if damaged is None else damaged


def folders(root):
  """A folder a synset."""
  for synset, name, content in pictures():
    (root / synset).mkdir(parents=True, exist_ok=True)
    (root / synset / name).write_bytes(content)
  return root


def archive(root):
  """A tar of a tar a synset."""
  root.mkdir()
  synsets = {
    f"{synset}.tar": tar_bytes({name: content for _, name, content in images})
    for synset, images in itertools.groupby(pictures(), key=lambda image: image[0])
  }
  path = root / "fall11_whole.tar"
  path.write_bytes(tar_bytes(synsets))
  return path


def config_of(**changes):
  config = settings(**changes)
  validate(config)
  return config


def prepare(source, records):
  """Two shots and one held-out image a class."""
  config = config_of(
    job="prepare",
    **{
      "prepare.dataset": "imagenet21k",
      "prepare.input": str(source),
      "prepare.shots": 2,
      "prepare.held_out": 1,
      "prepare.workers": 1,
    },
  )
  return run([(config, records)])[0]


def run(jobs):
  results = []
  for config, workdir in jobs:
    module = load_job(config.job)
    module.check(config, str(workdir))
    results.append(module.run(config, str(workdir)))
  return results


def jobs_on(records, out):
  """The cache, the training from it, and the evaluation; configs and folders."""
  data = {
    "data.source": "tfds",
    "data.root": str(records),
    "data.dataset": "imagenet21k",
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 2,
    "data.feature_cache": str(out / "features"),
    "eval.images": 200,
  }
  train = {
    "k": 20,
    "batch_size": 80,
    "accumulate": 1,
    "epochs": 2,
    "optim.lr": 0.05,
    "optim.warmup": 0.0,
    "checkpoint.every": 10,
  }
  (out / "features").mkdir(parents=True)
  evaluate = {
    "evaluate.suite": "imagenet21k",
    "evaluate.sets": "imagenet21k",
    "evaluate.source": "tfds",
    "evaluate.root": str(records),
    "evaluate.prompts": f"{out / 'train' / 'prompt.npz'};hand_written",
  }
  return [
    (config_of(job="cache", **data), out / "cache"),
    (config_of(**data, **train, **{"data.features": "cached"}), out / "train"),
    (config_of(job="evaluate", **evaluate), out / "evaluate"),
  ]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  """Records made of the tar of tars, and what the job said of them."""
  root = tmp_path_factory.mktemp("imagenet21k")
  return root / "records", prepare(archive(root / "tar"), root / "records")


def test_folders_make_the_records_that_the_archive_makes(records, tmp_path):
  report = prepare(folders(tmp_path / "images"), tmp_path / "records")
  assert report["splits"] == records[1]["splits"] | {
    split: counts | {"bytes": report["splits"][split]["bytes"]}
    for split, counts in records[1]["splits"].items()
  }
  assert report["n_unreadable"] == records[1]["n_unreadable"] == len(DAMAGED)
  assert report["splits"]["train"]["images"] == 397
  assert report["splits"]["validation"]["images"] == 200


@pytest.fixture(scope="module")
def alone(records, tmp_path_factory):
  """All jobs in this process."""
  out = tmp_path_factory.mktemp("alone")
  return out, run(jobs_on(records[0], out))


def test_the_whole_way_in_one_process(alone, tmp_path):
  out, (cache, train, evaluation) = alone
  assert (cache["n_images"], cache["n_versions"], cache["unreadable"]) == (397, 4, [])
  assert (train["n_classes"], train["steps"]) == (200, 18)
  figures = evaluation["sets"]["imagenet21k"]["prompts"]
  assert len(figures) == 2
  learned, by_hand = figures.values()
  for scores in (learned, by_hand):
    assert 0 <= scores["top1"] <= scores["top5"] <= 1
  names = tmp_path / "names.txt"
  names.write_text("".join(f"{CLASSES.names[c]}\n" for c in (3, 70, 2000)))
  exports = {
    "prompt": {"export.format": "pth"},
    "features": {"export.format": "detic", "export.names": str(names)},
  }
  for name, fields in exports.items():
    config = config_of(
      job="export", **{"export.prompt": str(out / "train" / "prompt.npz")}, **fields
    )
    run([(config, tmp_path / name)])
  [features] = (tmp_path / "features").glob("*.npy")
  rows = np.load(features)
  assert rows.shape[0] == 3
  # As Detic's own files: not normalised.
  assert rows.dtype == np.float16
  assert (np.linalg.norm(rows.astype(np.float64), axis=1) > 0).all()
  [written] = (tmp_path / "prompt").glob("*.pth*")
  np.testing.assert_array_equal(
    load_prompt(written).context, load_prompt(out / "train" / "prompt.npz").context
  )


def test_the_whole_way_in_two_processes_is_the_same(records, alone, tmp_path):
  whole, _ = alone
  out = tmp_path / "two"
  # As many draws as there: one on each device; here one after the other, split over both processes.
  jobs = jobs_on(records[0], out)
  config, workdir = jobs[1]
  jobs[1] = config.replace({"mesh.class_size": 4, "accumulate": jax.device_count()}), workdir
  run_in_processes(
    [(config, (workdir, workdir)) for config, workdir in jobs], tmp_path / "jobs.json"
  )
  np.testing.assert_allclose(
    load_prompt(out / "train" / "prompt.npz").context,
    load_prompt(whole / "train" / "prompt.npz").context,
    atol=1e-5,
  )
  results = [
    json.loads(pathlib.Path(folder, "evaluate", "results.json").read_text())["accuracy"]
    for folder in (whole, out)
  ]
  a, b = (list(groups["imagenet21k"]["top1"].values()) for groups in results)
  for one, two in zip(a, b, strict=True):
    assert list(one.values()) == pytest.approx(list(two.values()), abs=1 / 200)
  # Each process has told of itself.
  scalars = RunFolder(out / "train").scalars()
  for process in range(2):
    assert all(value > 0 for value in scalars[f"process_{process}/step_seconds"][1])
