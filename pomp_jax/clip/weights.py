"""Files of a CLIP: where they are, formats of weights, without torch, and parameters by
a layout.

A layout names the tensor of each parameter of FlaxCLIP's tree. torch stores a dense
layer's kernel as [out, in] and a convolution's as [out, in, height, width].
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import functools
import json
import os
import pathlib
import re
import types
from typing import Any, NamedTuple, NoReturn
import zipfile

from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import HfApi, hf_hub_download
import ml_dtypes
import numpy as np
import safetensors

from pomp_jax.clip.architecture import ClipError, Shapes
from pomp_jax.clip.tokens import MERGES
from pomp_jax.files.paths import Path, exists, is_file, local_copy, read_bytes, to_path
from pomp_jax.files.prompt_file import is_safetensors
from pomp_jax.files.terminal import one_line, printable
from pomp_jax.hooks import TORCH_WEIGHTS

FLAX_SUFFIX = ".msgpack"
INDEX_SUFFIX = ".index.json"

# safetensors' names of number types
_FLOATS = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
}
# A table of more rows is mapped into memory, and only the rows that are used are read.
_MANY_ROWS = 100_000
TORCH_FILES = (
  "a file of torch 1.6 or newer (load an older one with torch and save it again)"
)
# Where CLIP's merges are, which not all repositories of open_clip's tables have.
_MERGES_OF = "openai/clip-vit-base-patch16"
# Seconds to wait for the hub. Its own library retries each file for 23 s.
_TIMEOUT = 5.0
# One slash at most, and a letter or a digit first.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

Parameter = tuple[str, ...]  # its path in the tree


class Weights(NamedTuple):
  """Tensors of an open file, or of all its shards."""

  path: str  # file, for messages
  shapes: dict[str, tuple[int, ...]]  # shapes by name
  # Function from a name to the tensor as float32, stored in any float type.
  read: Callable[[str], np.ndarray]
  # Strings beside the tensors: the metadata of safetensors, items of a torch
  # checkpoint.
  text: Mapping[str, str] = types.MappingProxyType({})
  # As `read`, but in the stored type and mapped into memory; None for a format without
  # it.
  mapped: Callable[[str], np.ndarray] | None = None


class Source(NamedTuple):
  """The tensor of a parameter."""

  key: str  # the tensor's name
  part: int | None = None  # index of a third of its first axis; None for all of it
  as_is: bool = False  # whether its axes are the parameter's


class Layout(NamedTuple):
  """A project's names of the weights."""

  source: Callable[[Parameter], Source]
  other: tuple[str, ...]  # endings of the names of tensors that are no weights
  model: str = "CLIP"  # what has these weights, for messages


def check_weights(
  stored: Shapes, shapes: dict[str, Any], layout: Layout, where: str
) -> None:
  """Checks names and shapes of a file's tensors against those of the parameters.

  Args:
    stored: shapes of the file's tensors, by name.
    shapes: tree of the parameters' shapes.
    layout: place of each parameter in the file.
    where: name of the file, for messages.

  Raises:
    ClipError: a tensor that is missing, of another shape, or of no parameter.
  """
  needed = {}
  for path, shape in flatten_dict(shapes).items():
    source = layout.source(path)
    needed[source.key] = _stored_shape(shape, source)
  missing = needed.keys() - stored
  if missing:
    raise ClipError(
      f"{where}: {_some(missing)} missing, expected in such a {layout.model}"
    )
  unknown = set()
  for name in stored.keys() - needed:
    if not name.endswith(layout.other):
      unknown.add(name)
  if unknown:
    raise ClipError(f"{where}: {_some(unknown)} unexpected in such a {layout.model}")
  for name, shape in sorted(needed.items()):
    if stored[name] != shape:
      raise ClipError(
        f"{where}: {name}: got shape {list(stored[name])}, expected {list(shape)}"
      )


def _stored_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
  """Shape of a parameter's tensor in the file."""
  # The parameter has the stored axes in another order; the inverse order leads back.
  axes = np.argsort(stored_axes(len(shape), source))
  stored_shape = tuple(shape[axis] for axis in axes)
  if source.part is None:
    return stored_shape
  first, *others = stored_shape
  return (3 * first, *others)  # with two more parameters of this shape


def read_params(
  weights: Weights, shapes: dict[str, Any], layout: Layout
) -> dict[str, Any]:
  """Reads the parameters of a file as FlaxCLIP's tree, float32.

  Token embeddings of more than a hundred thousand rows stay in the file, as stored, if
  they can be mapped.

  Args:
    weights: file that `check_weights` accepts.
    shapes: tree of the parameters' shapes.
    layout: place of each parameter in the file.

  Raises:
    ClipError: a tensor can't be read.
  """
  params = {}
  for path, shape in flatten_dict(shapes).items():
    source = layout.source(path)
    has_many_rows = len(shape) > 0 and shape[0] > _MANY_ROWS
    if has_many_rows and weights.mapped is not None:
      params[path] = weights.mapped(source.key)
      continue
    stored = weights.read(source.key)
    if source.part is not None:
      thirds = np.split(stored, 3)
      stored = thirds[source.part]
    parameter = stored.transpose(stored_axes(stored.ndim, source))
    params[path] = np.asarray(parameter, order="C")
  return unflatten_dict(params)


