"""The segment job against torch and torchmetrics, resumption; scenes, two processes."""

import shutil

import numpy as np
from PIL import Image
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pomp_jax.files.run_folder import RunFolder, RunFolderError
from pomp_jax.rooms.regions import region_scorer, segment
from tests.rooms.regions.region_jobs import (
  SIZES,
  TEXTS,
  assert_same_detections,
  detections,
  label_maps,
  regions_config,
  torch_crop,
  torch_texts,
)
from tests.support.processes import run_in_processes
from tests.support.report_page import Page
from tests.support.small_run import run_job, small_config

PROMPTS = ("a photo of a {}.", "{}!")
FILE = {"regions.source": "file", "regions.mask_threshold": 0.45}


def config_for(root, **changes):
  return regions_config(root, "segment", **changes)


@pytest.fixture(scope="session")
def segmented(region_set, shared):
  """A finished run on true regions."""
  return shared("segment_truth", lambda folder: run_job(config_for(region_set), folder))


@pytest.fixture(scope="session")
def by_file(region_set, shared):
  """A finished run on the regions of a file."""
  return shared(
    "segment_file", lambda folder: run_job(config_for(region_set, **FILE), folder)
  )


def truth_of(root):
  files = sorted((root / "labels").glob("*.png"))
  return [np.asarray(Image.open(file)).astype(int) for file in files]


def test_true_regions_get_the_class_of_their_crop(region_set, segmented):
  text = torch_texts(
    [PROMPTS[1].replace("{}", name) for names in TEXTS for name in names]
  )
  counts, files = (
    [len(names) for names in TEXTS],
    sorted((region_set / "images").glob("*.png")),
  )
  for file, labels, found in zip(
    files, truth_of(region_set), label_maps(segmented, 1), strict=True
  ):
    image = np.asarray(Image.open(file))
    expected = np.full(labels.shape, -1)
    for label in set(np.unique(labels)) - {255}:
      mask = labels == label
      scores = (text @ torch_crop(image, mask)).split(counts)
      expected[mask] = np.argmax([own.max() for own in scores])
    np.testing.assert_array_equal(found, expected)


def test_figures_are_those_of_the_label_images(region_set, segmented):
  results = RunFolder(segmented).read_results()
  truth = np.concatenate([labels.ravel() for labels in truth_of(region_set)])
  kept = truth != 255
  for number, label in enumerate(PROMPTS):
    predicted = np.concatenate(
      [found.ravel() for found in label_maps(segmented, number)]
    )
    metric = MulticlassJaccardIndex(4, average="none")
    iou = metric(torch.tensor(predicted[kept]), torch.tensor(truth[kept])).numpy()
    base, novel = iou[:2].mean(), iou[2:].mean()
    figures = results["figures"][label]
    for found, expected in (
      (figures["per_class"]["iou"], iou),
      (figures["mIoU_plain"], iou.mean()),
      (figures["hIoU_plain"], 2 * base * novel / (base + novel)),
      (figures["pACC"], (predicted == truth)[kept].mean()),
    ):
      np.testing.assert_allclose(found, expected, atol=1e-6)
  assert results["images"] == 5
  assert results["pixels"] == np.bincount(truth, minlength=256)[:4].tolist()
  assert "hIoU" in (segmented / "results.md").read_text()
  page = Page((segmented / "report.html").read_text())
  shown = {row[0]: row[1] for row in page.table("prompt", "hIoU")}
  assert shown == {
    label: f"{100 * results['figures'][label]['hIoU']:.1f}" for label in PROMPTS
  }
  assert len(page.images) == 1 and page.table("class", "group", "pixels", *PROMPTS)
  assert (segmented / "plots" / "segmentation.png").stat().st_size > 10_000


