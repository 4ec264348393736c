"""Compiles a training's step for a machine that is not here.

No array is placed and nothing runs: weights, state and batch are shapes. `forecast.py`
reads the compiled program.

JAX has one public function for this, `jax.experimental.topologies.get_topology_desc`.
The function needs libtpu for TPUs, and JAX's CUDA plugin for GPUs. It needs neither a
device nor a driver.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import copy
import dataclasses
import functools
import gzip
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import re
import time
from typing import Any, NamedTuple
import warnings

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.architecture import parameter_shapes
from pomp_jax.clip.load import Clip
from pomp_jax.clip.text import token_table, with_embeddings
from pomp_jax.config import SYNTHETIC_CLIP, ConfigError, fields
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import is_file, join, read_bytes
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.terminal import one_line
from pomp_jax.prompt.bank import bank_sharding
from pomp_jax.prompt.mesh import make_mesh, slice_of
from pomp_jax.prompt.step import TrainState, create_state
from pomp_jax.rooms.benchmark import costs, synthetic_clip
from pomp_jax.rooms.benchmark.chips import GIB, Machine, machine_of
from pomp_jax.train import pretrain
from pomp_jax.train.memory import share_of_device
from pomp_jax.train.training import PromptRun

log = logging.getLogger(__name__)

_FIELD = "dry_run"
# libtpu reads these variables when it is loaded.
_TPU_ENVIRONMENT = {
  # Skip the query of a cloud's metadata: elsewhere it times out only after minutes.
  "TPU_SKIP_MDS_QUERY": "1",
  # Take no lock: the TPUs of this machine are not used.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  # Search for no other hosts.
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# Let cuBLAS compute the matrix products: without a GPU XLA can't time candidate
# kernels, and for some sizes it has no Triton kernel without timing.
GPU_OPTIONS: dict[str, str | bool] = {
  "xla_gpu_autotune_level": "0",
  "xla_gpu_enable_triton_gemm": False,
}


class Memory(NamedTuple):
  """Memory of one device in bytes, as the compiler plans it."""

  arguments: int  # weights, state and batch
  temporaries: int
  others: int  # results that do not reuse an argument's memory, and the program

  @property
  def total(self) -> int:
    """Sum of the parts."""
    return sum(self)


class Compiled(NamedTuple):
  """A step that was compiled for a machine."""

  memory: Memory
  text: str  # of the program; `hlo.parse` reads it
  seconds: float  # of the compilation
  cpu_seconds: float  # of the compilation, over all cores
  is_cached: bool  # whether an earlier dry run has compiled it


class _Shapes(Clip):
  """A CLIP whose weights are shapes, except for the table of token embeddings.

  The table keeps its values, because a prompt's initial words are rows of it.
  """

  @property
  def sos_embedding(self) -> Any:
    """Zeros, because a compilation needs only the shape."""
    n_sos = 0 if self.tokenizer.bos_token_id is None else 1
    return np.zeros((n_sos, self.text_width), np.float32)

  @property
  def text_params(self) -> Any:
    """Shapes; a memory-mapped token table stays, for `Encoder` to read rows of it."""
    params = super().text_params
    if isinstance(token_table(params), np.memmap):
      return params
    return jax.tree.map(_shape, params)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), np.float32)


class _ShapeEncoder(Encoder):
  """An encoder that computes nothing: all features are the same unit vector."""

  def class_features(self, names: Sequence[str], prompt: Any, **_: Any) -> np.ndarray:
    """Unit vectors [N,E]."""
    width = self.clip.config.projection_dim
    return np.full((len(names), width), width**-0.5, np.float32)


class Job(NamedTuple):
  """The parts of a training's config that shape a step on another machine."""

  clip: fields.Clip
  class_size: int
  loop: fields.Loop
  data: fields.Data
  prepare: Callable[[Encoder], PromptRun]  # `setup.prepare` with the other fields


def check(text: str, class_size: int, loop: fields.Loop, n_views: int) -> list[Any]:
  """Opens the devices that `config.dry_run` names; checks that a step fits their mesh.

  Args:
    text: value of `config.dry_run`.
    class_size: number of devices among which a step's classes are split.
    loop: settings of the loop, with the batch size.
    n_views: number of views of an image in a batch.

  Raises:
    ConfigError: an unknown machine, or a mesh or batch that does not fit it.
    InputError: the machine's compiler is not installed.
  """
  devices = open_devices(text)
  pretrain.check_mesh(class_size, loop, n_views, devices)
  return devices