def stored_axes(n_axes: int, source: Source) -> tuple[int, ...]:
  """The stored tensor's axes in the order of the parameter's."""
  if not source.as_is:
    if n_axes == 2:  # a dense layer's, stored as [out, in]
      return (1, 0)
    if n_axes == 4:  # a convolution's, stored as [out, in, height, width]
      return (2, 3, 1, 0)
  return tuple(range(n_axes))


def _some(names: Iterable[str]) -> str:
  """Words for names, such as "a and 2 more are" or "a is"."""
  first, *others = sorted(names)
  if others:
    return f"{first} and {len(others)} more are"
  return f"{first} is"


class Files:
  """The files of a CLIP: a folder's, or those of a repository on the hub.

  The hub is asked once for the list of files. If it does not answer, its local cache is
  used.
  """

  def __init__(
    self,
    source: str,
    path: Path | None = None,
    known: Mapping[str, Any] = types.MappingProxyType({}),
  ):
    """Looks where the files are; downloads nothing.

    Args:
      source: path of a folder or of a file of weights, or a hub id.
      path: path that the source stands for; the source's own if None.
      known: contents of JSON files that are known without reading them, by name.
    """
    if path is None:
      path = to_path(source)
    is_path = exists(path)
    self.source = source
    self._known = known
    self.file = path if is_file(path) else None  # of weights, if the source is a file
    self._folder = path.parent if self.file else path
    self._on_hub = not is_path and bool(_HUB_ID.fullmatch(source))
    self.trouble = ""  # why files are not found, for messages
    if not is_path and not self._on_hub:
      self.trouble = "no such file or folder"

  def find(self, name: str) -> Path | None:
    """Returns the path of a file, downloaded if necessary; None if there is none."""
    if not self._on_hub:
      file = self._folder / name
      return file if is_file(file) else None
    listed = self._listed
    if listed is not None and name not in listed:
      # Not all repositories of open_clip's tables have CLIP's merges.
      if self._known and name == MERGES:
        return Files(_MERGES_OF).find(name)
      return None
    is_offline = listed is None
    try:
      file_name = hf_hub_download(self.source, name, local_files_only=is_offline)
    except Exception as error:  # the hub's client and its version choose the class
      # Without a network, a missing file looks like an unreachable one.
      self.trouble = self.trouble or one_line(error, 200)
      return None
    return pathlib.Path(file_name)

  def has(self, name: str) -> bool:
    """Whether there is such a file; downloads it only where the hub has no list of
    files."""
    if self._on_hub and self._listed is not None:
      return name in self._listed
    return self.find(name) is not None

  def find_first(self, names: Iterable[str]) -> Path | None:
    """Returns the first of these files that exists; None if there is none."""
    for name in names:
      file = self.find(name)
      if file is not None:
        return file
    return None

  @functools.cached_property
  def _listed(self) -> frozenset[str] | None:
    """Names of the repository's files; None without an answer of the hub."""
    try:
      files = HfApi().model_info(self.source, timeout=_TIMEOUT).siblings
      return frozenset(file.rfilename for file in files or ())
    except Exception as error:  # likewise
      self.trouble = (
        f"the hub can't be asked: {type(error).__name__}: {one_line(error, 200)}"
      )
      return None

  def json(self, name: str) -> Any:
    """Returns the content of a JSON file, {} for null; None if there is no such file.

    Raises:
      ClipError: the file holds no JSON.
    """
    if name in self._known:
      return self._known[name]
    file = self.find(name)
    if file is None:
      return None
    try:
      content = json.loads(read_bytes(file).decode())
    except (OSError, ValueError) as error:
      raise ClipError(f"{file}: not JSON ({one_line(error)})") from error
    return {} if content is None else content


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
  """Opens a file of weights; its content decides the format. No code in it is run.

  Args:
    path: safetensors file; Flax's `.msgpack`; the `.index.json` of a safetensors file
      whose shards are in the same folder; or a torch archive: a state dict, a training
      checkpoint with an item `state_dict` or `model`, or a TorchScript module.

  Raises:
    ClipError: missing, of another format, damaged or truncated; a missing shard; a
      pickle with anything that checkpoints don't hold. `Weights.read` raises it too.
  """
  path = to_path(path)
  # The stack closes what is opened below when the caller is done.
  with contextlib.ExitStack() as stack:
    if path.name.endswith(INDEX_SUFFIX):
      yield _sharded(path, stack)
      return
    head = _head(path)
    if path.suffix == FLAX_SUFFIX:
      yield _flax(path)
    elif is_safetensors(head):
      yield _safetensors(path, stack)
    elif zipfile.is_zipfile(local_copy(path)):
      yield _torch_archive(path, stack)
    else:
      refuse(
        path,
        "the file",
        "neither a whole safetensors file nor a torch archive (it begins with"
        f" {head[:8]!r})",
        f"an undamaged .safetensors, or {TORCH_FILES}",
      )