def test_an_interrupted_run_resumes_and_a_finished_one_stays(
  region_set, segmented, tmp_path, monkeypatch
):
  """A start with other prompts comes between, and dies before its first block ends."""
  monkeypatch.setattr(segment, "_BLOCK", 2)
  label_maps_of, taken, last = segment.RegionScorer.label_maps, [], [None]

  def killed(scorer, block):
    for row, maps in label_maps_of(scorer, block):
      if row == last[0]:
        raise KeyboardInterrupt
      taken.append(row)
      yield row, maps

  monkeypatch.setattr(segment.RegionScorer, "label_maps", killed)

  def interrupted(row, **changes):
    taken.clear()
    last[0] = row
    with pytest.raises(KeyboardInterrupt):
      run_job(config_for(region_set, **changes), tmp_path)

  interrupted(3)
  interrupted(1, **{"segment.prompts": ("the {}", "{}")})
  interrupted(3)
  assert taken == [0, 1, 2]  # the other start may have replaced label images
  taken.clear()
  last[0] = None
  expected = RunFolder(segmented).read_results()
  assert run_job(config_for(region_set), tmp_path) == expected
  assert taken == [2, 3, 4] and not (tmp_path / "progress").exists()
  for prompt in (0, 1):
    np.testing.assert_array_equal(
      label_maps(tmp_path, prompt)[3], label_maps(segmented, prompt)[3]
    )
  plot = tmp_path / "plots" / "segmentation.png"
  assert plot.read_bytes() == (segmented / "plots" / "segmentation.png").read_bytes()
  before = plot.stat().st_mtime_ns
  assert run_job(config_for(region_set), tmp_path) == expected
  assert taken == [2, 3, 4] and plot.stat().st_mtime_ns == before


def of_other_size(path):
  Image.open(path).resize((7, 5)).save(path)


def cut_off(path):
  path.write_bytes(path.read_bytes()[:-20])


def swapped(path):
  """With that of the same image under the other prompt."""
  other = path.parent.parent / "1" / path.name
  first = path.read_bytes()
  path.write_bytes(other.read_bytes())
  other.write_bytes(first)


@pytest.mark.parametrize("damage", [of_other_size, cut_off, swapped])
def test_a_restart_writes_changed_label_images_again(
  region_set, segmented, tmp_path, monkeypatch, without_report, damage
):
  monkeypatch.setattr(segment, "_BLOCK", 2)
  label_maps_of = segment.RegionScorer.label_maps
  blocks = []

  def killed(scorer, block):
    blocks.append(block)
    if len(blocks) == 2:
      raise KeyboardInterrupt
    return label_maps_of(scorer, block)

  monkeypatch.setattr(segment.RegionScorer, "label_maps", killed)
  with pytest.raises(KeyboardInterrupt):
    run_job(config_for(region_set), tmp_path)
  damage(tmp_path / "labels" / "0" / "1.png")
  run_job(config_for(region_set), tmp_path)
  assert blocks == [range(2), range(2, 4), range(2), range(2, 4), range(4, 5)]
  for prompt in (0, 1):
    for one, two in zip(
      label_maps(tmp_path, prompt), label_maps(segmented, prompt), strict=True
    ):
      np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("damage", [of_other_size, cut_off])
def test_a_label_image_that_changes_before_it_is_drawn_is_one_line(
  region_set, segmented, tmp_path, monkeypatch, damage
):
  """The next start writes it again."""
  write, path = segment.Comparison.write, tmp_path / "labels" / "1" / "0.png"

  def damaged(*given):
    damage(path)
    return write(*given)

  monkeypatch.setattr(segment.Comparison, "write", damaged)
  with pytest.raises(
    RunFolderError, match=f"{path}: .*the same command resumes"
  ) as error:
    run_job(config_for(region_set), tmp_path)
  assert "\n" not in str(error.value) and not (tmp_path / "results.json").exists()
  monkeypatch.setattr(segment.Comparison, "write", write)
  assert (
    run_job(config_for(region_set), tmp_path) == RunFolder(segmented).read_results()
  )
  np.testing.assert_array_equal(label_maps(tmp_path, 1)[0], label_maps(segmented, 1)[0])


def test_counts_of_other_files_are_not_used(region_set, tmp_path, without_report):
  """A label image or a file of regions that changes in its place."""
  root = tmp_path / "copy"
  for name in ("labels", "regions"):
    shutil.copytree(region_set / name, root / name)
  folders = {
    "segment.labels": str(root / "labels"),
    "regions.path": str(root / "regions"),
  }
  config = config_for(region_set, **FILE | folders)
  results = [run_job(config, tmp_path / "run")]
  labels = Image.fromarray(np.zeros(SIZES[1], np.uint8))
  labels.save(root / "labels" / "1.png")
  results.append(run_job(config, tmp_path / "run"))
  stored = np.load(root / "regions" / "0.npz")
  arrays = ("boxes", "objectness", "masks", "embeddings")
  np.savez(root / "regions" / "0.npz", **{name: stored[name][:0] for name in arrays})
  results.append(run_job(config, tmp_path / "run"))
  assert results[0]["pixels"] != results[1]["pixels"] == results[2]["pixels"]
  assert results[1] != results[2] == run_job(config, tmp_path / "new")


