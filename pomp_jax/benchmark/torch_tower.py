"""HuggingFace torch over all 77 positions of every class: what the published code computes."""

import dataclasses
import importlib

import numpy as np

from pomp_jax.benchmark.measurement import Measurement, Step, in_own_process, peak_mib
from pomp_jax.benchmark.towers import MODELS
from pomp_jax.config.fields import Benchmark
from pomp_jax.data.class_lists import load_synsets


def torch_step(settings: Benchmark, lengths_K: np.ndarray) -> tuple[Measurement, Step]:
  """In parts of `rows_at_a_time` rows; on the CPU whatever JAX runs on."""
  k, sizes = lengths_K.size, MODELS[settings.model]
  rows_at_a_time = min(settings.rows_at_a_time, k)
  step = _step(settings, k, rows_at_a_time)
  grown, peak = in_own_process(_peaks_mib, settings, rows_at_a_time)
  tokens = sizes.max_position_embeddings * k
  measurement = Measurement(
    "torch_77",
    k,
    load_synsets().lengths.size,
    tokens,
    rows_at_a_time,
    sizes.flops(tokens),
    peak_mib=grown,
    process_peak_mib=peak,
  )
  return measurement, step


def _step(settings: Benchmark, k: int, rows_at_a_time: int) -> Step:
  torch = importlib.import_module("torch")
  transformers = importlib.import_module("transformers")
  sizes, n_prefix = MODELS[settings.model], settings.m + 1
  fields = dataclasses.asdict(sizes) | {"intermediate_size": sizes.intermediate_size}
  config = transformers.CLIPTextConfig(**fields)
  model = transformers.CLIPTextModelWithProjection(config)
  model = model.to(torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32).eval()
  model.requires_grad_(False)
  n_positions = sizes.max_position_embeddings
  mask = torch.full((n_positions, n_positions), torch.finfo(model.dtype).min).triu_(1)
  mask = mask[None, None].to(model.dtype)
  positions = model.text_model.embeddings.position_embedding.weight
  context = 0.02 * torch.randn(n_prefix, sizes.hidden_size, dtype=model.dtype)
  context.requires_grad_()

  def part(n_rows):
    rest = torch.zeros(n_rows, n_positions - n_prefix, sizes.hidden_size, dtype=model.dtype)
    hidden = torch.cat([context.expand(n_rows, -1, -1), rest], dim=1) + positions
    hidden = model.text_model.encoder(
      inputs_embeds=hidden, attention_mask=None, causal_attention_mask=mask
    )[0]
    hidden = model.text_model.final_layer_norm(hidden)
    features = model.text_projection(hidden[:, n_prefix + 3])
    features.square().sum().backward()

  def step(warm_up):
    part(min(rows_at_a_time, k))
    for start in range(rows_at_a_time, 0 if warm_up else k, rows_at_a_time):
      part(min(rows_at_a_time, k - start))

  return step


def _peaks_mib(settings: Benchmark, n_rows: int) -> tuple[float, float]:
  """How much a process' peak grows by a step, after a step of one row; and the peak, MiB."""
  _step(settings, 1, 1)(True)
  step = _step(settings, n_rows, n_rows)
  before = peak_mib()
  step(True)
  return peak_mib() - before, peak_mib()
