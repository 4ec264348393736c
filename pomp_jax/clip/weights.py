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

FLAX_SUFFIX, INDEX_SUFFIX = ".msgpack", ".index.json"

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
  found: Shapes, shapes: dict[str, Any], layout: Layout, where: str
) -> None:
  """Checks names and shapes of a file's tensors against the tree of the parameters'
  shapes.

  ClipError: a tensor that is missing, of another shape, or of no parameter.

  Args:
    found: shapes of the file's tensors.
    shapes: tree of the parameters' shapes.
    layout: place of each parameter in the file.
    where: name of the file, for messages.
  """
  needed = {}
  for path, shape in flatten_dict(shapes).items():
    source = layout.source(path)
    shape = tuple(shape[i] for i in np.argsort(stored_axes(len(shape), source)))
    needed[source.key] = shape if source.part is None else (3 * shape[0], *shape[1:])
  missing = needed.keys() - found
  if missing:
    raise ClipError(
      f"{where}: {_some(missing)} missing, expected in such a {layout.model}"
    )
  unknown = {name for name in found.keys() - needed if not name.endswith(layout.other)}
  if unknown:
    raise ClipError(f"{where}: {_some(unknown)} unexpected in such a {layout.model}")
  for key, shape in sorted(needed.items()):
    if found[key] != shape:
      raise ClipError(
        f"{where}: {key}: got shape {list(found[key])}, expected {list(shape)}"
      )


def read_params(
  weights: Weights, shapes: dict[str, Any], layout: Layout
) -> dict[str, Any]:
  """Reads the parameters of a file that `check_weights` accepts as FlaxCLIP's tree,
  float32.

  Token embeddings of a hundred thousand rows stay in the file if they can be mapped, as
  stored.

  Args:
    weights: file that `check_weights` accepts.
    shapes: tree of the parameters' shapes.
    layout: place of each parameter in the file.
  """
  params = {}
  for path, shape in flatten_dict(shapes).items():
    source = layout.source(path)
    if shape[:1] > (_MANY_ROWS,) and weights.mapped:
      params[path] = weights.mapped(source.key)
      continue
    stored = weights.read(source.key)
    if source.part is not None:
      stored = np.split(stored, 3)[source.part]
    params[path] = np.asarray(
      stored.transpose(stored_axes(stored.ndim, source)), order="C"
    )
  return unflatten_dict(params)


def stored_axes(n_axes: int, source: Source) -> tuple[int, ...]:
  """The stored tensor's axes in the order of the parameter's."""
  in_order = tuple(range(n_axes))
  return (
    in_order if source.as_is else {2: (1, 0), 4: (2, 3, 1, 0)}.get(n_axes, in_order)
  )


def _some(names: Iterable[str]) -> str:
  first, *others = sorted(names)
  return f"{first} and {len(others)} more are" if others else f"{first} is"


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
    """`path` is that of the source if None; `known` are contents of JSON files, by
    name."""
    path = path or to_path(source)
    self.source, self._known, is_path = source, known, exists(path)
    self.file = path if is_file(path) else None
    self._folder = path.parent if self.file else path
    self._on_hub = not is_path and bool(_HUB_ID.fullmatch(source))
    self.trouble = "" if is_path or self._on_hub else "no such file or folder"

  def find(self, name: str) -> Path | None:
    """Returns the path of a file, downloaded if necessary; None if there is none."""
    if not self._on_hub:
      file = self._folder / name
      return file if is_file(file) else None
    listed = self._listed
    if listed is not None and name not in listed:
      return Files(_MERGES_OF).find(name) if self._known and name == MERGES else None
    try:
      return pathlib.Path(
        hf_hub_download(self.source, name, local_files_only=listed is None)
      )
    except Exception as error:  # the hub's client and its version choose the class
      # Without a network, a missing file looks like an unreachable one.
      self.trouble = self.trouble or one_line(error, 200)
      return None

  def has(self, name: str) -> bool:
    """Whether there is such a file; downloads it only where the hub has no list of
    files."""
    listed = self._listed if self._on_hub else None
    return name in listed if listed is not None else self.find(name) is not None

  def find_first(self, names: Iterable[str]) -> Path | None:
    """Returns the first of these files that exists."""
    return next(filter(None, map(self.find, names)), None)

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
    """Content of a JSON file, {} for null; None without one. ClipError: no JSON."""
    file = None if name in self._known else self.find(name)
    if file is None:
      return self._known.get(name)
    try:
      found = json.loads(read_bytes(file).decode())
    except (OSError, ValueError) as error:
      raise ClipError(f"{file}: not JSON ({one_line(error)})") from error
    return {} if found is None else found


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
  """Opens a file; its content decides the format. No code in it is run.

  It is a safetensors file, Flax's `.msgpack`, the `.index.json` of a safetensors file
  whose shards are in the same folder, or a torch archive: a state dict, a training
  checkpoint with an item `state_dict` or `model`, or a TorchScript module.

  ClipError: missing, of another format, damaged or truncated; a missing shard; a pickle
  with anything that checkpoints don't hold. `read` raises it as well.
  """
  path = to_path(path)
  with contextlib.ExitStack() as stack:
    if path.name.endswith(INDEX_SUFFIX):
      yield _sharded(path, stack)
      return
    try:
      with open(local_copy(path), "rb") as file:
        head = file.read(32)
    except OSError as error:
      refuse(path, "the file", error.strerror or "unreadable", "a file of weights")
    if path.suffix == FLAX_SUFFIX:
      yield _flax(path)
    elif is_safetensors(head):
      yield _safetensors(path, stack)
    elif zipfile.is_zipfile(local_copy(path)):
      if not TORCH_WEIGHTS:
        accepted = ".safetensors or .msgpack, without the room interchange"
        refuse(path, "the file", "a torch archive", accepted)
      yield stack.enter_context(TORCH_WEIGHTS.open()(path))
    else:
      found = f"neither a whole safetensors file nor a torch archive (it begins with {head[:8]!r})"
      accepted = f"an undamaged .safetensors, or {TORCH_FILES}"
      refuse(path, "the file", found, accepted)


