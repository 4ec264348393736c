"""Prompt files: what is written comes back, nothing bad gets in; NumPy or
safetensors reads it."""

import logging
import os
import stat
from unittest import mock

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pomp_jax.files import prompt_file
from pomp_jax.files.prompt_file import (
  ClassFeatures,
  Prompt,
  PromptFileError,
  Sentences,
  architecture,
  check_fits,
  load_prompt,
  recorded_classes,
  recorded_clip,
  recorded_upright,
  save_prompt,
)
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.registry import FORMATS
from tests.support.prompt_files import CONTEXT, refusal

GOOD = {
  "context": CONTEXT,
  "clip_model": np.array("a/clip"),
  "position": np.array("end"),
  "template": np.array("{}."),
  "format_version": np.array(1),
  "config": np.array('{"seed": 1}'),
}

V2 = {"format_version": 2}


def write(path, **changes):
  """A prompt file with some arrays changed; None leaves one out."""
  arrays = {
    name: array for name, array in (GOOD | changes).items() if array is not None
  }
  np.savez(path, **{name: np.asanyarray(array) for name, array in arrays.items()})
  return path


@pytest.mark.parametrize(
  "name", ["p.npz", "p.safetensors", "p.pt", "p.pth.tar-5", "p-best.pth.tar"]
)
def test_round_trip_is_exact(tmp_path, name):
  for shape, position in (((4, 8), "end"), ((1, 1), "middle"), ((3, 4, 8), "front")):
    context = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    config = {"optim": {"lr": 0.1}, "epochs": 7, "a": [1, None]}
    save_prompt(tmp_path / name, Prompt(context, "org/näme", position, config))
    back = load_prompt(tmp_path / name)
    np.testing.assert_array_equal(back.context, context, strict=True)
    assert (back.clip_model, back.position, back.config) == (
      "org/näme",
      position,
      config,
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth.tar-5"])
def test_the_content_decides_the_format_and_not_the_name(tmp_path, suffix):
  save_prompt(
    tmp_path / f"written{suffix}", Prompt(CONTEXT, "a/clip", config={"seed": 1})
  )
  content = (tmp_path / f"written{suffix}").read_bytes()
  for name in ("p.npz", "p.safetensors", "p.pt", "p.pth.tar-5", "p.txt", "p"):
    (tmp_path / name).write_bytes(content)
    back = load_prompt(tmp_path / name)
    np.testing.assert_array_equal(back.context, CONTEXT)
    assert (back.clip_model, back.config) == ("a/clip", {"seed": 1})


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
def test_the_name_decides_where_the_content_is_damaged(tmp_path, kind, monkeypatch):
  path = tmp_path / f"p.{kind}"
  path.write_bytes(b"\0" * 100)
  read = mock.Mock(side_effect=PromptFileError("damaged"))
  monkeypatch.setattr(
    prompt_file, "load", lambda path: {FORMATS[kind].read: read}[path]
  )
  with pytest.raises(PromptFileError, match="damaged"):
    load_prompt(path)
  read.assert_called_once_with(path)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_sentences_and_mixtures_come_back(tmp_path, weight):
  """In .npz alone, as version 2; other formats would lose them."""
  context = CONTEXT[:0] if weight == 1 else CONTEXT
  sentences = Sentences(("a photo of a {}.", "ein Bild: {}, groß."), weight)
  prompt = Prompt(context, "a/clip", sentences=sentences)
  save_prompt(tmp_path / "prompt.npz", prompt)
  back = load_prompt(tmp_path / "prompt.npz")
  np.testing.assert_array_equal(back.context, context, strict=True)
  assert back.sentences == sentences
  with np.load(tmp_path / "prompt.npz", allow_pickle=False) as file:
    assert file["format_version"] == 2
  for name in ("p.safetensors", "p.pth.tar"):
    with pytest.raises(PromptFileError, match="holds|sentences"):
      save_prompt(tmp_path / name, prompt)
    assert not (tmp_path / name).exists()


def test_the_contract_of_the_arrays(tmp_path):
  """Plain NumPy must be enough to read the file, by these names; more arrays are
  ignored."""
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "a/clip", config={"seed": 1}))
  with np.load(tmp_path / "prompt.npz", allow_pickle=False) as file:
    assert set(file) == set(GOOD)
    for name, array in GOOD.items():
      np.testing.assert_array_equal(file[name], array)
  path = write(tmp_path / "p.npz", extra=np.arange(3), pickled=np.array([{}], object))
  np.testing.assert_array_equal(load_prompt(path).context, CONTEXT)