def open_devices(text: str) -> list[Any]:
  """Opens the devices that `config.dry_run` names, ordered by slice and host.

  Raises:
    ConfigError: an unknown machine.
    InputError: the machine's compiler is not installed, or another process holds it.
  """
  machine = machine_of(text)
  if machine.chip.gpu:
    library = _require_cuda()
    name = machine.chip.kind
    platform = "cuda"
    options: dict[str, Any] = {
      "topology": machine.topology,
      "target_config": machine.chip.gpu.target(machine.chip.bandwidth),
    }
  else:
    library = _require_libtpu()
    name = f"{machine.chip.kind}:{machine.topology}"
    platform = "tpu"
    options = {"chips_per_host_bounds": machine.hosts} | dict(machine.chip.options)
    if machine.n_slices > 1:
      options["num_slices"] = machine.n_slices
    for variable, value in _TPU_ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
  try:
    topology = topologies.get_topology_desc(
      topology_name=name, platform=platform, **options
    )
  except Exception as error:  # its type depends on the platform and the release
    reason = one_line(error)
    if "lockfile" in reason or "already in use" in reason:
      raise InputError(
        f"config.{_FIELD}: another process holds libtpu: {reason};"
        " set ALLOW_MULTIPLE_LIBTPU_LOAD=1, or wait for its end"
      ) from error
    accepted = f"a machine that {library} knows; it says: {reason}"
    raise ConfigError(_FIELD, text, accepted) from error
  # Keep the devices of a host together, as a mesh needs them.
  place = lambda device: (slice_of(device), device.process_index, device.id)
  return sorted(topology.devices, key=place)


def _require_libtpu() -> str:
  """Name and release of libtpu, or the path that TPU_LIBRARY_PATH names.

  Raises:
    InputError: libtpu is not installed, or not in the release that JAX requires.
  """
  if importlib.util.find_spec("libtpu") is None:
    if path := os.environ.get("TPU_LIBRARY_PATH"):
      return path
    raise InputError(_missing("libtpu", "aot-tpu"))
  version = importlib.metadata.version("libtpu")
  required = ""  # any release, if JAX requires none
  for requirement in importlib.metadata.requires("jax") or ():
    if match := re.match(r"libtpu==([\d.]+)", requirement):
      required = match[1]
      break
  if not version.startswith(required):
    raise InputError(
      f"config.{_FIELD}: libtpu {version} is installed, and jax {jax.__version__} takes"
      f' {required}*: pip install --upgrade "pomp-jax[aot-tpu]"'
    )
  return f"libtpu {version}"


