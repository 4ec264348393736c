"""The detect job: results and figures against torch and pycocotools, resumption, bad input."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as pycoco_mask
import pytest
import torch
from torch.nn import functional
from torchvision.ops import batched_nms

from pomp_jax import inputs
from pomp_jax.clip import load_clip
from pomp_jax.config import validate
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import detect
from pomp_jax.regions.files import RegionHeader, Regions, RegionWriter
from tests.support.clips import write_random_clip
from tests.support.detection_cases import pycoco, random_annotations, random_detections
from tests.support.processes import run_in_processes
from tests.support.region_oracle import crop_feature, text_features
from tests.support.report_page import Page
from tests.support.small_run import small_config

# Classes in the order of a list, which is not that of the ids; the dog has no category.
NAMES = ("thing 5", "thing 1", "dog", "thing 0", "thing 2", "thing 3", "thing 4")
GROUPS = ("base", "base", "-", "novel", "novel", "base", "-")
ENCODERS: dict = {}
PROMPTS = ("a photo of a {}.", "{}!")
WIDTH, STAGES = 24, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A random CLIP in torch; COCO's and LVIS's form of annotations, images, regions."""
  root = tmp_path_factory.mktemp("detect")
  model = write_random_clip(root / "clip")
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
  header = RegionHeader("a detector", str(root / "clip"), STAGES, WIDTH, "sigmoid", 5.0)
  writer = RegionWriter(root / "dump", header)
  for image in lvis["images"]:
    corners = rng.uniform(0, 120, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (40, 2))], axis=1)
    embeddings = rng.normal(size=(40, STAGES, WIDTH)).astype(np.float16)
    objectness = rng.random(40).astype(np.float32)
    writer.write(image["id"], Regions(boxes.astype(np.float32), objectness, None, embeddings))
  return root, model


@pytest.fixture(autouse=True)
def one_encoder_for_all(monkeypatch):
  """CLIPs are opened and compiled once."""
  opened = inputs.open_encoder

  def open_once(config):
    if config.clip not in ENCODERS:
      ENCODERS[config.clip] = opened(config)
    return ENCODERS[config.clip]

  monkeypatch.setattr(inputs, "open_encoder", open_once)


def config_for(data, **changes):
  root = data[0]
  settings = {
    "job": "detect",
    "clip.model": str(root / "clip"),
    "detect.source": "coco",
    "detect.annotations": str(root / "coco.json"),
    "detect.images": str(root / "images"),
    "detect.names": str(root / "names.txt"),
    "detect.prompts": PROMPTS,
    "detect.output": True,
    "regions.source": "truth",
  }
  return small_config(**settings | changes)


def of_proposals(data, **changes):
  proposals = {"regions.source": "file", "regions.path": str(data[0] / "proposals.json")}
  return config_for(data, **proposals | changes)


def of_dump(data, **changes):
  root = data[0]
  detic = {
    "detect.annotations": str(root / "lvis.json"),
    "detect.images": "",
    "detect.names": "",
    "detect.prompts": (str(root / "classes.npy"),),
    "detect.min_score": 0.6,
    "regions.source": "file",
    "regions.path": str(root / "dump"),
    "regions.e_base": 0.0,
    "regions.e_novel": 0.0,
    "regions.objectness": True,
  }
  return config_for(data, **detic | changes)


def run(config, workdir):
  validate(config)
  detect.check(config, str(workdir))
  return detect.run(config, str(workdir))


def found_in(workdir, prompt=0):
  return json.loads((workdir / "detections" / f"{prompt}.json").read_text())