def _flax(path: Path) -> Weights:
  try:
    leaves = flatten_dict(msgpack_restore(local_copy(path).read_bytes()), sep=".")
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
  except Exception as error:  # the libraries' errors share no base
    refuse(
      path, "the file", f"not a whole msgpack of arrays ({error})", "an undamaged one"
    )
  shapes = {name: leaf.shape for name, leaf in tensors.items()}
  return Weights(str(path), shapes, tensors.__getitem__)


def _safetensors(path: Path, stack: contextlib.ExitStack) -> Weights:
  """The library checks the header and the file's length, and maps the file into
  memory."""
  try:
    file = stack.enter_context(
      safetensors.safe_open(os.fspath(local_copy(path)), framework="numpy")
    )
    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
    text = file.metadata() or {}
  except Exception as error:  # the library's own errors share no base
    found = f"not a whole safetensors file ({error})"
    refuse(path, "the file", found, "an undamaged safetensors file")

  def type_of(name: str) -> Any:
    kind = headers[name].get_dtype()
    if kind not in _FLOATS:
      refuse(path, name, f"of type {kind}", ", ".join(_FLOATS))
    return _FLOATS[kind]

  def read(name: str) -> np.ndarray:
    type_of(name)
    return file.get_tensor(name).astype(np.float32)

  def mapped(name: str) -> np.ndarray:
    with open(local_copy(path), "rb") as content:
      n_header = int.from_bytes(content.read(8), "little")
      start, _ = json.loads(content.read(n_header))[name]["data_offsets"]
    return np.memmap(
      local_copy(path), type_of(name), "r", 8 + n_header + start, shapes[name]
    )

  return Weights(str(path), shapes, read, text, mapped)


def _sharded(path: Path, stack: contextlib.ExitStack) -> Weights:
  try:
    shard_of = json.loads(read_bytes(path))["weight_map"]
    shard_names = sorted(set(shard_of.values()))
    if any(
      os.path.basename(name) != name or name in ("", ".", "..") for name in shard_names
    ):
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
    refuse(path, "the file", f"no index of shards ({error})", accepted)
  shards: dict[str, Any] = {}
  for name in shard_names:
    file = path.with_name(name)
    if not is_file(file):
      refuse(
        path, f"the shard {name}", "missing", f"all {len(shard_names)} shards beside it"
      )
    shards[name] = _safetensors(file, stack)
  for tensor, name in shard_of.items():
    if tensor not in shards[name].shapes:
      refuse(path, tensor, f"not in {name}", "the shards that belong to this index")
  shapes = {tensor: shards[name].shapes[tensor] for tensor, name in shard_of.items()}
  read = lambda tensor: shards[shard_of[tensor]].read(tensor)
  mapped = lambda tensor: shards[shard_of[tensor]].mapped(tensor)
  return Weights(str(path), shapes, read, mapped=mapped)


def refuse(path: Path, part: str, found: str, accepted: str) -> NoReturn:
  """Raises the ClipError of a part of a file.

  Args:
    path: file.
    part: name of the part.
    found: words for its content.
    accepted: words for the contents that are accepted.
  """
  raise ClipError(
    f"{path}: {printable(part)} is {printable(found)}; accepted: {accepted}"
  )
