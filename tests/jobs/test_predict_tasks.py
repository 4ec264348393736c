"""Tasks `segment` and `detect` of predict: against NumPy, against the jobs, and what can't work."""

import csv
import json

import numpy as np
from PIL import Image
from pycocotools import mask as pycoco_mask
import pytest
import scipy.special

from pomp_jax import inputs
from pomp_jax.config import validate
from pomp_jax.data.class_splits import read_class_split
from pomp_jax.data.images import ImageError
from pomp_jax.data.pixels import open_pixels
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.inputs.picture_regions import check_picture_regions
from pomp_jax.jobs import detect, segment, whole_pictures
from tests.support.pictures import (
  NAMES,
  open_encoders_once,
  predict_config,
  read_map,
  run_predict,
  write_network,
  write_pictures,
)
from tests.support.small_run import changed

SEGMENT, DETECT = {"predict.task": "segment"}, {"predict.task": "detect"}
NETWORK = {"propose.network": "ROOT/run", "propose.batch_size": 2}
FILE = {"regions.source": "file", "regions.path": "ROOT/regions"}
PATCHES = SEGMENT | {"segment.size": 48, "segment.window": 32, "segment.stride": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("pictures")
  write_pictures(root)
  return root


@pytest.fixture(scope="module", autouse=True)
def one_encoder_for_all():
  with pytest.MonkeyPatch.context() as patch:
    open_encoders_once(patch)
    yield


def config_of(root, *groups, **changes):
  fields = {field: value for group in groups for field, value in group.items()} | changes
  replaced = lambda value: value.replace("ROOT", str(root)) if isinstance(value, str) else value
  return predict_config(root, **{field: replaced(value) for field, value in fields.items()})


def csv_of(workdir):
  with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_label_images_are_the_argmax_of_the_networks_scores(root, tmp_path):
  """MaskFormer's rule in NumPy, from a file of regions: sum over regions of softmax * soft mask."""
  alone = {"regions.e_base": 0.0, "regions.e_novel": 0.0}
  config = config_of(root, SEGMENT, FILE, alone)
  results = run_predict(config, tmp_path)
  encoder = inputs.open_encoder(config)
  text = encoder.class_features(NAMES, "a photo of a {}.")
  rows = np.concatenate([text, np.full((1, text.shape[1]), text.shape[1] ** -0.5)])
  for number in range(5):
    with np.load(root / "regions" / f"{number}.npz") as stored:
      embeddings, masks = stored["embeddings"][:, 0].astype(np.float32), stored["masks"]
    image = Image.open(root / "images" / f"{number}.png")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = scipy.special.softmax(20.0 * unit @ rows.T, axis=1)[:, :4]
    soft = [
      np.asarray(Image.fromarray(mask.astype(np.float32)).resize(image.size, 2)) for mask in masks
    ]
    expected = np.einsum("rc,rhw->chw", scores, np.array(soft)).argmax(axis=0)
    found = read_map(tmp_path / "labels" / f"{number}.png")
    assert (found == expected).mean() > 0.999
    listed = results["images"][f"{number}.png"]
    assert [row["name"] for row in listed] == [NAMES[row["value"]] for row in listed]
    for row in listed:
      assert row["share"] == pytest.approx((found == row["value"]).mean())
    assert sum(row["share"] for row in listed) == pytest.approx(1)
  assert [row["share"] for row in csv_of(tmp_path)[:1]] == [
    str(results["images"]["0.png"][0]["share"])
  ]


def run_segment(root, config, workdir):
  """The job `segment` on the same pictures and names."""
  own = {"job": "segment", "segment.source": "folder", "segment.images": str(root / "images")}
  own |= {"segment.names": str(root / "list.txt"), "segment.prompts": ("a photo of a {}.",)}
  config = changed(config, own | {"segment.output": True})
  validate(config)
  segment.run(config, str(workdir))


def test_patches_are_those_of_the_job_segment(root, tmp_path):
  results = run_predict(config_of(root, PATCHES, **{"segment.pamr": 2}), tmp_path / "predict")
  run_segment(root, config_of(root, PATCHES, **{"segment.pamr": 2}), tmp_path / "segment")
  for number in range(5):
    found = read_map(tmp_path / "predict" / "labels" / f"{number}.png")
    expected = read_map(tmp_path / "segment" / "labels" / "0" / f"{number}.png")
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1
    for row in results["images"][f"{number}.png"]:
      assert 0.25 < row["probability"] <= 1  # the highest of four
  assert results["recipe"] == "naclip" and results["regions"] == "none"
  # The job `segment` reads the label images as truth.
  classes = read_class_split(root / "list.txt")
  pixels = open_pixels(root / "images", tmp_path / "predict" / "labels", classes)
  np.testing.assert_array_equal(pixels.labels(4), found)


JUDGE = {"regions.max_regions": 9, "detect.nms": 0.9, "detect.top": 20, "detect.min_score": 0.02}


@pytest.mark.parametrize("crop", ["masked", "context"])
def test_detections_are_those_of_the_job_detect(root, tmp_path, crop):
  """Of the same network, under the same settings; categories by their names."""
  judge = JUDGE | {"regions.crop": crop, "regions.objectness": crop == "context"}
  results = run_predict(config_of(root, DETECT, NETWORK, judge), tmp_path / "predict")
  own = {"job": "detect", "detect.source": "coco", "detect.output": True}
  own |= {"detect.annotations": str(root / "objects.json"), "detect.images": str(root / "images")}
  own |= {"detect.names": str(root / "list.txt"), "detect.prompts": ("a photo of a {}.",)}
  own |= {"regions.source": "network"}
  config = changed(config_of(root, DETECT, NETWORK, judge), own)
  validate(config)
  detect.run(config, str(tmp_path / "detect"))
  expected = json.loads((tmp_path / "detect" / "detections" / "0.json").read_text())
  found = json.loads((tmp_path / "predict" / "detections.json").read_text())
  assert len(found) == len(expected) > 5
  assert len({tuple(row["bbox"]) for row in found}) > 1
  categories = json.loads((root / "objects.json").read_text())["categories"]
  name_of = {category["id"]: category["name"] for category in categories}
  for one, other in zip(found, expected, strict=True):
    assert one["image_id"] == other["image_id"] and one["file"] == f"{one['image_id']}.png"
    assert one["name"] == name_of[other["category_id"]] == NAMES[one["category_id"] - 1]
    assert one["segmentation"] == other["segmentation"]
    np.testing.assert_allclose(one["bbox"], other["bbox"])
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-4)
  listed = [row for rows in results["images"].values() for row in rows]
  assert [row["score"] for row in listed] == [row["score"] for row in found]
  assert [list(row.values())[2:] for row in listed] == [row["bbox"] for row in found]
  assert [row["name"] for row in csv_of(tmp_path / "predict")] == [row["name"] for row in found]


