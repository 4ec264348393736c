"""Accelerators that a step can be compiled for without one: their data sheets and their
names.

Each figure is of one device as JAX counts them: a TPU chip, one of the two halves of a
TPU7x chip, a GPU. `SOURCES` has the pages.
"""

import itertools
import math
import re
from typing import Any, NamedTuple

from pomp_jax.config.declare import ConfigError

GIB = 2**30
_CLOUD = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
# JAX takes this share of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.75


class Gpu(NamedTuple):
  """What XLA asks of a GPU's architecture when it compiles without one."""

  name: str
  capability: tuple[int, int]
  cores: int  # streaming multiprocessors
  fpus: int  # float32 units of each
  shared_memory: int  # bytes of each
  block_memory: int  # bytes of these that a block may ask for
  l2_cache: int  # bytes
  clock_ghz: float
  memory: int  # bytes of the device

  def target(self, bandwidth: float) -> str:
    """The text of XLA's `GpuTargetConfigProto`; `bandwidth` in bytes a second."""
    major, minor = self.capability
    extension = "ACCELERATED_FEATURES" if major == 9 else "NONE"
    return f"""
      gpu_device_info {{
        name: "{self.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
        cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
        core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock_ghz}
        threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        shared_memory_per_core: {self.shared_memory} shared_memory_per_block: 49152
        shared_memory_per_block_optin: {self.block_memory} l2_cache_size: {self.l2_cache}
        device_memory_size: {self.memory} memory_bandwidth: {bandwidth:.0f}
        pcie_bandwidth: 34359738368 ecc_enabled: true driver_version: "13.0.0"
        runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      device_description_str: "{self.name}"
    """


class Chip(NamedTuple):
  """A kind of accelerator: peak rates and memory of one device."""

  kind: str  # name before the colon of `config.dry_run`
  title: str
  flops: float  # peak of products in bfloat16, FLOP/s
  float32_flops: float  # peak of products in float32, FLOP/s
  bandwidth: float  # of its memory, bytes/s
  memory: float  # that a program may take, bytes
  # Cycles a second of the compiler's estimate; 0 where the compiler gives none.
  clock: float = 0.0
  axes: int = 0  # of a slice's torus; 0 of a GPU
  per_chip: int = 1  # devices of a chip
  options: tuple[tuple[str, str], ...] = ()  # of the topology
  gpu: Gpu | None = None
  device_kind: str = ""  # as JAX names it

  @property
  def peak(self) -> dict[str, float]:
    """FLOP/s of matrix products by the value of `clip.dtype`."""
    # three passes, or TF32
    between = self.flops / 3 if self.gpu is None else self.flops / 2
    types = ("float32", "tensorfloat32", "bfloat16")
    return dict(zip(types, (self.float32_flops, between, self.flops), strict=True))


def _tpu(
  kind: str,
  tflops: float | int,
  gbps: float | int,
  memory_gib: float,
  units: int,
  side: int,
  **others: Any,
) -> Chip:
  """A TPU's device with `units` matrix units of `side` x `side`, each 2 FLOP a cycle
  and cell."""
  flops = tflops * 1e12
  return Chip(
    kind,
    f"TPU {kind}",
    flops,
    flops / 6,  # six bfloat16 passes, see `clip.precision`
    gbps * 1e9,
    memory_gib * GIB,
    clock=flops / (2 * units * side**2),
    **others,
  )


def _gpu(
  kind: str, tflops: float | int, float32_tflops: float, gbps: float | int, gpu: Gpu
) -> Chip:
  """A GPU, with the memory that JAX takes by default."""
  return Chip(
    kind,
    gpu.name,
    tflops * 1e12,
    float32_tflops * 1e12,
    gbps * 1e9,
    _GPU_SHARE * gpu.memory,
    gpu=gpu,
    device_kind=gpu.name,
  )


