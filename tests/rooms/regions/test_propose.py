"""A network's regions: the folder that `propose` writes, its recall, jobs that find
their own."""

import os
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.config import fields_of
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regions import proposals, propose
from pomp_jax.rooms.regions.image_sets import open_box_set
from pomp_jax.rooms.regions.mask_former.published_weights import read_mask_former
from pomp_jax.rooms.regions.region_folder import (
  RegionFolder,
  RegionHeader,
  RegionWriter,
)
from tests.rooms.regions.region_jobs import (
  NETWORK,
  SIZES,
  TRAINED,
  in_place,
  regions_config,
  write_network,
)
from tests.support.small_run import run_job

JOBS = ("segment", "detect")
# As in ZSSeg, whose checkpoint has a prompt.
FOUND = {
  "propose.prompt": "network",
  "propose.size": 48,
  "propose.stride": 1,
  "propose.batch_size": 1,
  "regions.source": "network",
  "regions.mask_threshold": 0.4,
}


def config_of(root, **changes):
  """The config of `propose` for the images of `detect`."""
  own = FOUND | {"regions.source": "none", "propose.images": "detect"}
  return regions_config(root, "propose", **own | changes)


@pytest.fixture(scope="session")
def proposed(region_set, shared):
  """A function: `segment` or `detect` -> the folder of a finished run for its
  images."""

  def folder(images):
    config = config_of(region_set, **{"propose.images": images})
    return shared(f"propose_{images}", lambda folder: run_job(config, folder))

  return folder


@pytest.fixture
def found_images(region_set, proposed, monkeypatch):
  """Numbers of images that the network was called with; after `stop_at` calls it is
  killed."""
  boxes = open_box_set(config_of(region_set).detect)
  folder, known = RegionFolder(proposed("detect") / "regions"), {}
  for index, sides in enumerate(SIZES):
    known[boxes.pixels(index).tobytes()] = folder.read(index, *sides)

  class Calls(list):
    stop_at = None

  calls = Calls()

  def regions(self, images):
    calls.append(len(images))
    if len(calls) == calls.stop_at:
      raise KeyboardInterrupt
    return [known[image.tobytes()] for image in images]

  monkeypatch.setattr(proposals.Proposer, "regions", regions)
  return calls


def test_both_folders_have_the_same_regions(proposed):
  one, other = [
    RegionFolder(proposed(images) / "regions") for images in ("segment", "detect")
  ]
  assert one.header == other.header and one.header.trained_classes == TRAINED
  assert one.read("0", *SIZES[0]).embeddings.shape == (NETWORK.n_queries, 1, 24)
  assert_same_regions(proposed("segment"), proposed("detect"))


def test_recall_is_that_of_the_stored_masks(region_set, proposed):
  boxes = open_box_set(config_of(region_set).detect)
  folder = RegionFolder(proposed("detect") / "regions")
  found = {"base": [], "novel": []}
  for index, sides in enumerate(SIZES):
    truth, classes = boxes.regions(index, masks=True)
    stored = torch.tensor(folder.read(index, *sides).masks)[None].float()
    masks = (
      functional.interpolate(stored, sides, mode="bilinear")[0].numpy() > 0.4 * 2**15
    )
    for c, mask in zip(classes, truth.masks, strict=True):
      iou = (masks & mask).sum((1, 2)) / (masks | mask).sum((1, 2))
      found[boxes.classes.groups[c]].append(bool((iou >= 0.5).any()))
  recall = RunFolder(proposed("detect")).read_results()["recall"]
  for group, own in found.items():
    assert recall[group] == {"recall": np.mean(own), "objects": len(own)}
  assert 0 < recall["all"]["recall"] < 1
  assert RunFolder(proposed("segment")).read_results()["recall"] is None


def test_an_equal_start_does_nothing(region_set, proposed, monkeypatch):
  """The prompts of `segment` and `detect` are nothing to a network."""
  workdir = proposed("detect")
  monkeypatch.setattr(proposals.Proposer, "regions", None)
  prompts = {"segment.prompts": ("the {}",), "detect.prompts": ("the {}",)}
  found = run_job(config_of(region_set, **prompts), workdir)
  assert found == RunFolder(workdir).read_results()


