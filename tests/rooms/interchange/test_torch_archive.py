"""torch's archives against torch itself, and hostile ones; test_fuzz has other
pickles."""

import collections
import io
import zipfile

import numpy as np
import pytest
import torch

from pomp_jax.clip.architecture import ClipError
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.rooms.interchange.torch_archive import StoredTensor, TorchArchive
from tests.support.prompt_files import refusal as _refusal


def saved(value) -> bytes:
  file = io.BytesIO()
  torch.save(value, file)
  return file.getvalue()


def write(path, value):
  path.write_bytes(saved(value))
  return path


def changed(path, source, **records):
  """A copy of an archive with some records replaced (None: left out; bytes
  otherwise)."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
    for name in old.namelist():
      record = name.split("/", 1)[1]
      data = records.get(record.replace(".", "_").replace("/", "_"), old.read(name))
      if data is not None:
        new.writestr(name, data)
  return path


def refusal(path, read=lambda archive: None):
  def open_and_read(path):
    with TorchArchive(path) as archive:
      read(archive)

  return _refusal(path, open_and_read, ClipError)


TENSOR = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7


@pytest.mark.parametrize(
  "tensor",
  [
    *(TENSOR, TENSOR.T, TENSOR[1:, ::2], TENSOR[:, None].expand(4, 3, 6), TENSOR.sum()),
    *(
      TENSOR.half().T,
      TENSOR.double(),
      TENSOR.bfloat16().T,
      TENSOR.long(),
      TENSOR.int(),
    ),
    *(TENSOR.short(), TENSOR.to(torch.int8), TENSOR.to(torch.uint8), TENSOR > 1),
    torch.nn.Parameter(TENSOR.clone()),
  ],
  ids=lambda tensor: f"{tensor.dtype} {tensor.shape}",
)
def test_tensors_are_torchs(tmp_path, tensor):
  with TorchArchive(write(tmp_path / "a.pt", {"t": tensor, "same": tensor})) as archive:
    found = archive.array(archive.value["t"])
    assert archive.value["same"].storage == archive.value["t"].storage
  expected = tensor.detach()
  expected = expected.float() if expected.dtype == torch.bfloat16 else expected
  np.testing.assert_array_equal(found, expected.numpy(), strict=True)


def test_plain_values_come_back(tmp_path):
  value = {
    "none": None,
    "flags": (True, False),
    "numbers": [0, -1, 255, 65535, 2**31 - 1, -(2**40), 2**100, 0.1, float("inf")],
    "text": "grüße \u4f60",
    "nested": collections.OrderedDict(
      a=(), b=((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), c=[], d={}
    ),
    7: "an integer key",
  }
  others = {
    "counter": collections.Counter([1, 2]),
    "array": np.arange(3),
    "size": TENSOR.shape,
  }
  with TorchArchive(write(tmp_path / "a.pt", value | others)) as archive:
    found = archive.value
  # What is not built is a name.
  assert all(isinstance(found.pop(name), PickledObject) for name in others)
  assert found == value


@pytest.mark.parametrize(
  "name",
  [
    *("os system", "builtins eval", "torch load", "torch._utils.x _rebuild_tensor_v2"),
    *("collections OrderedDict.update", "torch.optim.sgd x.", "torch.optim.sgd "),
  ],
)
def test_other_names_are_refused(tmp_path, name):
  data = (
    b"\x80\x02c" + name.replace(" ", "\n", 1).encode() + b"\nX\x02\x00\x00\x00ls\x85R."
  )
  path = changed(tmp_path / "a.pt", io.BytesIO(saved(TENSOR)), data_pkl=data)
  assert f"the name {name.replace(' ', '.')};" in refusal(path)


@pytest.mark.parametrize(
  ("body", "reason"),
  [
    (b"(ios\nsystem\n.", "the name os.system"),
    (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "the name os.system"),
    # the result is not called in turn
    (b"ccollections\nOrderedDict\n)R)R.", "damaged"),
    *((body, "damaged") for body in (b"", b".", b"N)R.", b"h\x05.", b"}(Nu.", b"]")),
  ],
)
def test_other_programs_are_refused(tmp_path, body, reason):
  path = changed(
    tmp_path / "a.pt", io.BytesIO(saved(TENSOR)), data_pkl=b"\x80\x02" + body
  )
  assert reason in refusal(path)


def test_damaged_archives(tmp_path):
  whole = saved({"t": TENSOR})
  source = io.BytesIO(whole)

  def read(archive):
    archive.array(archive.value["t"], "t")

  path = tmp_path / "a.pt"
  assert "the file is missing" in refusal(tmp_path / "none.pt")
  assert "not a whole zip" in refusal(tmp_path)
  assert "data/0 is missing" in refusal(changed(path, source, data_0=None), read)
  assert "record of 95 bytes" in refusal(changed(path, source, data_0=bytes(95)), read)
  assert "byteorder is b'middle'" in refusal(changed(path, source, byteorder=b"middle"))
  assert "zip with 0 data.pkl" in refusal(changed(path, source, data_pkl=None))
  for length in range(0, len(whole), 61):
    path.write_bytes(whole[:length])
    assert "not a whole zip" in refusal(path)


@pytest.mark.parametrize("order", ["big", "little", None])
def test_byte_orders(tmp_path, order):
  """Old files have none, which stands for little."""
  data = TENSOR.numpy().astype(">f4" if order == "big" else "<f4").tobytes()
  source = io.BytesIO(saved(TENSOR))
  path = changed(
    tmp_path / "a.pt", source, byteorder=order and order.encode(), data_0=data
  )
  with TorchArchive(path) as archive:
    np.testing.assert_array_equal(archive.array(archive.value), TENSOR.numpy())


@pytest.mark.parametrize(
  ("fields", "part"),
  [
    ({"shape": (2**40, 512), "strides": (0, 0)}, "the tensor is ["),
    ({"shape": (2**62, 2**62, 0), "strides": (0, 0, 0)}, "the tensor is ["),
    ({"offset": 1}, "on a record of 96 bytes"),
    ({"strides": (6, 2)}, "on a record of 96 bytes"),
    ({"strides": (2**61, 1)}, "on a record of 96 bytes"),
    ({"storage": "../data/0"}, "data/../data/0 is missing"),
    ({"kind": "ComplexFloatStorage"}, "of type ComplexFloatStorage"),
  ],
)
def test_claims_that_the_file_does_not_hold(tmp_path, fields, part):
  good = StoredTensor("0", "FloatStorage", 0, (4, 6), (6, 1))
  claim = StoredTensor(**(vars(good) | fields))
  path = write(tmp_path / "a.pt", TENSOR)
  assert part in refusal(path, lambda archive: archive.array(claim))
