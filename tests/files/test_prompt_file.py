"""Prompt files: what is written comes back, and nothing bad gets in."""

import io
import logging
import os
from pathlib import Path
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from pomp_jax.files.prompt_file import Prompt, PromptFileError, check_fits, load_prompt, save_prompt
from tests.support.fuzzing import Malicious

CONTEXT = np.random.default_rng(0).normal(0, 0.02, (4, 8)).astype(np.float32)
GOOD = {
  "context": CONTEXT,
  "clip_model": np.array("a/clip"),
  "position": np.array("end"),
  "template": np.array("{}."),
  "format_version": np.array(1),
  "config": np.array('{"seed": 1}'),
}


def write(path, **changes):
  """A prompt file with some arrays changed; None leaves one out."""
  arrays = {name: array for name, array in (GOOD | changes).items() if array is not None}
  np.savez(path, **{name: np.asanyarray(array) for name, array in arrays.items()})
  return path


def refusal(path):
  with pytest.raises(PromptFileError) as caught:
    load_prompt(path)
  message = str(caught.value)
  assert "\n" not in message
  # A folder stands for the prompt in it.
  assert message.startswith((f"{path}: ", f"{path}/prompt.npz: "))
  return message


NAMES = (
  *("prompt.npz", "prompt.safetensors", "prompt.pth.tar", "prompt.pth", "prompt.pt"),
  *("model.pth.tar-5", "model-best.pth.tar"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_round_trip_is_exact(tmp_path, name, position):
  for shape in ((4, 8), (1, 1), (3, 4, 8)):
    context = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    config = {"optim": {"lr": 0.1}, "epochs": 7, "a": [1, None]}
    save_prompt(tmp_path / name, Prompt(context, "org/näme", position, "{}, a thing.", config))
    back = load_prompt(tmp_path / name)
    assert back.context.dtype == np.float32
    np.testing.assert_array_equal(back.context, context)
    assert (back.clip_model, back.position, back.template) == ("org/näme", position, "{}, a thing.")
    assert back.config == config


def test_the_contract_of_the_arrays(tmp_path):
  """Plain NumPy must be enough to read the file, by these names."""
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "a/clip", config={"seed": 1}))
  with np.load(tmp_path / "prompt.npz", allow_pickle=False) as file:
    assert set(file) == set(GOOD)
    for name, array in GOOD.items():
      np.testing.assert_array_equal(file[name], array)


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_same_prompt_same_bytes(tmp_path, suffix):
  paths = [tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"]
  for path in paths:
    save_prompt(path, Prompt(CONTEXT.copy(), "a/clip"))
  assert paths[0].read_bytes() == paths[1].read_bytes()


def test_saving_replaces_whole_files_only(tmp_path, monkeypatch):
  path = tmp_path / "prompt.npz"
  save_prompt(path, Prompt(CONTEXT, "a/clip"))
  before = path.read_bytes()

  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="No space"):
    save_prompt(path, Prompt(CONTEXT + 1, "a/clip"))
  assert path.read_bytes() == before
  assert [entry.name for entry in tmp_path.iterdir()] == ["prompt.npz"]


def test_the_file_has_ordinary_permissions(tmp_path, monkeypatch):
  """Those of any new file; and the mask, which all threads share, is not touched for it."""
  (tmp_path / "any").touch()
  monkeypatch.setattr(os, "umask", lambda _: pytest.fail("sets the mask"))
  save_prompt(tmp_path / "prompt.npz", Prompt(CONTEXT, "a/clip"))
  modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("prompt.npz", "any")]
  assert modes[0] == modes[1] != 0o600


