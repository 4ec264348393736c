"""What the finished blocks of `detect` and `segment` belong to."""

import dataclasses
import pathlib
from unittest import mock

import numpy as np
import pytest

from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.regions.blocks import Comparison
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.fields import Propose
from pomp_jax.rooms.regions.image_sets import BoxSet
from pomp_jax.rooms.regions.proposals import network_key_parts
from tests.rooms.regions.region_jobs import regions_config

CLASSES = ClassSplit((("cat",), ("dog",)), ("base", "novel"))


NETWORK = Propose(network="network", prompt="a {}.")


def network_parts(folder, threshold=0.5, dtype="float32", **changes):
  """Key parts of a network's regions, as text; the network is a file of this folder."""
  propose = dataclasses.replace(NETWORK, network=str(folder / "network"), **changes)
  return repr(network_key_parts(propose, threshold, dtype))


def test_regions_of_a_network_depend_on_its_file_and_all_of_its_fields(tmp_path):
  file = tmp_path / "network"
  file.write_bytes(b"1")
  first = network_parts(tmp_path)
  assert network_parts(tmp_path) == first
  found = [
    first,
    network_parts(tmp_path, threshold=0.25),
    network_parts(tmp_path, dtype="bfloat16"),
  ]
  found += [network_parts(tmp_path, prompt="the {}."), network_parts(tmp_path, size=7)]
  file.write_bytes(b"12")
  found.append(network_parts(tmp_path))
  assert len({*found}) == len(found)


def test_results_depend_on_the_content_of_a_prompts_file(tmp_path):
  path, context = tmp_path / "prompt.npz", np.zeros((2, 4), np.float32)
  save_prompt(path, Prompt(context, "clip"))
  of_file = {"detect__prompts": (str(path),)}
  before = key_of(**of_file)
  assert key_of(**of_file) == before
  save_prompt(path, Prompt(context + 1, "clip"))
  assert key_of(**of_file) != before


def test_results_on_regions_of_others_depend_on_their_files(tmp_path):
  """On those of these images, and only where the regions are theirs."""
  (tmp_path / "regions.json").write_text("1")
  for name in ("1", "2"):
    (tmp_path / f"{name}.npz").write_text("1")
  (tmp_path / "network").write_text("1")
  read = {"regions__source": "file", "regions__path": str(tmp_path)}
  made = {"regions__source": "network", "propose__network": str(tmp_path / "network")}
  made["propose__prompt"] = "a {}."
  keys = lambda: [key_of(), key_of(**read), key_of(**made)]
  before = keys()
  assert len({*before}) == 3
  assert key_of(**made | {"regions__mask_threshold": 0.25}) != before[2]
  assert key_of(**made | {"clip__dtype": "bfloat16"}) != before[2]
  (tmp_path / "2.npz").write_text("12")
  assert keys() == before
  (tmp_path / "1.npz").write_text("12")
  assert [now == old for now, old in zip(keys(), before, strict=True)] == [
    True,
    False,
    True,
  ]
  before = keys()
  (tmp_path / "network").write_text("12")
  assert [now == old for now, old in zip(keys(), before, strict=True)] == [
    True,
    True,
    False,
  ]


def key_of(
  version="1", image_fingerprint="images", clip_name="clip", keys=("1",), **changes
):
  """The key of a comparison on true regions; `changes` are fields of groups, by
  group__field."""
  config = regions_config(pathlib.Path("nowhere"), "detect")
  groups = {
    name: getattr(config, name) for name in ("detect", "regions", "propose", "clip")
  }
  data = mock.Mock(spec=BoxSet, keys=keys, classes=CLASSES, files=[])
  for field, value in changes.items():
    group, _, name = field.partition("__")
    if group == "data":
      setattr(data, name, value)
    else:
      groups[group] = dataclasses.replace(groups[group], **{name: value})
  encoder = mock.Mock(
    spec=Encoder, image_fingerprint=image_fingerprint, clip=mock.Mock()
  )
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