def test_a_saved_file_has_the_permissions_of_any_file(tmp_path, monkeypatch):
  """The mask, which all threads share, is not touched for it."""
  (tmp_path / "any").touch()
  monkeypatch.setattr(os, "umask", lambda _: pytest.fail("sets the mask"))
  path = tmp_path / "prompt.npz"
  save_prompt(path, Prompt(CONTEXT, "a/clip"))
  modes = [
    stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("prompt.npz", "any")
  ]
  assert modes[0] == modes[1] != 0o600
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["any", "prompt.npz"]


@pytest.mark.parametrize(
  ("field", "value", "part"),
  [
    ("context", np.full((4, 8), np.nan, np.float32), "not finite in 32 of 32"),
    ("context", CONTEXT.astype(np.float64), "float64 [4, 8]"),
    ("clip_model", "", "empty"),
    ("config", {"lr": float("nan")}, "not JSON"),
  ],
)
def test_a_bad_prompt_is_not_written(tmp_path, field, value, part):
  fields = {"context": CONTEXT, "clip_model": "a/clip"} | {field: value}
  with pytest.raises(PromptFileError) as caught:
    save_prompt(tmp_path / "prompt.npz", Prompt(**fields))
  assert field in str(caught.value) and part in str(caught.value)
  with pytest.raises(PromptFileError, match=r"name is of no known kind.*\.safetensors"):
    save_prompt(tmp_path / "prompt.bin", Prompt(CONTEXT, "a/clip"))
  with pytest.raises(PromptFileError, match="not Unicode"):
    save_prompt(tmp_path / "p.pth", Prompt(CONTEXT, "a/\udcff"))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"context": None}, ["context is missing", "clip_model, config"]),
    ({"format_version": 3}, ["format_version is 3", "accepted: 1 or 2"]),
    ({"format_version": 2}, ["sentences is missing"]),
    (
      {"sentences": '{"templates": ["a {}."], "weight": 1}'},
      ["sentences is", "version 2"],
    ),
    (
      V2 | {"sentences": '{"templates": ["a."], "weight": 1}'},
      ["sentences is ('a.',)", "one {}"],
    ),
    (V2 | {"sentences": '{"templates": [], "weight": 1}'}, ["sentences is ()"]),
    (V2 | {"sentences": '{"templates": ["{}"], "weight": 1.5}'}, ["weight 1.5"]),
    (V2 | {"sentences": '{"templates": ["{}"], "weight": "1"}'}, ["sentences is"]),
    (V2 | {"sentences": '{"templates": ["{}"]}'}, ["sentences is"]),
    (V2 | {"sentences": "3"}, ["sentences is '3'", "a JSON object"]),
    (V2 | {"sentences": "{"}, ["sentences is '{'", "a JSON object"]),
    (
      V2
      | {
        "sentences": '{"templates": ["{}"], "weight": 1}',
        "context": np.zeros((0, 8)),
      },
      ["context is float64 [0, 8]"],
    ),
    (
      V2
      | {"sentences": '{"templates": ["{}"], "weight": 0.5}', "context": CONTEXT[:0]},
      ["context is float32 [0, 8]"],
    ),
    (
      {"context": CONTEXT.astype(np.float64)},
      ["context is float64 [4, 8]", "float32 [M, D]"],
    ),
    ({"context": CONTEXT[0]}, ["context is float32 [8]"]),
    ({"context": np.where(CONTEXT > 0, np.inf, CONTEXT)}, ["context is not finite"]),
    ({"context": np.array([{}], object)}, ["context is damaged, or not plain numbers"]),
    ({"position": "left"}, ["position is 'left'", "end, middle, front"]),
    ({"config": "[1]"}, ["config is a list", "JSON object"]),
  ],
)
def test_a_bad_file_is_refused_by_field(tmp_path, changes, parts):
  message = refusal(write(tmp_path / "p.npz", **changes))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth.tar-5"])
