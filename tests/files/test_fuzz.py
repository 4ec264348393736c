"""Fuzzing of the readers of `files`: damaged, edited and hostile files; no pickle is
run."""

from collections.abc import Callable
import io
import os
import pathlib
import pickle
import struct
import threading
import zipfile

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from pomp_jax.clip.load import load_clip
from pomp_jax.clip.weights import ClipError, open_weights
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.images import open_image
from pomp_jax.errors import InputError
from pomp_jax.files.paths import local_copy
from pomp_jax.files.pieces import ArrayCache
from pomp_jax.files.prompt_file import (
  POSITIONS,
  Prompt,
  PromptFileError,
  load_prompt,
  save_prompt,
)
from tests.support.fuzzing import Bomb, allowed_errors, awkward_text, bombs, damaged
from tests.support.prompt_files import CONTEXT

PROMPT = Prompt(CONTEXT, "a/clip", "middle", {"seed": 1, "epochs": 5})
FORMATS = ("prompt.npz", "prompt.safetensors", "prompt.pth.tar-5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def valid(folder):
  for name in FORMATS:
    save_prompt(folder / name, PROMPT)
  return {name: (folder / name).read_bytes() for name in FORMATS}


def read_prompt(folder, name, data):
  path = folder / name
  path.write_bytes(data)
  with allowed_errors(PromptFileError, within=[path]):
    prompt = load_prompt(path)
    assert prompt.context.dtype == np.float32 and prompt.context.ndim in (2, 3)
    assert prompt.context.size and np.isfinite(prompt.context).all()
    assert prompt.position in POSITIONS
    assert isinstance(prompt.clip_model, str) and isinstance(prompt.config, dict)


def with_member(archive, name, data):
  """A zip with one member's bytes replaced; the checksums are right."""
  file = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
    for found in old.namelist():
      new.writestr(found, data if found == name else old.read(found))
  return file.getvalue()


def read_weights(folder, name, data):
  """A prompt's files hold a tensor in a dict, as a model's do."""
  path = folder / name
  path.write_bytes(data)
  with allowed_errors(ClipError, within=[folder]), open_weights(path) as weights:
    for tensor, shape in weights.shapes.items():
      values = weights.read(tensor)
      assert (values.dtype, values.shape) == (np.float32, shape)


@pytest.mark.parametrize(
  ("read", "name"),
  [
    *((read_prompt, name) for name in FORMATS),
    *((read_weights, name) for name in FORMATS[1:]),
  ],
)
def test_damaged_prompts_and_weights(folder, valid, read, name):
  @given(damaged([valid[name]]))
  def check(data):
    read(folder, name, data)

  check()


_DTYPES = [
  *("<f4", ">f4", "<f8", "<U3", "<U99999999", "|S4"),
  *("|O", "<M8[s]", "|V8", "<c8", "<i8", "|b1"),
]


@given(
  field=st.sampled_from(
    ["context", "clip_model", "position", "format_version", "config"]
  ),
  dtype=st.sampled_from(_DTYPES) | st.just([("a", "<f4")]) | awkward_text,
  shape=st.lists(st.sampled_from([0, 1, 2, 4, -1, 2**31, 2**63, "x", 0.5]), max_size=4),
  order=st.sampled_from([True, False, None]),
  version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
  body=st.binary(max_size=40),
)
def test_an_array_of_any_header(
  folder, valid, field, dtype, shape, order, version, body
):
  header = repr({"descr": dtype, "fortran_order": order, "shape": tuple(shape)}).encode(
    "utf-8", "replace"
  )
  size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
  array = b"\x93NUMPY" + bytes(version) + size + header + body
  read_prompt(
    folder, "prompt.npz", with_member(valid["prompt.npz"], f"{field}.npy", array)
  )


_OPCODES = [
  *(
    b"\x80\x02",
    b"}",
    b"]",
    b")",
    b"(",
    b"t",
    b"R",
    b"Q",
    b"b",
    b"u",
    b"s",
    b"a",
    b"e",
    b".",
  ),
  *(
    b"N",
    b"\x88",
    b"0",
    b"1",
    b"2",
    b"q\x00",
    b"h\x00",
    b"K\x05",
    b"M\xff\xff",
    b"\x81",
    b"\x85",
  ),
  *(
    b"\x8a\x01\x05",
    b"\x8b\x04\x00\x00\x00\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"I1\n",
  ),
  *(
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cos\nsystem\n",
  ),
  *(
    b"ctorch\nFloatStorage\n",
    b"c__torch__.a\nB\n",
    b"ctorch._utils\n_rebuild_parameter\n",
  ),
  *(b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu"),
  *(
    b"X\x0a\x00\x00\x00state_dict",
    b"X\x03\x00\x00\x00ctx",
    b"X\x08\x00\x00\x00pomp_jax",
  ),
  *(
    b"X\x03\x00\x00\x00\xed\xa0\x80",
    b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"V\\ud800\n",
  ),
]


@given(st.lists(st.sampled_from(_OPCODES), max_size=40))
def test_any_pickle_of_known_opcodes(folder, valid, opcodes):
  pickled = b"\x80\x02" + b"".join(opcodes) + b"."
  name = "prompt.pth.tar-5"
  read_prompt(folder, name, with_member(valid[name], "archive/data.pkl", pickled))


TENSORS = {"ctx": torch.ones(4, 8)}
TEXTS = {"clip_model": "a/clip", "position": "end", "template": "{}.", "config": "{}"}
ARRAYS = {
  **{name: np.array(text) for name, text in TEXTS.items()},
  "context": np.ones((4, 8), np.float32),
  "boxes": np.zeros((1, 4), np.float32),
  "format_version": np.array(1),
}


def read_tensors(path):
  with open_weights(path) as weights:
    for name in weights.shapes:
      weights.read(name)


Reader = Callable[[pathlib.Path], object]
READERS: dict[str, Reader] = {
  "prompt.npz": load_prompt,
  "prompt.safetensors": load_prompt,
  "prompt.pth.tar-5": load_prompt,
  "weights.bin": read_tensors,
  "clip.pt": lambda path: load_clip(str(path)),
  "key.npz": lambda path: ArrayCache(path.parent).find("key"),
}


def npy(pickled: bytes) -> bytes:
  file = io.BytesIO()
  header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + pickled


def files_with_pickles(folder) -> list[bytes]:
  """Files that hold a pickle which would make `folder`: bare, in arrays, in torch's
  archives."""
  found = []
  for pickled in bombs(folder):
    found += [pickled, npy(pickled)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("archive/data.pkl", pickled)
      archive.writestr("archive/version", "3\n")
    found.append(file.getvalue())
  for name in ARRAYS:
    file = io.BytesIO()
    np.savez(
      file, **ARRAYS | {name: np.array([Bomb(folder)], object)}, allow_pickle=True
    )
    found.append(file.getvalue())
  for content in ({"state_dict": TENSORS}, {"model": TENSORS}, TENSORS):
    file = io.BytesIO()
    torch.save(content | {"hook": Bomb(folder)}, file)
    found.append(file.getvalue())
  return found


@pytest.mark.parametrize("name", READERS)
def test_no_pickle_is_run(tmp_path, name):
  check_no_pickle_is_run(tmp_path, name, READERS[name])


def check_no_pickle_is_run(tmp_path: pathlib.Path, name: str, reader: Reader) -> None:
  """Asserts that a reader of a file of this name runs none of the pickles in it."""
  trace = tmp_path / "trace"
  path = tmp_path / "read" / name
  path.parent.mkdir()
  for content in files_with_pickles(trace):
    path.write_bytes(content)
    with allowed_errors(InputError, within=[path.parent]):
      reader(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", [*READERS, "image.png", "names.json"])
def test_no_pipe_is_waited_for(tmp_path, name):
  reader = {"image.png": open_image, "names.json": load_class_list, **READERS}[name]
  check_no_pipe_is_waited_for(tmp_path / name, reader)


def check_no_pipe_is_waited_for(path: pathlib.Path, reader: Reader) -> None:
  """Asserts that a reader refuses a pipe in place of the file."""
  errors = []
  os.mkfifo(path)

  def read():
    try:
      reader(path)
    except InputError as error:
      errors.append(str(error))

  thread = threading.Thread(target=read, daemon=True)
  thread.start()
  thread.join(20)
  waits = thread.is_alive()
  if waits:
    os.close(os.open(path, os.O_RDWR))  # lets it end
  assert not waits
  assert path.name == "key.npz" or (path.name in errors[0] and errors[0].isprintable())


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_no_device_is_read(device):
  with pytest.raises(OSError, match=device):
    local_copy(device)


def test_they_would_run(tmp_path):
  """Else the test above would prove nothing."""
  for number, pickled in enumerate(bombs(tmp_path / "trace")):
    pickle.loads(pickled)
    (tmp_path / "trace").rename(tmp_path / str(number))
  file = io.BytesIO(files_with_pickles(tmp_path / "trace")[-1])
  torch.load(file, weights_only=False)
  assert (tmp_path / "trace").exists()