@pytest.mark.parametrize(
  "between",
  [
    "nothing",
    "another network",
    "no regions",
    "a damaged piece",
    "damaged regions",
    "a swap",
  ],
)
def test_a_killed_run_resumes_after_its_last_block(
  region_set, proposed, found_images, tmp_path, monkeypatch, between
):
  """The second of two blocks is interrupted; where something comes between, all
  start anew."""
  config, workdir = config_of(region_set), tmp_path / "run"
  monkeypatch.setattr(propose, "_BLOCK", len(SIZES) - 1)

  def killed(config, calls):
    found_images.clear()
    found_images.stop_at = calls
    with pytest.raises(KeyboardInterrupt):
      run_job(config, workdir)

  killed(config, 2)
  if between == "another network":
    killed(config_of(region_set, **{"propose.size": 64}), 1)
  elif between == "no regions":
    shutil.rmtree(workdir / "regions")
  elif between == "a damaged piece":
    (piece,) = (workdir / "progress").iterdir()
    piece.write_text("{")
  elif between == "damaged regions":
    path = workdir / "regions" / "2.npz"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
  elif between == "a swap":
    one, other = (workdir / "regions" / f"{key}.npz" for key in (0, 3))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
  found_images.clear()
  found_images.stop_at = None
  found = run_job(config, workdir)
  assert found_images == ([1] if between == "nothing" else [len(SIZES) - 1, 1])
  expected = RunFolder(proposed("detect")).read_results()
  assert found["recall"] == expected["recall"] and found["key"] == expected["key"]
  assert_same_regions(workdir, proposed("detect"))


def assert_same_regions(workdir, expected):
  files = list((expected / "regions").glob("*.npz"))
  assert len(files) == len(SIZES)
  for file in files:
    with np.load(workdir / "regions" / file.name) as ours, np.load(file) as theirs:
      for field in theirs.files:
        np.testing.assert_array_equal(ours[field], theirs[field])


def test_an_interrupted_start_leaves_no_results_of_the_one_before(
  region_set, found_images, tmp_path, copy_of, monkeypatch
):
  """It starts because an image's file has changed."""
  images = copy_of(region_set / "images", "images")
  config = config_of(region_set, **{"detect.images": str(images)})
  run_job(config, tmp_path / "run")
  (first, *_) = sorted(images.iterdir())
  times = first.stat()
  os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))

  def interrupted(*given):
    raise KeyboardInterrupt

  monkeypatch.setattr(propose, "RegionWriter", interrupted)
  with pytest.raises(KeyboardInterrupt):
    run_job(config, tmp_path / "run")
  assert not (tmp_path / "run" / "results.json").exists()


# Field -> another value. ROOT is the folder of the networks.
CHANGES = {
  "propose.network": "ROOT/other.pth",
  "propose.prompt": "the {}!",
  "propose.size": 64,
  "propose.stride": 4,
  "propose.batch_size": 16,
  "regions.mask_threshold": 0.7,
  "propose.images": "detect",
}


def test_each_field_reaches_the_network(region_set, tmp_path, monkeypatch):
  assert set(CHANGES) - {"regions.mask_threshold"} == {
    field for field in fields_of() if field.startswith("propose.")
  }

  class Recorded(proposals.Proposer):
    header = RegionHeader("a network")

    def __init__(self, network, mesh, classes, propose, clip, threshold):
      self.given = {"network": network.params["non_object"], "prompt": classes}
      self.given |= {"threshold": threshold, "dtype": clip.dtype}
      for name in ("size", "stride", "batch_size"):
        self.given[name] = getattr(propose, name)

    def regions(self, images):
      seen.update(self.given, images=len(images))
      raise KeyboardInterrupt

  monkeypatch.setattr(proposals, "Proposer", Recorded)

  def arguments(**changes):
    seen.clear()
    # Two annotated images, five with labels.
    usual = {"propose.images": "segment", "detect.n_images": 2} | changes
    with pytest.raises(KeyboardInterrupt):
      run_job(config_of(region_set, **usual), tmp_path)
    return dict(seen)

  seen = {}
  usual = arguments()
  classes = opening.open_encoder(config_of(region_set).clip).class_features(
    TRAINED, "the {}!"
  )
  network = read_mask_former(region_set / "other.pth").params["non_object"]
  become = {"propose.network": network, "propose.prompt": classes, "propose.images": 2}
  for field, value in CHANGES.items():
    value = in_place(region_set, value)
    found = arguments(**{field: value})
    name = {"regions.mask_threshold": "threshold"}.get(field, field.rpartition(".")[2])
    np.testing.assert_allclose(found[name], become.get(field, value), atol=1e-6)
    changed = [name for name in usual if not np.array_equal(found[name], usual[name])]
    assert changed == [name]


