"""What the text tower of a step costs: forward and backward to the context, random weights.

Side by side and interleaved in one process, over rows drawn from the real ImageNet-21K names
(their stored token lengths; ids do not change the cost):

  shared      ours: the prefix once, names packed (`clip.shared`)
  reference   HuggingFace Flax, all 77 positions of every class
  torch_77    HuggingFace torch, the same: what the published code computes

The yardstick is this machine's own rate at a large matrix product, measured in every round.
Needs jax, flax and numpy; implementations whose libraries are missing are skipped with a line.

  python -m pomp_jax.jobs.benchmark --workdir=DIR [--name=value ..]    (names of DEFAULTS)
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import multiprocessing
import pathlib
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip import shared
from pomp_jax.data.imagenet21k import load_synsets

# What a run measures; `k` and `implementations` are separated by "+", and k = N is all classes.
DEFAULTS = {
  "model": "vit_b_16",
  "m": 16,
  "k": "128+1000+21841",
  "implementations": "shared+reference+torch_77",
  "dtype": "float32",
  # Rounds of each K; none starts after `seconds`.
  "repeats": 5,
  "seconds": 300,
  # Implementations of 77 tokens take so many rows at a time: K = 1000 at once needs 42 GB.
  "rows_at_a_time": 128,
  # From so many rows on `shared` runs in chunks of about that size, and keeps layer inputs only.
  "chunk": 2048,
  "seed": 0,
}


class BenchmarkError(ValueError):
  """A benchmark that cannot be run as asked; the message is one line."""


@dataclasses.dataclass(frozen=True)
class TextSizes:
  """A text tower's sizes, under HuggingFace's names.

  Attributes:
    hidden_size: D.
    num_attention_heads: H.
    projection_dim: E.
    num_hidden_layers: layers.
    max_position_embeddings: positions.
    vocab_size: token ids.
    hidden_act: the MLP's activation.
    layer_norm_eps: added to the variance.
  """

  hidden_size: int
  num_attention_heads: int
  projection_dim: int
  num_hidden_layers: int = 12
  max_position_embeddings: int = 77
  vocab_size: int = 49408
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  @property
  def intermediate_size(self) -> int:
    """Width of the MLP."""
    return 4 * self.hidden_size

  @property
  def dense_parameters(self) -> int:
    """Parameters of the dense layers: 12 D^2 a layer, biases not counted."""
    return 12 * self.hidden_size**2 * self.num_hidden_layers


MODELS = {
  "vit_b_16": TextSizes(512, 8, 512),
  "vit_l_14": TextSizes(768, 12, 768),
  # For tests: seconds on any machine.
  "tiny": TextSizes(64, 2, 32, num_hidden_layers=2, vocab_size=100),
}


@dataclasses.dataclass
class Measurement:
  """One implementation at one K; the row of `results.json`.

  Attributes:
    implementation: its name.
    k: rows of a step.
    tokens: tokens that a step must compute, padding and slack of the budget not counted for
      `shared`; all 77 positions for the others.
    rows_at_a_time: rows in memory together.
    peak_mib: peak temporaries, MiB: of the compiled step, with all K rows together; of torch, what
      the process grew by, with `rows_at_a_time` rows together.
    times: seconds of each step.
    rates: FLOP/s of the large product beside it.
    flops: of a step's dense layers, forward and backward through activations.
  """

  implementation: str
  k: int
  tokens: int
  rows_at_a_time: int
  peak_mib: float | None
  flops: float
  times: list[float] = dataclasses.field(default_factory=list)
  rates: list[float] = dataclasses.field(default_factory=list)

  def row(self) -> dict[str, Any]:
    """The figures, medians over the rounds."""
    seconds = float(np.median(self.times))
    # The ratio of each round: a machine that slows down does so for both.
    shares = [self.flops / t / rate for t, rate in zip(self.times, self.rates, strict=True)]
    return {
      "implementation": self.implementation,
      "k": self.k,
      "seconds": seconds,
      "tokens": self.tokens,
      "peak_mib": self.peak_mib,
      "share_of_matmul_rate": float(np.median(shares)),
      "matmul_gflops": float(np.median(self.rates)) / 1e9,
      "rows_at_a_time": self.rows_at_a_time,
      "rounds": len(self.times),
    }


def check(config: Any, workdir: str | None) -> None:
  """Refuses what cannot be run.

  Raises:
    BenchmarkError: an unknown model, implementation or type, or a K that does not fit.
  """
  settings = config.benchmark
  if not workdir:
    raise BenchmarkError("--workdir is needed: the results are written there")
  if settings.model not in MODELS:
    raise BenchmarkError(f"unknown model {settings.model!r}; accepted: {', '.join(MODELS)}")
  if settings.dtype not in ("float32", "bfloat16"):
    raise BenchmarkError(f"unknown dtype {settings.dtype!r}; accepted: float32, bfloat16")
  for name in settings.implementations.split("+"):
    if name not in _IMPLEMENTATIONS:
      raise BenchmarkError(
        f"unknown implementation {name!r}; accepted: {', '.join(_IMPLEMENTATIONS)}"
      )
  n_classes = load_synsets().lengths.size
  for k in settings.k.split("+"):
    if not k.isdigit() or not 1 <= int(k) <= n_classes:
      raise BenchmarkError(f"k = {k} is not between 1 and the number of classes, {n_classes}")


def run(config: Any, workdir: str) -> dict[str, Any]:
  """Measures, prints a table, writes `results.json` and `plots/text_tower.png`."""
  check(config, workdir)
  settings = config.benchmark
  sizes = MODELS[settings.model]
  folder = pathlib.Path(workdir)
  (folder / "plots").mkdir(parents=True, exist_ok=True)
  wanted = _available(settings.implementations.split("+"))
  rows = []
  for k in map(int, settings.k.split("+")):
    rows += _measure(settings, sizes, wanted, k)
    results = {
      "job": "benchmark",
      "settings": {name: settings[name] for name in DEFAULTS},
      "device": jax.devices()[0].device_kind,
      "rows": rows,
    }
    # After every K: the largest may not fit.
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  print(table(rows), flush=True)
  _plot(folder / "plots" / "text_tower.png", rows)
  return results


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as text, with how many times `shared` is faster and smaller than each."""
  ours = {row["k"]: row for row in rows if row["implementation"] == "shared"}
  lines = [
    f"{'implementation':14} {'K':>6} {'tokens':>8} {'seconds':>9} {'of matmul rate':>14}"
    f" {'peak MiB':>9} {'time / ours':>11} {'peak / ours':>11}"
  ]
  for row in rows:
    mine = ours.get(row["k"])
    peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    slower = larger = "-"
    if mine:
      slower = f"{row['seconds'] / mine['seconds']:.1f}"
      if row["peak_mib"] and mine["peak_mib"]:
        larger = f"{row['peak_mib'] / mine['peak_mib']:.1f}"
    lines.append(
      f"{row['implementation']:14} {row['k']:>6} {row['tokens']:>8} {row['seconds']:>9.3f}"
      f" {row['share_of_matmul_rate']:>14.1%} {peak:>9} {slower:>11} {larger:>11}"
    )
  rates = np.median([row["matmul_gflops"] for row in rows])
  return "\n".join([*lines, f"large matrix product: {rates:.0f} GFLOP/s"])


