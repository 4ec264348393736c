"""The detect job: results and figures against torch and pycocotools, resumption."""

import collections
import json

import numpy as np
from PIL import Image
from pycocotools import mask as pycoco_mask
import pytest
import torch
from torch.nn import functional
from torchvision.ops import batched_nms

from pomp_jax.clip.load import load_clip
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regions import detect
from pomp_jax.rooms.regions.detections import MAX_DETECTIONS
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions, RegionWriter
from tests.rooms.regions.region_jobs import (
  assert_same_detections,
  detections,
  regions_config,
  torch_crop,
  torch_texts,
)
from tests.support.detection_cases import pycoco, random_annotations, random_detections
from tests.support.report_page import Page
from tests.support.small_run import run_job

# Classes in the order of a list, which is not that of the ids; the dog has no category.
NAMES = ("thing 5", "thing 1", "dog", "thing 0", "thing 2", "thing 3", "thing 4")
GROUPS = ("base", "base", "-", "novel", "novel", "base", "-")
PROMPTS = ("a photo of a {}.", "{}!")
WIDTH, STAGES = 24, 3


@pytest.fixture(scope="session")
def data(region_set, shared):
  """Folder of COCO's and LVIS's form of annotations, images, regions."""
  return shared("detect_data", lambda root: _write_data(root, region_set / "clip"))


def _write_data(root, clip):
  rng = np.random.default_rng(0)
  lines = [f"{name}\t{group}" for name, group in zip(NAMES, GROUPS, strict=True)]
  (root / "names.txt").write_text("\n".join(lines))
  coco = random_annotations(0)
  (root / "coco.json").write_text(json.dumps(coco))
  (root / "proposals.json").write_text(json.dumps(random_detections(coco, 1)))
  (root / "images").mkdir()
  for image in coco["images"]:
    pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
    Image.fromarray(pixels).save(root / "images" / image["file_name"])
  lvis = random_annotations(2, lvis=True)
  (root / "lvis.json").write_text(json.dumps(lvis))
  np.save(root / "classes.npy", rng.normal(size=(6, WIDTH)).astype(np.float16))
  header = RegionHeader("a detector", str(clip), STAGES, WIDTH, "sigmoid", 5.0)
  writer = RegionWriter(root / "dump", header)
  for image in lvis["images"]:
    corners = rng.uniform(0, 120, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (40, 2))], axis=1)
    embeddings = rng.normal(size=(40, STAGES, WIDTH)).astype(np.float16)
    objectness = rng.random(40).astype(np.float32)
    writer.write(
      image["id"], Regions(boxes.astype(np.float32), objectness, None, embeddings)
    )


@pytest.fixture(scope="session")
def config_for(data, region_set):
  """A function: changes by full field name -> config."""
  files = {"annotations": "coco.json", "images": "images", "names": "names.txt"}
  files = {f"detect.{field}": str(data / file) for field, file in files.items()}
  return lambda **changes: regions_config(region_set, "detect", **files | changes)


@pytest.fixture(scope="session")
def detected(config_for, shared):
  """A finished run on true regions."""
  return shared("detect_truth", lambda folder: run_job(config_for(), folder))


def read_coco(data):
  return json.loads((data / "coco.json").read_text())


def selected(image_id, ids, boxes, scores, threshold, top):
  """torch's selection of an image's detections."""
  regions, classes = np.nonzero(scores > threshold)
  scores = torch.tensor(scores[regions, classes]).float()
  own = torch.tensor(boxes[regions]).float()
  for n in batched_nms(own, scores, torch.tensor(classes), 0.5)[:top].tolist():
    x0, y0, x1, y1 = own[n].tolist()
    if ids[classes[n]] is not None:
      row = {
        "image_id": image_id,
        "category_id": ids[classes[n]],
        "score": float(scores[n]),
      }
      yield row | {"bbox": [x0, y0, x1 - x0, y1 - y0]}


