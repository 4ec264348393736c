"""Torch's zip archives without torch: weights of CLIPs, and prompts of CoOp's and
POMP's code.

`<root>/data.pkl` is a pickle of the value, in which a tensor is a reference to a record
`<root>/data/<key>` of raw numbers, with an offset, a shape and strides. Nothing is
unpickled. Torch is imported to write a prompt alone.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import dataclasses
import io
import json
import os
import re
from typing import Any, NamedTuple, NoReturn
import zipfile

import ml_dtypes
import numpy as np

from pomp_jax.clip import weights
from pomp_jax.clip.architecture import ClipError
from pomp_jax.files.paths import Path, is_dir, is_file, local_copy
from pomp_jax.files.prompt_file import (
  FORMAT_VERSION,
  OF_OTHERS,
  PromptFileError,
  refuse,
)
from pomp_jax.files.restricted_pickle import (
  PickledObject,
  PickleError,
  RestrictedUnpickler,
)
from pomp_jax.files.terminal import printable

# Item of a training checkpoint with the weights: open_clip's and CoOp's, and
# detectron2's.
_STATE_DICTS = ("state_dict", "model")
_PICKLE_NAME = re.compile(r"([^/]+)/data\.pkl")
_TYPES = {
  "Double": "f8",
  "Float": "f4",
  "Half": "f2",
  "BFloat16": "u2",
  "Long": "i8",
  "Int": "i4",
}
_TYPES |= {"Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
_TYPES = {f"{name}Storage": kind for name, kind in _TYPES.items()}
# The context in a state dict: CoOp's and POMP's, that of whole models (forks; POMP's
# segmentation models), and that of ZSSeg's own, which may also have vectors after the
# name.
_CONTEXT = re.compile(r"ctx|([\w-]+\.)*prompt_learner\.(ctx|prefix_prompt)")
_SUFFIX = "suffix_prompt"
# Item of a torch checkpoint with our text fields; published code ignores it.
_OURS = "pomp_jax"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """Reference to a tensor's values."""

  storage: str  # name of the record that holds them
  kind: str  # torch's name of their type, such as FloatStorage
  offset: int  # index of the tensor's first value in the record
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # values between neighbours along each axis


class _Dict(dict):
  """An ordered dict, without its attributes: `_metadata` of a module's state."""

  def __setstate__(self, state: Any) -> None:
    pass


class _Storage(NamedTuple):
  key: str
  kind: str


class TorchUnpickler(RestrictedUnpickler):
  """Reads `data.pkl`: tensors as `StoredTensor`, ordered dicts as dicts, parameters as
  tensors.

  Reads more than `torch.load(weights_only=True)`: Dassl's warm-up schedulers keep a
  whole scheduler object in their state, which torch refuses.
  """

  # Names of protocol 2: those that torch's own safe loader takes, and
  names = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)"
    r"|__builtin__\.(dict|set|bytearray|complex)"
    r"|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|(_core|core)\.multiarray\.(scalar|_reconstruct))"
    r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|torch\.(u?int\d+|b?float\d+|complex\d+|half|double|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.\w+Storage|torch\.storage\.(UntypedStorage|TypedStorage)"
    # TorchScript's: classes of the archive's own, and marks of types;
    r"|__torch__(\.\w+)+|torch\.jit\._pickle\.\w+"
    # the scheduler that follows a warm-up, and its optimizer.
    r"|torch\.optim\.(\w+\.)+\w+"
  )

  def construct(self, name: str, arguments: tuple) -> Any:
    if name == "collections.OrderedDict" and not arguments:
      return _Dict()
    if name == "torch._utils._rebuild_tensor_v2":
      storage, offset, shape, strides, *_ = arguments
      fits = isinstance(storage, _Storage) and len(shape) == len(strides)
      numbers = (offset, *shape, *strides)
      if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise PickleError("a tensor without a storage, a shape or strides")
      return StoredTensor(
        storage.key, storage.kind, offset, tuple(shape), tuple(strides)
      )
    if name == "torch._utils._rebuild_parameter" and isinstance(
      arguments[0], StoredTensor
    ):
      return arguments[0]
    return PickledObject(name)

  def persistent_load(self, pid: Any) -> _Storage:
    what, kind, key, *_ = pid
    kind = re.fullmatch(r"torch\.(\w+Storage)", kind.__name__)
    if what != "storage" or not kind or not isinstance(key, str):
      raise PickleError("a reference to something that is no storage")
    return _Storage(key, kind[1])