def test_crops_with_context_are_of_the_masks_and_not_of_a_files_boxes(
  region_set, tmp_path, without_report
):
  shutil.copytree(region_set / "regions", tmp_path / "regions")
  fields = {"regions.path": str(tmp_path / "regions"), "regions.crop": "context"}
  config = config_for(region_set, **FILE | fields)
  run_job(config, tmp_path / "whole")
  for file in (tmp_path / "regions").glob("*.npz"):
    arrays = dict(np.load(file))
    corner = np.array([1, 1, 9, 9], np.float32)
    assert (arrays["boxes"] != corner).any()
    np.savez(file, **arrays | {"boxes": np.tile(corner, (len(arrays["boxes"]), 1))})
  run_job(config, tmp_path / "corner")
  for prompt in (0, 1):
    found = label_maps(tmp_path / "corner", prompt)
    for one, two in zip(found, label_maps(tmp_path / "whole", prompt), strict=True):
      np.testing.assert_array_equal(one, two)


def test_masks_of_few_images_in_memory_and_missing_labels_change_no_label_image(
  region_set, by_file, tmp_path, monkeypatch, without_report
):
  monkeypatch.setattr(region_scorer, "_MASK_BYTES", 1)
  results = run_job(config_for(region_set, **FILE | {"segment.labels": ""}), tmp_path)
  assert results["figures"][PROMPTS[0]]["mIoU"] is None
  assert RunFolder(by_file).read_results()["figures"][PROMPTS[0]]["mIoU"] is not None
  for one, two in zip(label_maps(tmp_path), label_maps(by_file), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("job,n_images", [("segment", 3), ("detect", 4)])
def test_scenes_of_the_world(job, n_images, tmp_path):
  config = small_config(
    **{
      "job": job,
      f"{job}.n_images": n_images,
      f"{job}.scene_classes": 480,
      f"{job}.prompts": ("a photo of a {}.",),
      "regions.source": "truth",
      "regions.crop": "context",
      "regions.expand": 1.4,
    }
  )
  results = run_job(config, tmp_path)
  figures = results["figures"]["a photo of a {}."]
  assert len(results["classes"]) == 480
  if job == "detect":
    assert figures["top1"]["all"]["top1"] > 0.3
    assert figures["box"]["AP"] == figures["box"]["AP50"] > 0.5
    return
  assert 0.2 < figures["pACC"] <= 1
  assert figures["base"]["classes"] == 360 and figures["novel"]["classes"] == 120
  # Beyond 255 classes label images have 16 bits.
  (first, *_) = (tmp_path / "labels" / "0").glob("*.png")
  assert np.asarray(Image.open(first)).max() == 2**16 - 1


PATCHES = {
  "regions.source": "none",
  "segment.size": 48,
  "segment.window": 32,
  "segment.stride": 16,
}
NETWORK = {
  "regions.source": "network",
  "regions.mask_threshold": 0.4,
  "segment.output": False,
  "propose.size": 48,
  "propose.batch_size": 4,
}
# Kind of regions -> job and fields.
KINDS = {
  "truth": ("segment", {}),
  "objects": ("detect", {}),
  "patches": ("segment", PATCHES),
  "network": ("segment", NETWORK),
}


@pytest.mark.parametrize(
  "kinds,devices",
  [
    (("truth", "objects"), 1),
    pytest.param(tuple(KINDS), 2, marks=pytest.mark.slow("all kinds of regions")),
  ],
)
def test_two_processes_find_what_one_does(region_set, tmp_path, kinds, devices):
  configs = {
    kind: regions_config(region_set, KINDS[kind][0], **KINDS[kind][1]) for kind in kinds
  }
  folders = {
    kind: [tmp_path / f"{kind}{process}" for process in (0, 1)] for kind in kinds
  }
  jobs = [(config, folders[kind]) for kind, config in configs.items()]
  run_in_processes(jobs, tmp_path / "jobs.json", devices=devices)
  for kind, config in configs.items():
    first, second = folders[kind]
    found, expected = RunFolder(first).read_results(), run_job(config, tmp_path / kind)
    assert not second.exists()
    if config.job == "segment":
      assert found == expected
      continue
    for label, figures in expected["figures"].items():
      assert found["figures"][label]["top1"] == figures["top1"]
    assert_same_detections(detections(first), detections(tmp_path / kind))
