"""torch's archives against torch itself, and hostile ones."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.files.torch_archive import (
  StoredTensor,
  TorchArchive,
  TorchArchiveError,
  TorchUnpickler,
  write_torch_archive,
)
from tests.support.prompt_files import refusal as _refusal


def saved(value) -> bytes:
  file = io.BytesIO()
  torch.save(value, file)
  return file.getvalue()


def write(path, value):
  path.write_bytes(saved(value))
  return path


def changed(path, source, **records):
  """A copy of an archive with some records replaced (None: left out; bytes otherwise)."""
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

  return _refusal(path, open_and_read, TorchArchiveError)


TENSOR = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7


@pytest.mark.parametrize(
  "tensor",
  [
    *(TENSOR, TENSOR.T, TENSOR[1:, ::2], TENSOR[2], TENSOR[:, None].expand(4, 3, 6), TENSOR.sum()),
    *(TENSOR[:, :1], TENSOR.half(), TENSOR.half().T, TENSOR.double(), TENSOR.bfloat16().T),
    *(TENSOR.long(), TENSOR.int(), TENSOR.short(), TENSOR.to(torch.int8), TENSOR.to(torch.uint8)),
    *(TENSOR > 1, torch.nn.Parameter(TENSOR.clone())),
  ],
  ids=lambda tensor: f"{tensor.dtype} {tensor.shape}",
)
def test_tensors_are_torchs(tmp_path, tensor):
  with TorchArchive(write(tmp_path / "a.pt", {"t": tensor, "more": TENSOR})) as archive:
    found = archive.array(archive.value["t"])
  expected = tensor.detach()
  expected = expected.float() if expected.dtype == torch.bfloat16 else expected
  np.testing.assert_array_equal(found, expected.numpy(), strict=True)


def test_views_of_one_storage(tmp_path):
  with TorchArchive(write(tmp_path / "a.pt", [TENSOR[:2], TENSOR[2:].T])) as archive:
    first, second = archive.value
    assert first.storage == second.storage
    np.testing.assert_array_equal(archive.array(second), TENSOR[2:].T.numpy())


def test_plain_values_come_back(tmp_path):
  value = {
    "none": None,
    "flags": (True, False),
    "numbers": [0, -1, 255, 65535, 2**31 - 1, -(2**40), 2**100, 0.1, float("inf")],
    "text": "grüße \u4f60",
    "nested": collections.OrderedDict(a=(), b=((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), c=[], d={}),
    7: "an integer key",
  }
  with TorchArchive(write(tmp_path / "a.pt", value)) as archive:
    assert archive.value == value


def test_what_is_not_built_is_a_name(tmp_path):
  value = {
    "multiarray.scalar": np.float64(1.5),
    "collections.Counter": collections.Counter([1, 2, 2]),
    **{"array": np.arange(3), "set": {1}, "bytes": b"\xff", "complex": 1j},
    **{"size": TENSOR.shape, "dtype": torch.float16, "device": torch.device("cpu")},
    "keys": {(1, 2): 3, 1.5: 2},
  }
  with TorchArchive(write(tmp_path / "a.pt", value)) as archive:
    found = archive.value
  assert found.pop("keys") == {}  # neither strings nor integers
  del found["dtype"]
  for name, part in found.items():
    assert isinstance(part, PickledObject), name
    assert "." not in name or part.name.endswith(name)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_and_schedulers_as_dassl_saves_them(tmp_path, make):
  """A warm-up keeps its successor, a whole scheduler, in its state; torch refuses such a file."""

  class Warmup(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, successor):
      self.successor = successor
      super().__init__(optimizer, -1)

    def get_lr(self):
      return [1e-5 for _ in self.base_lrs]

  parameter = torch.nn.Parameter(TENSOR.clone())
  optimizer = make([parameter], lr=0.1)
  successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
  scheduler = Warmup(optimizer, successor)
  parameter.sum().backward()
  optimizer.step()
  scheduler.step()
  states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
  state_dict = collections.OrderedDict(ctx=parameter.detach())
  path = tmp_path / "model.pth.tar-5"
  write(path, {"state_dict": state_dict, "epoch": 5, "val_result": None, **states})
  with pytest.raises(pickle.UnpicklingError):
    torch.load(path, weights_only=True)
  with TorchArchive(path) as archive:
    value = archive.value
    np.testing.assert_array_equal(archive.array(value["state_dict"]["ctx"]), parameter.detach())
  assert value["epoch"] == 5 and value["val_result"] is None
  assert value["optimizer"]["param_groups"][0]["lr"] == 1e-5
  assert value["scheduler"]["successor"].name == "torch.optim.lr_scheduler.CosineAnnealingLR"


def test_torch_loads_what_is_written(tmp_path):
  array = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
  value = {
    "state_dict": {"ctx": array, "strided": array[:, ::2].T, "row": array[0, 0], "one": array[:1]},
    "epoch": 5,
    "numbers": {"a": -1, "b": 2**31 - 1},
    "text": "grüße \u4f60",
  }
  with open(tmp_path / "a.pth", "wb") as file:
    write_torch_archive(file, value)
  found = torch.load(tmp_path / "a.pth", weights_only=True)
  assert isinstance(found["state_dict"], collections.OrderedDict)
  for name, expected in value["state_dict"].items():
    tensor = found["state_dict"][name]
    assert tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), expected)
  assert found | {"state_dict": None} == value | {"state_dict": None}
  with TorchArchive(tmp_path / "a.pth") as archive:
    np.testing.assert_array_equal(
      archive.array(archive.value["state_dict"]["strided"]), array[:, ::2].T
    )


@pytest.mark.parametrize("value", [1.5, [1], 2**31, True, np.zeros(2), None])
def test_nothing_else_is_written(tmp_path, value):
  with open(tmp_path / "a", "wb") as file, pytest.raises(TypeError, match="can't be written"):
    write_torch_archive(file, {"a": value})


@pytest.mark.parametrize(
  "name",
  [
    *("io open", "os system", "posix system", "builtins eval", "__builtin__ getattr"),
    *("torch.hub load", "torch load", "torch._utils.x _rebuild_tensor_v2", "numpy load"),
    *("collections OrderedDict.update", "torch.optim os.system", "torch.optim.sgd x.y"),
    "torch.optim.sgd ",
  ],
)
def test_other_names_are_refused(tmp_path, name):
  data = b"\x80\x02c" + name.replace(" ", "\n", 1).encode() + b"\nX\x02\x00\x00\x00ls\x85R."
  path = changed(tmp_path / "a.pt", io.BytesIO(saved(TENSOR)), data_pkl=data)
  assert f"the name {name.replace(' ', '.')};" in refusal(path)


def test_state_changes_neither_names_nor_values():
  ordered = b"ccollections\nOrderedDict\n"
  assert TorchUnpickler.read(b"\x80\x02]}b.") == []
  assert TorchUnpickler.read(b"\x80\x02" + ordered + b"}b)R.") == {}


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
  assert "record of 97 bytes" in refusal(changed(path, source, data_0=bytes(97)), read)
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
  path = changed(tmp_path / "a.pt", source, byteorder=order and order.encode(), data_0=data)
  with TorchArchive(path) as archive:
    np.testing.assert_array_equal(archive.array(archive.value), TENSOR.numpy())


def test_compressed_records_are_refused(tmp_path):
  """A small file could become a large one otherwise."""
  path = tmp_path / "a.pt"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", bytes(10**6))
  assert "data.pkl is compressed" in refusal(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/data.pkl", bytes(3 * 2**20))
  assert f"data.pkl is {3 * 2**20} bytes large" in refusal(path)


@pytest.mark.parametrize(
  ("fields", "part"),
  [
    ({"shape": (2**40, 512), "strides": (0, 0)}, "bytes large"),
    ({"shape": (2**62, 2**62, 0), "strides": (0, 0, 0)}, "the tensor is ["),
    ({"count": 2**61}, "bytes large"),
    ({"offset": 1}, "reaches beyond"),
    ({"strides": (6, 2)}, "reaches beyond"),
    ({"strides": (2**60, 1)}, "reaches beyond"),
    ({"shape": (1,) * 99, "strides": (1,) * 99}, "the tensor is ["),
    ({"storage": "1"}, "data/1 is missing"),
    ({"storage": "../data/0"}, "data/../data/0 is missing"),
    ({"kind": "ComplexFloatStorage"}, "of type ComplexFloatStorage"),
  ],
)
def test_claims_that_the_file_does_not_hold(tmp_path, fields, part):
  good = StoredTensor("0", "FloatStorage", 24, 0, (4, 6), (6, 1))
  claim = StoredTensor(**(vars(good) | fields))
  path = write(tmp_path / "a.pt", TENSOR)
  assert part in refusal(path, lambda archive: archive.array(claim))


def test_a_storage_with_a_path_for_a_key(tmp_path):
  data = saved(TENSOR)
  pickled = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
  old = b"X" + struct.pack("<I", 1) + b"0"
  new = b"X" + struct.pack("<I", 4) + b"../0"
  assert old in pickled
  path = changed(tmp_path / "a.pt", io.BytesIO(data), data_pkl=pickled.replace(old, new))
  assert "no storage" in refusal(path)