def _available(names: list[str]) -> list[str]:
  """Those whose libraries are here; says what is skipped."""
  found = []
  for name in names:
    missing = [
      library for library in _IMPLEMENTATIONS[name][1] if importlib.util.find_spec(library) is None
    ]
    if missing:
      print(f"{name}: skipped, {', '.join(missing)} not installed", flush=True)
    else:
      found.append(name)
  return found


def _measure(settings, sizes: TextSizes, names: list[str], k: int) -> list[dict[str, Any]]:
  """The rows of one K, its implementations in turn in every round."""
  lengths_N = load_synsets().lengths
  rng = np.random.default_rng(settings.seed)
  lengths_K = lengths_N if k == lengths_N.size else rng.choice(lengths_N, k, replace=False)
  large = k > settings.chunk
  steps: list[tuple[Measurement, Callable[[], Any]]] = []
  for name in names:
    if large and name != "shared":
      print(f"{name}: not measured at K = {k}, far too slow", flush=True)
      continue
    steps.append(_IMPLEMENTATIONS[name][0](settings, sizes, lengths_K))
  product, product_flops = _large_product(jnp.dtype(settings.dtype))
  for _, step in steps:
    # Compiles, and fills caches. A step of 77 tokens is its own warm-up but for compiling.
    step(True)
  started = time.monotonic()
  for round_index in range(settings.repeats):
    if round_index and time.monotonic() - started > settings.seconds:
      break
    for measurement, step in steps:
      before = _seconds(product)
      measurement.times.append(_seconds(step))
      after = _seconds(product)
      measurement.rates.append(2 * product_flops / (before + after))
  rows = [measurement.row() for measurement, _ in steps]
  for row in rows:
    print(
      f"K = {k}: {row['implementation']} {row['seconds']:.3f} s,"
      f" {row['share_of_matmul_rate']:.1%} of {row['matmul_gflops']:.0f} GFLOP/s",
      flush=True,
    )
  return rows


