"""Files of a CLIP: where they are, how weights are read from several formats (without
torch), and how a layout maps them to parameters.

A layout names the stored tensor of each parameter of FlaxCLIP's tree. torch stores a
dense layer's kernel as [out, in] and a convolution's as [out, in, height, width].
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

# Names of number types in safetensors.
_FLOATS = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
}
# A table with more rows than this is mapped into memory, so that only the rows that are
# used are read from the file.
_MANY_ROWS = 100_000
TORCH_FILES = (
  "a file of torch 1.6 or newer (load an older one with torch and save it again)"
)
# Repository with CLIP's merges, which some repositories of open_clip's tables lack.
_MERGES_OF = "openai/clip-vit-base-patch16"
# Seconds to wait for the hub's list of files. Without the list, huggingface_hub would
# retry each file for 23 s.
_TIMEOUT = 5.0
# A hub id has at most one slash, and each part begins with a letter, digit or "_".
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

Parameter = tuple[str, ...]  # path of a parameter in the tree


class Weights(NamedTuple):
  """Tensors of an open file, or of all its shards."""

  path: str  # path of the file, for messages
  shapes: dict[str, tuple[int, ...]]  # shapes of the tensors, by name
  # Function from a name to the tensor, converted from any float type to float32.
  read: Callable[[str], np.ndarray]
  # Strings beside the tensors: the metadata of a safetensors file, or items of a torch
  # checkpoint.
  text: Mapping[str, str] = types.MappingProxyType({})
  # Function from a name to the tensor in the stored type, mapped into memory; None for
  # a format that can't be mapped.
  mapped: Callable[[str], np.ndarray] | None = None


class Source(NamedTuple):
  """The stored tensor of a parameter."""

  key: str  # the tensor's name
  # index of the third of the tensor's first axis; None for the whole tensor
  part: int | None = None
  as_is: bool = False  # whether the axes are the parameter's, not transposed


class Layout(NamedTuple):
  """Where a project stores each parameter."""

  source: Callable[[Parameter], Source]
  other: tuple[str, ...]  # endings of names of tensors that are not parameters
  model: str = "CLIP"  # kind of model, for messages


class PreprocessingSettings(NamedTuple):
  """Where a project stores the settings of the preprocessing."""

  file_name: str  # JSON file beside the weights
  item: str  # item of the file that holds the settings; empty for the whole file
  prefix: str  # start of the names of mean and std


def check_weights(
  stored: Shapes, shapes: dict[str, Any], layout: Layout, where: str
) -> None:
  """Checks names and shapes of a file's tensors against the parameters.

  Args:
    stored: shapes of the file's tensors, by name.
    shapes: tree of the parameters' shapes.
    layout: place of each parameter in the file.
    where: name of the file, for messages.

  Raises:
    ClipError: a tensor is missing, has another shape, or belongs to no parameter.
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
  # `stored_axes` transposes a stored tensor to a parameter. `argsort` inverts this
  # permutation.
  axes = np.argsort(stored_axes(len(shape), source))
  stored_shape = tuple(shape[axis] for axis in axes)
  if source.part is None:
    return stored_shape
  first, *others = stored_shape
  return (3 * first, *others)  # three parameters of this shape are stacked


