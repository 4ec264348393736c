"""Names of machines, and the arithmetic of their data sheets."""

import pytest

from pomp_jax.config import ConfigError
from pomp_jax.rooms.benchmark.chips import CHIPS, SOURCES, machine_of


@pytest.mark.parametrize(
  ("text", "kind", "topology", "n_devices"),
  [
    ("v5e:4x4", "v5e", "4x4", 16),
    ("v5e:8", "v5e", "2x4", 8),
    ("v5litepod-16", "v5e", "4x4", 16),
    ("ct5lp-hightpu-4t", "v5e", "2x2", 4),
    ("v6e-8", "v6e", "2x4", 8),
    ("v5p:2x2x1", "v5p", "2x2x1", 4),
    # The number of these names is of cores, two a chip.
    ("v5p-16", "v5p", "2x2x2", 8),
    ("v4-8", "v4", "2x2x1", 4),
    # A chip is two devices.
    ("tpu7x:2x2x1", "tpu7x", "2x2x1", 8),
    ("h100:8", "h100", "1x1x8", 8),
    ("H100:16", "h100", "1x2x8", 16),
    ("a100:1", "a100", "1x1x1", 1),
    ("a3-highgpu-8g", "h100", "1x1x8", 8),
    ("a2-ultragpu-4g", "a100-80gb", "1x1x4", 4),
    ("p4d.24xlarge", "a100", "1x1x8", 8),
    ("p4de.24xlarge", "a100-80gb", "1x1x8", 8),
    ("p5.48xlarge", "h100", "1x1x8", 8),
    ("Standard_ND96isr_H100_v5", "h100", "1x1x8", 8),
  ],
)
def test_a_machine_by_its_names(text, kind, topology, n_devices):
  machine = machine_of(text)
  assert (machine.chip.kind, machine.topology, machine.n_devices) == (
    kind,
    topology,
    n_devices,
  )
  assert machine.chip.title in str(machine)


def test_several_slices():
  machine = machine_of("2xv5litepod-16")
  assert (machine.n_slices, machine.topology, machine.n_devices) == (2, "4x4", 32)
  assert str(machine) == "2 slices of TPU v5e 4x4 (32 chips)"
  assert machine_of("v5e:4x4").n_slices == 1


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("2xh100:8", "h100: and the number of all GPUs"),
    ("0xv5e:4x4", "v5e:4x4"),
    ("v9:2x2", "v5e:4x4.*h100:8.*v5litepod-16"),
    ("v5e", "v5e:4x4"),
    ("v5e:0x4", "v5e:4x4"),
    ("v5e:2x2x1", "a shape of 2 axes, such as v5e:2x2"),
    ("v5p:2x2", "a shape of 3 axes, such as v5p:2x2x2"),
    ("v5e:12", "v5e: with 1, 4, 8, 16, .* chips, or a shape"),
    ("v5p-7", "v5e:4x4"),
    ("h100:12", "h100:1 to 8, or a multiple of 8 GPUs"),
    ("h100:2x8", "h100:1 to 8, or a multiple of 8 GPUs"),
  ],
)
def test_a_machine_that_is_none(text, expected):
  with pytest.raises(
    ConfigError, match=f"config.dry_run: got '{text}', expected .*{expected}"
  ):
    machine_of(text)


def test_the_clock_follows_from_the_peak():
  """Google's pages name no clock; each unit multiplies and adds in each of its
  cells."""
  ghz = {kind: chip.clock / 1e9 for kind, chip in CHIPS.items() if chip.clock}
  expected = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2}
  assert ghz == pytest.approx(expected, rel=0.01)


def test_each_chip_has_a_source_and_peaks_of_each_type():
  assert CHIPS.keys() == SOURCES.keys()
  for chip in CHIPS.values():
    assert (
      chip.peak["bfloat16"]
      == chip.flops
      > chip.peak["tensorfloat32"]
      > chip.peak["float32"]
    )
    # Within the shares of a device that a program may take: no typing error of a power
    # of ten.
    assert 10 * 2**30 < chip.memory < 100 * 2**30
    assert 100 < chip.flops / chip.bandwidth < 700
  assert CHIPS["v5e"].peak["float32"] == 197e12 / 6
  assert CHIPS["h100"].peak["tensorfloat32"] == 989.5e12 / 2


def test_hosts_of_a_slice():
  assert machine_of("v5e:2x4").hosts == (2, 4, 1)
  assert machine_of("v5e:4x4").hosts == machine_of("v4:4").hosts == (2, 2, 1)


def test_a_gpu_is_described_to_the_compiler():
  chip = CHIPS["h100"]
  text = chip.gpu.target(chip.bandwidth)
  for part in (
    'name: "NVIDIA H100 80GB HBM3"',
    "core_count: 132",
    "major: 9",
    "3352000000000",
  ):
    assert part in text
  assert text.count("{") == text.count("}")
