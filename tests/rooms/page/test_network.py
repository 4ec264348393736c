"""Objects and label maps on the page by a network's regions, beside what `predict`
scores."""

import re
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.rooms.page import page as job
from pomp_jax.rooms.page import server
from pomp_jax.rooms.page.comparison import Comparison
from pomp_jax.rooms.page.fields import Page
from pomp_jax.rooms.page.form import Example
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions import on_page as module
from pomp_jax.rooms.regions.class_matrix import class_matrix
from pomp_jax.rooms.regions.class_splits import undivided
from pomp_jax.rooms.regions.detections import MAX_DETECTIONS, detections_of
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.on_page import RegionsOfPictures
from pomp_jax.rooms.regions.region_scorer import RegionScorer
from pomp_jax.rooms.regions.region_sources import Images, open_region_source
from tests.rooms.regions.region_jobs import write_network
from tests.support.small_run import changed, settings

NAMES = ("red star", "blue ring", "green cross")
PROMPTS = ("a photo of a {}.", "{}.")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  """Config, comparison with a random network, and a scene."""
  root = tmp_path_factory.mktemp("network")
  write_network(root / "masks.safetensors", 3, embedding=128, context=None)
  config = settings(
    job="page",
    **{
      "page.prompts": ";".join(PROMPTS),
      "propose.network": str(root / "masks.safetensors"),
    },
    **{
      "regions.crop": "context",
      "regions.objectness": True,
      "regions.mask_threshold": 0.4,
    },
    **{"detect.min_score": 0.01},
  )
  job.check(config, str(root / "run"))
  encoder = opening.open_encoder(config.clip)
  prompts = read_prompts(config.page.prompts, "page.prompts")
  comparison = Comparison(
    encoder, prompts, 5, RegionsOfPictures(encoder, config.clip, config.page)
  )
  return config, comparison, job._scenes()[0].image


def scored(case):
  """Regions and scores as `predict` has them, under each prompt."""
  config, comparison, image = case
  classes = undivided(NAMES)
  config, pixels = changed(config, {"regions.source": "network"}), np.asarray(image)
  images = Images(["it"], lambda row: pixels.shape[:2], lambda row: pixels)
  for named in comparison.prompts:
    encoder = comparison._encoder
    matrix = class_matrix(encoder, classes.synonyms, named)
    source = open_region_source(
      config.page.of(fields.Regions),
      config.page.of(fields.Propose),
      config.clip,
      encoder,
      images,
    )
    scorer = RegionScorer(
      config.page.of(fields.Regions),
      source,
      encoder,
      classes,
      [matrix],
      logit_scale=0.0,
    )
    [(_, found)] = scorer.scored([0])
    yield found.regions, found.scores[0]


def test_objects_are_those_of_predict(case):
  config, comparison, image = case
  picture, objects = comparison.regions.find_objects(comparison.asked(image, NAMES))
  assert picture.startswith(b"\x89PNG")
  for rows, (regions, scores) in zip(objects, scored(case), strict=True):
    limits = (
      config.page.of(fields.Detect),
      config.page.of(fields.Regions).mask_threshold,
      MAX_DETECTIONS["coco"],
    )
    expected = detections_of(regions, scores, image.size[::-1], *limits)
    found = zip(expected.classes, expected.scores, strict=True)
    pairs = {(NAMES[c], round(float(score), 4)) for c, score in found}
    assert 0 < len(rows) <= 8
    assert {(name, round(score, 4)) for name, score in rows} <= pairs
    assert rows[0][1] == pytest.approx(expected.scores.max(), abs=1e-5)
    assert [score for _, score in rows] == sorted(
      (score for _, score in rows), reverse=True
    )


def test_label_maps_are_of_the_regions(case, monkeypatch):
  _, comparison, image = case
  sheet = mock.create_autospec(
    module.segmentation_sheet, side_effect=module.segmentation_sheet
  )
  monkeypatch.setattr(module, "segmentation_sheet", sheet)
  assert comparison.regions.segment(comparison.asked(image, NAMES)).startswith(
    b"\x89PNG"
  )
  for labels, (regions, scores) in zip(
    sheet.call_args.args[2][0], scored(case), strict=True
  ):
    [expected] = label_maps_of_regions([scores], regions.masks, *image.size[::-1])
    assert labels.shape == image.size[::-1]
    assert (labels == expected).mean() > 0.999


def test_the_page_offers_it(case):
  _, comparison, image = case
  scenes = (Example(image, "\n".join(NAMES), "1 1 9 9"),)
  app = server.make_app(comparison, Page(runs=""), server.Turns(), {"regions": scenes})
  client = app.test_client()
  key = re.findall(
    r'name="example" value="([^"]+)"', client.get("/regions").data.decode()
  )[0]
  fields = {"picture": key, "names": "\n".join(NAMES), "boxes": "", "action": "find"}
  answer = client.post("/regions", data=fields)
  text = answer.data.decode()
  assert answer.status_code == 200 and "Find objects" in text
  (sheet,) = re.findall(r'src="/picture/([^"]+)" alt="regions', text)
  assert client.get(f"/picture/{sheet}").mimetype == "image/png"
  for name, score in comparison.regions.find_objects(comparison.asked(image, NAMES))[1][
    0
  ]:
    assert f"{name} {score:.2f}" in text


def test_a_network_of_another_clip_is_refused_at_the_start(case, tmp_path):
  write_network(network := tmp_path / "masks.safetensors", 3, embedding=24)
  with pytest.raises(ConfigError, match=r"clip\.model"):
    job.check(changed(case[0], {"propose.network": str(network)}), str(tmp_path))
