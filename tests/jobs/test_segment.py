"""The segment job: label maps and figures against torch and torchmetrics, resumption, bad input."""

import shutil

import numpy as np
from PIL import Image
import pytest
import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex

from pomp_jax import inputs
from pomp_jax.clip import load_clip
from pomp_jax.config import validate
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.inputs import region_scorer
from pomp_jax.jobs import segment
from pomp_jax.regions.files import RegionHeader, Regions, RegionWriter
from tests.support.clips import write_random_clip
from tests.support.pixel_sets import SIZES, TEXTS, segment_config, write_pixel_set
from tests.support.processes import run_in_processes
from tests.support.region_oracle import crop_feature, text_features
from tests.support.report_page import Page
from tests.support.small_run import small_config

PROMPTS = ("a photo of a {}.", "{}!")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Folder of a random CLIP and of images, labels, names and regions; the CLIP in torch."""
  root = tmp_path_factory.mktemp("segment")
  model = write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  return root, model


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


def config_for(data, **changes):
  return segment_config(data[0], **changes)


def run(config, workdir):
  segment.check(config, str(workdir))
  return segment.run(config, str(workdir))


def maps_of(workdir, prompt=0, n_classes=4):
  files = sorted((workdir / "labels" / str(prompt)).glob("*.png"))
  maps = [np.asarray(Image.open(file)).astype(int) for file in files]
  return [np.where(labels < n_classes, labels, -1) for labels in maps]


def truth_of(data):
  files = sorted((data[0] / "labels").glob("*.png"))
  return [np.asarray(Image.open(file)).astype(int) for file in files]


def images_of(data):
  files = sorted((data[0] / "images").glob("*.png"))
  return [np.asarray(Image.open(file)) for file in files]


def torch_text(data, template):
  root, model = data
  texts = [template.replace("{}", name) for names in TEXTS for name in names]
  return text_features(model, root / "clip", texts)


def torch_crop(data, image, mask):
  root, model = data
  return crop_feature(model, root / "clip", image, mask)


def over_names(scores):
  parts = scores.split([len(names) for names in TEXTS], -1)
  return torch.stack([part.amax(-1) for part in parts], -1)


def test_true_regions_get_the_class_of_their_crop(data, tmp_path):
  run(config_for(data), tmp_path)
  text = torch_text(data, PROMPTS[1])
  for image, labels, found in zip(
    images_of(data), truth_of(data), maps_of(tmp_path, 1), strict=True
  ):
    expected = np.full(labels.shape, -1)
    for label in set(np.unique(labels)) - {255}:
      mask = labels == label
      expected[mask] = int(over_names(text @ torch_crop(data, image, mask)).argmax())
    np.testing.assert_array_equal(found, expected)


def test_regions_of_a_file_are_fused_as_zsseg_does(data, tmp_path):
  config = config_for(data, **{"regions.source": "file", "regions.mask_threshold": 0.45})
  run(config, tmp_path)
  root, _ = data
  text = torch_text(data, PROMPTS[0])
  scale = load_clip(str(root / "clip")).logit_scale
  null = functional.normalize(torch.ones(1, 24))
  exponents = torch.tensor([0.8, 0.2, 0.8, 0.8])  # the file: trained on the sky alone
  right = total = 0
  for number, (image, found) in enumerate(zip(images_of(data), maps_of(tmp_path), strict=True)):
    stored = np.load(root / "regions" / f"{number}.npz")
    rows = functional.normalize(torch.tensor(stored["embeddings"][:, 0]).float())
    net = over_names((20 * rows @ torch.cat([text, null]).T).softmax(-1)[:, :-1])
    masks = torch.tensor(stored["masks"][None] / 255).float()
    masks = functional.interpolate(masks, image.shape[:2], mode="bilinear")[0]
    clip = torch.ones_like(net)
    for region, mask in enumerate(masks > 0.45):
      if mask.any():
        cosines = text @ torch_crop(data, image, mask.numpy())
        clip[region] = over_names((scale * cosines).softmax(-1))
    fused = net ** (1 - exponents) * clip**exponents
    expected = torch.einsum("qc,qhw->hwc", fused, masks).argmax(-1)
    right, total = right + int((expected.numpy() == found).sum()), total + found.size
  assert right > 0.999 * total


def test_figures_are_those_of_the_label_images(data, tmp_path):
  results = run(config_for(data), tmp_path)
  assert results == RunFolder(tmp_path).read_results()
  truth = np.concatenate([labels.ravel() for labels in truth_of(data)])
  for number, label in enumerate(PROMPTS):
    predicted = np.concatenate([found.ravel() for found in maps_of(tmp_path, number)])
    kept = truth != 255
    metric = MulticlassJaccardIndex(4, average="none")
    iou = metric(torch.tensor(predicted[kept]), torch.tensor(truth[kept])).numpy()
    figures = results["figures"][label]
    np.testing.assert_allclose(figures["per_class"]["iou"], iou, atol=1e-6)
    base, novel = iou[:2].mean(), iou[2:].mean()
    np.testing.assert_allclose(figures["mIoU_plain"], iou.mean(), atol=1e-6)
    np.testing.assert_allclose(figures["hIoU_plain"], 2 * base * novel / (base + novel), atol=1e-6)
    np.testing.assert_allclose(figures["pACC"], (predicted == truth)[kept].mean(), atol=1e-6)
  assert (
    results["images"] == 5 and results["pixels"] == np.bincount(truth, minlength=256)[:4].tolist()
  )
  assert "hIoU" in (tmp_path / "results.md").read_text()
  page = Page((tmp_path / "report.html").read_text())
  shown = {row[0]: row[1] for row in page.table("prompt", "hIoU")}
  assert shown == {label: f"{100 * results['figures'][label]['hIoU']:.1f}" for label in PROMPTS}
  assert len(page.images) == 1 and page.table("class", "group", "pixels", *PROMPTS)
  assert (tmp_path / "plots" / "segmentation.png").stat().st_size > 10_000


def test_an_interrupted_run_resumes_and_a_finished_one_stays(data, tmp_path, monkeypatch):
  monkeypatch.setattr(segment, "_BLOCK", 2)
  config = config_for(data, **{"segment.output": False})
  expected = run(config, tmp_path / "at once")
  seen, opened = [], segment.open_pixel_set

  def spied(settings, fails):
    pixels = opened(settings)

    def image(index, decode=pixels.image):
      if fails and index == 3:
        raise OSError("gone")
      seen.append(index)
      return decode(index)

    pixels.image = image
    return pixels

  monkeypatch.setattr(segment, "open_pixel_set", lambda settings: spied(settings, True))
  with pytest.raises(OSError, match="gone"):
    run(config, tmp_path / "two starts")
  monkeypatch.setattr(segment, "open_pixel_set", lambda settings: spied(settings, False))
  seen.clear()
  assert run(config, tmp_path / "two starts") == expected
  assert seen[:3] == [2, 3, 4]  # then the pictures of the plot
  plot = tmp_path / "two starts" / "plots" / "segmentation.png"
  at_once = tmp_path / "at once" / "plots" / "segmentation.png"
  assert plot.read_bytes() == at_once.read_bytes()
  before = plot.stat().st_mtime_ns
  seen.clear()
  assert run(config, tmp_path / "two starts") == expected
  assert not seen and plot.stat().st_mtime_ns == before


def test_two_processes_find_what_one_does(data, tmp_path):
  patches = {"regions.source": "none", "segment.size": 48, "segment.window": 32}
  configs = [config_for(data), config_for(data, **patches, **{"segment.stride": 16})]
  folders = [[tmp_path / f"{kind}{process}" for process in (0, 1)] for kind in ("r", "p")]
  run_in_processes(list(zip(configs, folders, strict=True)), tmp_path / "jobs.json")
  for config, (first, second) in zip(configs, folders, strict=True):
    expected = run(config, tmp_path / f"{first.name} alone")
    found = RunFolder(first).read_results()
    assert found == expected and not second.exists()


def test_counts_of_other_prompts_are_not_used(data, tmp_path):
  run(config_for(data), tmp_path)
  found = run(config_for(data, **{"segment.prompts": ("{}.",)}), tmp_path)
  assert found == run(config_for(data, **{"segment.prompts": ("{}.",)}), tmp_path / "new")


def test_counts_of_other_files_are_not_used(data, tmp_path):
  """A label image or a file of regions that changes in its place."""
  root = tmp_path / "copy"
  for name in ("labels", "regions"):
    shutil.copytree(data[0] / name, root / name)
  folders = {"segment.labels": str(root / "labels"), "regions.path": str(root / "regions")}
  config = config_for(data, **{"regions.source": "file"} | folders)
  results = [run(config, tmp_path / "run")]
  labels = Image.fromarray(np.zeros(SIZES[1], np.uint8))
  labels.save(root / "labels" / "1.png")
  results.append(run(config, tmp_path / "run"))
  stored = np.load(root / "regions" / "0.npz")
  np.savez(root / "regions" / "0.npz", **{name: stored[name][:0] for name in stored})
  results.append(run(config, tmp_path / "run"))
  assert results[0]["pixels"] != results[1]["pixels"] == results[2]["pixels"]
  assert results[1] != results[2] == run(config, tmp_path / "new")


def test_masks_of_few_images_in_memory_change_nothing(data, tmp_path, monkeypatch):
  config = config_for(data, **{"regions.source": "file"})
  run(config, tmp_path / "together")
  monkeypatch.setattr(region_scorer, "_MASK_BYTES", 1)
  run(config, tmp_path / "one by one")
  for one, two in zip(*(maps_of(tmp_path / n) for n in ("together", "one by one")), strict=True):
    np.testing.assert_array_equal(one, two)


def test_a_damaged_progress_file_is_replaced(data, tmp_path):
  expected = run(config_for(data), tmp_path)
  (tmp_path / "progress.npz").write_bytes(b"PK")
  assert run(config_for(data), tmp_path) == expected


def test_images_without_labels_get_label_images_alone(data, tmp_path):
  config = config_for(data, **{"segment.labels": "", "regions.source": "file"})
  results = run(config, tmp_path)
  assert results["figures"][PROMPTS[0]]["mIoU"] is None
  beside = run(config_for(data, **{"regions.source": "file"}), tmp_path / "labelled")
  assert beside["figures"][PROMPTS[0]]["mIoU"] is not None
  for one, two in zip(maps_of(tmp_path), maps_of(tmp_path / "labelled"), strict=True):
    np.testing.assert_array_equal(one, two)


def test_a_background_excludes_ids_without_it(data):
  """Its value is 0, which `reduce_zero_label` ignores: all classes would be one too low."""
  fields = {"segment.background": ("ground",), "segment.label_values": "reduce_zero_label"}
  with pytest.raises(InputError, match=r"segment\.label_values"):
    validate(config_for(data, **fields))


def test_scenes_of_the_world(tmp_path):
  config = small_config(
    **{
      "job": "segment",
      "segment.n_images": 3,
      "segment.prompts": ("a photo of a {}.",),
      "regions.source": "truth",
      "regions.crop": "context",
      "regions.expand": 1.4,
    }
  )
  results = run(config, tmp_path)
  figures = results["figures"]["a photo of a {}."]
  assert len(results["classes"]) == 2400 and 0.2 < figures["pACC"] <= 1
  assert figures["base"]["classes"] == 1800 and figures["novel"]["classes"] == 600
  # Beyond 255 classes label images have 16 bits.
  (first, *_) = (tmp_path / "labels" / "0").glob("*.png")
  assert np.asarray(Image.open(first)).max() == 2**16 - 1


def _bad(data, tmp_path, kind):
  """Fields that are wrong in one way."""
  root = data[0]
  folder = tmp_path / "labels"
  folder.mkdir()
  file = folder / "0.png"
  if kind == "size":
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(file)
  elif kind == "id":
    Image.fromarray(np.full(SIZES[0], 4, np.uint8)).save(file)
  elif kind == "partner":
    file = folder / "9.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(file)
  elif kind == "prompt":
    file = tmp_path / "wide.npz"
    save_prompt(file, Prompt(np.zeros((2, 40), np.float32), "another", "end"))
    return {"segment.prompts": (str(file),)}, file.name
  elif kind == "matrix":
    file = tmp_path / "lvis.npy"
    np.save(file, np.ones((1203, 512), np.float16))
    return {"segment.prompts": (str(file),)}, file.name
  elif kind == "regions":
    header = RegionHeader("a net", "ViT-B/32", 1, 512)
    writer = RegionWriter(tmp_path / "regions", header)
    regions = Regions(np.zeros((1, 4), np.float32), None, None, np.ones((1, 1, 512), np.float16))
    for number in range(len(SIZES)):
      writer.write(str(number), regions)
    file = {"regions.source": "file", "regions.path": str(tmp_path / "regions")}
    return file, "clip_model"
  elif kind == "no regions":
    RegionWriter(tmp_path / "regions", RegionHeader("a net"))
    return {"regions.source": "file", "regions.path": str(tmp_path / "regions")}, "0.npz"
  elif kind in ("a later box", "a later image without masks"):
    shutil.copytree(root / "regions", tmp_path / "regions")
    stored = dict(np.load(tmp_path / "regions" / "3.npz"))
    if kind == "a later box":
      stored["boxes"] = stored["boxes"] + 50
    else:
      del stored["masks"]
    np.savez(tmp_path / "regions" / "3.npz", **stored)
    named = "3.npz: a box" if kind == "a later box" else "regions.path"
    return {"regions.source": "file", "regions.path": str(tmp_path / "regions")}, named
  elif kind == "names":
    return {"segment.names": "coco_stufff"}, "coco_stufff"
  assert root.exists()
  return {"segment.labels": str(folder)}, file.name


@pytest.mark.parametrize(
  "kind",
  ["size", "id", "partner", "prompt", "matrix", "regions", "no regions", "names", "a later box"]
  + ["a later image without masks"],
)
def test_bad_input_is_one_line_and_nothing_is_written(data, tmp_path, kind):
  changes, named = _bad(data, tmp_path, kind)
  config = config_for(data, **changes)
  with pytest.raises(InputError) as caught:
    run(config, tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()
