"""Reads torch's zip archives without torch: weights of CLIPs, prompts of other code.

`<root>/data.pkl` is a pickle of the value. A tensor in it is a reference to a record
`<root>/data/<key>` of raw numbers, with an offset, a shape and strides. The pickle is
read without importing or calling anything that it names. Torch is imported only to
write a prompt.

Shapes: M context vectors, D width of the CLIP's text tower, N classes, T tokens.
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
  CLASS_TOKENS,
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

# Names under which a training checkpoint has the weights.
_STATE_DICTS = (
  "state_dict",  # open_clip's and CoOp's
  "model",  # detectron2's
)
_PICKLE_NAME = re.compile(r"([^/]+)/data\.pkl")
# NumPy's types by torch's types. NumPy has no bfloat16: its bits are read as integers.
_TYPES = {
  "DoubleStorage": "f8",
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "BFloat16Storage": "u2",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
# Names of the context in a state dict: `ctx` of CoOp and POMP, `prompt_learner.ctx` of
# whole models (forks, POMP's segmentation models), and `prefix_prompt` of ZSSeg's own
# models, which may have vectors after the name, too, as `suffix_prompt`.
_CONTEXT = re.compile(r"ctx|([\w-]+\.)*prompt_learner\.(ctx|prefix_prompt)")
_SUFFIX = "suffix_prompt"
# CoOp's buffers beside the context, [N, tokens, D]: the first has the embeddings of
# SOS, the second those of name, ".", EOT and padding.
_TOKENS = ("token_prefix", "token_suffix")
_MOST_TOKENS = 1024  # a longer text is no CLIP's
# Item of a torch checkpoint with our text fields; published code ignores it.
_OURS = "pomp_jax"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """Reference to a tensor's values."""

  storage: str  # name of the record that holds the values
  kind: str  # torch's name of the values' type, such as FloatStorage
  offset: int  # index of the tensor's first value in the record
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # values between neighbours along each axis


class _Dict(dict):
  """Stands for an ordered dict; drops attributes, such as `_metadata` of a module."""

  def __setstate__(self, state: Any) -> None:
    """Drops the attributes."""


class _Storage(NamedTuple):
  """Reference to a record of raw numbers."""

  key: str  # name of the record
  kind: str  # torch's name of the numbers' type


class TorchUnpickler(RestrictedUnpickler):
  """Reads `data.pkl`, with a `StoredTensor` for each tensor and parameter.

  Ordered dicts become dicts. The class reads more than `torch.load(weights_only=True)`:
  Dassl's warm-up schedulers have a whole scheduler object in their state, which torch
  refuses.
  """

  # Accepted names, as in protocol 2: those that torch's own safe loader takes;
  names = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)"
    r"|__builtin__\.(dict|set|bytearray|complex)"
    r"|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|(_core|core)\.multiarray\.(scalar|_reconstruct))"
    r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|torch\.(u?int\d+|b?float\d+|complex\d+|half|double|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.\w+Storage|torch\.storage\.(UntypedStorage|TypedStorage)"
    # names of TorchScript: classes of the archive itself, and marks of types;
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
        storage=storage.key,
        kind=storage.kind,
        offset=offset,
        shape=tuple(shape),
        strides=tuple(strides),
      )
    if name == "torch._utils._rebuild_parameter":
      tensor, *_ = arguments
      if isinstance(tensor, StoredTensor):
        return tensor
    return PickledObject(name)

  def persistent_load(self, pid: Any) -> _Storage:
    """Reads a reference to a record, ("storage", class of its type, name, ..)."""
    what, storage_class, key, *_ = pid
    kind = re.fullmatch(r"torch\.(\w+Storage)", storage_class.__name__)
    if what != "storage" or not kind or not isinstance(key, str):
      raise PickleError("a reference to something that is no storage")
    return _Storage(key, kind[1])