def _seconds(function: Callable[[], Any]) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def _large_product(dtype) -> tuple[Callable[[], Any], float]:
  """A square product, large for the device: a call, and its FLOPs."""
  size, times = (2048, 4) if jax.default_backend() == "cpu" else (8192, 16)
  left = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  right = (jax.random.normal(jax.random.key(1), (size, size)) * size**-0.5).astype(dtype)

  @jax.jit
  def chain(left, right):
    for _ in range(times):
      left = left @ right
    return left

  def call():
    return jax.block_until_ready(chain(left, right))

  call()
  return call, 2.0 * size**3 * times


def _shared(settings, sizes: TextSizes, lengths_K):
  """Ours, with the token budget that a training step of these K rows has."""
  k = lengths_K.size
  lengths_N = load_synsets().lengths
  budget = shared.token_budget(lengths_N, k)
  n_chunks = math.ceil(k / settings.chunk)
  tower = shared.shared_text_tower(
    sizes,
    jnp.dtype(settings.dtype),
    token_budget=budget,
    n_chunks=n_chunks,
    keep="activations" if n_chunks == 1 else "layers",
  )
  if not bool(shared.kept_rows(jnp.asarray(lengths_K), budget).all()):
    raise BenchmarkError(f"seed {settings.seed} draws names that overflow the budget")
  tokens = settings.m + 1 + int(lengths_K.sum())
  return _jax_step("shared", settings, sizes, lengths_K, tower, tokens, k)


def _reference(settings, sizes: TextSizes, lengths_K):
  text = importlib.import_module("pomp_jax.clip.text")
  transformers = importlib.import_module("transformers")
  fields = dataclasses.asdict(sizes) | {"intermediate_size": sizes.intermediate_size}
  config = transformers.CLIPTextConfig(**fields)
  tower = text.text_tower("reference", config, jnp.dtype(settings.dtype))
  tokens = sizes.max_position_embeddings * lengths_K.size
  return _jax_step("reference", settings, sizes, lengths_K, tower, tokens, settings.rows_at_a_time)


def _jax_step(name, settings, sizes, lengths_K, tower, tokens, rows_at_a_time):
  k, longest = lengths_K.size, int(load_synsets().lengths.max())
  rows_at_a_time = min(rows_at_a_time, k)
  params, prefix_PxD = _random_inputs(sizes, settings.m, settings.seed)

  @jax.jit
  def gradient(params, prefix_PxD, suffix_KxLxD, lengths_K, cotangent_KxE):
    def loss(prefix_PxD):
      return jnp.vdot(tower(params, prefix_PxD, suffix_KxLxD, lengths_K), cotangent_KxE)

    return jax.value_and_grad(loss)(prefix_PxD)

  def shapes(n_rows):
    return (
      jax.ShapeDtypeStruct((n_rows, longest, sizes.hidden_size), jnp.float32),
      jax.ShapeDtypeStruct((n_rows,), jnp.int32),
      jax.ShapeDtypeStruct((n_rows, sizes.projection_dim), jnp.float32),
    )

  compiled = gradient.lower(params, prefix_PxD, *shapes(k)).compile()
  memory = compiled.memory_analysis()
  peak_mib = None if memory is None else memory.temp_size_in_bytes / 2**20

  parts = []
  for start in range(0, k, rows_at_a_time):
    suffix, lengths, cotangent = shapes(min(rows_at_a_time, k - start))
    key = jax.random.fold_in(jax.random.key(settings.seed), start)
    parts.append(
      (
        0.02 * jax.random.normal(key, suffix.shape),
        jnp.asarray(lengths_K[start : start + lengths.shape[0]], jnp.int32),
        jax.random.normal(key, cotangent.shape),
      )
    )

  def step(warm_up=False):
    # The last part may have another size.
    for part in parts[:1] + parts[-1:] if warm_up else parts:
      # A compiled function is none that jit knows of.
      call = compiled if len(parts) == 1 else gradient
      jax.block_until_ready(call(params, prefix_PxD, *part))

  flops = 4.0 * sizes.dense_parameters * tokens
  return Measurement(name, k, tokens, rows_at_a_time, peak_mib, flops), step


def _random_inputs(sizes: TextSizes, m: int, seed: int):
  """Parameters in FlaxCLIP's tree and a prefix [M+1, D], on the device."""
  rng = np.random.default_rng(seed)

  def dense(n_in, n_out):
    kernel = rng.standard_normal((n_in, n_out), np.float32) / n_in**0.5
    return {"kernel": kernel, "bias": np.zeros(n_out, np.float32)}

  def norm():
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

  width = sizes.hidden_size
  layers = {
    str(i): {
      "self_attn": {f"{name}_proj": dense(width, width) for name in ("q", "k", "v", "out")},
      "layer_norm1": norm(),
      "mlp": {
        "fc1": dense(width, sizes.intermediate_size),
        "fc2": dense(sizes.intermediate_size, width),
      },
      "layer_norm2": norm(),
    }
    for i in range(sizes.num_hidden_layers)
  }
  positions = 0.01 * rng.standard_normal((sizes.max_position_embeddings, width), np.float32)
  params = {
    "text_model": {
      "embeddings": {"position_embedding": {"embedding": positions}},
      "encoder": {"layers": layers},
      "final_layer_norm": norm(),
    },
    "text_projection": {"kernel": dense(width, sizes.projection_dim)["kernel"]},
  }
  prefix = 0.02 * rng.standard_normal((m + 1, width), np.float32)
  return jax.device_put((params, prefix))


