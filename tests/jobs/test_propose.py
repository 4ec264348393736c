"""The job propose: `segment` and `detect` read its folder, and its recall is that of masks."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax import inputs
from pomp_jax.config import FIELDS, ConfigError, validate
from pomp_jax.errors import InputError
from pomp_jax.inputs import networks
from pomp_jax.inputs.box_sets import open_box_set
from pomp_jax.jobs import detect, propose, segment
from pomp_jax.masks.model import VARIANTS, MaskFormer
from pomp_jax.masks.step import MaskLearner
from pomp_jax.masks.weights import MaskFormerFile, write_mask_former
from pomp_jax.regions.files import RegionFolder
from tests.support.clips import write_random_clip
from tests.support.mask_sets import write_objects
from tests.support.pixel_sets import SIZES, segment_config, write_pixel_set
from tests.support.small_run import changed

NETWORK = dataclasses.replace(VARIANTS["small"], embedding=24)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("propose")
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_objects(root)
  (root / "run").mkdir()
  params = MaskLearner(MaskFormer(NETWORK)).init(jax.random.key(3))
  with open(root / "run" / "masks.pth", "wb") as file:
    write_mask_former(file, MaskFormerFile(NETWORK, params, ("the cat", "sky")))
  return root


@pytest.fixture(scope="module", autouse=True)
def one_encoder_for_all():
  """CLIPs are opened and compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    opened, encoders = inputs.open_encoder, {}

    def open_once(config):
      if config.clip not in encoders:
        encoders[config.clip] = opened(config)
      return encoders[config.clip]

    patch.setattr(inputs, "open_encoder", open_once)
    yield


def config_of(root, **changes):
  objects = {
    "detect.source": "coco",
    "detect.annotations": str(root / "objects.json"),
    "detect.images": str(root / "images"),
    "detect.names": str(root / "names.txt"),
    "regions.source": "none",
  }
  own = {"job": "propose", "propose.network": str(root / "run")}
  return segment_config(root, **objects | own | changes)


def run(job, config, workdir):
  validate(config)
  job.check(config, str(workdir))
  return job.run(config, str(workdir))


@pytest.fixture(scope="module")
def proposed(root, tmp_path_factory):
  """Folders of the regions of the images of `segment` and of `detect`, and the results."""
  found = {}
  for images in ("segment", "detect"):
    workdir = tmp_path_factory.mktemp(images)
    found[images] = workdir, run(propose, config_of(root, **{"propose.images": images}), workdir)
  return found


def test_both_folders_have_the_same_regions(proposed):
  folders = [RegionFolder(proposed[images][0] / "regions") for images in ("segment", "detect")]
  assert folders[0].header == folders[1].header
  assert folders[0].header.trained_classes == ("the cat", "sky")
  for number, sides in enumerate(SIZES):
    one, other = folders[0].read(str(number), *sides), folders[1].read(number, *sides)
    for ours, theirs in zip(one, other, strict=True):
      np.testing.assert_array_equal(ours, theirs)
    assert len(one.boxes) == 12 and one.embeddings.shape == (12, 1, 24)


def test_recall_is_that_of_the_stored_masks(root, proposed):
  workdir, results = proposed["detect"]
  boxes, folder = open_box_set(config_of(root).detect), RegionFolder(workdir / "regions")
  found = {"base": [], "novel": []}
  for index, sides in enumerate(SIZES):
    truth, classes = boxes.regions(index, masks=True)
    stored = torch.tensor(folder.read(index, *sides).masks)[None].float()
    masks = functional.interpolate(stored, sides, mode="bilinear")[0].numpy() > 127.5
    for c, mask in zip(classes, truth.masks, strict=True):
      iou = (masks & mask).sum((1, 2)) / (masks | mask).sum((1, 2))
      found[boxes.classes.groups[c]].append(bool((iou >= 0.5).any()))
  for group, own in found.items():
    assert results["recall"][group] == {"recall": np.mean(own), "objects": len(own)}
  assert proposed["segment"][1]["recall"] is None


def test_an_equal_start_does_nothing(root, proposed, monkeypatch):
  workdir, results = proposed["segment"]
  monkeypatch.setattr(networks.Proposer, "regions", None)
  assert run(propose, config_of(root), workdir) == results


def test_a_killed_run_resumes_after_the_last_block(root, proposed, tmp_path, monkeypatch):
  """Two blocks; the second is interrupted."""
  (_, expected), config = proposed["detect"], config_of(root, **{"propose.images": "detect"})
  monkeypatch.setattr(propose, "_BLOCK", len(SIZES) - 1)
  find, seen = networks.Proposer.regions, []

  def once(self, images):
    seen.append(len(images))
    if len(seen) == 2:
      raise KeyboardInterrupt
    return find(self, images)

  monkeypatch.setattr(networks.Proposer, "regions", once)
  with pytest.raises(KeyboardInterrupt):
    run(propose, config, tmp_path / "run")
  found = run(propose, config, tmp_path / "run")
  assert seen == [len(SIZES) - 1, 1, 1]
  assert found["recall"] == expected["recall"] and found["key"] == expected["key"]
  for file in (proposed["detect"][0] / "regions").glob("*.npz"):
    assert (tmp_path / "run" / "regions" / file.name).exists()
  # Another network starts at the first image.
  seen[:] = [0, 0]
  run(propose, changed(config, {"propose.size": 64}), tmp_path / "run")
  assert seen[2:] == [len(SIZES) - 1, 1]