class TorchArchive(contextlib.AbstractContextManager):
  """An open archive; `value` is what `TorchUnpickler` reads."""

  value: Any

  def __init__(self, path: str | os.PathLike, error: type[Exception] = ClipError):
    """Opens an archive and reads its pickle, but no tensor.

    Args:
      path: file of the archive.
      error: class of the errors to raise.

    Raises:
      error: the file is missing or damaged, or holds other objects.
    """
    self._path = path
    self._error = error
    try:
      self._zip = zipfile.ZipFile(local_copy(path))
    except FileNotFoundError:
      self._refuse("the file", "missing", "a torch checkpoint")
    # A damaged archive fails in more ways than zipfile documents.
    except Exception as reason:
      self._refuse("the file", f"not a whole zip ({reason})", weights.TORCH_FILES)
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._zip)
      names = [name for name in self._zip.namelist() if _PICKLE_NAME.fullmatch(name)]
      if len(names) != 1:
        got = f"a zip with {len(names)} data.pkl"
        self._refuse("the file", got, "a torch checkpoint, with one")
      self._root = names[0].removesuffix("/data.pkl")
      try:
        self.value = TorchUnpickler.read(self._read("data.pkl"))
      except PickleError as reason:
        accepted = "tensors, plain values, and torch's optimizer state"
        self._refuse("data.pkl", f"refused for {reason}", accepted)
      self._order = self._byte_order()
      stack.pop_all()  # no error: leave the archive open

  def _byte_order(self) -> str:
    """NumPy's sign of the byte order of all records."""
    if f"{self._root}/byteorder" not in self._zip.namelist():
      return "<"  # torch before 2.1
    order = self._read("byteorder")
    if order == b"little":
      return "<"
    if order == b"big":
      return ">"
    self._refuse("byteorder", repr(order[:16]), "little, big")

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def array(
    self, tensor: StoredTensor, field: str = "the tensor", n_bytes: int | None = None
  ) -> np.ndarray:
    """Reads a tensor of `value` into a new array; bfloat16 becomes float32.

    Args:
      tensor: place and type of the tensor.
      field: name of the tensor, for messages.
      n_bytes: bytes of the record to read; None: all.

    Raises:
      Exception: an error of the class that `__init__` took: the type is unknown, the
        record is missing or damaged, or the tensor reaches beyond the record.
    """
    kind = _TYPES.get(tensor.kind)
    if kind is None:
      self._refuse(field, f"of type {tensor.kind}", ", ".join(_TYPES))
    dtype = np.dtype(self._order + kind)
    data = self._read(f"data/{tensor.storage}", n_bytes)
    try:
      strides = [dtype.itemsize * stride for stride in tensor.strides]
      view = np.ndarray(
        tensor.shape, dtype, data, dtype.itemsize * tensor.offset, strides
      )
      array = view.astype(dtype.newbyteorder("="), order="C")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
      got = f"{list(tensor.shape)} on a record of {len(data)} bytes ({error})"
      self._refuse(field, got, "a tensor within its record")
    if tensor.kind == "BFloat16Storage":
      return array.view(ml_dtypes.bfloat16).astype(np.float32)
    return array

  def first(self, tensor: StoredTensor, field: str) -> np.ndarray:
    """Reads the first item along the leading axis, and no more of the record.

    Raises what `array` raises, but does not see damage further behind in the record.
    """
    kind = _TYPES.get(tensor.kind)
    # Count the values of the record up to the last value of the item.
    n_values = tensor.offset + 1
    for length, stride in zip(tensor.shape[1:], tensor.strides[1:], strict=True):
      n_values += (length - 1) * stride
    # `array` refuses an unknown type before it reads.
    n_bytes = n_values * np.dtype(kind).itemsize if kind else 0
    first_item = dataclasses.replace(
      tensor, shape=tensor.shape[1:], strides=tensor.strides[1:]
    )
    return self.array(first_item, field, n_bytes)

  def _read(self, record: str, n_bytes: int | None = None) -> bytes:
    """Content of a record, or its first bytes."""
    try:
      if n_bytes is not None:
        with self._zip.open(f"{self._root}/{record}") as file:
          return file.read(n_bytes)
      return self._zip.read(f"{self._root}/{record}")
    except KeyError:
      self._refuse(record, "missing", "a record of that name")
    except Exception as error:  # zipfile and zlib, on a bad byte
      self._refuse(record, f"damaged ({error})", "an undamaged record")

  def _refuse(self, part: str, got: str, accepted: str) -> NoReturn:
    raise self._error(f"{self._path}: {part} is {printable(got)}; accepted: {accepted}")


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[weights.Weights]:
  """Opens the weights of a state dict, of a training checkpoint, or of TorchScript.

  Args:
    path: the file, a torch archive.

  Yields:
    Shapes of the tensors, a function that reads a tensor as float32, and the texts
    beside the state dict.

  Raises:
    ClipError: the file is missing, damaged, or without tensors. The function that reads
      a tensor raises it too, if the tensor is damaged or has no floats.
  """
  accepted = "a state dict of weights"
  with TorchArchive(path) as archive:
    content = archive.value
    texts: dict[str, str] = {}
    if isinstance(content, dict):
      for name, item in content.items():
        if isinstance(item, str):
          texts[name] = item
    # A training checkpoint has the state dict under one of these names.
    for name in _STATE_DICTS:
      if isinstance(content, dict) and isinstance(content.get(name), dict):
        content = content[name]

    try:
      tensors = dict(_named_tensors(content))
    except RecursionError:
      weights.refuse(path, "the checkpoint", "a module inside itself", accepted)
    if not tensors:
      kind = type(content).__name__
      if isinstance(content, PickledObject):
        kind = content.name
      weights.refuse(path, "the checkpoint", f"a {kind} without tensors", accepted)
    # Distributed training wraps the model in another module.
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): tensors[name] for name in tensors}

    def read(name: str) -> np.ndarray:
      values = archive.array(tensors[name], name)
      if values.dtype.kind != "f":
        weights.refuse(path, name, f"of type {values.dtype}", "a float type")
      return np.asarray(values, np.float32)

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    yield weights.Weights(str(path), shapes, read, texts)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
  """Yields the tensors of a state dict, or of a TorchScript module and its submodules.

  A dict inside a state dict, such as the state of an optimizer, has no weights and is
  skipped.

  Args:
    value: content of a torch archive, or a part of it.
    name: dotted name of the part; "" for the whole.

  Yields:
    Dotted name and tensor.

  Raises:
    RecursionError: a module is inside itself.
  """
  if isinstance(value, StoredTensor):
    yield name, value
    return
  is_module = isinstance(value, PickledObject) and value.name.startswith("__torch__.")
  if is_module:
    children = value.attributes
  elif isinstance(value, dict) and not name:
    children = value
  else:
    return
  for key, child in children.items():
    if isinstance(key, str):
      child_name = f"{name}.{key}" if name else key
      yield from _named_tensors(child, child_name)