def _require_cuda() -> str:
  """Name and release of JAX's CUDA plugin; InputError without it."""
  for name in ("jax-cuda13-plugin", "jax-cuda12-plugin"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      return f"{name} {importlib.metadata.version(name)}"
  raise InputError(_missing("JAX's CUDA plugin", "aot-cuda"))


def _missing(library: str, extra: str) -> str:
  return f'config.{_FIELD}: {library} is not installed: pip install "pomp-jax[{extra}]"'


class Outcome(NamedTuple):
  """A training whose arrays are shapes, and its step compiled for the machine."""

  here: PromptRun  # on this machine's first device, to read images
  there: PromptRun  # on the machine to compile for
  compiled: Compiled | None  # None if the compiler ran out of the machine's memory
  changes: dict[str, Any]  # fields that the last try has changed
  # For each try that does not fit: its changes, and what does not fit.
  problems: list[tuple[dict[str, Any], str]]

  @property
  def fits(self) -> bool:
    """Whether the last try fits."""
    # Tries have different changes, so the last problem tells whose it is.
    return not self.problems or self.problems[-1][0] != self.changes


def run(text: str, job_of: Callable[[Mapping[str, Any]], Job]) -> Outcome:
  """Compiles the step for the machine that `config.dry_run` names.

  A step that does not fit is compiled again with less memory, at most four times.
  `job_of` maps changed fields to the job.
  """
  machine = machine_of(text)
  devices = open_devices(text)
  tries = itertools.chain([{}], _smaller(job_of, machine, devices))
  problems: list[tuple[dict[str, Any], str]] = []
  for changes in tries:
    prepared = prepare(job_of(changes), machine, devices)
    compiled, problem = _compile(prepared.there, machine)
    if problem:
      problems.append((changes, problem))
    else:
      break
  return Outcome(
    here=prepared.here,
    there=prepared.there,
    compiled=compiled,
    changes=changes,
    problems=problems,
  )


class Prepared(NamedTuple):
  """A training whose arrays are shapes."""

  here: PromptRun  # on this machine's first device, to read images
  there: PromptRun  # on the machine to compile for


def prepare(job: Job, machine: Machine, devices: Sequence[Any]) -> Prepared:
  """Opens a training without its weights, on this machine and on another.

  Args:
    job: parts of the training's config.
    machine: machine to compile for; its memory limits the memory for activations.
    devices: devices of that machine, for the mesh.
  """
  clip = job.clip
  encoder = _ShapeEncoder(
    _shapes_of(clip),
    mesh=make_mesh(1, hosts.devices(local=True)[:1]),
    tower=clip.text_tower,
    dtype=clip.dtype,
    image_chunk=clip.image_chunk,
  )
  here = job.prepare(encoder)
  moved_encoder = copy.copy(encoder)
  moved_encoder.mesh = make_mesh(job.class_size, devices)
  memory_gib = clip.memory_gib or share_of_device(machine.chip.memory / GIB)
  moved_clip = dataclasses.replace(clip, memory_gib=memory_gib)
  there = dataclasses.replace(here, encoder=moved_encoder, clip=moved_clip)
  return Prepared(here, there)


def _shapes_of(settings: fields.Clip) -> _Shapes:
  """Opens a config's CLIP without its weights; a synthetic CLIP draws no weights."""
  if settings.model.startswith(SYNTHETIC_CLIP):
    config, tokenizer = synthetic_clip.config_and_tokenizer(settings.model)
    is_size = lambda node: isinstance(node, tuple)
    # Broadcast a single zero to each shape, which takes no memory.
    zeros = functools.partial(np.broadcast_to, np.float32(0))
    zero_params: Any = jax.tree.map(zeros, parameter_shapes(config), is_leaf=is_size)
    clip = Clip(settings.model, config, zero_params, tokenizer)
  else:
    clip = opening.open_clip(settings)
  params = with_embeddings(jax.tree.map(_shape, clip.params), token_table(clip.params))
  # Keep the values of scale and bias, which are read before the step is compiled.
  params["logit_scale"] = clip.params.get("logit_scale", np.float32(np.log(100)))
  if "logit_bias" in clip.params:
    params["logit_bias"] = clip.params["logit_bias"]
  attributes = {
    field.name: getattr(clip, field.name) for field in dataclasses.fields(clip)
  }
  attributes["params"] = params
  return _Shapes(**attributes)


def step_arguments(run: PromptRun) -> tuple[TrainState, Any, dict[str, Any]]:
  """Returns shapes of state, frozen arrays and batch, sharded over the run's mesh."""
  mesh = run.encoder.mesh
  replicated = NamedSharding(mesh, P())

  def shape(leaf: Any, sharding: NamedSharding = replicated) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  create = functools.partial(create_state, run.learner(), run.optimizer, run.seed)
  state = jax.tree.map(shape, jax.eval_shape(create))
  if run.needs_bank:
    # Round the bank's rows up to a multiple of the devices: each device holds equally
    # many, and the last rows are padding.
    n_classes = len(run.source.names)
    n_rows = -(-n_classes // mesh.size) * mesh.size
    width = run.encoder.clip.config.projection_dim
    bank = jax.ShapeDtypeStruct(
      (n_rows, width), np.float32, sharding=bank_sharding(mesh)
    )
    state = state.replace(bank=bank)
  frozen = jax.tree.map(shape, run.frozen)
  return state, frozen, costs.batch_shapes(run)


def compile_step(
  run: PromptRun, options: dict[str, str | bool] | None = None
) -> Compiled:
  """Lowers and compiles the step of a prepared run with the compiler's `options`.

  If JAX has a folder for compiled programs, it stores the program there, but can load
  it only on the machine that it is compiled for. This function therefore stores the
  program's memory and text in the same folder, and the next dry run reads them.

  Raises:
    jax.errors.JaxRuntimeError: the step does not fit.
  """
  start = time.monotonic()
  cpu_start = time.process_time()
  state, frozen, batch = step_arguments(run)
  lowered = run.build_step().lower(state, frozen, batch)
  file = _file_of_program(run, lowered, options)
  stored = None
  if file and is_file(file):
    stored = _read_stored(file)
  memory, text = stored or _compiled(lowered, options)
  if file and not stored:
    with contextlib.suppress(OSError):
      write_file(file, gzip.compress(json.dumps([memory, text]).encode()))
  return Compiled(
    memory=memory,
    text=text,
    seconds=time.monotonic() - start,
    cpu_seconds=time.process_time() - cpu_start,
    is_cached=stored is not None,
  )


def _file_of_program(
  run: PromptRun,
  lowered: jax.stages.Lowered,
  options: dict[str, str | bool] | None,
) -> Any:
  """The file for a step's memory and text; its name is the cache key of both."""
  folder = _folder_of_programs()
  if not folder:
    return None
  devices = list(run.encoder.mesh.devices.flat)
  compiler = devices[0].client.platform_version
  parts = [lowered.as_text(), jax.__version__, compiler, repr(devices), repr(options)]
  return join(folder, f"dry_run-{fingerprint(parts)[:32]}-cache")


def _compiled(
  lowered: jax.stages.Lowered, options: dict[str, str | bool] | None
) -> tuple[Memory, str]:
  """Compiles a step, and returns its memory and its text."""
  with warnings.catch_warnings():
    # JAX warns because it fails to load the program that an earlier dry run stored:
    # loading takes a device.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
    program = lowered.compile(compiler_options=options)
  plan: Any = program.memory_analysis()
  # A result that reuses the memory of an argument takes none of its own.
  results = plan.output_size_in_bytes - plan.alias_size_in_bytes
  memory = Memory(
    arguments=plan.argument_size_in_bytes,
    temporaries=plan.temp_size_in_bytes,
    others=results + plan.generated_code_size_in_bytes,
  )
  return memory, program.as_text() or ""


def _folder_of_programs() -> str | None:
  """The folder for compiled programs that `files.compilation` has set in JAX."""
  settings: Any = jax.config  # mypy does not know its attributes
  folder: str | None = settings.jax_compilation_cache_dir
  return folder


def _read_stored(file: Any) -> tuple[Memory, str] | None:
  """Memory and text of an earlier compilation; None if the file is damaged."""
  try:
    memory, text = json.loads(gzip.decompress(read_bytes(file)))
    return Memory(*map(int, memory)), str(text)
  except (OSError, ValueError, TypeError, EOFError):
    return None


def _compile(run: PromptRun, machine: Machine) -> tuple[Compiled | None, str]:
  """Compiles a step for a machine, and compares its memory with a device's.

  Args:
    run: prepared training.
    machine: chips to compile for.

  Returns:
    The compiled step, and a text that says what does not fit, "" if the step fits. The
    step is None if the compiler itself found that it does not fit.
  """
  options = None
  if machine.chip.gpu:
    options = GPU_OPTIONS
  try:
    compiled = compile_step(run, options)
  except jax.errors.JaxRuntimeError as error:
    # The TPU compiler allocates memory, and raises this error if it has too little.
    if not str(error).startswith("RESOURCE_EXHAUSTED"):
      raise
    return None, one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")

  needed = compiled.memory.total
  limit = machine.chip.memory
  if needed > limit:
    return compiled, f"{needed / GIB:.1f} GiB of {limit / GIB:.1f} GiB"
  return compiled, ""


def _smaller(
  job_of: Callable[[Mapping[str, Any]], Job], machine: Machine, devices: Sequence[Any]
) -> Iterator[dict[str, Any]]:
  """Yields changes of fields that make a step take less and less memory.

  Each yield includes the changes before it. A change is skipped if the step then does
  not fit the devices' mesh.
  """
  job = job_of({})
  memory = job.clip.memory_gib or share_of_device(machine.chip.memory / GIB)
  half: dict[str, Any] = {"clip.memory_gib": memory / 2}
  eighth: dict[str, Any] = {"clip.memory_gib": memory / 8}
  if job.data.features == "online":
    eighth["clip.image_chunk"] = min(job.clip.image_chunk or 8, 8)
  more_devices = {"mesh.class_size": 2 * job.class_size}
  more_draws = {"accumulate": 2 * job.loop.accumulate}
  changes: dict[str, Any] = {}
  for change in (half, eighth, more_devices, more_draws):
    tried = job_of(changes | change)
    with contextlib.suppress(InputError):
      pretrain.check_mesh(tried.class_size, tried.loop, tried.data.views, devices)
      changes = changes | change
      yield changes
