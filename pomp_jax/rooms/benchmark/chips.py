"""Data sheets and names of the accelerators that a step can be compiled for.

Each figure is for one device as JAX counts devices: a TPU chip, one of the two halves
of a TPU7x chip, or a GPU. `SOURCES` has the pages that the figures come from.
"""

import math
import re
from typing import Any, NamedTuple

from pomp_jax.config.errors import ConfigError

GIB = 2**30
_CLOUD = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
# JAX takes this share of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.75


class Gpu(NamedTuple):
  """Properties of a GPU that XLA needs to compile for it without the GPU."""

  name: str
  capability: tuple[int, int]
  cores: int  # streaming multiprocessors
  fpus: int  # float32 units of a multiprocessor
  shared_memory: int  # bytes of a multiprocessor
  block_memory: int  # bytes of the shared memory that a block may ask for
  l2_cache: int  # bytes
  clock_ghz: float
  memory: int  # bytes of the device

  def target(self, bandwidth: float) -> str:
    """Describes the GPU as the text of XLA's `GpuTargetConfigProto`.

    Limits of blocks and grids are the same for all GPUs of the table.

    Args:
      bandwidth: bytes a second of the device's memory.
    """
    major, minor = self.capability
    # Compute capability 9.0 has instructions, such as wgmma, that only sm_90a offers.
    extension = "ACCELERATED_FEATURES" if major == 9 else "NONE"
    capability = f"major: {major} minor: {minor} feature_extension: {extension}"
    return f"""
      gpu_device_info {{
        name: "{self.name}"
        device_vendor: "NVIDIA Corporation"
        cuda_compute_capability {{ {capability} }}
        core_count: {self.cores}
        fpus_per_core: {self.fpus}
        clock_rate_ghz: {self.clock_ghz}
        shared_memory_per_core: {self.shared_memory}
        shared_memory_per_block: 49152
        shared_memory_per_block_optin: {self.block_memory}
        l2_cache_size: {self.l2_cache}
        device_memory_size: {self.memory}
        memory_bandwidth: {bandwidth:.0f}
        pcie_bandwidth: 34359738368
        device_address_bits: 64
        threads_per_warp: 32
        threads_per_block_limit: 1024
        threads_per_core_limit: 2048
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        thread_dim_limit_x: 1024
        thread_dim_limit_y: 1024
        thread_dim_limit_z: 64
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        ecc_enabled: true
        driver_version: "13.0.0"
        runtime_version: "12.8.0"
        compile_time_toolkit_version: "12.8.0"
        dnn_version: "9.10.0"
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
  bandwidth: float  # of the device's memory, bytes/s
  memory: float  # bytes that a program may take
  # Cycles a second, to convert the compiler's estimate; 0 if the compiler gives none.
  clock: float = 0.0
  axes: int = 0  # number of axes of a slice's torus; 0 for a GPU
  per_chip: int = 1  # devices of a chip
  options: tuple[tuple[str, str], ...] = ()  # of the topology, by name
  gpu: Gpu | None = None
  device_kind: str = ""  # as JAX names it

  @property
  def peak(self) -> dict[str, float]:
    """FLOP/s of matrix products by the value of `clip.dtype`."""
    # A GPU computes TF32 at half the rate of bfloat16. A TPU has no units for TF32, and
    # makes three passes in bfloat16.
    n_passes = 2 if self.gpu else 3
    return {
      "float32": self.float32_flops,
      "tensorfloat32": self.flops / n_passes,
      "bfloat16": self.flops,
    }


def _tpu(
  kind: str,
  *,
  tflops: float | int,
  gbps: float | int,
  memory_gib: float,
  units: int,
  side: int,
  **others: Any,
) -> Chip:
  """Describes a TPU's device.

  `tflops` is the peak in bfloat16, `gbps` the rate of the memory in GB/s. The device
  has `units` matrix units of `side` x `side` cells. A cell computes two FLOP a cycle,
  so the clock follows from the peak and the number of cells.
  """
  flops = tflops * 1e12
  return Chip(
    kind=kind,
    title=f"TPU {kind}",
    flops=flops,
    float32_flops=flops / 6,  # six passes in bfloat16, see `clip.precision`
    bandwidth=gbps * 1e9,
    memory=memory_gib * GIB,
    clock=flops / (2 * units * side**2),
    **others,
  )


def _gpu(
  kind: str,
  gpu: Gpu,
  *,
  tflops: float | int,
  float32_tflops: float,
  gbps: float | int,
) -> Chip:
  """Describes a GPU; `tflops` is its peak in bfloat16, `gbps` its memory's GB/s."""
  return Chip(
    kind=kind,
    title=gpu.name,
    flops=tflops * 1e12,
    float32_flops=float32_tflops * 1e12,
    bandwidth=gbps * 1e9,
    memory=_GPU_SHARE * gpu.memory,
    gpu=gpu,
    device_kind=gpu.name,
  )