# TPUs: peak in bfloat16 (TFLOP/s), memory's rate (GB/s), memory that libtpu 0.0.42 lets
# a program have (GiB, from its own message), matrix units and their side. From these
# follows the clock.
_CHIPS = (
  _tpu(
    "v4",
    tflops=275,
    gbps=1200,
    memory_gib=30.75,
    units=8,
    side=128,
    axes=3,
    options=(("chip_config_name", "megacore"),),
    device_kind="TPU v4",
  ),
  _tpu("v5e", 197, 819, 15.75, 4, 128, axes=2, device_kind="TPU v5 lite"),
  _tpu("v5p", 459, 2765, 95.74, 8, 128, axes=3, device_kind="TPU v5"),
  _tpu("v6e", 918, 1640, 31.25, 4, 256, axes=2, device_kind="TPU v6 lite"),
  # Half of a chip. No page says the number of units: with four a large product reaches
  # 80% of the peak by the compiler's estimate, with two it would be above it.
  _tpu(
    "tpu7x", 2307 / 2, 7380 / 2, 94.75, 4, 256, axes=3, per_chip=2, device_kind="TPU7x"
  ),
  # Without sparsity; float32 on the cores that are not tensor cores.
  _gpu(
    "h100",
    tflops=989.5,
    float32_tflops=66.9,
    gbps=3352,
    gpu=Gpu(
      "NVIDIA H100 80GB HBM3",
      capability=(9, 0),
      cores=132,
      fpus=128,
      shared_memory=233_472,
      block_memory=232_448,
      l2_cache=52_428_800,
      clock_ghz=1.98,
      memory=84_942_979_072,
    ),
  ),
  _gpu(
    "a100",
    tflops=312,
    float32_tflops=19.5,
    gbps=1555,
    gpu=Gpu(
      "NVIDIA A100-SXM4-40GB",
      capability=(8, 0),
      cores=108,
      fpus=64,
      shared_memory=167_936,
      block_memory=166_912,
      l2_cache=41_943_040,
      clock_ghz=1.41,
      memory=42_331_013_120,
    ),
  ),
  _gpu(
    "a100-80gb",
    tflops=312,
    float32_tflops=19.5,
    gbps=2039,
    gpu=Gpu(
      "NVIDIA A100-SXM4-80GB",
      capability=(8, 0),
      cores=108,
      fpus=64,
      shared_memory=167_936,
      block_memory=166_912,
      l2_cache=41_943_040,
      clock_ghz=1.41,
      memory=85_094_957_056,
    ),
  ),
)
CHIPS = {chip.kind: chip for chip in _CHIPS}
# Pages with peak, memory and its rate. The limits of memory are libtpu's message when a
# program asks for more (TPUs), or JAX's usual share of the device's bytes in XLA's own
# list of GPUs.
SOURCES = {
  "v4": f"{_CLOUD}/v4",
  "v5e": f"{_CLOUD}/v5e",
  "v5p": f"{_CLOUD}/v5p",
  "v6e": f"{_CLOUD}/v6e",
  "tpu7x": f"{_CLOUD}/tpu7x",
  "h100": f"{_NVIDIA}/h100/",
  "a100": f"{_NVIDIA}/a100/",
  "a100-80gb": f"{_NVIDIA}/a100/",
}
# Shapes of slices by their number of chips, on the same pages.
_SHAPES = {
  2: {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
  },
  3: {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
  },
}
# Names that clouds use, and the kind: the number is of chips, of cores (two a chip), or
# of GPUs.
_BY_CHIPS = {
  r"(?:v5litepod|v5e)-(\d+)": "v5e",
  r"v6e-(\d+)": "v6e",
  r"ct5lp-hightpu-(\d+)t": "v5e",
  r"ct6e-standard-(\d+)t": "v6e",
  r"ct5p-hightpu-(\d+)t": "v5p",
  r"ct4p-hightpu-(\d+)t": "v4",
  r"tpu7x-standard-(\d+)t": "tpu7x",
  r"a3-(?:high|mega|edge)gpu-(\d+)g": "h100",
  r"a2-(?:high|mega)gpu-(\d+)g": "a100",
  r"a2-ultragpu-(\d+)g": "a100-80gb",
}
_BY_CORES = {r"v4-(\d+)": "v4", r"v5p-(\d+)": "v5p"}
_MACHINES = {
  "p5.48xlarge": "h100:8",
  "p4d.24xlarge": "a100:8",
  "p4de.24xlarge": "a100-80gb:8",
  "standard_nd96isr_h100_v5": "h100:8",
}
ACCEPTED = (
  "here, for these devices, or a machine to compile for: v5e:4x4, v6e:8, v5p:2x2x1, v4:4, tpu7x:4"
  f" (TPUs by shape or chips), h100:8, a100:8, a100-80gb:8 ({', '.join(SOURCES)}), or a cloud's"
  " name such as v5litepod-16, v6e-8, v5p-16, a3-highgpu-8g"
)