def test_true_regions_are_classified_as_by_torch(data, region_set, detected):
  value, scale = read_coco(data), load_clip(str(region_set / "clip")).logit_scale
  id_of = {category["name"]: category["id"] for category in value["categories"]}
  ids = [id_of.get(name) for name in NAMES]
  text = torch_texts([PROMPTS[1].replace("{}", name) for name in NAMES])
  expected, right, labels = [], [], []
  for image in value["images"]:
    rows = [
      r
      for r in value["annotations"]
      if r["image_id"] == image["id"] and not r["iscrowd"]
    ]
    sides = image["height"], image["width"]
    shapes = [
      pycoco_mask.merge(pycoco_mask.frPyObjects(r["segmentation"], *sides))
      for r in rows
    ]
    masks = [pycoco_mask.decode(shape).astype(bool) for shape in shapes]
    pixels = np.asarray(Image.open(data / "images" / image["file_name"]))
    crops = torch.stack([torch_crop(pixels, mask) for mask in masks])
    scores = (scale * crops @ text.T).softmax(-1).numpy()
    corners, boxes_sides = np.split(np.array([r["bbox"] for r in rows]), 2, axis=1)
    boxes = np.concatenate([corners, corners + boxes_sides], axis=1)
    expected += selected(image["id"], ids, boxes, scores, 0.02, 100)
    own = [ids.index(r["category_id"]) for r in rows]
    labels += own
    right += (scores.argmax(-1) == own).tolist()
  assert_same_detections(detections(detected, 1), expected)
  top1 = RunFolder(detected).read_results()["figures"][PROMPTS[1]]["top1"]
  of_base = np.array([GROUPS[label] == "base" for label in labels])
  assert top1["all"] == {"top1": pytest.approx(np.mean(right)), "objects": len(labels)}
  expected_base = pytest.approx(np.mean(np.array(right)[of_base]))
  assert top1["base"] == {"top1": expected_base, "objects": of_base.sum()}
  assert (detected / "plots" / "detections.png").stat().st_size > 10_000
  assert "base AP50" in (detected / "results.md").read_text()
  page = Page((detected / "report.html").read_text())
  assert page.table("prompt", "all")[1][:2] == [
    PROMPTS[1],
    f"{100 * np.mean(right):.1f}",
  ]
  assert len(page.images) == 1 and page.table("class", "group", *PROMPTS)


