"""Compiles a training's step for a machine that is not here, and estimates what it
would take.

No array is placed and nothing runs: weights, state and batch are shapes. `forecast.py`
reads the compiled program.

JAX has one public function for this, `jax.experimental.topologies.get_topology_desc`;
for TPUs it needs libtpu, for GPUs JAX's CUDA plugin, and neither needs a device or a
driver.
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
from pomp_jax.evaluate import inputs
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import is_file, join, read_bytes
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.terminal import one_line
from pomp_jax.prompt.bank import bank_sharding
from pomp_jax.prompt.mesh import make_mesh, slice_of
from pomp_jax.prompt.step import TrainState, create_state
from pomp_jax.rooms.benchmark import costs, synthetic_clip
from pomp_jax.rooms.benchmark.chips import GIB, Machine, machine_of
from pomp_jax.train import pretrain, setup
from pomp_jax.train.memory import share_of_device

log = logging.getLogger(__name__)

_FIELD = "dry_run"
# Read when libtpu is loaded: no query of the cloud's metadata, which ends after minutes
# elsewhere; no lock of the machine's TPUs, which are not used; no search for other
# hosts.
_TPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# Candidates of kernels can't be timed without a GPU, and some sizes have no Triton
# kernel untimed: products are cuBLAS's.
GPU_OPTIONS: dict[str, str | bool] = {
  "xla_gpu_autotune_level": "0",
  "xla_gpu_enable_triton_gemm": False,
}


class Memory(NamedTuple):
  """Memory of one device in bytes, as the compiler plans it."""

  arguments: int  # weights, state and batch
  temporaries: int
  others: int  # results that share no argument's memory, and the program

  @property
  def total(self) -> int:
    """All of it."""
    return sum(self)


class Compiled(NamedTuple):
  """A step that was compiled for a machine."""

  memory: Memory
  text: str
  seconds: float
  cpu_seconds: float
  is_cached: bool


class _Shapes(Clip):
  """A CLIP whose weights are shapes, but for the embeddings that words of a prompt
  start from."""

  @property
  def sos_embedding(self) -> Any:
    """Zeros: only their shape is compiled."""
    return np.zeros(
      (int(self.tokenizer.bos_token_id is not None), self.text_width), np.float32
    )

  @property
  def text_params(self) -> Any:
    """Shapes; embeddings that are mapped into memory stay, for `Encoder` to read
    some."""
    params = super().text_params
    is_mapped = isinstance(token_table(params), np.memmap)
    return params if is_mapped else jax.tree.map(_shape, params)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), np.float32)


class _ShapeEncoder(Encoder):
  """An encoder that computes nothing: all features are the same unit vector."""

  def class_features(self, names: Sequence[str], prompt: Any, **_: Any) -> np.ndarray:
    """Unit vectors [N,E]."""
    width = self.clip.config.projection_dim
    return np.full((len(names), width), width**-0.5, np.float32)


class Job(NamedTuple):
  """What a step for another machine takes of a training's config."""

  clip: fields.Clip
  class_size: int
  loop: fields.Loop
  data: fields.Data
  prepare: Callable[[Encoder], setup.PromptRun]  # `setup.prepare` with the other fields


def check(text: str, class_size: int, loop: fields.Loop, n_views: int) -> list[Any]:
  """Opens the devices that `config.dry_run` names, and checks that they share a step.

  ConfigError: no such machine, or a mesh or batch that does not fit it; InputError:
  without the compiler.
  """
  found = open_devices(text)
  pretrain.check_mesh(class_size, loop, n_views, found)
  return found


def open_devices(text: str) -> list[Any]:
  """Opens the devices that `config.dry_run` names, those of a host together; see
  `check`."""
  machine = machine_of(text)
  options: dict[str, Any] = {}
  if gpu := machine.chip.gpu:
    library = _require_cuda()
    options = {
      "topology": machine.topology,
      "target_config": gpu.target(machine.chip.bandwidth),
    }
    name, platform = machine.chip.kind, "cuda"
  else:
    library = _require_libtpu()
    for variable, value in _TPU_ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
    options = {"chips_per_host_bounds": machine.hosts} | dict(machine.chip.options)
    if machine.n_slices > 1:
      options["num_slices"] = machine.n_slices
    name, platform = f"{machine.chip.kind}:{machine.topology}", "tpu"
  try:
    found = topologies.get_topology_desc(
      topology_name=name, platform=platform, **options
    )
  except Exception as error:  # of many kinds, by platform and release
    reason = one_line(error)
    if "lockfile" in reason or "already in use" in reason:
      way = "set ALLOW_MULTIPLE_LIBTPU_LOAD=1, or wait for its end"
      line = f"config.{_FIELD}: another process holds libtpu: {reason}; {way}"
      raise InputError(line) from error
    raise ConfigError(
      _FIELD, text, f"a machine that {library} knows; it says: {reason}"
    ) from error
  place = lambda device: (slice_of(device), device.process_index, device.id)
  return sorted(found.devices, key=place)