def test_every_single_byte_matters_or_is_caught(tmp_path, suffix):
  assert "the file is missing" in refusal(tmp_path / f"none.{suffix}")
  (tmp_path / f"folder.{suffix}").mkdir()
  assert "the file is missing" in refusal(tmp_path / f"folder.{suffix}")
  path = tmp_path / f"a.{suffix}"
  save_prompt(path, Prompt(CONTEXT, "a/clip", config={"seed": 1}))
  whole = path.read_bytes()
  for length in range(0, len(whole), 61):
    path.write_bytes(whole[:length])
    assert "not a whole" in refusal(path)
  for position in range(0, len(whole), 3):
    data = bytearray(whole)
    data[position] ^= 1 << position % 8
    path.write_bytes(data)
    try:
      prompt = load_prompt(path)
    except PromptFileError:
      continue
    np.testing.assert_array_equal(prompt.context, CONTEXT)
    found = (prompt.clip_model, prompt.position, prompt.config)
    assert found == ("a/clip", "end", {"seed": 1})


def test_a_core_without_the_room_interchange_names_it(tmp_path, monkeypatch):
  save_prompt(tmp_path / "a.pth", Prompt(CONTEXT, "a/clip"))
  monkeypatch.setattr(prompt_file, "FORMATS", {"npz": prompt_file.FORMATS["npz"]})
  monkeypatch.setattr(prompt_file, "HUB_PROMPT", "")
  for name in (tmp_path / "a.pth", "hf:me/birds"):
    assert "without the room interchange" in refusal(name)


@pytest.mark.parametrize(
  ("trained", "used", "told"),
  [
    ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32", True),
    ("openai/clip-vit-base-patch16", "clips/ViT-B-16.pt", False),
    ("unknown", "openai/clip-vit-base-patch32", False),
  ],
)
def test_a_clip_of_the_same_width_is_told_of(trained, used, told, caplog):
  with caplog.at_level("WARNING"):
    logging.getLogger("pomp_jax").propagate = True
    check_fits(Prompt(CONTEXT, trained), 8, used, path="p.npz")
  message = f"p.npz was trained with {trained}, but config.clip.model is {used}"
  assert (message in caplog.text) == told


def test_what_does_not_fit_the_clip_or_the_classes_is_refused():
  shared, specific = (
    Prompt(np.zeros((2, 8)), "a/clip"),
    Prompt(np.zeros((3, 2, 8)), "a/clip"),
  )
  features = ClassFeatures(np.zeros((3, 8)))
  for prompt, n_classes in [(shared, 3), (shared, 5), (specific, 3), (specific, None)]:
    check_fits(prompt, 8, n_classes=n_classes)
    with pytest.raises(PromptFileError, match=r"p\.npz.*width 8"):
      check_fits(prompt, 3, n_classes=n_classes, path="p.npz")
  for n_classes in (2, 5):
    with pytest.raises(PromptFileError, match=r"p\.npz.*class-specific"):
      check_fits(specific, 8, n_classes=n_classes, path="p.npz")
  features.check_fits(3, 8, "words")
  for n_classes, width in [(5, 8), (3, 2), (8, 3)]:
    with pytest.raises(PromptFileError, match=r"words.*\[3, 8\]"):
      features.check_fits(n_classes, width, "words")


METADATA = {name: str(array) for name, array in GOOD.items() if name != "context"}


def write_safetensors(path, tensors=None, **changes):
  """A file with some strings changed; None leaves one out."""
  metadata = {
    key: value for key, value in (METADATA | changes).items() if value is not None
  }
  tensors = {"context": CONTEXT} if tensors is None else tensors
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
  return path


