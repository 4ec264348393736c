"""Steps for machines that are not here: shapes alone, the job's own program, the
report, errors."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import re
import types

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import pytest

from docs.studies import full_tower_memory, pods
from pomp_jax import hosts
from pomp_jax.clip.text import full_tower_bytes
from pomp_jax.config import ConfigError, validate
from pomp_jax.errors import InputError
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import (
  absent,
  costs,
  dry_run,
  flops,
  forecast,
  hlo,
  synthetic_clip,
)
from pomp_jax.rooms.benchmark.chips import machine_of
from pomp_jax.rooms.benchmark.synthetic_clip import open_clips_config
from pomp_jax.train import setup
from pomp_jax.train.resume import blank_state, place_bank
from tests.support.small_run import small_config

SIXTEEN_GIB = machine_of("v5e:1")


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh asks of a device."""

  process_index: int
  id: int
  slice_index: int = 0


@pytest.fixture
def config(one_layer):
  """A function: changes -> validated config of a dry run for one TPU v5e chip."""

  def make(**changes):
    found = small_config(**{"dry_run": "v5e:1", "clip.model": one_layer} | changes)
    validate(found)
    return found

  return make


@pytest.fixture
def of_cpu(monkeypatch):
  """This machine's CPU stands for the chip."""
  monkeypatch.setattr(absent, "open_devices", lambda text: hosts.devices())
  monkeypatch.setattr(absent, "_folder_of_programs", lambda: None)


def job_of(config, folder):
  """A function: changed fields -> the job that `dry_run.run` makes of them."""

  def make(changes):
    tried = config.replace(changes)
    prepare = lambda encoder: setup.prepare(tried, folder, encoder=encoder)
    return absent.Job(
      tried.clip, tried.mesh.class_size, tried.loop, tried.data, prepare
    )

  return make


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"sampling.name": "hard", "prompt.class_specific": True},
    {"method": "cocoop"},
    {"method": "maple", "prompt.depth": 2},
    {"consistency_squared": 1.0, "prompt.init": "a photo of a"},
    {"data.features": "stored", "accumulate": 2, "optim.average": "ema"},
  ],
)
def test_the_step_is_the_jobs_own(config, tmp_path, changes):
  """The same program byte for byte, from shapes alone."""
  if changes.get("method") == "maple":
    changes = changes | {"clip.model": "world"}
  settings = config(**changes)
  folder = RunFolder(tmp_path / "run")
  run = setup.prepare(settings, folder)
  state = blank_state(run)
  if run.needs_bank:
    state = place_bank(run, state)
  batch = jax.tree.map(
    lambda leaf: jnp.ones_like(leaf, device=leaf.sharding), costs.batch_shapes(run)
  )
  expected = run.build_step().lower(state, run.frozen, batch).as_text()
  there = absent.prepare(
    job_of(settings, folder)({}), SIXTEEN_GIB, hosts.devices()
  ).there
  arguments = absent.step_arguments(there)
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(arguments)
  )
  weights = jax.tree.leaves((there.encoder.vision_params, there.frozen.text))
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in weights)
  assert there.build_step().lower(*arguments).as_text() == expected


def test_random_weights_are_not_drawn(config, tmp_path, monkeypatch):
  monkeypatch.setattr(
    absent.synthetic_clip, "random_params", lambda *_, **__: pytest.fail("drawn")
  )
  settings = config(**{"clip.model": "synthetic:openai/clip-vit-base-patch32"})
  job = job_of(settings, RunFolder(tmp_path / "run"))({})
  run = absent.prepare(job, SIXTEEN_GIB, hosts.devices()).there
  n_weights = sum(
    leaf.size for leaf in jax.tree.leaves((run.frozen.text, run.frozen.image))
  )
  assert n_weights == pytest.approx(151e6, rel=0.01)
  assert run.clip.memory_gib == pytest.approx(15.75 / 2)