def _torch_77(settings, sizes: TextSizes, lengths_K):
  """HuggingFace torch over all positions, in parts of `rows_at_a_time` rows."""
  k = lengths_K.size
  rows_at_a_time = min(settings.rows_at_a_time, k)
  step = _torch_step(sizes, settings.m, settings.dtype, k, rows_at_a_time)
  # A process of its own: the growth of this one's peak would be anybody's.
  context = multiprocessing.get_context("spawn")
  with context.Pool(1) as pool:
    peak_mib = pool.apply(_torch_peak_mib, (sizes, settings.m, settings.dtype, rows_at_a_time))
  tokens = sizes.max_position_embeddings * k
  flops = 4.0 * sizes.dense_parameters * tokens
  return Measurement("torch_77", k, tokens, rows_at_a_time, peak_mib, flops), step


def _torch_step(sizes: TextSizes, m: int, dtype: str, k: int, rows_at_a_time: int):
  torch = importlib.import_module("torch")
  transformers = importlib.import_module("transformers")
  fields = dataclasses.asdict(sizes) | {"intermediate_size": sizes.intermediate_size}
  config = transformers.CLIPTextConfig(**fields)
  model = transformers.CLIPTextModelWithProjection(config).to(getattr(torch, dtype)).eval()
  model.requires_grad_(False)
  n_positions = sizes.max_position_embeddings
  mask = torch.full((n_positions, n_positions), torch.finfo(model.dtype).min).triu_(1)
  mask = mask[None, None].to(model.dtype)
  positions = model.text_model.embeddings.position_embedding.weight
  context = (0.02 * torch.randn(m + 1, sizes.hidden_size, dtype=model.dtype)).requires_grad_()

  def part(n_rows):
    rest = torch.zeros(n_rows, n_positions - m - 1, sizes.hidden_size, dtype=model.dtype)
    hidden = torch.cat([context.expand(n_rows, -1, -1), rest], dim=1) + positions
    hidden = model.text_model.encoder(
      inputs_embeds=hidden, attention_mask=None, causal_attention_mask=mask
    )[0]
    hidden = model.text_model.final_layer_norm(hidden)
    features = model.text_projection(hidden[:, m + 4])
    features.square().sum().backward()

  def step(warm_up=False):
    part(min(rows_at_a_time, k))
    for start in range(rows_at_a_time, 0 if warm_up else k, rows_at_a_time):
      part(min(rows_at_a_time, k - start))

  return step


def _torch_peak_mib(sizes, m, dtype, n_rows) -> float:
  """How much a process' peak grows by a step, MiB; a step of one row comes before."""
  _torch_step(sizes, m, dtype, 1, 1)()
  step = _torch_step(sizes, m, dtype, n_rows, n_rows)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  step()
  return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


# How to set one up, and the libraries that it needs beyond jax, flax and numpy.
_IMPLEMENTATIONS = {
  "shared": (_shared, ()),
  "reference": (_reference, ("transformers",)),
  "torch_77": (_torch_77, ("transformers", "torch")),
}


def _plot(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Seconds against K, a line an implementation; left out where matplotlib is missing."""
  with contextlib.suppress(ImportError):
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    names = dict.fromkeys(row["implementation"] for row in rows)
    for name, marker in zip(names, "osD", strict=False):
      mine = sorted((row["k"], row["seconds"]) for row in rows if row["implementation"] == name)
      axes.loglog(*zip(*mine, strict=True), marker=marker, label=name)
    axes.set(
      title="Text tower, forward and backward", xlabel="K, classes a step", ylabel="seconds a step"
    )
    axes.grid(color="0.92", which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
  """The job without configs, for machines that have jax, flax and numpy alone."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  for name, value in DEFAULTS.items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
  arguments = vars(parser.parse_args())
  workdir = arguments.pop("workdir")
  run(argparse.Namespace(benchmark=_Settings(arguments)), workdir)


class _Settings(dict):
  """A dict whose items are attributes too, as ConfigDict has it."""

  __getattr__ = dict.__getitem__


if __name__ == "__main__":
  main()