def test_the_contract_of_the_tensors(tmp_path):
  """The library must be enough to read the file, by these names."""
  path = tmp_path / "prompt.safetensors"
  save_prompt(path, Prompt(CONTEXT.T, "a/clip", config={"seed": 1}))
  with safetensors.safe_open(str(path), framework="numpy") as file:
    assert file.metadata().items() >= METADATA.items()
    assert set(file.metadata()) == {*METADATA, "crc32"}
    assert list(file.keys()) == ["context"]
    np.testing.assert_array_equal(file.get_tensor("context"), CONTEXT.T)
  # Files of others have no checksum.
  np.testing.assert_array_equal(load_prompt(write_safetensors(path)).context, CONTEXT)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    (
      {"config": None},
      ["config is missing", "clip_model, context, format_version, position"],
    ),
    ({"format_version": "2"}, ["format_version is '2'", "accepted: 1"]),
    ({"format_version": "9" * 5000}, ["format_version is '999"]),
    ({"tensors": {"weight": CONTEXT}}, ["context is missing", "clip_model"]),
    ({"tensors": {"context": CONTEXT.astype(np.float16)}}, ["context is F16 [4, 8]"]),
    ({"tensors": {"context": CONTEXT[0]}}, ["context is float32 [8]"]),
  ],
)
def test_a_bad_safetensors_file_is_refused_by_field(tmp_path, changes, parts):
  message = refusal(write_safetensors(tmp_path / "p.safetensors", **changes))
  assert all(part in message for part in parts), message


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    ({"source": "folder", "upright": True}, True),
    ({"source": "coop", "upright": False}, False),
    # Images that are no files have no orientation.
    ({"source": "world", "upright": False}, None),
    ({"source": "synthetic", "upright": False}, None),
    ({"source": "features", "upright": False}, None),
    ({"source": "folder"}, None),
    ({"source": "folder", "upright": "no"}, None),
    ({"source": ["folder"], "upright": True}, None),
    ("folder", None),
  ],
)
@pytest.mark.parametrize("name", ["p.npz", "p.safetensors", "p.pth"])
def test_how_pictures_were_turned_comes_with_each_format(
  tmp_path, name, data, expected
):
  path = str(tmp_path / name)
  save_prompt(path, Prompt(CONTEXT, "a/clip", config={"data": data}))
  assert load_prompt(path).upright is expected
  assert recorded_upright(path) is expected
  assert recorded_upright(f"0.5*{path} + 0.5*ensemble") is expected
  assert recorded_upright("a photo of a {}.") is None


def test_the_clip_of_a_mixture_is_that_of_its_first_file(tmp_path):
  for name, clip in (("a", "a/clip"), ("b", "b/clip"), ("other", "unknown")):
    save_prompt(tmp_path / f"{name}.npz", Prompt(CONTEXT, clip))
  a, b, other = (tmp_path / f"{name}.npz" for name in ("a", "b", "other"))
  assert recorded_clip(str(a)) == "a/clip"
  assert recorded_clip(f"0.5*ensemble + 0.5*{b}") == "b/clip"
  assert recorded_clip(f"0.5*{a} + 0.5*{b}") == "a/clip"
  assert recorded_clip(str(other)) is None and recorded_clip("a photo of a {}.") is None


@pytest.mark.parametrize(
  ("name", "found"),
  [
    ("openai/clip-vit-large-patch14-336", "vit-l-14"),
    ("ViT-B/32", "vit-b-32"),
    ("open_clip:ViT-H-14/dfn5b", "vit-h-14"),
    ("runs/vit_b_16.pt", "vit-b-16"),
    ("RN50x4", "rn50x4"),
    ("resnet-101.pt", "rn101"),
    ("world", None),
    ("vit-b-160", None),
  ],
)
def test_the_architecture_that_a_name_tells(name, found):
  assert architecture(name) == found


def test_class_names_are_those_of_a_runs_own_files(tmp_path):
  """Not of another file in its folder, nor of a copy elsewhere; of a mixture if it
  is one run's."""
  for run in ("a", "b"):
    folder = RunFolder(tmp_path / run)
    folder.create()
    for file in (folder.prompt, folder.other_prompts["last"], folder.path / "copy.npz"):
      save_prompt(file, Prompt(CONTEXT, "a/clip"))
    assert recorded_classes(str(folder.path)) == ""
    folder.write_classes(["cat", "dog"])
  a, b = tmp_path / "a", tmp_path / "b"
  for name in (a, a / "prompt.npz", a / "prompt_last.npz", f"0.5*{a} + 0.5*ensemble"):
    assert recorded_classes(str(name)) == str(a / "class_names.json")
  for name in (
    a / "copy.npz",
    f"0.5*{a} + 0.5*{b}",
    "a photo of a {}.",
    "hf:owner/name",
    "",
  ):
    assert recorded_classes(str(name)) == ""