def _require_libtpu() -> str:
  """Name and release of libtpu; InputError without it, or with another release than
  JAX's."""
  if importlib.util.find_spec("libtpu") is None:
    if path := os.environ.get("TPU_LIBRARY_PATH"):
      return path
    raise InputError(_missing("libtpu", "aot-tpu"))
  version = importlib.metadata.version("libtpu")
  required = importlib.metadata.requires("jax") or ()
  matches = (re.match(r"libtpu==([\d.]+)", one) for one in required)
  wanted = next((found[1] for found in matches if found), "")
  if not version.startswith(wanted):
    raise InputError(
      f"config.{_FIELD}: libtpu {version} is installed, and jax {jax.__version__} takes"
      f' {wanted}*: pip install --upgrade "pomp-jax[aot-tpu]"'
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
  """A training of shapes, and its step for the machine."""

  here: setup.PromptRun  # on this machine's first device, to read images
  there: setup.PromptRun
  compiled: Compiled | None  # None if the compiler ran out of the machine's memory
  changes: dict[str, Any]  # fields of the last try
  # of the tries that do not fit, with their changes
  problems: list[tuple[dict[str, Any], str]]

  @property
  def fits(self) -> bool:
    """Whether the last try fits."""
    return not self.problems or self.problems[-1][0] != self.changes


def run(text: str, job_of: Callable[[Mapping[str, Any]], Job]) -> Outcome:
  """Compiles the step for the machine that `config.dry_run` names.

  A step that does not fit is compiled again with less memory, at most four times.
  `job_of` maps changed fields to the job.
  """
  machine, devices = machine_of(text), open_devices(text)
  tries = itertools.chain([{}], _smaller(job_of, machine, devices))
  problems: list[tuple[dict[str, Any], str]] = []
  for changes in tries:
    prepared = prepare(job_of(changes), machine, devices)
    compiled, problem = _compile(prepared.there, machine)
    outcome = Outcome(*prepared, compiled, changes, problems)
    if not problem:
      break
    problems.append((changes, problem))
  return outcome


class Prepared(NamedTuple):
  """A training of shapes."""

  here: setup.PromptRun  # on this machine's first device, to read images
  there: setup.PromptRun  # on the machine


def prepare(job: Job, machine: Machine, devices: Sequence[Any]) -> Prepared:
  """Opens all of a training but the weights, and replaces its mesh by one of these
  devices."""
  clip, memory = job.clip, share_of_device(machine.chip.memory / GIB)
  encoder = _ShapeEncoder(
    _shapes_of(clip),
    mesh=make_mesh(1, hosts.devices(local=True)[:1]),
    tower=clip.text_tower,
    dtype=clip.dtype,
    image_chunk=clip.image_chunk,
  )
  here = job.prepare(encoder)
  moved = copy.copy(encoder)
  moved.mesh = make_mesh(job.class_size, devices)
  planned = dataclasses.replace(clip, memory_gib=clip.memory_gib or memory)
  return Prepared(here, dataclasses.replace(here, encoder=moved, clip=planned))


def _shapes_of(settings: fields.Clip) -> _Shapes:
  """The CLIP of a config without its weights; random ones are not drawn."""
  if settings.model.startswith(SYNTHETIC_CLIP):
    config, tokenizer = synthetic_clip.config_and_tokenizer(settings.model)
    is_size = lambda node: isinstance(node, tuple)
    # Zeros that take no memory.
    zeros = functools.partial(np.broadcast_to, np.float32(0))
    params: Any = jax.tree.map(zeros, parameter_shapes(config), is_leaf=is_size)
    clip = Clip(settings.model, config, params, tokenizer)
  else:
    clip = inputs.open_clip(settings)
  params = with_embeddings(jax.tree.map(_shape, clip.params), token_table(clip.params))
  params["logit_scale"] = clip.params.get("logit_scale", np.float32(np.log(100)))
  if "logit_bias" in clip.params:
    params["logit_bias"] = clip.params["logit_bias"]
  own = {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip)}
  return _Shapes(**own | {"params": params})