def encode(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """Encodes a prompt as CoOp's and POMP's code does.

  `torch.load(weights_only=True)` reads {"state_dict": {"ctx": [M,D] or [N,M,D]},
  "epoch": .., "pomp_jax": {..}}. The epoch is `epochs` of the config, or 0 without that
  field. The published buffers `token_prefix` and `token_suffix`, the embeddings of the
  training's class names, are left out.

  Raises:
    PromptFileError: torch is not installed.
    UnicodeEncodeError: a text is not Unicode.
  """
  try:
    import torch
  except ImportError as error:
    remedy = "writing .pth needs torch: pip install 'pomp-jax[torch]'"
    raise PromptFileError(f"{remedy} ({error})") from error
  "".join(text.values()).encode()  # raises for such a text, which a pickle does not
  epoch = json.loads(text["config"]).get("epochs", 0)
  if type(epoch) is not int or not 0 <= epoch < 2**31:
    epoch = 0
  checkpoint = {
    "state_dict": {"ctx": torch.tensor(context)},
    "epoch": epoch,
    _OURS: {**text, "format_version": FORMAT_VERSION},
  }
  file = io.BytesIO()
  torch.save(checkpoint, file)
  return file.getvalue()


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a prompt of a torch checkpoint.

  Args:
    path: the file: CoOp's, POMP's, a whole model's, or one of our own.

  Returns:
    `context`, float32 [M,D] or [N,M,D]; class tokens if the file has any; and the text
    fields of our own files.

  Raises:
    PromptFileError: the file is missing or damaged, or has no context of floats.
  """
  with TorchArchive(path, PromptFileError) as archive:
    field, tensor = _torch_context(path, archive.value)
    if not isinstance(tensor, StoredTensor):
      refuse(path, field, _kind(tensor), "a tensor [M, D] or [N, M, D]")
    context = archive.array(tensor, field)
    class_tokens = _class_tokens(archive, context.shape[-1:])
    our_fields = archive.value.get(_OURS, OF_OTHERS)
  if context.dtype.kind != "f":
    refuse(path, field, f"{context.dtype} {list(context.shape)}", "a float tensor")
  if not isinstance(our_fields, dict):
    refuse(path, _OURS, _kind(our_fields), "a dict")

  with np.errstate(over="ignore"):  # infinities are refused later
    context = context.astype(np.float32, order="C")
  prompt = {**our_fields, "context": context}
  if class_tokens is not None:
    prompt[CLASS_TOKENS] = class_tokens
  return prompt


def _class_tokens(archive: TorchArchive, width: tuple[int, ...]) -> np.ndarray | None:
  """Token embeddings [T,D] of the first class; None if the file has none that fit.

  The T tokens are those of the tensors that `_TOKENS` names, one tensor after the other.

  Args:
    archive: open checkpoint.
    width: the shape (D,) of a token.
  """
  checkpoint = archive.value if isinstance(archive.value, dict) else {}
  state = checkpoint.get("state_dict")
  if not isinstance(state, dict):
    return None
  parts = []
  for name in _TOKENS:
    tensor = state.get(name)
    if not isinstance(tensor, StoredTensor) or len(tensor.shape) != 3:
      continue
    n_classes, n_tokens, _ = tensor.shape
    fits = n_classes > 0 and 0 < n_tokens <= _MOST_TOKENS
    if fits and tensor.shape[2:] == width:
      parts.append(archive.first(tensor, f"state_dict[{name!r}]").astype(np.float32))
  if not parts:
    return None
  tokens_TxD = np.concatenate(parts)
  if not np.isfinite(tokens_TxD).all():
    return None
  return tokens_TxD


def _torch_context(path: str | os.PathLike, value: Any) -> tuple[str, Any]:
  """Name and value of the context, in a checkpoint's state dict or in the file itself."""
  checkpoint = value if isinstance(value, dict) else {}
  places = {
    "model": checkpoint.get("model"),
    "state_dict": checkpoint.get("state_dict"),
    "": checkpoint,
  }
  for place, state in places.items():
    if isinstance(state, dict):
      name = context_name(path, state, place or "the file")
      if name is not None:
        return f"{place}[{name!r}]", state[name]
  if "state_dict" in checkpoint:
    _refuse_missing(path, "state_dict", checkpoint["state_dict"], "ctx")
  _refuse_missing(path, "the checkpoint", value, "state_dict")


def _refuse_missing(
  path: str | os.PathLike, field: str, value: Any, key: str
) -> NoReturn:
  """Raises PromptFileError for a field that is no dict, or lacks a key."""
  if not isinstance(value, dict):
    refuse(path, field, _kind(value), f"a dict with {key!r}")
  names = sorted(name for name in value if isinstance(name, str))
  there = ", ".join(names) or "nothing"
  got = f"missing (there are: {there})"
  refuse(path, f"{field}[{key!r}]", got, "an item of that name")


def context_name(
  path: str | os.PathLike, items: Collection[Any], place: str
) -> str | None:
  """Finds the name of the context among the names of a state dict; None without one.

  Args:
    path: file, for messages.
    items: names of the tensors.
    place: part of the file that has the tensors, for messages.

  Raises:
    PromptFileError: there are several contexts, or also vectors behind the class name.
  """
  names = [name for name in items if isinstance(name, str) and _CONTEXT.fullmatch(name)]
  if len(names) > 1:
    refuse(path, place, f"a dict with {', '.join(names)}", "one context")
  if not names:
    return None
  (name,) = names
  module, _, _ = name.rpartition(".")
  suffix = f"{module}.{_SUFFIX}"
  if suffix in items:
    refuse(path, f"{place}[{suffix!r}]", "present", "vectors before the name alone")
  return name


def prompt_of_trainer(output: Path) -> Path | None:
  """Finds the checkpoint in a trainer's folder that Dassl would load.

  Dassl prefers the best checkpoint, then the checkpoint that the file `checkpoint`
  names, then that of the largest epoch.
  """
  for folder in (output / "prompt_learner", output):
    if not is_dir(folder):
      continue
    files = {path.name: path for path in folder.glob("model*.pth.tar*")}
    if not files:
      continue
    choices = ["model-best.pth.tar"]
    if is_file(folder / "checkpoint"):
      text = (folder / "checkpoint").read_text(errors="replace")
      choices.append(text.strip())
    # The largest epoch: names end with digits without leading zeros, so a longer name
    # has a larger number.
    choices.append(max(files, key=lambda name: (len(name), name)))
    for name in choices:
      if name in files:
        return files[name]
  return None


def _kind(value: Any) -> str:
  """Describes a value by its type, for messages."""
  if isinstance(value, PickledObject):
    return f"an object {value.name}"
  return f"a {type(value).__name__}"