def outputs(workdir):
  """Bytes of all label images and detections."""
  files = [*workdir.rglob("labels/*/*.png"), *workdir.rglob("detections/*.json")]
  return {file.relative_to(workdir): file.read_bytes() for file in files}


def network_config(root, job, **changes):
  """The config of `segment` or `detect` with the regions of a network."""
  own = {
    f"{job}.prompts": ("network", "{}!"),
    "detect.min_score": 0.1,
    "regions.objectness": True,
  }
  # Fewer than the network finds, by their objectness.
  return regions_config(root, job, **FOUND | own | {"regions.max_regions": 4} | changes)


@pytest.mark.parametrize("job", JOBS)
def test_regions_found_on_the_way_equal_those_of_the_folder(
  region_set, proposed, tmp_path, without_report, job
):
  stored = {"regions.source": "file", "regions.path": str(proposed(job) / "regions")}
  expected = run_job(network_config(region_set, job, **stored), tmp_path / "file")
  found = run_job(network_config(region_set, job), tmp_path / "network")
  assert found["figures"] == expected["figures"]
  assert len(outputs(tmp_path / "network")) == (
    2 * len(SIZES) if job == "segment" else 2
  )
  assert outputs(tmp_path / "network") == outputs(tmp_path / "file")
  labels = [prompt["label"] for prompt in found["prompts"]]
  assert labels == [str(region_set / "net.pth"), "{}!"]


def test_a_network_that_changes_in_its_place_is_another_run(
  region_set, tmp_path, without_report
):
  shutil.copy(region_set / "net.pth", tmp_path / "net.pth")
  changes = {"propose.network": str(tmp_path / "net.pth"), "detect.n_images": 1}

  def found():
    run_job(network_config(region_set, "detect", **changes), tmp_path / "run")
    return outputs(tmp_path / "run")

  first = found()
  assert found() == first
  write_network(tmp_path / "net.pth", seed=1)
  assert found() != first


@pytest.mark.parametrize("job", JOBS)
def test_network_alone_clip_alone_and_fused_side_by_side(
  region_set, proposed, tmp_path, without_report, job
):
  """Each as a run with exponents 0, or without embeddings, or as usual."""
  path, bare = proposed(job) / "regions", tmp_path / "bare"
  bare.mkdir()
  RegionWriter(bare, RegionHeader("none of the embeddings"))
  for file in path.glob("*.npz"):
    with np.load(file) as stored:
      arrays = {field: stored[field] for field in stored.files if field != "embeddings"}
    np.savez(bare / file.name, **arrays)

  def figures(workdir, regions, **changes):
    own = {f"{job}.prompts": ("{}!", "the {}"), "segment.output": False}
    own |= {
      "regions.path": str(regions),
      "regions.source": "file",
      "regions.mask_threshold": 0.4,
    }
    return run_job(
      regions_config(region_set, job, **own | changes), tmp_path / workdir
    )["figures"]

  together = figures("together", path, **{"regions.alone": True})
  expected = {
    ", fused": figures("fused", path),
    ", network alone": figures(
      "network", path, **{"regions.e_base": 0.0, "regions.e_novel": 0.0}
    ),
    ", CLIP alone": figures("clip", bare),
  }
  assert list(together) == [
    prompt + own for prompt in ("{}!", "the {}") for own in expected
  ]
  for own, found in expected.items():
    for prompt in found:
      assert together[prompt + own] == found[prompt]