def _head(path: Path) -> bytes:
  """The first bytes of a file; ClipError if it can't be read."""
  try:
    with open(local_copy(path), "rb") as file:
      return file.read(32)
  except OSError as error:
    refuse(path, "the file", error.strerror or "unreadable", "a file of weights")


def _torch_archive(path: Path, stack: contextlib.ExitStack) -> Weights:
  """A torch archive, which the room interchange reads; ClipError without the room."""
  if not TORCH_WEIGHTS:
    accepted = ".safetensors or .msgpack, without the room interchange"
    refuse(path, "the file", "a torch archive", accepted)
  open_archive = TORCH_WEIGHTS.open()
  return stack.enter_context(open_archive(path))


def _flax(path: Path) -> Weights:
  """Flax's file of all parameters, which is read at once."""
  try:
    tree = msgpack_restore(local_copy(path).read_bytes())
    tensors = {}
    for name, leaf in flatten_dict(tree, sep=".").items():
      tensors[name] = np.asarray(leaf, np.float32)
  except Exception as error:  # the libraries' errors share no base
    refuse(
      path, "the file", f"not a whole msgpack of arrays ({error})", "an undamaged one"
    )
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  return Weights(str(path), shapes, read=tensors.__getitem__)


def _safetensors(path: Path, stack: contextlib.ExitStack) -> Weights:
  """A safetensors file, which the library checks and maps into memory.

  Args:
    path: file.
    stack: closes it.

  Raises:
    ClipError: the header is damaged, or the file is not as long as it says.
  """
  try:
    file_name = local_copy(path)
    file = stack.enter_context(
      safetensors.safe_open(os.fspath(file_name), framework="numpy")
    )
    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
    metadata = file.metadata() or {}
  except Exception as error:  # the library's own errors share no base
    refuse(
      path,
      "the file",
      f"not a whole safetensors file ({error})",
      "an undamaged safetensors file",
    )

  def type_of(name: str) -> Any:
    kind = headers[name].get_dtype()
    if kind not in _FLOATS:
      refuse(path, name, f"of type {kind}", ", ".join(_FLOATS))
    return _FLOATS[kind]

  def read(name: str) -> np.ndarray:
    type_of(name)  # ClipError for a tensor that holds no floats
    return file.get_tensor(name).astype(np.float32)

  def mapped(name: str) -> np.ndarray:
    # The file is the header's length, the header, and the tensors, whose places count
    # from its end.
    with open(file_name, "rb") as content:
      n_header = int.from_bytes(content.read(8), "little")
      header = json.loads(content.read(n_header))
    start, _ = header[name]["data_offsets"]
    return np.memmap(
      file_name,
      dtype=type_of(name),
      mode="r",
      offset=8 + n_header + start,
      shape=shapes[name],
    )

  return Weights(str(path), shapes, read, text=metadata, mapped=mapped)


def _sharded(path: Path, stack: contextlib.ExitStack) -> Weights:
  """The shards of an index as one file.

  Args:
    path: the index.
    stack: closes the shards.

  Raises:
    ClipError: no index, a shard that is missing or damaged, or without a tensor that
      the index has there.
  """
  shard_of = _shard_names(path)
  names = sorted(set(shard_of.values()))
  shards: dict[str, Weights] = {}
  for name in names:
    file = path.with_name(name)
    if not is_file(file):
      accepted = f"all {len(names)} shards beside it"
      refuse(path, f"the shard {name}", "missing", accepted)
    shards[name] = _safetensors(file, stack)
  shapes = {}
  for tensor, name in shard_of.items():
    if tensor not in shards[name].shapes:
      refuse(path, tensor, f"not in {name}", "the shards that belong to this index")
    shapes[tensor] = shards[name].shapes[tensor]

  def read(tensor: str) -> np.ndarray:
    return shards[shard_of[tensor]].read(tensor)

  def mapped(tensor: str) -> np.ndarray:
    shard = shards[shard_of[tensor]]
    assert shard.mapped is not None  # safetensors can
    return shard.mapped(tensor)

  return Weights(str(path), shapes, read, mapped=mapped)


def _shard_names(index: Path) -> dict[str, str]:
  """The shard of each tensor, by an index.

  Raises:
    ClipError: no index, or a shard that is not in the index's folder.
  """
  try:
    shard_of = json.loads(read_bytes(index))["weight_map"]
    for name in set(shard_of.values()):
      # A path would lead out of the folder.
      if os.path.basename(name) != name or name in ("", ".", ".."):
        raise ValueError("a shard that is no file name")
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    accepted = '{"weight_map": {name: file beside it}}'
    refuse(index, "the file", f"no index of shards ({error})", accepted)
  return shard_of


def refuse(path: Path, part: str, found: str, accepted: str) -> NoReturn:
  """Raises the error of a file that is not as it must be.

  Words of the file itself may hold control characters, which are shown as escapes.

  Args:
    path: file.
    part: part of the file, such as "the file" or a tensor's name.
    found: what the part is, after "is".
    accepted: what it may be.

  Raises:
    ClipError: always; one line of these four.
  """
  message = f"{printable(part)} is {printable(found)}; accepted: {accepted}"
  raise ClipError(f"{path}: {message}")