def test_a_networks_label_images_are_those_of_the_job_segment(root, tmp_path):
  judge = {"regions.objectness": True, "regions.crop": "context"}
  config = config_of(root, SEGMENT, NETWORK, judge)
  run_predict(config, tmp_path / "predict")
  run_segment(root, changed(config, {"regions.source": "network"}), tmp_path / "segment")
  for file in sorted((tmp_path / "predict" / "labels").iterdir()):
    found, expected = read_map(file), read_map(tmp_path / "segment/labels/0" / file.name)
    np.testing.assert_array_equal(found, expected)


def test_a_large_picture_is_reduced_for_the_network(root, tmp_path, monkeypatch):
  """Results are in its own pixels, near those of the picture that was reduced beforehand."""
  (tmp_path / "large").mkdir()
  small = Image.open(root / "images" / "0.png").resize((64, 48), Image.Resampling.BICUBIC)
  small.save(tmp_path / "small.png")
  Image.fromarray(np.kron(np.asarray(small), np.ones((2, 2, 1), np.uint8))).save(
    tmp_path / "large.png"
  )
  monkeypatch.setattr(whole_pictures, "_MAX_PIXELS", 64 * 48)
  found = {}
  for name in ("small", "large"):
    for task in (SEGMENT, DETECT):
      own = {"predict.images": str(tmp_path / f"{name}.png"), "detect.top": 5}
      run_predict(config_of(root, task, NETWORK, own), tmp_path / (name + task["predict.task"]))
    labels = read_map(tmp_path / f"{name}segment" / "labels" / f"{name}.png")
    found[name] = labels, json.loads((tmp_path / f"{name}detect/detections.json").read_text())
  assert found["large"][0].shape == (96, 128)
  assert (found["large"][0][::2, ::2] == found["small"][0]).mean() > 0.8
  for row in found["large"][1]:
    assert row["segmentation"]["size"] == [96, 128]
    mask = pycoco_mask.decode(row["segmentation"])
    x, y, width, height = row["bbox"]
    np.testing.assert_allclose(
      pycoco_mask.toBbox(pycoco_mask.encode(np.asfortranarray(mask))),
      [x, y, width, height],
      atol=2,
    )