class Machine(NamedTuple):
  """Chips that are connected: slices of TPU pods, or GPUs in hosts of eight."""

  chip: Chip
  shape: tuple[int, ...]  # of the torus, or of GPUs (slices, hosts, GPUs of a host)
  n_slices: int = 1  # slices of this shape, joined by the data-centre network

  @property
  def n_devices(self) -> int:
    """Number of devices, as JAX counts them."""
    return self.n_slices * math.prod(self.shape) * self.chip.per_chip

  @property
  def topology(self) -> str:
    """The shape as XLA takes it, such as 4x4."""
    return "x".join(map(str, self.shape))

  @property
  def hosts(self) -> tuple[int, ...]:
    """Chips of a host along each axis of the torus."""
    if self.chip.axes == 3:
      return (2, 2, 1)
    # Up to eight chips have one host; larger slices have hosts of four.
    small = math.prod(self.shape) <= 8
    return (*self.shape, 1) if small else (2, 2, 1)

  def __str__(self) -> str:
    if self.chip.gpu:
      return f"{self.n_devices} x {self.chip.title}"
    n_chips = self.n_slices * math.prod(self.shape)
    slices = f"{self.n_slices} slices of " if self.n_slices > 1 else ""
    halves = f", {self.n_devices} devices" if self.chip.per_chip > 1 else ""
    return f"{slices}{self.chip.title} {self.topology} ({n_chips} chips{halves})"


def chip_of(device_kind: str) -> Chip | None:
  """The chip whose devices JAX gives this name; None for another."""
  return next((chip for chip in _CHIPS if chip.device_kind == device_kind), None)


def machine_of(text: str) -> Machine:
  """Reads `config.dry_run`, such as v5e:4x4 or 2xv6e-8; ConfigError for an unknown
  machine."""
  several = re.match(r"([1-9]\d*)x(?=[a-z])", text.lower())
  n_slices = int(several[1]) if several else 1
  name = text.lower()[several.end() if several else 0 :]
  name = _MACHINES.get(name, name)
  for names, per_chip in ((_BY_CHIPS, 1), (_BY_CORES, 2)):
    for form, kind in names.items():
      if (found := re.fullmatch(form, name)) and int(found[1]) % per_chip == 0:
        name = f"{kind}:{int(found[1]) // per_chip}"
  kind, _, size = name.partition(":")
  chip = CHIPS.get(kind)
  if chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", size):
    raise ConfigError("dry_run", text, ACCEPTED)
  if chip.gpu and n_slices > 1:
    expected = f"{chip.kind}: and the number of all GPUs, of which eight are a host's"
    raise ConfigError("dry_run", text, expected)
  shape = tuple(map(int, size.split("x")))
  return Machine(chip, _shape(text, chip, shape), n_slices)


def _shape(text: str, chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of a slice, also by its number of chips; ConfigError for one that
  clouds lack."""
  if chip.gpu:
    n_gpus = math.prod(shape)
    expected = f"{chip.kind}:1 to 8, or a multiple of 8 GPUs"
    if len(shape) > 1 or (n_gpus > 8 and n_gpus % 8):
      raise ConfigError("dry_run", text, expected)
    return (1, max(1, n_gpus // 8), min(8, n_gpus))
  known = _SHAPES[chip.axes]
  if len(shape) == 1:
    if shape[0] not in known:
      numbers = ", ".join(map(str, known))
      raise ConfigError(
        "dry_run", text, f"{chip.kind}: with {numbers} chips, or a shape"
      )
    return tuple(map(int, known[shape[0]].split("x")))
  if len(shape) != chip.axes:
    example = next(itertools.islice(known.values(), 1, None))
    expected = f"a shape of {chip.axes} axes, such as {chip.kind}:{example}"
    raise ConfigError("dry_run", text, expected)
  return shape