_H100 = Gpu(
  name="NVIDIA H100 80GB HBM3",
  capability=(9, 0),
  cores=132,
  fpus=128,
  shared_memory=233_472,
  block_memory=232_448,
  l2_cache=52_428_800,
  clock_ghz=1.98,
  memory=84_942_979_072,
)
_A100 = Gpu(
  name="NVIDIA A100-SXM4-40GB",
  capability=(8, 0),
  cores=108,
  fpus=64,
  shared_memory=167_936,
  block_memory=166_912,
  l2_cache=41_943_040,
  clock_ghz=1.41,
  memory=42_331_013_120,
)
_A100_80GB = _A100._replace(name="NVIDIA A100-SXM4-80GB", memory=85_094_957_056)
# The memory of a TPU is the limit that libtpu 0.0.42 states in its error message.
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
  _tpu(
    "v5e",
    tflops=197,
    gbps=819,
    memory_gib=15.75,
    units=4,
    side=128,
    axes=2,
    device_kind="TPU v5 lite",
  ),
  _tpu(
    "v5p",
    tflops=459,
    gbps=2765,
    memory_gib=95.74,
    units=8,
    side=128,
    axes=3,
    device_kind="TPU v5",
  ),
  _tpu(
    "v6e",
    tflops=918,
    gbps=1640,
    memory_gib=31.25,
    units=4,
    side=256,
    axes=2,
    device_kind="TPU v6 lite",
  ),
  # A device is half of a chip. No page gives the number of units. With four units the
  # compiler's estimate of a large product is 80% of the peak; with two it would exceed
  # the peak.
  _tpu(
    "tpu7x",
    tflops=2307 / 2,
    gbps=7380 / 2,
    memory_gib=94.75,
    units=4,
    side=256,
    axes=3,
    per_chip=2,
    device_kind="TPU7x",
  ),
  # GPU peaks are without sparsity. Peaks in float32 are without the tensor cores.
  _gpu("h100", _H100, tflops=989.5, float32_tflops=66.9, gbps=3352),
  _gpu("a100", _A100, tflops=312, float32_tflops=19.5, gbps=1555),
  _gpu("a100-80gb", _A100_80GB, tflops=312, float32_tflops=19.5, gbps=2039),
)
CHIPS = {chip.kind: chip for chip in _CHIPS}
# Pages with a chip's peak, memory and memory rate. The limits of memory have other
# sources: the message of libtpu when a program asks for more (TPUs), and XLA's own list
# of GPUs, of whose bytes JAX takes its usual share.
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
# Shapes of slices by number of axes and number of chips, from the pages of `SOURCES`.
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
# Kinds of chips by the clouds' names of machines. The number in these names counts
# chips or GPUs.
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
# The number in these names counts cores, two a chip.
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
  n_slices: int = 1  # number of slices of this shape, joined by the data-centre network

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
    if math.prod(self.shape) <= 8:
      return (*self.shape, 1)
    return (2, 2, 1)

  def __str__(self) -> str:
    if self.chip.gpu:
      return f"{self.n_devices} x {self.chip.title}"
    counts = f"{self.n_slices * math.prod(self.shape)} chips"
    if self.chip.per_chip > 1:
      counts += f", {self.n_devices} devices"
    text = f"{self.chip.title} {self.topology} ({counts})"
    if self.n_slices > 1:
      text = f"{self.n_slices} slices of {text}"
    return text


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip whose devices JAX calls by this name; None for another name."""
  return next((chip for chip in _CHIPS if chip.device_kind == device_kind), None)


def machine_of(text: str) -> Machine:
  """Reads `config.dry_run`, such as v5e:4x4 or 2xv6e-8.

  Raises:
    ConfigError: an unknown machine, or a shape that its cloud does not offer.
  """
  name = text.lower()
  n_slices = 1
  if slices := re.match(r"([1-9]\d*)x(?=[a-z])", name):
    n_slices = int(slices[1])
    name = name[slices.end() :]
  name = _with_colon(_MACHINES.get(name, name))
  kind, _, size = name.partition(":")
  chip = CHIPS.get(kind)
  if chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", size):
    raise ConfigError("dry_run", text, ACCEPTED)
  if chip.gpu and n_slices > 1:
    expected = f"{chip.kind}: and the number of all GPUs, of which eight are a host's"
    raise ConfigError("dry_run", text, expected)
  if chip.gpu:
    shape = _gpu_shape(text, chip, _sizes(size))
  else:
    shape = _slice_shape(text, chip, _sizes(size))
  return Machine(chip, shape, n_slices)


def _with_colon(name: str) -> str:
  """A cloud's name such as v5litepod-16 as v5e:16; other names stay."""
  for kinds, per_chip in ((_BY_CHIPS, 1), (_BY_CORES, 2)):
    for form, kind in kinds.items():
      match = re.fullmatch(form, name)
      if match and int(match[1]) % per_chip == 0:
        return f"{kind}:{int(match[1]) // per_chip}"
  return name


def _sizes(text: str) -> tuple[int, ...]:
  """Reads the numbers of a shape such as 4x4."""
  return tuple(int(size) for size in text.split("x"))


def _gpu_shape(text: str, chip: Chip, sizes: tuple[int, ...]) -> tuple[int, ...]:
  """The shape (slices, hosts, GPUs of a host) of a number of GPUs, or ConfigError."""
  n_gpus = sizes[0]
  is_complete = n_gpus <= 8 or n_gpus % 8 == 0
  if len(sizes) > 1 or not is_complete:
    expected = f"{chip.kind}:1 to 8, or a multiple of 8 GPUs"
    raise ConfigError("dry_run", text, expected)
  return (1, max(1, n_gpus // 8), min(8, n_gpus))


def _slice_shape(text: str, chip: Chip, sizes: tuple[int, ...]) -> tuple[int, ...]:
  """The torus of a TPU slice, by its shape or its number of chips, or ConfigError."""
  shapes = _SHAPES[chip.axes]
  if len(sizes) == chip.axes:
    return sizes
  if len(sizes) > 1:
    _, example, *_ = shapes.values()  # the second shape is a typical one
    expected = f"a shape of {chip.axes} axes, such as {chip.kind}:{example}"
    raise ConfigError("dry_run", text, expected)
  n_chips = sizes[0]
  if n_chips not in shapes:
    numbers = ", ".join(map(str, shapes))
    expected = f"{chip.kind}: with {numbers} chips, or a shape"
    raise ConfigError("dry_run", text, expected)
  return _sizes(shapes[n_chips])