@pytest.mark.parametrize(
  ("field", "value", "part"),
  [
    ("context", np.full((4, 8), np.nan, np.float32), "not finite in 32 of 32"),
    ("context", CONTEXT.astype(np.float64), "float64 [4, 8]"),
    ("context", np.zeros((0, 8), np.float32), "[0, 8]"),
    ("context", np.zeros(8, np.float32), "[8]"),
    ("position", "start", "'start'; accepted: end, middle, front"),
    ("template", "a photo", "'a photo'"),
    ("clip_model", "", "empty"),
    ("config", {"lr": float("nan")}, "not JSON"),
    ("config", {"path": Path()}, "not JSON"),
    ("format_version", 2, "2"),
  ],
)
def test_a_bad_prompt_is_not_written(tmp_path, field, value, part):
  fields = {"context": CONTEXT, "clip_model": "a/clip"} | {field: value}
  with pytest.raises(PromptFileError) as caught:
    save_prompt(tmp_path / "prompt.npz", Prompt(**fields))
  assert field in str(caught.value)
  assert part in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"context": None}, ["context is missing", "clip_model, config"]),
    ({"config": None}, ["config is missing"]),
    ({"format_version": None}, ["format_version is missing"]),
    ({"format_version": 2}, ["format_version is 2", "accepted: 1"]),
    ({"format_version": "1"}, ["format_version is '1'", "accepted: 1"]),
    ({"context": CONTEXT.astype(np.float64)}, ["context is float64 [4, 8]", "float32 [M, D]"]),
    ({"context": CONTEXT.astype(">f4")}, ["context is >f4"]),
    ({"context": CONTEXT[0]}, ["context is float32 [8]"]),
    ({"context": CONTEXT[:0]}, ["context is float32 [0, 8]"]),
    ({"context": np.where(CONTEXT > 0, np.inf, CONTEXT)}, ["context is not finite"]),
    ({"position": "left"}, ["position is 'left'", "end, middle, front"]),
    ({"position": 3}, ["position is a int", "a str"]),
    ({"position": ["end"]}, ["position is a ndarray"]),
    ({"template": "{} {}"}, ["template is '{} {}'"]),
    ({"clip_model": b"a/clip"}, ["clip_model is a bytes"]),
    ({"config": "{not json"}, ["config is not JSON"]),
    ({"config": "[" * 100_000}, ["config is not JSON"]),
    ({"config": "[1]"}, ["config is a list", "JSON object"]),
  ],
)
def test_a_bad_file_is_refused_by_field(tmp_path, changes, parts):
  message = refusal(write(tmp_path / "p.npz", **changes))
  for part in parts:
    assert part in message


def test_unknown_arrays_are_ignored(tmp_path):
  path = write(tmp_path / "p.npz", extra=np.arange(3), pickled=np.array([{}], object))
  np.testing.assert_array_equal(load_prompt(path).context, CONTEXT)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth.tar-5"])
def test_files_that_are_missing_or_truncated(tmp_path, suffix):
  assert "the file is missing" in refusal(tmp_path / f"none.{suffix}")
  (tmp_path / f"folder.{suffix}").mkdir()
  assert "the file is missing" in refusal(tmp_path / f"folder.{suffix}")
  path = tmp_path / f"a.{suffix}"
  save_prompt(path, Prompt(CONTEXT, "a/clip"))
  whole = path.read_bytes()
  for length in range(0, len(whole), 61):
    path.write_bytes(whole[:length])
    assert "not a whole" in refusal(path)


@pytest.mark.parametrize("field", sorted(GOOD))
def test_nothing_is_unpickled(tmp_path, field):
  trace = tmp_path / "trace"
  path = write(tmp_path / "p.npz", **{field: np.array([Malicious(trace)], object)})
  assert f"{field} is pickled Python objects" in refusal(path)
  assert not trace.exists()


WHOLE = io.BytesIO()
write(WHOLE, pickled=np.array([{}], object))


def test_every_single_byte_matters_or_is_caught(tmp_path):
  """Each byte of the file flipped in turn: an unchanged prompt, or PromptFileError."""
  path = tmp_path / "p.npz"
  for position in range(0, len(WHOLE.getvalue()), 3):
    data = bytearray(WHOLE.getvalue())
    data[position] ^= 0xFF
    path.write_bytes(data)
    try:
      prompt = load_prompt(path)
    except PromptFileError:
      continue
    np.testing.assert_array_equal(prompt.context, CONTEXT)
    assert prompt.clip_model == "a/clip"


def test_check_fits():
  shared, specific = Prompt(CONTEXT, "a/clip"), Prompt(np.stack([CONTEXT] * 3), "a/clip")
  check_fits(shared, 8)
  check_fits(shared, 8, "a/clip", 7, "p.npz")
  check_fits(specific, 8, n_classes=3)
  with pytest.raises(
    PromptFileError,
    match=r"p\.npz: context \[4, 8\] has width 8 .*'a/clip'.*"
    r"'b/clip' has width 16",
  ):
    check_fits(shared, 16, "b/clip", None, "p.npz")
  with pytest.raises(PromptFileError, match=r"context \[3, 4, 8\] .* its 3 classes.* list has 5"):
    check_fits(specific, 8, n_classes=5)
  other = Prompt(CONTEXT, "a/clip", template="a {}.")
  with pytest.raises(PromptFileError, match=r"p\.npz: template is 'a \{\}\.'; accepted: '\{\}\.'"):
    check_fits(other, 8, path="p.npz")


@pytest.mark.parametrize(
  ("trained", "used", "told"),
  [
    ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32", True),
    ("openai/clip-vit-base-patch16", "clips/ViT-B-16.pt", False),
    ("unknown", "openai/clip-vit-base-patch32", False),
    ("openai/clip-vit-base-patch16", None, False),
  ],
)
def test_a_clip_of_the_same_width_is_told_of(trained, used, told, caplog):
  with caplog.at_level("WARNING"):
    logging.getLogger("pomp_jax").propagate = True
    check_fits(Prompt(CONTEXT, trained), 8, used, path="p.npz")
  message = f"p.npz was trained with {trained}, but config.clip.model is {used}"
  assert (message in caplog.text) == told


