"""Tasks `segment` and `detect` of predict: against NumPy, against the jobs, and what
can't work."""

import csv
import json
import shutil

import numpy as np
from PIL import Image
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax.data.images import ImageError
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.regions import predict_tasks
from tests.rooms.regions.region_jobs import in_place, write_network, write_region_set
from tests.support.small_run import changed, run_job, small_config

NAMES = ("the cat", "sky", "star", "house")

SEGMENT, DETECT = {"predict.task": "segment"}, {"predict.task": "detect"}
NETWORK = {"propose.network": "ROOT/run", "propose.batch_size": 2}
FILE = {"regions.source": "file", "regions.path": "ROOT/regions"}
PATCHES = SEGMENT | {"segment.size": 48, "segment.window": 32, "segment.stride": 16}

# What both runs of a comparison have, and other values of the fields that both read.
COMPARED = {
  "patches": (
    PATCHES,
    "segment.recipe=clip, segment.size=64, segment.window=16, segment.stride=8, segment.pamr=2,"
    " segment.logit_scale=30, segment.background=ground;earth, segment.background_below=0.3,"
    " predict.prompt=the {}",
  ),
  "pixels of a file": (
    SEGMENT | FILE,
    "regions.max_regions=4, regions.mask_threshold=0.3, regions.e_base=0.8, regions.e_novel=0.3,"
    " segment.logit_scale=10",
  ),
  "objects of a file": (
    DETECT | FILE,
    "regions.path=ROOT/other/regions, regions.mask_threshold=0.8, regions.size=24,"
    " regions.null=gate, regions.objectness=True, detect.logit_scale=5, detect.top=3",
  ),
  "pixels of a network": (
    SEGMENT | NETWORK,
    "propose.stride=1, regions.objectness=True, regions.crop=context, segment.logit_scale=100",
  ),
  "objects of a network": (
    DETECT | {"propose.network": "ROOT/other.pth"},
    "propose.network=ROOT/run, propose.prompt=the {}!, propose.size=64, regions.objectness=True,"
    " regions.crop=context, regions.expand=1.7, detect.nms=0.9, detect.min_score=0.01",
  ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A region set with a list of names and another network; two pictures with
  annotations."""
  root = tmp_path_factory.mktemp("pictures")
  write_region_set(root)
  (root / "list.txt").write_text("\n".join(NAMES))
  (root / "run").mkdir()
  write_network(root / "run" / "masks.safetensors", 1, context=None, n_queries=12)
  (root / "two").mkdir()
  for name in ("0.png", "3.png"):
    shutil.copy(root / "images" / name, root / "two" / name)
  objects = json.loads((root / "objects.json").read_text())
  for field, number in (("images", "id"), ("annotations", "image_id")):
    objects[field] = [row for row in objects[field] if row[number] in (0, 3)]
  (root / "two.json").write_text(json.dumps(objects))
  return root


def config_of(root, *groups, here=None, **changes):
  fields = {
    "job": "predict",
    "clip.model": "ROOT/clip",
    "predict.images": "ROOT/images",
    "predict.names": "ROOT/list.txt",
    "predict.prompt": "a photo of a {}.",
    "detect.min_score": 0.0,
  }
  for group in (*groups, changes):
    fields |= group
  return small_config(
    **{f: in_place(root, value, HERE=here) for f, value in fields.items()}
  )


def read_map(path):
  return np.asarray(Image.open(path))


def csv_of(workdir):
  with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def of_job(root, fields, workdir):
  """Label images and detections of the job `segment` or `detect` with these fields."""
  config = config_of(root, fields)
  task, own = (
    config.predict.task,
    {"images": "ROOT/two", "names": "ROOT/list.txt", "output": True},
  )
  own |= {
    "prompts": (config.predict.prompt,),
    "source": "folder" if task == "segment" else "coco",
  }
  own |= {"annotations": "ROOT/two.json"} if task == "detect" else {}
  own = {"job": task} | {f"{task}.{field}": value for field, value in own.items()}
  if "propose.network" in fields:
    own["regions.source"] = "network"
  config = config_of(root, fields, own)
  run_job(config, workdir)
  if task == "segment":
    return [
      read_map(file).tolist() for file in sorted((workdir / "labels/0").iterdir())
    ], None
  return [], json.loads((workdir / "detections/0.json").read_text())


@pytest.mark.parametrize("kind", COMPARED)
def test_fields_do_what_they_do_in_the_jobs(root, tmp_path, kind):
  """Of the same regions or patches; `test_region_fields` holds what each field does
  there."""
  usual, others = COMPARED[kind]
  fields = usual | dict(item.split("=") for item in others.split(", "))
  config = config_of(root, {"predict.images": "ROOT/two"}, fields)
  results = run_job(config, tmp_path / "run")
  file = tmp_path / "run" / "detections.json"
  maps = [read_map(file).tolist() for file in sorted(tmp_path.glob("run/labels/*.png"))]
  found = json.loads(file.read_text()) if file.exists() else None
  expected_maps, expected = of_job(root, fields, tmp_path / "job")
  assert maps == expected_maps
  if found is None:
    assert any(len(np.unique(one)) > 1 for one in maps)
    for labels, listed in zip(maps, results["images"].values(), strict=True):
      shares = {row["value"]: row["share"] for row in listed}
      assert shares == {
        value: np.mean(np.equal(labels, value)) for value in np.unique(labels)
      }
    return
  assert len(found) == len(expected) > 5
  # Those of the file are of whole pictures.
  assert (len({tuple(row["bbox"]) for row in found}) > 1) == (
    kind == "objects of a network"
  )
  categories = json.loads((root / "two.json").read_text())["categories"]
  name_of = {category["id"]: category["name"] for category in categories}
  for one, other in zip(found, expected, strict=True):
    assert (
      one["image_id"] == other["image_id"] and one["file"] == f"{one['image_id']}.png"
    )
    assert one["name"] == name_of[other["category_id"]] == NAMES[one["category_id"] - 1]
    assert one["segmentation"] == other["segmentation"]
    np.testing.assert_allclose(one["bbox"], other["bbox"])
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-4)


def test_a_large_picture_is_reduced_for_the_network(root, tmp_path, monkeypatch):
  """Results are in its own pixels, near those of the picture that was reduced
  beforehand."""
  small = Image.open(root / "images" / "4.png").resize(
    (64, 48), Image.Resampling.BICUBIC
  )
  small.save(tmp_path / "small.png")
  Image.fromarray(np.kron(np.asarray(small), np.ones((2, 2, 1), np.uint8))).save(
    tmp_path / "large.png"
  )
  monkeypatch.setattr(predict_tasks, "_MAX_PIXELS", 64 * 48)
  found = {}
  own = {"segment.logit_scale": 100.0, "regions.crop": "context"}
  for name in ("small", "large"):
    config = config_of(
      root, SEGMENT, NETWORK, own, {"predict.images": f"{tmp_path}/{name}.png"}
    )
    run_job(config, tmp_path / name)
    found[name] = read_map(tmp_path / name / "labels" / f"{name}.png")
  assert found["large"].shape == (96, 128)
  assert len(np.unique(found["small"])) > 1
  assert (found["large"][::2, ::2] == found["small"]).mean() > 0.8
  config = config_of(
    root, DETECT, NETWORK, own, {"predict.images": f"{tmp_path}/large.png"}
  )
  run_job(config, tmp_path / "objects")
  for row in json.loads((tmp_path / "objects/detections.json").read_text()):
    assert row["segmentation"]["size"] == [96, 128]
    mask = pycoco_mask.decode(row["segmentation"])
    box = pycoco_mask.toBbox(pycoco_mask.encode(np.asfortranarray(mask)))
    np.testing.assert_allclose(box, row["bbox"], atol=2)


def test_names_of_label_images_and_of_many_classes(root, tmp_path):
  """Equal stems keep suffixes; 16 bits of 304 names."""
  images = tmp_path / "images"
  (images / "more").mkdir(parents=True)
  pixels = Image.open(root / "images" / "0.png")
  for name in ("a.png", "a.bmp", "more/b.png"):
    pixels.save(images / name)
  (images / "broken.png").write_bytes(b"no image")
  config = config_of(root, PATCHES, **{"predict.images": str(images)})
  results = run_job(config, tmp_path / "run")
  assert list(results["unreadable"]) == ["broken.png"]
  labels = tmp_path / "run/labels"
  found = {str(file.relative_to(labels)) for file in labels.rglob("*.png")}
  assert found == {"a.png.png", "a.bmp.png", "more/b.png.png"}
  (tmp_path / "many.txt").write_text(
    "\n".join([*(f"thing {i}" for i in range(300)), *NAMES])
  )
  results = run_job(
    changed(config, {"predict.names": f"{tmp_path}/many.txt"}), tmp_path / "16"
  )
  values = {row["value"] for row in results["images"]["more/b.png"]}
  assert values == set(np.unique(read_map(tmp_path / "16/labels/more/b.png.png")))
  assert Image.open(tmp_path / "16/labels/more/b.png.png").mode.startswith("I")


WIDE = Prompt(np.zeros((2, 40), np.float32), "another", "end")
BOXES = {"regions.source": "file", "regions.path": "HERE/boxes.json"}
# What is wrong: the fields, and what the message names.
BAD = {
  "prompt": (PATCHES | {"predict.prompt": "HERE/wide.npz"}, "wide.npz"),
  "a long name": (SEGMENT | NETWORK | {"predict.names": "HERE/long.txt"}, "very"),
  "window": (PATCHES | {"segment.window": 3}, "segment.window"),
  "background": (
    PATCHES | {"segment.background_below": 0.5},
    "segment.background_below",
  ),
  "other pictures": (
    DETECT | BOXES | {"regions.path": "HERE/other.json"},
    "other.json",
  ),
  "pixels of boxes": (SEGMENT | BOXES, "regions.path"),
}


@pytest.fixture(scope="module")
def bad_files(root, tmp_path_factory):
  """The folder HERE."""
  folder = tmp_path_factory.mktemp("bad")
  save_prompt(folder / "wide.npz", WIDE)
  (folder / "long.txt").write_text("cat\n" + "very " * 90)
  for name, number in (("boxes", 3), ("other", 99)):
    box = {"image_id": number, "category_id": 1, "bbox": [4, 3, 19, 29], "score": 0.5}
    (folder / f"{name}.json").write_text(json.dumps([box]))
  return folder


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(root, bad_files, tmp_path, kind):
  fields, named = BAD[kind]
  config = config_of(root, fields, here=bad_files)
  with pytest.raises(InputError) as caught:
    run_job(config, tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_pictures_of_one_stem_have_no_regions_in_a_file(root):
  files = {"a/3.png": root / "3.png", "b/3.jpg": root / "3.jpg"}
  with pytest.raises(ImageError, match=r"3\.jpg: has the stem of a/3\.png"):
    predict_tasks.sized_images(files, upright=False)


def test_boxes_of_a_file_without_masks(root, bad_files, tmp_path):
  """COCO results of a detector, crops with context; the picture without any has no
  row."""
  config = config_of(root, DETECT, BOXES, {"regions.crop": "context"}, here=bad_files)
  results = run_job(config, tmp_path / "run")
  assert [len(rows) for rows in results["images"].values()] == [0, 0, 0, 4, 0]
  rows = json.loads((tmp_path / "run" / "detections.json").read_text())
  assert all(
    row["bbox"] == [4, 3, 19, 29] and "segmentation" not in row for row in rows
  )
  assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-4)
  assert [row["name"] for row in csv_of(tmp_path / "run")] == [
    row["name"] for row in rows
  ]
