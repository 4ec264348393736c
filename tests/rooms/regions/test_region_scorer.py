"""Class matrices, and scores of regions against ZSSeg's inference in torch float64."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

from pomp_jax.evaluate.metrics import EvaluationError
from pomp_jax.evaluate.named_prompts import check_prompt, read_prompts
from pomp_jax.files.prompt_file import PromptFileError
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix, class_matrix, key_parts
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.crop_features import RegionEncoder
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions
from pomp_jax.rooms.regions.region_scorer import (
  RegionScorer,
  region_scores,
  shares_of,
  short_labels,
  trained_classes,
)
from pomp_jax.rooms.regions.region_sources import Images, RegionSource, needs_crops
from tests.support.checks import assert_close
from tests.support.oracles import unit

R, E, STARTS = 5, 8, np.array([0, 1, 4, 5])  # names of each class: 1, 3, 1, 2
TRAINED = np.array([True, False, True, False])
SETTINGS = {"logit_scale": 20.0, "fusion": fields.Regions(), "trained_C": TRAINED}


@pytest.fixture(scope="module")
def parts():
  rng = np.random.default_rng(0)
  null = tuple(rng.normal(size=E).tolist())
  header = RegionHeader("a network", "a clip", 1, E, "softmax", 10.0, null, ())
  objectness = rng.random(R).astype(np.float32)
  embeddings = rng.normal(size=(R, 1, E)).astype(np.float16)
  regions = Regions(np.zeros((R, 4), np.float32), objectness, None, embeddings)
  clip, text = (unit(rng.normal(size=(n, E))).astype(np.float32) for n in (R, 7))
  clip[3] = 0  # an empty mask
  return regions, header, clip, ClassMatrix(text, STARTS)


def test_trained_classes_are_those_that_a_file_names_or_else_the_base_classes():
  classes = ClassSplit(
    (("Cat", "kitty"), ("dog",), ("sea_star",)), ("base", "novel", "-")
  )
  for header in (None, RegionHeader("a network")):
    assert trained_classes(header, classes).tolist() == [True, False, False]
  named = RegionHeader("a network", trained_classes=("sea star", "dog", "ox"))
  assert trained_classes(named, classes).tolist() == [False, True, True]


def test_clip_sees_crops_where_its_scores_count(tmp_path):
  """Without a network's embeddings, alone, or with an exponent above 0 for either
  group."""
  assert needs_crops(fields.Regions(source="truth", e_base=0.0, e_novel=0.0))
  for base, novel, alone, expected in (
    (0.0, 0.0, False, False),
    (0.0, 0.5, False, True),
    (0.5, 0.0, False, True),
    (0.0, 0.0, True, True),
  ):
    regions = fields.Regions(source="network", e_base=base, e_novel=novel, alone=alone)
    assert needs_crops(regions) == expected


def _highest(scores):
  ends = [*STARTS[1:], scores.shape[1]]
  return torch.stack(
    [scores[:, a:b].amax(1) for a, b in zip(STARTS, ends, strict=True)], 1
  )


@pytest.mark.parametrize(
  ("weights", "trained"),
  [((0.2, 0.8), TRAINED), ((0.5, 0.5), ~TRAINED), ((0.2, 0.2), np.zeros(4, bool))],
)
def test_scores_are_zssegs(parts, weights, trained):
  """`semantic_inference` for classes with several names, in terms of CLIP's weights."""
  regions, header, clip, matrix = parts
  text = torch.tensor(matrix.features).double()
  rows = torch.nn.functional.normalize(
    torch.tensor(regions.embeddings[:, 0]).double(), dim=1
  )
  null = torch.nn.functional.normalize(torch.tensor(header.null).double(), dim=0)
  net = _highest((10 * rows @ torch.cat([text, null[None]]).T).softmax(1)[:, :-1])
  of_clip = _highest((20 * torch.tensor(clip).double() @ text.T).softmax(1))
  of_clip[3] = 1
  exponents = torch.where(torch.tensor(trained), *weights)
  expected = net ** (1 - exponents) * of_clip**exponents
  fusion = fields.Regions(e_base=weights[0], e_novel=weights[1])
  settings = SETTINGS | {"fusion": fusion, "trained_C": trained}
  found = region_scores(regions, header, clip, matrix, **settings)
  assert_close(found, expected, 1e-5)
  rooted = settings | {"fusion": dataclasses.replace(fusion, objectness=True)}
  found = region_scores(regions, header, clip, matrix, **rooted)
  assert_close(
    found, (expected * torch.tensor(regions.objectness)[:, None]).sqrt(), 1e-5
  )
  # One of the two alone.
  assert_close(region_scores(regions, header, None, matrix, **settings), net, 1e-5)
  of_clip[3] = 0
  assert_close(region_scores(regions, None, clip, matrix, **settings), of_clip, 1e-5)