def npy(shape, dtype, values=b"", version=(1, 0)):
  """An npy file's bytes, whatever its header claims."""
  file = io.BytesIO()
  header = {"descr": dtype, "fortran_order": False, "shape": shape}
  getattr(np.lib.format, f"write_array_header_{version[0]}_0")(file, header)
  return file.getvalue() + values


def hostile_archives(folder):
  """Files of a few megabytes at most that would take gigabytes, by what they are."""
  good = {f"{name}.npy": npy_of(value) for name, value in GOOD.items()}
  gigabytes = (2**20, 1, 1024)

  def write_zip(name, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(folder / name, "w", compression, compresslevel=1) as archive:
      for member, content in (good | {f"{k}.npy": v for k, v in members.items()}).items():
        archive.writestr(member, content)
    return folder / name

  huge_text = npy((), f"<U{2**28}")
  yield write_zip("claim.npz", context=npy(gigabytes, "<f4", bytes(64)))
  yield write_zip("stored.npz", zipfile.ZIP_STORED, context=npy(gigabytes, "<f4", bytes(64)))
  yield write_zip("zeros.npz", context=npy((8192, 16, 512), "<f4", bytes(4 * 8192 * 16 * 512)))
  yield write_zip("wide.npz", context=npy((2, 64), f"<U{2**24}", bytes(64)))
  yield write_zip("text.npz", config=huge_text)
  yield write_zip("vectors.npz", zipfile.ZIP_STORED, context=npy((2**20, 1), "<f4", bytes(2**22)))
  head = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little")
  yield write_zip("header.npz", context=head + b" " * 2**26)
  # The directory claims more bytes than the whole file has.
  lying = write_zip("lying.npz", zipfile.ZIP_STORED, context=npy(gigabytes, "<f4", bytes(64)))
  content = lying.read_bytes()
  size = len(npy(gigabytes, "<f4", bytes(64))).to_bytes(4, "little") * 2
  assert content.count(size) == 2
  lying.write_bytes(content.replace(size, (2**32 - 2).to_bytes(4, "little") * 2))
  yield lying


def npy_of(value):
  file = io.BytesIO()
  np.save(file, value, allow_pickle=False)
  return file.getvalue()


def test_hostile_archives_are_refused_for_nothing(tmp_path):
  """Neither memory nor time of the size that they claim is taken."""
  code = """
import resource, sys, time
from pomp_jax.files.prompt_file import PromptFileError, load_prompt
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
  start = time.process_time()
  try:
    load_prompt(path)
    print("loaded", path)
  except PromptFileError as error:
    print("refused" if time.process_time() - start < 1 else "slow", error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
  paths = list(map(str, hostile_archives(tmp_path)))
  run = subprocess.run(
    [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
  )
  *lines, mib = run.stdout.splitlines()
  assert len(lines) == len(paths) == 8
  for line, path in zip(lines, paths, strict=True):
    assert line.startswith(f"refused {path}: "), line
  assert int(mib) < 50


@pytest.mark.parametrize("shape", [(1025, 1), (1, 16_385), (2**20 + 1, 1, 1), (1, 2**20, 1)])
def test_a_context_larger_than_any_tower_takes_is_refused_in_every_format(tmp_path, shape):
  context = np.zeros(shape, np.float32)
  with pytest.raises(PromptFileError, match="context is of shape .* M at most 1024"):
    save_prompt(tmp_path / "prompt.npz", Prompt(context, "a/clip"))
  write(tmp_path / "a.npz", context=context)
  safetensors.numpy.save_file(
    {"context": context},
    tmp_path / "a.safetensors",
    {"format_version": "1"}
    | {k: str(v) for k, v in GOOD.items() if np.ndim(v) == 0 and k != "format_version"},
  )
  torch.save({"state_dict": {"ctx": torch.zeros(shape)}}, tmp_path / "a.pth")
  for name in ("a.npz", "a.safetensors", "a.pth"):
    assert "of shape" in refusal(tmp_path / name)


def test_a_tensor_that_repeats_one_value_is_refused(tmp_path):
  """A view with strides of 0: kilobytes that stand for gigabytes."""
  torch.save({"state_dict": {"ctx": torch.zeros(1).expand(2**18, 16, 128)}}, tmp_path / "a.pth")
  assert (tmp_path / "a.pth").stat().st_size < 4096
  assert "values that repeat others" in refusal(tmp_path / "a.pth")