class TorchArchive(contextlib.AbstractContextManager):
  """Open archive; `value` is what `TorchUnpickler` reads. What can't be read raises
  `error`."""

  value: Any

  def __init__(self, path: str | os.PathLike, error: type[Exception] = ClipError):
    self._path, self._error = path, error
    try:
      self._zip = zipfile.ZipFile(local_copy(path))
    except FileNotFoundError:
      self._refuse("the file", "missing", "a torch checkpoint")
    except (
      Exception
    ) as error:  # a damaged archive fails in more ways than zipfile documents
      self._refuse("the file", f"not a whole zip ({error})", weights.TORCH_FILES)
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._zip)
      names = [name for name in self._zip.namelist() if _PICKLE_NAME.fullmatch(name)]
      if len(names) != 1:
        found = f"a zip with {len(names)} data.pkl"
        self._refuse("the file", found, "a torch checkpoint, with one")
      self._root = names[0].removesuffix("/data.pkl")
      try:
        self.value = TorchUnpickler.read(self._read("data.pkl"))
      except PickleError as error:
        accepted = "tensors, plain values, and torch's optimizer state"
        self._refuse("data.pkl", f"refused for {error}", accepted)
      # torch before 2.1 wrote no byte order.
      is_told = f"{self._root}/byteorder" in self._zip.namelist()
      order = self._read("byteorder") if is_told else b"little"
      if order not in (b"little", b"big"):
        self._refuse("byteorder", repr(order[:16]), "little, big")
      self._order = "<" if order == b"little" else ">"
      stack.pop_all()

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def array(self, tensor: StoredTensor, field: str = "the tensor") -> np.ndarray:
    """Reads a tensor of `value` into a new array; bfloat16 becomes float32.

    The error names `field` if its type is unknown, its record missing or damaged, or if
    it reaches beyond the record.
    """
    kind = _TYPES.get(tensor.kind)
    if kind is None:
      self._refuse(field, f"of type {tensor.kind}", ", ".join(_TYPES))
    dtype = np.dtype(self._order + kind)
    data = self._read(f"data/{tensor.storage}")
    try:
      strides = [dtype.itemsize * stride for stride in tensor.strides]
      view = np.ndarray(
        tensor.shape, dtype, data, dtype.itemsize * tensor.offset, strides
      )
      array = view.astype(dtype.newbyteorder("="), order="C")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
      found = f"{list(tensor.shape)} on a record of {len(data)} bytes ({error})"
      self._refuse(field, found, "a tensor within its record")
    is_bfloat16 = tensor.kind == "BFloat16Storage"
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if is_bfloat16 else array

  def _read(self, record: str) -> bytes:
    try:
      return self._zip.read(f"{self._root}/{record}")
    except KeyError:
      self._refuse(record, "missing", "a record of that name")
    except Exception as error:  # zipfile and zlib, on a bad byte
      self._refuse(record, f"damaged ({error})", "an undamaged record")

  def _refuse(self, part: str, found: str, accepted: str) -> NoReturn:
    raise self._error(
      f"{self._path}: {part} is {printable(found)}; accepted: {accepted}"
    )


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[weights.Weights]:
  """Opens a state dict, a training checkpoint with an item of `_STATE_DICTS`, or
  TorchScript."""
  with TorchArchive(path) as archive:
    value = archive.value
    items = value.items() if isinstance(value, dict) else ()
    text = {name: item for name, item in items if isinstance(item, str)}
    for item in _STATE_DICTS:
      if isinstance(value, dict) and isinstance(value.get(item), dict):
        value = value[item]
    try:
      tensors = dict(_named_tensors(value))
    except RecursionError:
      weights.refuse(
        path, "the checkpoint", "a module inside itself", "a state dict of weights"
      )
    if not tensors:
      kind = value.name if isinstance(value, PickledObject) else type(value).__name__
      weights.refuse(
        path, "the checkpoint", f"a {kind} without tensors", "a state dict of weights"
      )
    # Distributed training wraps the model in another module.
    if all(name.startswith("module.") for name in tensors):
      tensors = {
        name.removeprefix("module."): tensor for name, tensor in tensors.items()
      }

    def read(name: str) -> np.ndarray:
      values = archive.array(tensors[name], name)
      if values.dtype.kind != "f":
        weights.refuse(path, name, f"of type {values.dtype}", "a float type")
      return np.asarray(values, np.float32)

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    yield weights.Weights(str(path), shapes, read, text)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
  """Finds the tensors of a state dict, or of a TorchScript module and its
  submodules."""
  children: dict[Any, Any] = {}
  if isinstance(value, StoredTensor):
    yield name, value
  elif isinstance(value, PickledObject) and value.name.startswith("__torch__."):
    children = value.attributes
  elif isinstance(value, dict) and not name:
    children = value
  for key, child in children.items():
    if isinstance(key, str):
      yield from _named_tensors(child, f"{name}.{key}" if name else key)