def assert_same(found, expected):
  """Rows of results in any order: image, category, box, score."""
  key = lambda row: (row["image_id"], row["category_id"], *np.round(row["bbox"], 2))
  found, expected = sorted(found, key=key), sorted(expected, key=key)
  assert [key(row)[:2] for row in found] == [key(row)[:2] for row in expected]
  for field in ("bbox", "score"):
    numbers = [[row[field] for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*numbers, atol=2e-3)


def selected(image_id, ids, boxes, scores, threshold, top):
  """torch's selection of an image's detections."""
  regions, classes = np.nonzero(scores > threshold)
  scores = torch.tensor(scores[regions, classes]).float()
  own = torch.tensor(boxes[regions]).float()
  for n in batched_nms(own, scores, torch.tensor(classes), 0.5)[:top].tolist():
    x0, y0, x1, y1 = own[n].tolist()
    if ids[classes[n]] is not None:
      row = {"image_id": image_id, "category_id": ids[classes[n]], "score": float(scores[n])}
      yield row | {"bbox": [x0, y0, x1 - x0, y1 - y0]}


def crop_scores(data, image, masks, template):
  root, model = data
  text = text_features(model, root / "clip", [template.replace("{}", name) for name in NAMES])
  pixels = np.asarray(Image.open(root / "images" / image["file_name"]))
  crops = torch.stack([crop_feature(model, root / "clip", pixels, mask) for mask in masks])
  return (load_clip(str(root / "clip")).logit_scale * crops @ text.T).softmax(-1).numpy()


def test_true_regions_are_classified_as_by_torch(data, tmp_path):
  results = run(config_for(data), tmp_path)
  value = json.loads((data[0] / "coco.json").read_text())
  id_of = {category["name"]: category["id"] for category in value["categories"]}
  ids = [id_of.get(name) for name in NAMES]
  expected, right, labels = [], [], []
  for image in value["images"]:
    rows = [r for r in value["annotations"] if r["image_id"] == image["id"] and not r["iscrowd"]]
    shapes = [
      pycoco_mask.merge(pycoco_mask.frPyObjects(r["segmentation"], image["height"], image["width"]))
      for r in rows
    ]
    masks = [pycoco_mask.decode(shape).astype(bool) for shape in shapes]
    scores = crop_scores(data, image, masks, PROMPTS[1])
    boxes = np.array([r["bbox"] for r in rows]) @ np.block(
      [[np.eye(2), np.eye(2)], [np.zeros((2, 2)), np.eye(2)]]
    )
    expected += selected(image["id"], ids, boxes, scores, 0.02, 100)
    own = [ids.index(r["category_id"]) for r in rows]
    labels += own
    right += (scores.argmax(-1) == own).tolist()
  assert_same(found_in(tmp_path, 1), expected)
  top1 = results["figures"][PROMPTS[1]]["top1"]
  of_base = np.array([GROUPS[label] == "base" for label in labels])
  assert top1["all"] == {"top1": pytest.approx(np.mean(right)), "objects": len(labels)}
  assert top1["base"] == {
    "top1": pytest.approx(np.mean(np.array(right)[of_base])), "objects": of_base.sum()
  }  # fmt: skip
  assert (tmp_path / "plots" / "detections.png").stat().st_size > 10_000
  assert "base AP50" in (tmp_path / "results.md").read_text()
  page = Page((tmp_path / "report.html").read_text())
  assert page.table("prompt", "all")[1][:2] == [PROMPTS[1], f"{100 * np.mean(right):.1f}"]
  assert len(page.images) == 1 and page.table("class", "group", *PROMPTS)


@pytest.mark.parametrize("n_images", [0, 4])
def test_figures_are_those_of_pycocotools(data, tmp_path, n_images):
  results = run(of_proposals(data, **{"detect.n_images": n_images}), tmp_path)
  assert results == RunFolder(tmp_path).read_results()
  value = json.loads((data[0] / "coco.json").read_text())
  kept = {image["id"] for image in value["images"]}
  if n_images:
    kept = {value["images"][n * 6 // n_images]["id"] for n in range(n_images)}
  for field, key in (("images", "id"), ("annotations", "image_id")):
    value[field] = [row for row in value[field] if row[key] in kept]
  for number, label in enumerate(PROMPTS):
    rows = found_in(tmp_path, number)
    assert {row["image_id"] for row in rows} <= kept
    for kind in ("box", "mask"):
      figures = results["figures"][label][kind]
      expected, precision, ids = pycoco(value, rows, kind)
      assert 0.005 < expected["AP50"]
      for name, figure in expected.items():
        assert figures[name] == pytest.approx(None if figure == -1 else figure, abs=1e-6)
      id_of = {category["name"]: category["id"] for category in value["categories"]}
      novel = [
        list(ids).index(id_of[name])
        for name, group in zip(NAMES, GROUPS, strict=True)
        if group == "novel"
      ]
      of_novel = precision[0][:, novel]
      assert figures["novel"]["AP50"] == pytest.approx(of_novel[of_novel > -1].mean(), abs=1e-6)


def test_a_dump_is_scored_as_by_detic_and_no_image_is_read(data, tmp_path, monkeypatch):
  root, _ = data
  results = run(of_dump(data), tmp_path)
  value = json.loads((root / "lvis.json").read_text())
  ids = sorted(category["id"] for category in value["categories"])
  vectors = functional.normalize(torch.tensor(np.load(root / "classes.npy")).float())
  # Detic's classifier: a background of zeros, which its inference drops.
  weight = torch.cat([vectors, torch.zeros(1, WIDTH)]).T
  expected = []
  for image in value["images"]:
    stored = np.load(root / "dump" / f"{image['id']}.npz")
    embeddings = functional.normalize(torch.tensor(stored["embeddings"]).float(), dim=-1)
    scores = (5 * embeddings @ weight).sigmoid().mean(1)[:, :-1]
    scores = (scores * torch.tensor(stored["objectness"])[:, None]) ** 0.5
    expected += selected(image["id"], ids, stored["boxes"], scores.numpy(), 0.6, 300)
  assert len(expected) > 50
  assert_same(found_in(tmp_path), expected)
  (figures,) = results["figures"].values()
  assert {"APr", "APc", "APf", "base", "novel"} <= set(figures["box"]) and "mask" not in figures
  frequencies = {category["id"]: category["frequency"] for category in value["categories"]}
  assert results["groups"] == ["novel" if frequencies[n] == "r" else "base" for n in ids]
  assert not (tmp_path / "plots" / "detections.png").exists()
  assert Page((tmp_path / "report.html").read_text()).images == []


def test_an_interrupted_run_resumes_and_a_finished_one_stays(data, tmp_path, monkeypatch):
  monkeypatch.setattr(detect, "_BLOCK", 2)
  config = config_for(data, **{"detect.images": str(data[0] / "images")})
  expected = run(config, tmp_path / "at once")
  seen, opened, fails = [], detect.open_box_set, [True]

  def spied(settings):
    boxes = opened(settings)

    def image(index):
      if fails[0] and index == 3:
        raise OSError("gone")
      seen.append(index)
      return boxes.image(index)

    return detect.BoxSet(boxes.annotations, boxes.classes, image, boxes.root)

  monkeypatch.setattr(detect, "open_box_set", spied)
  with pytest.raises(OSError, match="gone"):
    run(config, tmp_path / "two starts")
  fails[0] = False
  seen.clear()
  assert run(config, tmp_path / "two starts") == expected
  assert seen[:4] == [2, 3, 4, 5]  # then the pictures of the plot
  for name in ("plots/detections.png", "results.md", "detections/1.json"):
    paths = [tmp_path / folder / name for folder in ("at once", "two starts")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
  assert not (tmp_path / "two starts" / "progress").exists()
  seen.clear()
  assert run(config, tmp_path / "two starts") == expected and not seen


def test_two_processes_find_what_one_does(data, tmp_path):
  config = config_for(data)
  folders = [tmp_path / "first", tmp_path / "second"]
  run_in_processes([(config, folders)], tmp_path / "jobs.json")
  expected = run(config, tmp_path / "alone")
  found = json.loads((folders[0] / "results.json").read_text())
  for label in PROMPTS:
    assert found["figures"][label]["top1"] == expected["figures"][label]["top1"]
  assert_same(found_in(folders[0]), found_in(tmp_path / "alone"))
  assert not folders[1].exists()


def test_figures_of_other_prompts_are_not_used(data, tmp_path):
  run(config_for(data), tmp_path)
  other = config_for(data, **{"detect.prompts": ("{}.",)})
  assert run(other, tmp_path) == run(other, tmp_path / "new")


def test_figures_of_other_annotations_are_not_used(data, tmp_path):
  path = tmp_path / "coco.json"
  value = json.loads((data[0] / "coco.json").read_text())
  path.write_text(json.dumps(value))
  config = config_for(data, **{"detect.annotations": str(path)})
  before = run(config, tmp_path / "run")["figures"]
  for row in value["annotations"]:
    row["category_id"] = value["categories"][0]["id"]
  path.write_text(json.dumps(value))
  after = run(config, tmp_path / "run")["figures"]
  assert before != after == run(config, tmp_path / "new")["figures"]


def test_scenes_of_the_world(tmp_path):
  config = small_config(
    **{
      "job": "detect",
      "detect.n_images": 4,
      "detect.prompts": ("a photo of a {}.",),
      "regions.source": "truth",
      "regions.crop": "context",
      "regions.expand": 1.4,
    }
  )
  results = run(config, tmp_path)
  figures = results["figures"]["a photo of a {}."]
  assert len(results["classes"]) == 2400 and figures["top1"]["all"]["top1"] > 0.3
  assert figures["box"]["AP"] == figures["box"]["AP50"] > 0.5


def _bad(data, tmp_path, kind):
  """Fields that are wrong in one way, and what the message names."""
  value = json.loads((data[0] / "coco.json").read_text())
  file = tmp_path / "bad.json"
  if kind == "box":
    value["annotations"][3]["bbox"] = [160, 10, 30, 30]
  elif kind == "category":
    value["categories"][0]["name"] = "unicorn"
  elif kind == "image":
    value["images"][2]["file_name"] = file = "no.png"
  elif kind == "no mask":
    del value["annotations"][0]["segmentation"]
  elif kind == "prompt":
    file = tmp_path / "wide.npz"
    save_prompt(file, Prompt(np.zeros((2, 40), np.float32), "another", "end"))
    return {"detect.prompts": (str(file),)}, file.name
  elif kind == "matrix":
    np.save(tmp_path / "lvis.npy", np.ones((1203, 512), np.float16))
    return {"detect.prompts": (str(tmp_path / "lvis.npy"),)}, "lvis.npy"
  elif kind == "another CLIP":
    RegionWriter(tmp_path / "dump", RegionHeader("a net", "ViT-B/32", 1, 512))
    return {"regions.source": "file", "regions.path": str(tmp_path / "dump")}, "clip_model"
  elif kind == "pickle":
    writer = RegionWriter(tmp_path / "dump", RegionHeader("a net"))
    for image in value["images"]:
      writer.write(image["id"], Regions(np.zeros((1, 4), np.float32)))
    np.savez(tmp_path / "dump" / f"{value['images'][0]['id']}.npz", boxes=np.array([{}], object))
    return {"regions.source": "file", "regions.path": str(tmp_path / "dump")}, "boxes"
  elif kind == "a later region":
    rows = json.loads((data[0] / "proposals.json").read_text())
    rows[-1]["bbox"] = [0, 0, 999, 9]
    file.write_text(json.dumps(rows))
    return {"regions.source": "file", "regions.path": str(file)}, "a box"
  elif kind == "size":
    value["images"][2]["height"] += 1
    value["annotations"] = []
    file = value["images"][2]["file_name"]
  elif kind == "no folder":
    return {"detect.images": ""}, "detect.images"
  elif kind == "boxes alone":
    rows = json.loads((data[0] / "proposals.json").read_text())
    for row in rows:
      del row["segmentation"]
    file.write_text(json.dumps(rows))
    return {"regions.source": "file", "regions.path": str(file)}, "regions.crop"
  elif kind == "no regions":
    return {"regions.source": "none"}, "regions.source"
  elif kind == "no annotations":
    return {"detect.annotations": "no.json"}, "detect.annotations"
  path = tmp_path / "bad.json"
  path.write_text(json.dumps(value))
  return {"detect.annotations": str(path)}, str(file)


@pytest.mark.parametrize(
  "kind",
  ["box", "category", "image", "no mask", "prompt", "matrix", "another CLIP", "pickle"]
  + ["boxes alone", "no regions", "no annotations", "a later region", "size", "no folder"],
)
def test_bad_input_is_one_line_and_nothing_is_written(data, tmp_path, kind):
  changes, named = _bad(data, tmp_path, kind)
  with pytest.raises(InputError) as caught:
    run(config_for(data, **changes), tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_pictures_are_looked_for_before_anything_is_computed(data, tmp_path):
  """Embeddings alone need no image, but the plot does."""
  config = of_dump(data, **{"detect.images": str(tmp_path)})
  with pytest.raises(InputError, match=r"\.png: no such image"):
    run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