def test_the_report(config, of_cpu, tmp_path, caplog, monkeypatch):
  """The CPU's compiler gives no cycles: those of a text stand for them."""
  monkeypatch.setattr(
    hlo, "cycles", lambda program: hlo.Cycles(3_000_000, 1_500_000, 750_000, 1)
  )
  monkeypatch.setattr(forecast, "read_rate", lambda run: 100.0)
  settings = config(dry_run_rate=2.5, **{"clip.dtype": "bfloat16"})
  with caplog.at_level("INFO", "pomp_jax"):
    dry_run.check(settings, str(tmp_path / "run"))
    figures = dry_run.run(settings, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
  assert figures["fits"] and figures["problems"] == [] and figures["changes"] == {}
  assert figures["estimate_seconds"] == pytest.approx(3e6 / 1.503e9, rel=1e-3)
  assert 0 < figures["floor_seconds"] < figures["estimate_seconds"]
  assert figures["memory"].arguments > 4 * 300 and figures["memory"].temporaries > 0
  text = caplog.text
  for part in (
    "for TPU v5e 1x1 (1 chips), mesh data 1 x class 1: nothing was measured on it",
    "300 classes, 600 training images, 12 steps of 16 views",
    "of 15.8 GiB (libtpu): fits",
    "clip.memory_gib=7.88 GiB",
    "197 TFLOP/s",
    "https://docs.cloud.google.com/tpu/docs/v5e",
    "3.0 M cycles (the compiler's; 50% in products, 25% in loops, 1 loops of unknown length once)",
    "steps an hour: 1,803,589",  # 3600 / (3e6 / clock)
    "views/s for the host; a core of this machine read 100 (measured now), so 80 such cores",
    "by the estimate",
    "price of the training at 2.50 an hour: 0.00",
    "s of a core",
  ):
    assert part in text, part


def test_without_cycles_the_floor_is_alone(config, of_cpu, tmp_path):
  settings = config(**{"data.features": "stored"})
  outcome = absent.run("v5e:1", job_of(settings, RunFolder(tmp_path / "run")))
  for machine in (SIXTEEN_GIB, machine_of("h100:1")):
    figures = forecast.figures_of(outcome, machine)
    text = "\n".join(forecast.lines(outcome.there, machine, figures))
    assert figures["cycles"] is figures["estimate_seconds"] is None
    assert "the floor alone" in text and "steps an hour: at most " in text
    # Views of all epochs, computed once.
    assert "features of 600 views" in text and "stored features/s for the host" in text
    assert "price" not in text and "images" not in figures["flops"]
  assert figures["memory"].total < 2**30


def tries(monkeypatch, *problems):
  """Compilations with these problems; returns the runs that were compiled."""
  runs = []

  def compile_step(run, machine):
    runs.append(run)
    problem = problems[len(runs) - 1] if len(runs) <= len(problems) else ""
    memory = absent.Memory(2**30, 2**30, 0)
    compiled = absent.Compiled(memory, "ENTRY %main () -> f32[] {\n}", 1.0, 1.0, False)
    return compiled, problem

  monkeypatch.setattr(absent, "_compile", compile_step)
  return runs


def test_what_does_not_fit_is_compiled_again(config, of_cpu, tmp_path, monkeypatch):
  monkeypatch.setattr(forecast, "read_rate", lambda run: 100.0)
  runs = tries(monkeypatch, "20 GiB", "18 GiB")
  job = job_of(config(), RunFolder(tmp_path / "run"))
  outcome = absent.run("v5e:1", job)
  assert outcome.fits and len(runs) == 3
  memory = 15.75 / 2
  assert [run.clip.memory_gib for run in runs] == pytest.approx(
    [memory, memory / 2, memory / 8]
  )
  assert outcome.changes == {"clip.memory_gib": memory / 8, "clip.image_chunk": 8}
  lines = forecast.lines(
    outcome.there, SIXTEEN_GIB, forecast.figures_of(outcome, SIXTEEN_GIB)
  )
  assert "does NOT fit: 20 GiB" in lines[2]
  assert "does NOT fit: with clip.memory_gib=3.938: 18 GiB" in lines[3]
  assert (
    "fits with clip.memory_gib=0.9844 clip.image_chunk=8: compiled again" in lines[4]
  )


def test_what_never_fits_is_told_with_its_numbers(
  config, of_cpu, tmp_path, monkeypatch, caplog
):
  runs = tries(monkeypatch, *("99 GiB",) * 9)
  with caplog.at_level("INFO", "pomp_jax"):
    figures = dry_run.run(config(), str(tmp_path / "run"))
  # One chip can't split the classes; twice as many draws share a batch.
  assert len(runs) == 4 and runs[-1].loop.accumulate == 2
  assert not figures["fits"] and "floor_seconds" not in figures
  assert "none of the 4 above fits; left are a smaller batch_size" in caplog.text


def test_the_compilers_own_limit_and_the_chips(config, of_cpu, tmp_path, monkeypatch):
  run = absent.prepare(
    job_of(config(), RunFolder(tmp_path / "run"))({}), SIXTEEN_GIB, hosts.devices()
  ).there
  compiled, problem = absent._compile(run, SIXTEEN_GIB)
  assert problem == "" and not compiled.is_cached
  small = SIXTEEN_GIB._replace(chip=SIXTEEN_GIB.chip._replace(memory=2**10))
  monkeypatch.setattr(absent, "compile_step", lambda *given: compiled)
  assert absent._compile(run, small)[1] == "0.0 GiB of 0.0 GiB"

  def fail(kind):
    raise jax.errors.JaxRuntimeError(f"{kind}: Used 20G of 15.75G hbm.\nMore.")

  monkeypatch.setattr(absent, "compile_step", lambda *given: fail("RESOURCE_EXHAUSTED"))
  assert absent._compile(run, small) == (None, "Used 20G of 15.75G hbm. More.")
  monkeypatch.setattr(absent, "compile_step", lambda *given: fail("INTERNAL"))
  with pytest.raises(jax.errors.JaxRuntimeError):
    absent._compile(run, small)


def test_the_next_dry_run_reads_the_program(config, tmp_path, monkeypatch):
  monkeypatch.setattr(absent, "_folder_of_programs", lambda: str(tmp_path))
  prepare = lambda: (
    absent.prepare(
      job_of(config(), RunFolder(tmp_path / "run"))({}), SIXTEEN_GIB, hosts.devices()
    ).there
  )
  first, second = (absent.compile_step(prepare()) for _ in range(2))
  assert (first.is_cached, second.is_cached) == (False, True)
  assert (second.memory, second.text) == (first.memory, first.text)
  (file,) = tmp_path.glob("dry_run-*-cache")
  file.write_bytes(file.read_bytes()[:-20])
  assert not absent.compile_step(prepare()).is_cached


def test_a_mesh_that_the_machine_can_not_share(config, monkeypatch, tmp_path):
  devices = [Device(0, i) for i in range(4)]
  monkeypatch.setattr(absent, "open_devices", lambda text: devices)
  for changes, message in (
    (
      {"mesh.class_size": 3},
      "config.mesh.class_size: got 3, expected a divisor of the 4 devices",
    ),
    ({"batch_size": 18}, "config.batch_size: got 18, expected a multiple of 4 "),
    (
      {"method": "tip_adapter"},
      "config.method: got 'tip_adapter', expected a method that trains",
    ),
  ):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
      dry_run.check(config(**changes), str(tmp_path / "run"))
  dry_run.check(config(**{"mesh.class_size": 2}), str(tmp_path / "run"))


def test_a_draw_is_not_split_over_slices(config, monkeypatch, tmp_path):
  devices = [Device(0, i, slice_index=i // 4) for i in range(8)]
  monkeypatch.setattr(absent, "open_devices", lambda text: devices)
  settings = config(dry_run="2xv5e:2x2", **{"mesh.class_size": 8})
  with pytest.raises(
    InputError, match="config.mesh.class_size: got 8, expected a divisor of the 4 "
  ):
    dry_run.check(settings, str(tmp_path / "run"))


@pytest.fixture
def library(monkeypatch):
  """A function: what opens a topology, with the right libtpu."""

  def use(
    open_topology=None, version="0.0.42.1", wanted="libtpu==0.0.42.*; extra == 'tpu'"
  ):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", wanted])
    monkeypatch.setattr(topologies, "get_topology_desc", open_topology)

  for variable in absent._TPU_ENVIRONMENT:
    monkeypatch.setenv(variable, "")
  return use


def test_devices_of_a_topology(library, monkeypatch):
  asked = {}
  devices = [Device(i % 2, i) for i in range(4)]

  def opened(**given):
    asked.update(given)
    return types.SimpleNamespace(devices=devices)

  library(opened)
  assert [device.id for device in absent.open_devices("v4-8")] == [0, 2, 1, 3]
  assert asked == {
    "topology_name": "v4:2x2x1",
    "platform": "tpu",
    "chips_per_host_bounds": (2, 2, 1),
    "chip_config_name": "megacore",
  }
  asked.clear()
  absent.open_devices("2xv5e:4x4")
  assert (asked["topology_name"], asked["num_slices"]) == ("v5e:4x4", 2)
  asked.clear()
  absent.open_devices("h100:16")
  assert asked["topology"] == "1x2x8" and "H100" in asked["target_config"]
  assert asked["platform"] == "cuda"


def test_errors_of_the_library_are_one_line(library):
  def fails(message, **_):
    raise jax.errors.JaxRuntimeError(f"INVALID_ARGUMENT: {message}\nat more")

  library(functools.partial(fails, "not divisible by 2x2x1"))
  line = "config.dry_run: got 'v5e:3x3', expected a machine that libtpu 0.0.42.1 knows"
  with pytest.raises(ConfigError, match=line) as found:
    absent.open_devices("v5e:3x3")
  assert "\n" not in str(found.value) and "not divisible" in str(found.value)
  library(
    functools.partial(fails, "The TPU is already in use by process 12; libtpu lockfile")
  )
  with pytest.raises(InputError, match="another process holds libtpu: .* process 12"):
    absent.open_devices("v5e:2x2")
  library(version="0.0.30")
  line = r'libtpu 0.0.30 is installed, and jax .* takes 0.0.42.\*: pip install --upgrade "pomp-jax'
  with pytest.raises(InputError, match=line):
    absent.open_devices("v5e:2x2")


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  for text, line in (
    (
      "v5e:2x2",
      'config.dry_run: libtpu is not installed: pip install "pomp-jax[aot-tpu]"',
    ),
    (
      "a100:8",
      "config.dry_run: JAX's CUDA plugin is not installed: pip install \"pomp-jax[aot-cuda]",
    ),
  ):
    with pytest.raises(InputError) as found:
      absent.open_devices(text)
    assert str(found.value).startswith(line)


def test_a_row_of_the_table_of_pods():
  settings = small_config()
  figures = {
    "fits": True,
    "memory": absent.Memory(2**30, 2**29, 0),
    "floor_seconds": 0.5,
  }
  figures |= {
    "estimate_seconds": 1.0,
    "steps": 7200,
    "n_hosts": 2,
    "problems": ["99 GiB"],
  }
  found = pods.cells(settings, "v5e-8", figures)
  assert found == ["1.5 of 15.8", "1.0", "8", "2.00", ">= 1.00", "4 steps, 4 s"]
  found = pods.cells(settings, "h100:8", figures | {"estimate_seconds": None})
  assert found == ["1.5 of 59.3", "<= 2.0", "<= 16", "-", ">= 1.00", "4 steps, >= 2 s"]
  found = pods.cells(settings, "v5e-8", figures | {"fits": False})
  assert found == ["does not fit: 99 GiB", *["-"] * 5] and len(found) + 2 == len(
    pods.HEAD
  )


def test_bytes_on_a_disk(config, tmp_path):
  """Of shapes: the embedded world has no files, and its 600 images have a view each."""
  folder = RunFolder(tmp_path / "run")
  settings = config(**{"data.features": "stored"})
  run = absent.prepare(job_of(settings, folder)({}), SIXTEEN_GIB, hosts.devices()).here
  folder.create()
  found = costs.disk(run)
  width = run.encoder.clip.config.projection_dim
  assert (found["images"], found["stored_features"]) == (0, 4 * 600 * (width + 1))
  of_state = 2 * 4 * run.prompt.m * run.encoder.clip.text_width
  assert found["checkpoints"] > (run.checkpoint.keep + 2) * of_state


def test_the_floor_is_below_what_the_step_multiplies(config, tmp_path):
  """The program also multiplies for selections, and has slack for names that are
  longer."""
  job = job_of(config(**{"clip.model": "world"}), RunFolder(tmp_path / "run"))({})
  run = absent.prepare(job, SIXTEEN_GIB, hosts.devices()).there
  found = flops.step_flops(run)
  jaxpr = run.build_step().trace(*absent.step_arguments(run)).jaxpr.jaxpr
  counted = flops.product_flops(jaxpr)
  assert 0.4 * counted < sum(found.values()) < counted
  n_images = run.loop.batch_size
  assert found["images"] == n_images * flops.image_flops(run)


def open_or_skip(settings, tmp_path):
  """Checks a dry run; skips the test where the machine's compiler is not installed."""
  try:
    dry_run.check(settings, str(tmp_path / "run"))
  except InputError as error:
    if "is not installed" not in str(error):
      raise
    pytest.skip(str(error))


_SLOW = pytest.mark.slow("it compiles for another machine, which takes 6 CPU seconds")


@pytest.mark.parametrize(
  ("machine", "class_size"),
  [
    ("v5e:2x2", 1),
    pytest.param("v5p:2x2x1", 2, marks=_SLOW),
    pytest.param("v6e:2x4", 1, marks=_SLOW),
    pytest.param("2xv5e:2x2", 1, marks=_SLOW),
    pytest.param("h100:8", 2, marks=_SLOW),
  ],
)
def test_golden_figures_of_a_step(config, tmp_path, machine, class_size):
  """What compilers make of the step; needs libtpu or JAX's CUDA plugin, and no
  device."""
  settings = config(
    dry_run=machine,
    **{
      "mesh.class_size": class_size,
      "data.features": "stored",
      "clip.dtype": "bfloat16",
    },
  )
  open_or_skip(settings, tmp_path)
  outcome = absent.run(machine, job_of(settings, RunFolder(tmp_path / "run")))
  assert outcome.fits and outcome.changes == {}
  run, there = outcome.there, machine_of(machine)
  figures = forecast.figures_of(outcome, there)
  # One sum of the context's gradient, the loss and the accuracy over all devices.
  m, width = settings.prompt.m, run.encoder.clip.text_width
  n_sum = 4 * (m * width + 2)
  within = [one for one in figures["collectives"] if one.axes != hlo.NETWORK]
  found = {one.kind: (one.axes, one.n_bytes) for one in within}
  if there.n_slices > 1:
    # Each device sends its share of the sum, and a slice spreads what comes back.
    (between,) = (one for one in figures["collectives"] if one.axes == hlo.NETWORK)
    assert (between.kind, between.number) == (
      "all-reduce",
      2,
    ) and between.n_bytes <= n_sum
    assert {axes for axes, _ in found.values()} == {"data"}
  elif class_size == 1:
    assert found == {"all-reduce": ("data", n_sum)}
  else:
    # The classes' features, and whether there was room for them; backward the gradient
    # of these.
    rows = -(-(run.group_size + run.k - 1) // class_size)
    of_device = 4 * rows * run.encoder.clip.config.projection_dim
    assert found == {
      "all-gather": ("class", class_size * (of_device + rows)),
      "all-reduce": ("data x class", n_sum),
      "reduce-scatter": ("class", of_device),
    }
  if there.chip.clock:
    assert figures["cycles"].total > figures["cycles"].products > 0
    assert figures["estimate_seconds"] > figures["floor_seconds"]
  of_step = hlo.findings(outcome.compiled.text)
  assert (of_step.float64, of_step.callbacks, of_step.backward_scatters) == (0, 0, 0)
  assert of_step.donated == len(jax.tree.leaves(absent.step_arguments(run)[0]))
  assert of_step.products["bf16"] > of_step.products.get("f32", 0)


@pytest.mark.slow("it compiles for another machine, which takes 30 CPU seconds")
def test_what_asks_for_too_much_is_told_with_the_compilers_numbers(
  config, tmp_path, monkeypatch
):
  """Embeddings of 2^23 tokens alone are 16 GiB; needs libtpu, and no device."""
  text = {
    "width": 512,
    "layers": 1,
    "heads": 8,
    "vocab_size": 2**23,
    "context_length": 77,
  }
  vision = {
    "width": 64,
    "layers": 1,
    "head_width": 32,
    "image_size": 32,
    "patch_size": 16,
  }
  large = open_clips_config({"embed_dim": 64, "text_cfg": text, "vision_cfg": vision})
  model = "openai/clip-vit-base-patch32"
  tokenizer = synthetic_clip.config_and_tokenizer(f"synthetic:{model}")[1]
  monkeypatch.setattr(
    synthetic_clip, "config_and_tokenizer", lambda model: (large, tokenizer)
  )
  settings = config(**{"clip.model": f"synthetic:{model}", "data.features": "stored"})
  open_or_skip(settings, tmp_path)
  outcome = absent.run("v5e:1", job_of(settings, RunFolder(tmp_path / "run")))
  assert not outcome.fits and outcome.compiled is None
  figures = forecast.figures_of(outcome, SIXTEEN_GIB)
  assert len(figures["problems"]) == 4
  for problem in figures["problems"]:
    assert re.search(r"\b16\.\d+G\b.*\b15\.75G\b", problem), problem
  last = forecast.lines(outcome.there, SIXTEEN_GIB, figures)[-1]
  assert (
    "none of the 4 above fits; left are a smaller batch_size or k, more devices" in last
  )


@pytest.mark.slow("it compiles for another machine, which takes 100 CPU seconds")
def test_a_full_text_tower_takes_what_is_planned(config, tmp_path):
  """Large enough that on-chip memory holds little of it; needs libtpu, and no
  device."""
  open_or_skip(config(), tmp_path)
  text = {"width": 144, "layers": 2, "heads": 2, "mlp_ratio": 3.7, "vocab_size": 8}
  text |= {"context_length": 64, "no_causal_mask": True}
  vision = {"timm_model_name": "none"}
  clip = open_clips_config({"embed_dim": 64, "text_cfg": text, "vision_cfg": vision})
  device = absent.open_devices("v5e:1")[0]
  estimate = full_tower_bytes(
    clip.text_config, 16, 1501 * 48, "bfloat16", device.platform
  )
  plan = estimate.plan(0.5 * 2**30)
  assert plan.n_chunks == 2
  lowered = full_tower_memory.lowered_tower(clip, device, 1501, 16, plan)
  temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
  assert 1.0 <= estimate.peak(2) / temporaries < 1.2