def test_colours_of_label_images_and_names_of_files(root, tmp_path):
  """Colours of the picture in the palette; equal stems keep suffixes; 16 bits of 304 names."""
  images = tmp_path / "images"
  (images / "more").mkdir(parents=True)
  pixels = Image.open(root / "images" / "0.png")
  for name in ("a.png", "a.bmp", "more/b.png"):
    pixels.save(images / name)
  (images / "broken.png").write_bytes(b"no image")
  config = config_of(root, PATCHES, **{"predict.images": str(images)})
  results = run_predict(config, tmp_path / "run")
  assert list(results["unreadable"]) == ["broken.png"]
  found = {
    str(f.relative_to(tmp_path / "run/labels")) for f in (tmp_path / "run").rglob("labels/**/*.png")
  }
  assert found == {"a.png.png", "a.bmp.png", "more/b.png.png"}
  image = Image.open(tmp_path / "run/labels/a.png.png")
  first = results["images"]["a.png"][0]["value"]
  assert image.mode == "P" and image.getpalette()[3 * first : 3 * first + 3] == [0, 0x72, 0xB2]
  assert image.getpalette()[-3:] == [255] * 3
  assert Image.open(tmp_path / "run/pictures/more/b.png.png").width > 600
  (tmp_path / "many.txt").write_text("\n".join([*(f"thing {i}" for i in range(300)), *NAMES]))
  config = changed(config, {"predict.names": str(tmp_path / "many.txt")})
  results = run_predict(config, tmp_path / "many")
  labels = read_map(tmp_path / "many/labels/more/b.png.png")
  assert {row["value"] for row in results["images"]["more/b.png"]} == set(
    np.unique(labels).tolist()
  )
  assert Image.open(tmp_path / "many/labels/more/b.png.png").mode.startswith("I")


def test_numbers_of_pictures_that_have_other_names(root, tmp_path):
  (tmp_path / "images").mkdir()
  for name in ("b.png", "7.png"):
    Image.open(root / "images" / "0.png").save(tmp_path / "images" / name)
  own = {"predict.images": str(tmp_path / "images"), "detect.top": 2}
  run_predict(config_of(root, DETECT, NETWORK, own), tmp_path / "run")
  rows = json.loads((tmp_path / "run" / "detections.json").read_text())
  assert {(row["image_id"], row["file"]) for row in rows} == {(1, "7.png"), (2, "b.png")}