def encode(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """The layout of CoOp's and POMP's code, for `torch.load(weights_only=True)`.

  `{"state_dict": {"ctx": [M,D] or [N,M,D]}, "epoch": .., "pomp_jax": {..}}`, with
  `epochs` of the config, else 0, and without the published buffers `token_prefix` and
  `token_suffix`, the embeddings of the training's class names. PromptFileError without
  torch.
  """
  try:
    import torch
  except ImportError as error:
    told = "writing .pth needs torch: pip install 'pomp-jax[torch]'"
    raise PromptFileError(f"{told} ({error})") from error
  "".join(text.values()).encode()  # raises UnicodeEncodeError, which a pickle does not
  ours = {**text, "format_version": FORMAT_VERSION}
  state = {"ctx": torch.tensor(context)}
  epoch = json.loads(text["config"]).get("epochs", 0)
  epoch = epoch if type(epoch) is int and 0 <= epoch < 2**31 else 0
  file = io.BytesIO()
  torch.save({"state_dict": state, "epoch": epoch, _OURS: ours}, file)
  return file.getvalue()


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the context of a checkpoint, of any float type, as float32, and our fields
  beside it."""
  with TorchArchive(path, PromptFileError) as archive:
    field, tensor = _torch_context(path, archive.value)
    if not isinstance(tensor, StoredTensor):
      refuse(path, field, _kind(tensor), "a tensor [M, D] or [N, M, D]")
    context = archive.array(tensor, field)
    ours = archive.value.get(_OURS, OF_OTHERS)
  if context.dtype.kind != "f":
    refuse(path, field, f"{context.dtype} {list(context.shape)}", "a float tensor")
  with np.errstate(over="ignore"):  # infinities are refused later
    context = context.astype(np.float32, order="C")
  if not isinstance(ours, dict):
    refuse(path, _OURS, _kind(ours), "a dict")
  return {**ours, "context": context}


def _torch_context(path: str | os.PathLike, value: Any) -> tuple[str, Any]:
  """Name and value of the context, in a checkpoint's state dict or in a state dict
  alone."""
  whole = value if isinstance(value, dict) else {}
  places = {
    "model": whole.get("model"),
    "state_dict": whole.get("state_dict"),
    "": whole,
  }
  for place, state in places.items():
    items = state if isinstance(state, dict) else {}
    name = context_name(path, items, place or "the file")
    if name is not None:
      return f"{place}[{name!r}]", items[name]
  field, key, item = "the checkpoint", "state_dict", value
  if "state_dict" in whole:
    field, key, item = "state_dict", "ctx", whole["state_dict"]
  if not isinstance(item, dict):
    refuse(path, field, _kind(item), f"a dict with {key!r}")
  names = ", ".join(sorted(name for name in item if isinstance(name, str))) or "nothing"
  refuse(
    path, f"{field}[{key!r}]", f"missing (there are: {names})", "an item of that name"
  )


def context_name(
  path: str | os.PathLike, items: Collection[Any], place: str
) -> str | None:
  """Name of the context among those of a state dict's tensors."""
  names = [name for name in items if isinstance(name, str) and _CONTEXT.fullmatch(name)]
  if len(names) > 1:
    refuse(path, place, f"a dict with {', '.join(names)}", "one context")
  for name in names:
    if (suffix := f"{name.rpartition('.')[0]}.{_SUFFIX}") in items:
      refuse(path, f"{place}[{suffix!r}]", "present", "vectors before the name alone")
    return name
  return None


def prompt_of_trainer(output: Path) -> Path | None:
  """The best checkpoint in a trainer's folder, as Dassl loads it, else the one last
  saved."""
  for folder in (output / "prompt_learner", output):
    files = (
      {path.name: path for path in folder.glob("model*.pth.tar*")}
      if is_dir(folder)
      else {}
    )
    last = folder / "checkpoint"
    name = last.read_text(errors="replace").strip() if files and is_file(last) else ""
    newest = sorted(files, key=lambda name: (len(name), name))[-1:]
    for known in ("model-best.pth.tar", name, *newest):
      if known in files:
        return files[known]
  return None


def _kind(value: Any) -> str:
  kind = type(value).__name__
  return f"an object {value.name}" if isinstance(value, PickledObject) else f"a {kind}"