def read_params(
  weights: Weights, shapes: dict[str, Any], layout: Layout
) -> dict[str, Any]:
  """Reads the parameters of a file as FlaxCLIP's tree, float32.

  Token embeddings of more than a hundred thousand rows are not read but mapped from the
  file in their stored type, if the format allows it.

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
  """Axes of a stored tensor in the order that the parameter has."""
  if not source.as_is:
    if n_axes == 2:  # a dense layer's kernel, stored as [out, in]
      return (1, 0)
    if n_axes == 4:  # a convolution's kernel, stored as [out, in, height, width]
      return (2, 3, 1, 0)
  return tuple(range(n_axes))


def _some(names: Iterable[str]) -> str:
  """Words for one name or more, such as "a is" or "a and 2 more are"."""
  first, *others = sorted(names)
  if others:
    return f"{first} and {len(others)} more are"
  return f"{first} is"


class Files:
  """The files of a CLIP, in a folder or in a repository on the hub.

  Asks the hub once for the list of files. If the hub does not answer, uses the hub's
  cache on this machine.
  """

  def __init__(
    self,
    source: str,
    path: Path | None = None,
    known: Mapping[str, Any] = types.MappingProxyType({}),
  ):
    """Finds out where the files are; downloads nothing.

    Args:
      source: path of a folder or of a file of weights, or a hub id.
      path: path of a source that is only a name; the source itself is the path if None.
      known: contents of JSON files that need not be read, by name of the file.
    """
    if path is None:
      path = to_path(source)
    is_path = exists(path)
    self.source = source
    self._known = known
    self.file = path if is_file(path) else None  # file of weights, if not a folder
    self._folder = path.parent if self.file else path
    self._on_hub = not is_path and bool(_HUB_ID.fullmatch(source))
    self.trouble = ""  # reason why files are not found, for messages
    if not is_path and not self._on_hub:
      self.trouble = "no such file or folder"

  def find(self, name: str) -> Path | None:
    """Returns the path of a file, after a download if needed; None if it is missing."""
    if not self._on_hub:
      file = self._folder / name
      return file if is_file(file) else None
    listed = self._listed
    if listed is not None and name not in listed:
      # Some repositories of open_clip's tables lack CLIP's merges.
      if self._known and name == MERGES:
        return Files(_MERGES_OF).find(name)
      return None
    is_offline = listed is None
    try:
      file_name = hf_hub_download(self.source, name, local_files_only=is_offline)
    except Exception as error:  # its class depends on huggingface_hub's version
      # Without a network, a missing file can't be told from one that is not reachable.
      # Keep an earlier reason.
      self.trouble = self.trouble or one_line(error, 200)
      return None
    return pathlib.Path(file_name)

  def has(self, name: str) -> bool:
    """Whether a file exists. Downloads the file only if the hub did not send its list
    of files."""
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
    """Names of the repository's files; None if the hub does not answer."""
    try:
      files = HfApi().model_info(self.source, timeout=_TIMEOUT).siblings
      return frozenset(file.rfilename for file in files or ())
    except Exception as error:  # its class depends on huggingface_hub's version
      self.trouble = (
        f"the hub can't be asked: {type(error).__name__}: {one_line(error, 200)}"
      )
      return None

  def json(self, name: str) -> Any:
    """Reads a JSON file beside the weights.

    Args:
      name: name of the file, which is looked up by `find`.

    Returns:
      Its content, or {} for a file that holds `null`; None if there is no such file.

    Raises:
      ClipError: the file is not JSON.
    """
    if name in self._known:
      return self._known[name]
    file = self.find(name)
    if file is None:
      return None
    try:
      content = json.loads(read_bytes(file).decode())
    except (OSError, ValueError, RecursionError) as error:
      raise ClipError(f"{file}: not JSON ({one_line(error)})") from error
    return {} if content is None else content


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
  """Opens a file of weights; runs no code from the file.

  The ending of the name decides for Flax and for an index of shards, otherwise the
  content decides.

  Args:
    path: safetensors file; Flax's `.msgpack`; the `.index.json` of a safetensors file
      whose shards are in the same folder; or a torch archive: a state dict, a training
      checkpoint with an item `state_dict` or `model`, or a TorchScript module.

  Raises:
    ClipError: the file or a shard is missing, damaged, truncated or of another format,
      or a pickle has anything that checkpoints don't hold. `Weights.read` raises
      ClipError too.
  """
  path = to_path(path)
  # When the caller is done, the stack closes all files that are opened below.
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
  """Reads the first bytes of a file; ClipError if the file can't be read."""
  try:
    with open(local_copy(path), "rb") as file:
      return file.read(32)
  except OSError as error:
    refuse(path, "the file", error.strerror or "unreadable", "a file of weights")


def _torch_archive(path: Path, stack: contextlib.ExitStack) -> Weights:
  """Opens a torch archive with the room interchange; ClipError without that room."""
  if not TORCH_WEIGHTS:
    accepted = ".safetensors or .msgpack, without the room interchange"
    refuse(path, "the file", "a torch archive", accepted)
  open_archive = TORCH_WEIGHTS.open()
  return stack.enter_context(open_archive(path))


def _flax(path: Path) -> Weights:
  """Reads all parameters of Flax's file at once."""
  try:
    tree = msgpack_restore(local_copy(path).read_bytes())
    tensors = {}
    for name, leaf in flatten_dict(tree, sep=".").items():
      tensors[name] = np.asarray(leaf, np.float32)
  except Exception as error:  # the libraries' errors share no base class
    refuse(
      path, "the file", f"not a whole msgpack of arrays ({error})", "an undamaged one"
    )
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  return Weights(str(path), shapes, read=tensors.__getitem__)


def _safetensors(path: Path, stack: contextlib.ExitStack) -> Weights:
  """Opens a safetensors file, which the library checks and maps into memory.

  Args:
    path: safetensors file.
    stack: stack that closes the file.

  Raises:
    ClipError: the header is damaged, or the file has another length than its header
      says.
  """
  try:
    file_name = local_copy(path)
    file = stack.enter_context(
      safetensors.safe_open(os.fspath(file_name), framework="numpy")
    )
    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
    metadata = file.metadata() or {}
  except Exception as error:  # the library's errors share no base class
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
    # The file has the header's length (8 bytes), the header, and the tensors. Offsets
    # of tensors count from the end of the header.
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
  """Opens the shards of an index as one file.

  Args:
    path: the index.
    stack: stack that closes the shards.

  Raises:
    ClipError: the index is unreadable, a shard is missing or damaged, or a shard lacks
      a tensor that the index places in it.
  """
  shard_of = _shard_names(path)
  shard_names = sorted(set(shard_of.values()))
  shards: dict[str, Weights] = {}
  for name in shard_names:
    file = path.with_name(name)
    if not is_file(file):
      accepted = f"all {len(shard_names)} shards beside it"
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
    assert shard.mapped is not None  # safetensors files can be mapped
    return shard.mapped(tensor)

  return Weights(str(path), shapes, read, mapped=mapped)


def _shard_names(index: Path) -> dict[str, str]:
  """Reads from an index which shard holds each tensor.

  Raises:
    ClipError: the file is no index, or names a shard outside the index's folder.
  """
  try:
    shard_of = json.loads(read_bytes(index))["weight_map"]
    for name in set(shard_of.values()):
      # Accept only names of files: a path could lead out of the folder.
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
  """Raises the error "PATH: PART is FOUND; accepted: ACCEPTED".

  Texts from the file may hold control characters, so they are shown as escapes.

  Args:
    path: path of the file.
    part: part of the file, such as "the file" or a tensor's name.
    found: words after "is" that describe the part.
    accepted: words for what the part may be.

  Raises:
    ClipError: always; the message is one line.
  """
  message = f"{printable(part)} is {printable(found)}; accepted: {accepted}"
  raise ClipError(f"{path}: {message}")