@pytest.mark.parametrize("between", ["another network", "no regions", "a damaged file"])
def test_what_came_between_two_starts(root, proposed, tmp_path, monkeypatch, between):
  """A run that stopped after its first block starts at the first image again."""
  config = config_of(root, **{"propose.images": "detect"})
  monkeypatch.setattr(propose, "_BLOCK", len(SIZES) - 1)
  find, seen, last = networks.Proposer.regions, [], [2]

  def until_the_last(self, images):
    seen.append(len(images))
    if len(seen) == last[0]:
      raise KeyboardInterrupt
    return find(self, images)

  monkeypatch.setattr(networks.Proposer, "regions", until_the_last)
  workdir = tmp_path / "run"
  with pytest.raises(KeyboardInterrupt):
    run(propose, config, workdir)
  if between == "another network":
    last[0] = 3
    with pytest.raises(KeyboardInterrupt):
      run(propose, changed(config, {"propose.size": 64}), workdir)
  elif between == "no regions":
    shutil.rmtree(workdir / "regions")
  else:
    (workdir / "progress.json").write_text("{")
  seen.clear()
  last[0] = 9
  run(propose, config, workdir)
  assert seen == [len(SIZES) - 1, 1]
  for file in (proposed["detect"][0] / "regions").glob("*.npz"):
    own, expected = np.load(workdir / "regions" / file.name), np.load(file)
    for field in expected.files:
      np.testing.assert_array_equal(own[field], expected[field])


def test_an_interrupted_start_leaves_no_results_of_the_one_before(
  root, proposed, tmp_path, monkeypatch
):
  """It starts because an image's file has changed."""

  def interrupted(*given):
    raise KeyboardInterrupt

  monkeypatch.setattr(propose, "RegionWriter", interrupted)
  workdir = shutil.copytree(proposed["segment"][0], tmp_path / "run")
  image = sorted((root / "images").iterdir())[0]
  times = image.stat()
  os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
  try:
    with pytest.raises(KeyboardInterrupt):
      run(propose, config_of(root), workdir)
  finally:
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert not (workdir / "results.json").exists()


@pytest.mark.parametrize("job", [segment, detect])
def test_network_alone_clip_alone_and_fused_side_by_side(root, proposed, tmp_path, job):
  """Each as a run with exponents 0, or without embeddings, or as usual."""
  name = job.__name__.rpartition(".")[2]
  path = proposed[name][0] / "regions"
  bare = tmp_path / "bare"
  bare.mkdir()
  header = json.loads((path / "regions.json").read_text()) | {"embeddings": None}
  (bare / "regions.json").write_text(json.dumps(header))
  for file in path.glob("*.npz"):
    with np.load(file) as stored:
      arrays = {field: stored[field] for field in stored.files if field != "embeddings"}
    np.savez(bare / file.name, **arrays)

  def figures(workdir, regions, **changes):
    own = {"job": name, f"{name}.prompts": ("{}!", "the {}"), "segment.output": False}
    own |= {"regions.path": str(regions), "regions.mask_threshold": 0.4}
    config = changed(config_of(root), own | {"regions.source": "file"} | changes)
    return run(job, config, tmp_path / workdir)["figures"]

  together = figures("together", path, **{"regions.alone": True})
  expected = {
    ", fused": figures("fused", path),
    ", network alone": figures("network", path, **{"regions.e_base": 0.0, "regions.e_novel": 0.0}),
    ", CLIP alone": figures("clip", bare),
  }
  assert list(together) == [prompt + own for prompt in ("{}!", "the {}") for own in expected]
  for own, found in expected.items():
    for prompt in found:
      assert together[prompt + own] == found[prompt]


def test_what_can_not_work_is_one_line(root, tmp_path):
  for changes, match in (
    ({"propose.network": str(root / "clip")}, "masks.pth"),
    ({"propose.network": str(root / "nothing")}, "propose.network"),
    ({"propose.images": "detect", "detect.images": ""}, "detect.images"),
    ({"clip.model": "world"}, "clip.model"),
  ):
    with pytest.raises(InputError, match=match):
      run(propose, config_of(root, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
  config = changed(
    config_of(root), {"job": "segment", "regions.alone": True, "regions.source": "truth"}
  )
  with pytest.raises(ConfigError, match="regions.alone"):
    run(segment, config, tmp_path / "run")


# Field -> another value.
CHANGES = {
  "network": "OTHER",
  "images": "detect",
  "prompt": "the {}!",
  "size": 64,
  "stride": 1,
  "batch_size": 16,
}


def test_each_field_changes_what_it_names(root, tmp_path, monkeypatch):
  """Arguments of the network's run; the number of images together changes nothing else."""
  assert {f"propose.{name}" for name in CHANGES} == {f for f in FIELDS if f.startswith("propose.")}
  params = MaskLearner(MaskFormer(NETWORK)).init(jax.random.key(4))
  with open(tmp_path / "other.pth", "wb") as file:
    write_mask_former(file, MaskFormerFile(NETWORK, params, ("the cat", "sky")))
  seen = []

  class Recorded(networks.Proposer):
    def __init__(self, network, mesh, classes, **more):
      seen.append((float(network.params["non_object"][0, 0]), classes.tobytes(), more["size"]))
      seen[-1] += (more["stride"], more["batch_size"])
      super().__init__(network, mesh, classes, **more)

  monkeypatch.setattr(networks, "Proposer", Recorded)
  found = {}
  for name, value in {"": None, **CHANGES}.items():
    value = str(tmp_path / "other.pth") if value == "OTHER" else value
    changes = {f"propose.{name}": value} if name else {}
    workdir = tmp_path / f"run{name}"
    results = run(propose, config_of(root, **changes), workdir)
    found[name] = (*seen[-1], results["recall"] is None)
  for number, name in enumerate(("network", "prompt", "size", "stride", "batch_size", "images")):
    assert found[name][number] != found[""][number]
    assert [a == b for a, b in zip(found[name], found[""], strict=True)].count(False) == 1