def test_figures_are_those_of_pycocotools(data, config_for, tmp_path):
  proposals = {"regions.source": "file", "regions.path": str(data / "proposals.json")}
  results = run_job(config_for(**proposals, **{"detect.n_images": 4}), tmp_path)
  assert results == RunFolder(tmp_path).read_results()
  value = read_coco(data)
  kept = {value["images"][n * 6 // 4]["id"] for n in range(4)}
  for field, key in (("images", "id"), ("annotations", "image_id")):
    value[field] = [row for row in value[field] if row[key] in kept]
  id_of = {category["name"]: category["id"] for category in value["categories"]}
  novel = [
    id_of[name] for name, group in zip(NAMES, GROUPS, strict=True) if group == "novel"
  ]
  for number, label in enumerate(PROMPTS):
    rows = detections(tmp_path, number)
    assert {row["image_id"] for row in rows} <= kept
    for kind in ("box", "mask"):
      figures = results["figures"][label][kind]
      expected, precision, ids = pycoco(value, rows, kind)
      assert 0.005 < expected["AP50"]
      for name, figure in expected.items():
        assert figures[name] == pytest.approx(
          None if figure == -1 else figure, abs=1e-6
        )
      of_novel = precision[0][:, [list(ids).index(number) for number in novel]]
      assert figures["novel"]["AP50"] == pytest.approx(
        of_novel[of_novel > -1].mean(), abs=1e-6
      )


def test_a_dump_is_scored_as_by_detic_and_no_image_is_read(data, config_for, tmp_path):
  detic = {
    "detect.annotations": str(data / "lvis.json"),
    "detect.images": "",
    "detect.names": "",
    "detect.prompts": (str(data / "classes.npy"),),
    "detect.min_score": 0.6,
    "regions.source": "file",
    "regions.path": str(data / "dump"),
    "regions.e_base": 0.0,
    "regions.e_novel": 0.0,
    "regions.objectness": True,
  }
  results = run_job(config_for(**detic), tmp_path)
  value = json.loads((data / "lvis.json").read_text())
  ids = sorted(category["id"] for category in value["categories"])
  vectors = functional.normalize(torch.tensor(np.load(data / "classes.npy")).float())
  # Detic's classifier: a background of zeros, which its inference drops.
  weight = torch.cat([vectors, torch.zeros(1, WIDTH)]).T
  expected = []
  for image in value["images"]:
    stored = np.load(data / "dump" / f"{image['id']}.npz")
    embeddings = functional.normalize(
      torch.tensor(stored["embeddings"]).float(), dim=-1
    )
    scores = (5 * embeddings @ weight).sigmoid().mean(1)[:, :-1]
    scores = (scores * torch.tensor(stored["objectness"])[:, None]) ** 0.5
    expected += selected(image["id"], ids, stored["boxes"], scores.numpy(), 0.6, 300)
  assert len(expected) > 50
  assert_same_detections(detections(tmp_path), expected)
  (figures,) = results["figures"].values()
  assert {"APr", "APc", "APf", "base", "novel"} <= set(
    figures["box"]
  ) and "mask" not in figures
  frequencies = {
    category["id"]: category["frequency"] for category in value["categories"]
  }
  assert results["groups"] == [
    "novel" if frequencies[n] == "r" else "base" for n in ids
  ]
  assert not (tmp_path / "plots" / "detections.png").exists()
  assert Page((tmp_path / "report.html").read_text()).images == []


@pytest.mark.parametrize("kind", ["coco", "lvis"])
@pytest.mark.parametrize("top", [0, 2])
def test_as_many_detections_of_an_image_as_its_annotations_count(
  data, config_for, tmp_path, monkeypatch, without_report, kind, top
):
  """LVIS counts more than COCO. A number of the config's own replaces both."""
  assert MAX_DETECTIONS == {"coco": 100, "lvis": 300}
  monkeypatch.setitem(MAX_DETECTIONS, "coco", 3)
  monkeypatch.setitem(MAX_DETECTIONS, "lvis", 7)
  changes = {"regions.source": "file", "regions.path": str(data / "dump")}
  changes |= {"regions.e_base": 0.0, "regions.e_novel": 0.0}
  # The images of both have the same ids.
  changes |= {"detect.annotations": str(data / f"{kind}.json"), "detect.names": ""}
  changes |= {"detect.prompts": (str(data / "classes.npy"),), "detect.images": ""}
  run_job(config_for(**changes, **{"detect.top": top}), tmp_path)
  counts = collections.Counter(row["image_id"] for row in detections(tmp_path))
  assert set(counts.values()) == {top or MAX_DETECTIONS[kind]} and len(counts) == 6


def test_an_interrupted_run_resumes(config_for, detected, tmp_path, monkeypatch):
  monkeypatch.setattr(detect, "_BLOCK", 2)
  scored, taken = detect.RegionScorer.scored, []

  def killed(scorer, block):
    for row, found in scored(scorer, block):
      taken.append(row)
      if taken == [0, 1, 2, 3]:
        raise KeyboardInterrupt
      yield row, found

  monkeypatch.setattr(detect.RegionScorer, "scored", killed)
  with pytest.raises(KeyboardInterrupt):
    run_job(config_for(), tmp_path)
  assert run_job(config_for(), tmp_path) == RunFolder(detected).read_results()
  assert taken == [0, 1, 2, 3, 2, 3, 4, 5]
  for name in ("plots/detections.png", "results.md", "detections/1.json"):
    assert (tmp_path / name).read_bytes() == (detected / name).read_bytes()
  assert not (tmp_path / "progress").exists()


def test_figures_of_other_annotations_are_not_used(
  data, config_for, detected, tmp_path, copy_of, without_report
):
  workdir, expected = copy_of(detected), RunFolder(detected).read_results()["figures"]
  path, value = tmp_path / "coco.json", read_coco(data)
  path.write_text(json.dumps(value))
  config = config_for(**{"detect.annotations": str(path)})
  before = run_job(config, workdir)["figures"]
  for row in value["annotations"]:
    row["category_id"] = value["categories"][0]["id"]
  path.write_text(json.dumps(value))
  after = run_job(config, workdir)["figures"]
  assert before == expected != after == run_job(config, tmp_path / "new")["figures"]