def step_arguments(run: setup.PromptRun) -> tuple[TrainState, Any, dict[str, Any]]:
  """Shapes of state, frozen arrays and batch, with their shardings over the run's
  mesh."""
  mesh = run.encoder.mesh
  everywhere = NamedSharding(mesh, P())

  def shape(leaf: Any, sharding: NamedSharding = everywhere) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  state = jax.eval_shape(
    functools.partial(create_state, run.learner(), run.optimizer, run.seed)
  )
  state = jax.tree.map(shape, state)
  if run.needs_bank:
    n_rows = -(-len(run.source.names) // mesh.size) * mesh.size
    size = n_rows, run.encoder.clip.config.projection_dim
    rows = jax.ShapeDtypeStruct(size, run.sampling.bank_dtype)
    state = state.replace(bank=shape(rows, bank_sharding(mesh)))
  return state, jax.tree.map(shape, run.frozen), costs.batch_shapes(run)


def compile_step(
  run: setup.PromptRun, options: dict[str, str | bool] | None = None
) -> Compiled:
  """Lowers and compiles the step of `prepare`; JAX's error where it does not fit.

  Where JAX has a folder for compiled programs, it keeps the program there for the
  machine, which it can't read without one. What is read of it here is kept beside it,
  for the next dry run.
  """
  start, cpu_start = time.monotonic(), time.process_time()
  lowered = run.build_step().lower(*step_arguments(run))
  devices = run.encoder.mesh.devices.flat
  versions = jax.__version__, devices[0].client.platform_version, repr(list(devices))
  key = fingerprint([lowered.as_text(), *versions, repr(options)])[:32]
  folder = _folder_of_programs()
  file = join(folder, f"dry_run-{key}-cache") if folder else None
  stored = _read_stored(file) if file and is_file(file) else None
  memory, text = stored or _compiled(lowered, options)
  if file and not stored:
    with contextlib.suppress(OSError):
      write_file(file, gzip.compress(json.dumps([memory, text]).encode()))
  wall, cpu = time.monotonic() - start, time.process_time() - cpu_start
  return Compiled(memory, text, wall, cpu, stored is not None)


def _compiled(
  lowered: jax.stages.Lowered, options: dict[str, str | bool] | None
) -> tuple[Memory, str]:
  """Memory and text of a step that is compiled now."""
  with warnings.catch_warnings():
    # It tries to load the entry of an earlier dry run, which takes a device.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
    program = lowered.compile(compiler_options=options)
  found: Any = program.memory_analysis()
  others = found.output_size_in_bytes - found.alias_size_in_bytes
  memory = Memory(
    arguments=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    others=others + found.generated_code_size_in_bytes,
  )
  return memory, program.as_text() or ""


def _folder_of_programs() -> str | None:
  """The folder that `files.compilation` has given JAX."""
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


def _compile(run: setup.PromptRun, machine: Machine) -> tuple[Compiled | None, str]:
  """The compiled step, and what does not fit; "" if all does."""
  options = GPU_OPTIONS if machine.chip.gpu else None
  try:
    compiled = compile_step(run, options)
  except jax.errors.JaxRuntimeError as error:
    if not str(error).startswith("RESOURCE_EXHAUSTED"):
      raise
    return None, one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
  limit = machine.chip.memory
  if compiled.memory.total <= limit:
    return compiled, ""
  return compiled, f"{compiled.memory.total / GIB:.1f} GiB of {limit / GIB:.1f} GiB"


def _smaller(
  job_of: Callable[[Mapping[str, Any]], Job], machine: Machine, devices: Sequence[Any]
) -> Iterator[dict[str, Any]]:
  """Changes of fields that need less and less memory, and that the machine can
  share."""
  job = job_of({})
  memory, chunk = job.clip.memory_gib, job.clip.image_chunk
  memory = memory or share_of_device(machine.chip.memory / GIB)
  tries: list[dict[str, Any]] = [
    {"clip.memory_gib": memory / 2},
    {"clip.memory_gib": memory / 8},
  ]
  if job.data.features == "online":
    tries[1]["clip.image_chunk"] = min(chunk or 8, 8)
  tries += [
    {"mesh.class_size": 2 * job.class_size},
    {"accumulate": 2 * job.loop.accumulate},
  ]
  changes: dict[str, Any] = {}
  for one in tries:
    tried = job_of(changes | one)
    with contextlib.suppress(InputError):
      pretrain.check_mesh(tried.class_size, tried.loop, tried.data.views, devices)
      changes = changes | one
      yield changes