@pytest.mark.parametrize(
  ("crop", "tight", "threshold", "expected"),
  [
    ("masked", False, 0.7, [4, 2, 8, 6]),
    ("masked", False, 0.3, [2, 2, 8, 6]),
    ("context", True, 0.7, [4, 2, 8, 6]),
    ("context", True, 0.3, [2, 2, 8, 6]),
    ("context", False, 0.7, [0, 1.6, 55 / 7, 6.4]),
  ],
)
def test_crops_are_of_what_is_above_the_threshold(
  encoder, parts, crop, tight, threshold, expected
):
  """Of a soft mask in an image that becomes larger, or of the region's own box."""
  soft = np.zeros((1, 8, 11), np.uint8)
  soft[0, 2:6, 2:4], soft[0, 2:6, 4:8] = 127, 204
  regions = Regions(np.array([[0, 1, 5, 4]], np.float32), masks=soft)
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  images = mock.Mock(spec=Images, keys=("a",), pixels=lambda row: pixels)
  cropped = []

  def features(images, boxes, masks):
    cropped.extend(zip(images, boxes, masks or [None], strict=True))
    return [parts[2][:1]]

  settings = fields.Regions(source="truth", crop=crop, mask_threshold=threshold, size=8)
  source = RegionSource(images, None, lambda block: [regions])
  crops = mock.Mock(spec=RegionEncoder, features=features)
  classes = ClassSplit((("a",), ("b",)), ("base", "novel"))
  matrix = ClassMatrix(parts[3].features[:2], np.array([0, 1]))
  scorer = RegionScorer(
    settings,
    source,
    encoder,
    classes,
    [matrix],
    logit_scale=0.0,
    tight=tight,
    crops=crops,
  )
  [(row, scored)] = scorer.scored([0])
  assert row == 0 and scored.regions is regions
  logits = encoder.clip.logit_scale * parts[2][:1] @ matrix.features.T
  assert_close(scored.scores[0], torch.tensor(logits).softmax(-1), 1e-5)
  [(image, boxes, masks)] = cropped
  assert image.shape == (8, 11, 3)
  np.testing.assert_allclose(boxes, [expected], rtol=1e-6)
  assert (masks is None) == (crop == "context")
  if masks is not None:
    x0, y0, x1, y1 = expected
    inside = np.zeros((8, 11), bool)
    inside[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(masks, inside[None])


def test_scores_that_are_not_finite_are_an_error(parts):
  _, _, clip, matrix = parts
  clip, regions = clip.copy(), Regions(np.zeros((len(clip), 4), np.float32))
  clip[1, 0] = np.nan
  with pytest.raises(EvaluationError, match=f"1 of {len(clip)} regions"):
    region_scores(regions, None, clip, matrix, **SETTINGS)


SYNONYMS = (
  ("sky",),
  ("person", "person in shirt", "person in dress"),
  ("dining_table", "desk"),
)


def test_published_features_of_other_classes_are_refused(encoder, tmp_path):
  np.save(
    tmp_path / "pomp.npy", np.ones((3, encoder.clip.config.projection_dim), np.float16)
  )
  (named,) = read_prompts((str(tmp_path / "pomp.npy"),), "segment.prompts")
  check_prompt(named, SYNONYMS, encoder.clip.config, encoder.clip.name)
  # a row a class
  assert class_matrix(encoder, SYNONYMS, named).starts.tolist() == [0, 1, 2]
  for synonyms in (SYNONYMS[:2], (*SYNONYMS, ("dog",))):
    with pytest.raises(PromptFileError, match=r"pomp\.npy: the array's shape"):
      check_prompt(named, synonyms, encoder.clip.config, encoder.clip.name)
    with pytest.raises(PromptFileError, match="the array's shape"):
      class_matrix(encoder, synonyms, named)


def test_keys_differ_by_prompt_and_names():
  one, two = read_prompts(("a {}", "the {}"), "segment.prompts")
  parts = [
    key_parts(named, names)
    for named in (one, two)
    for names in (SYNONYMS, SYNONYMS[:2])
  ]
  assert len({str(part) for part in parts}) == 4


def test_short_labels_say_whose_scores_count():
  """`regions.alone` has each prompt three times."""
  ends = [*shares_of(alone=True)]
  assert len(ends) == 3
  names = {
    "/data/runs/a/prompt.npz": "learned (a)",
    "/data/runs/b/prompt.npz": "learned (b)",
  }
  names |= {"hand_written": "hand-written prompt"}
  expected = [label + end for label in names.values() for end in ends]
  assert short_labels([name + end for name in names for end in ends]) == expected
  assert short_labels(list(names)) == list(names.values())
