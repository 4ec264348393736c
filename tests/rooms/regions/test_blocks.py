"""What the finished blocks of `detect` and `segment` belong to."""

import dataclasses
import pathlib
from unittest import mock

import pytest

from pomp_jax.encoder import Encoder
from pomp_jax.rooms.regions.blocks import Comparison
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.image_sets import BoxSet
from tests.support.region_jobs import regions_config

CLASSES = ClassSplit((("cat",), ("dog",)), ("base", "novel"))


def key_of(version="1", image_fingerprint="images", clip_name="clip", keys=("1",), **changes):
  """The key of a comparison on true regions; `changes` are fields of groups, by group__field."""
  config = regions_config(pathlib.Path("nowhere"), "detect")
  groups = {name: getattr(config, name) for name in ("detect", "regions", "propose", "clip")}
  data = mock.Mock(spec=BoxSet, keys=keys, classes=CLASSES, files=[])
  for field, value in changes.items():
    group, _, name = field.partition("__")
    if group == "data":
      setattr(data, name, value)
    else:
      groups[group] = dataclasses.replace(groups[group], **{name: value})
  encoder = mock.Mock(spec=Encoder, image_fingerprint=image_fingerprint, clip=mock.Mock())
  encoder.clip.name = clip_name
  own, regions, propose, clip = groups.values()
  return Comparison(version, encoder, data, own, regions, propose, clip).key


@pytest.mark.parametrize(
  "change",
  [
    {"version": "2"},
    {"image_fingerprint": "others"},
    {"clip_name": "another"},
    {"keys": ("2",)},
    {"data__classes": ClassSplit((("cat",), ("owl",)), ("base", "novel"))},
    {"data__classes": ClassSplit((("cat",), ("dog",)), ("base", "base"))},
    {"data__files": ["pyproject.toml"]},
    {"detect__top": 3},
    {"detect__prompts": ("the {}.",)},
    {"regions__e_base": 0.3},
    {"regions__expand": 1.5},
    {"clip__text_tower": "reference"},
  ],
  ids=str,
)
def test_results_belong_to_all_that_they_depend_on(change):
  assert key_of() == key_of() != key_of(**change)
