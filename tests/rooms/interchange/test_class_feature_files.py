"""Class features, as other projects read them; categories of COCO and LVIS
annotations."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.data.class_lists import Category, VocabularyError
from pomp_jax.evaluate import opening
from pomp_jax.files.prompt_file import PromptFileError
from pomp_jax.rooms.interchange import class_feature_files
from tests.files.test_pieces import check_flipped_bits
from tests.support.prompt_files import refusal
from tests.support.small_run import small_config

FEATURES = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
FEATURES /= np.linalg.norm(FEATURES, axis=-1, keepdims=True)
NAN, ZERO = (
  FEATURES * np.array([[1], [1], [x], [1], [1]], np.float32) for x in (np.nan, 0)
)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_open_clip_gets_columns(tmp_path, suffix):
  """open_clip: 100 * image_features @ classifier, with torch."""
  path = tmp_path / f"a{suffix}"
  class_feature_files.write_open_clip(
    path, FEATURES, ["a", "b", "ç", "d", "e"], "org/clip\udcff"
  )
  if suffix == ".npy":
    classifier = torch.tensor(np.load(path, allow_pickle=False))
  else:
    classifier = safetensors.torch.load_file(path)["classifier"]
    with safetensors.safe_open(str(path), framework="numpy") as file:
      assert json.loads(file.metadata()["names"]) == ["a", "b", "ç", "d", "e"]
      assert file.metadata()["clip_model"] == "org/clip?"
  assert classifier.dtype == torch.float32 and tuple(classifier.shape) == (8, 5)
  logits = 100 * torch.tensor(FEATURES) @ classifier
  assert logits.argmax(dim=-1).tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_allclose(logits.diag(), 100, rtol=1e-6)


@pytest.mark.parametrize(
  ("write", "features", "part"),
  [
    (class_feature_files.write_open_clip, NAN, "not finite"),
    (class_feature_files.write_detic, ZERO, "class 2 are all zero"),
    (class_feature_files.write_detic, 1e6 * FEATURES, "not finite"),  # in float16
  ],
)
def test_bad_features_are_not_written(tmp_path, write, features, part):
  with pytest.raises(class_feature_files.ClassFeatureError, match=part):
    write(tmp_path / "a.npy", features)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image_tower", [True, False])
def test_the_check_reads_no_image_tower_that_is_off(monkeypatch, image_tower):
  """Of some CLIPs the text tower alone is supported."""
  read_clip, asked = opening.read_clip, []

  def noted(model, **options):
    asked.append(options["image_tower"])
    return read_clip(model, **options)

  monkeypatch.setattr(opening, "read_clip", noted)
  fields = {"job": "export", "export.format": "open_clip", "export.names": "eurosat"}
  fields |= {"export.prompt": "a {}.", "clip.image_tower": image_tower}
  config = small_config(**fields)
  class_feature_files.check(config.export, config.clip)
  assert asked == [image_tower]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_rows_of_any_length_are_read_as_unit_rows(tmp_path, dtype):
  """As the published files are: float16, of the length that the tower gives."""
  lengths = np.array([[7.0], [0.3], [1.0], [11.0], [90.0]])
  np.save(tmp_path / "a.npy", (lengths * FEATURES).astype(dtype))
  found = class_feature_files.read_class_features(tmp_path / "a.npy").features
  assert found.dtype == np.float32
  np.testing.assert_allclose(
    np.linalg.norm(found.astype(np.float64), axis=1), 1, atol=1e-6
  )
  np.testing.assert_allclose(found, FEATURES, atol=1e-3)


# A header of 4 TiB, and nothing behind it.
CLAIM = b"\x93NUMPY\x01\x00\x46\x00" + (
  b"{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824, 1024)}\n"
)


@pytest.mark.parametrize(
  ("content", "part"),
  [
    (np.where(np.eye(5, 8) > 0, np.nan, FEATURES), "not finite"),
    (FEATURES * np.eye(5)[:, :1], "class 1 are all zero"),
    (np.ones((5, 8), int), "int64 [5, 8]; accepted: floats [C,E]"),
    (np.array([[{}]]), "not a NumPy array"),
    (b"PK\x03\x04 a part of an npz", "not a NumPy array"),
    (b"\x93NUMPY\x01\x00v", "not a NumPy array"),
    (CLAIM, "not a NumPy array"),
    (None, "not a NumPy array"),
  ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, part):
  if isinstance(content, bytes):
    (tmp_path / "a.npy").write_bytes(content)
  elif content is not None:
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
  assert part in refusal(
    tmp_path / "a.npy", class_feature_files.read_class_features, PromptFileError
  )


def write_rows(path, categories):
  path.write_text(json.dumps({"images": [], "categories": categories}))
  return path


def test_categories_of_lvis(tmp_path):
  """Names as words, by id; qualifiers stay, for "bow" alone would stand for two of
  them."""
  rows = [
    {"id": 2, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"], "frequency": "r"},
    {
      "id": 1,
      "name": "bow_(decorative_ribbons)",
      "synonyms": ["bow_(decorative_ribbons)", "knot"],
    },
    # One of LVIS's categories has a name that is none of its synonyms.
    {"id": 3, "name": "bull", "synonyms": ["horned_cow", "horned cow"]},
    {"id": 4, "name": " traffic  light "},  # of COCO, which has no synonyms
  ]
  assert class_feature_files.load_categories(write_rows(tmp_path / "a.json", rows)) == (
    Category("bow (decorative ribbons)", ("knot",)),
    Category("bow (weapon)"),
    Category("bull", ("horned cow",)),
    Category("traffic light"),
  )


GOOD = [{"id": 1, "name": "a_b"}, {"id": 2, "name": "c"}]


@pytest.mark.parametrize(
  ("content", "part"),
  [
    ([], "categories is a list of 0"),
    ([*GOOD, {"id": True, "name": "d"}], "categories[2].id is true"),
    ([*GOOD, {"id": 2, "name": "d"}], "categories[2].id is 2, which is repeated"),
    ([*GOOD, {"id": 3, "name": "d\x1b[2J"}], "categories[2].name is 'd\\x1b[2J'"),
    ([*GOOD, {"id": 3, "name": "a b"}], "categories[2].name is 'a b'"),
    (
      [*GOOD, {"id": 3, "name": "d", "synonyms": ["e", ""]}],
      "categories[2].synonyms is ''",
    ),
    (b"[" * 100_000, "not JSON"),
    (b"1" * 5000, "not JSON"),
    (b'{"images": [], "info": {}}', "without categories (the keys 'images, info')"),
    (None, "can't be read (No such file"),
  ],
)
def test_bad_categories_are_refused_by_field(tmp_path, content, part):
  path = tmp_path / "a.json"
  if isinstance(content, list):
    write_rows(path, content)
  elif content is not None:
    path.write_bytes(content)
  assert part in refusal(path, class_feature_files.load_categories, VocabularyError)


def test_which_files_are_annotations(tmp_path):
  assert not class_feature_files.is_annotation_file(tmp_path / "none")
  assert class_feature_files.is_annotation_file(tmp_path / "none.JSON")
  for content, expected in (("dog\n{}\n", False), (' \n{"categories": []}', True)):
    (tmp_path / "names.txt").write_text(content)
    assert class_feature_files.is_annotation_file(tmp_path / "names.txt") == expected


def test_no_flipped_bit_becomes_another_figure(tmp_path):
  path = tmp_path / "a.npy"
  class_feature_files.write_detic(path, np.random.default_rng(0).normal(size=(3, 4)))
  check_flipped_bits(
    path, lambda: class_feature_files.read_class_features(path).features.tolist()
  )