def _bad(root, tmp_path, kind):
  """Fields that are wrong in one way, and what the message names."""
  if kind == "no network":
    return DETECT, "propose.network"
  if kind == "no such network":
    return SEGMENT | {"propose.network": str(tmp_path / "none")}, "propose.network"
  if kind == "no masks.pth":
    return DETECT | {"propose.network": str(root / "clip")}, "masks.pth"
  if kind == "two origins":
    return DETECT | NETWORK | FILE, "propose.network"
  if kind == "truth":
    return SEGMENT | {"regions.source": "truth"}, "regions.source"
  if kind == "alone":
    return SEGMENT | FILE | {"regions.alone": True}, "regions.alone"
  if kind == "width":
    write_network(tmp_path / "wide.pth", 0, embedding=32)
    return DETECT | {"propose.network": str(tmp_path / "wide.pth")}, "clip.model"
  if kind == "prompt":
    save_prompt(tmp_path / "wide.npz", Prompt(np.zeros((2, 40), np.float32), "another", "end"))
    return PATCHES | {"predict.prompt": str(tmp_path / "wide.npz")}, "wide.npz"
  if kind == "the network's prompt":
    return SEGMENT | NETWORK | {"propose.prompt": "no braces"}, "propose.prompt"
  if kind == "names":
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    return PATCHES | {"predict.names": str(tmp_path / "twice.txt")}, "twice.txt"
  if kind == "a long name":
    (tmp_path / "long.txt").write_text("cat\n" + "very " * 90)
    return SEGMENT | NETWORK | {"predict.names": str(tmp_path / "long.txt")}, "very"
  if kind == "window":
    return PATCHES | {"segment.window": 3}, "segment.window"
  if kind == "background":
    return PATCHES | {"segment.background_below": 0.5}, "segment.background_below"
  boxes = [{"image_id": 3, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]
  if kind == "other pictures":
    boxes[0]["image_id"] = 99
  (tmp_path / "boxes.json").write_text(json.dumps(boxes))
  fields = {"regions.source": "file", "regions.path": str(tmp_path / "boxes.json")}
  if kind == "pixels of boxes":
    return SEGMENT | fields, "regions.path"
  return DETECT | fields, {"masks of boxes": "regions.crop"}.get(kind, "boxes.json")


@pytest.mark.parametrize(
  "kind",
  ["no network", "no such network", "no masks.pth", "two origins", "truth", "alone", "width"]
  + ["prompt", "the network's prompt", "names", "a long name", "window", "background"]
  + ["other pictures", "pixels of boxes", "masks of boxes"],
)
def test_bad_input_is_one_line_and_nothing_is_written(root, tmp_path, kind):
  changes, named = _bad(root, tmp_path, kind)
  with pytest.raises(InputError) as caught:
    run_predict(config_of(root, changes), tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_pictures_of_one_stem_have_no_regions_in_a_file(root):
  config = config_of(root, DETECT, FILE)
  files = {"a/3.png": root / "3.png", "b/3.jpg": root / "3.jpg"}
  with pytest.raises(ImageError, match=r"3\.jpg: has the stem of a/3\.png"):
    check_picture_regions(config, files)


def test_boxes_of_a_file_without_masks(root, tmp_path):
  """COCO results of a detector, crops with context; the picture without any has no row."""
  boxes = [{"image_id": 3, "category_id": 1, "bbox": [4, 3, 19, 29], "score": 0.5}]
  (tmp_path / "boxes.json").write_text(json.dumps(boxes))
  fields = {"regions.source": "file", "regions.path": str(tmp_path / "boxes.json")}
  config = config_of(root, DETECT, fields, **{"regions.crop": "context"})
  results = run_predict(config, tmp_path / "run")
  assert [len(rows) for rows in results["images"].values()] == [0, 0, 0, 4, 0]
  rows = json.loads((tmp_path / "run" / "detections.json").read_text())
  assert all(row["bbox"] == [4, 3, 19, 29] and "segmentation" not in row for row in rows)
  assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-4)
