r"""What a step of the text tower costs beside PyTorch's over all positions, on the CPU.

python -m docs.studies.torch_tower --model=vit_b_16 --k=128+1000

The implementations of the job benchmark and torch's run in turn in one process:
HuggingFace's tower, which the published code computes, or open_clip's for the families
that `benchmark.model` names. Prints the job's table, and draws its plot into the file
that `--plot` names; its other fields are flags here too. Torch's memory is the growth
of a process of its own by `rows_at_a_time` rows. Needs torch, and open_clip for its
families.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
import dataclasses
import multiprocessing
import pathlib

import numpy as np
import torch

from pomp_jax.hosts import peak_mib
from pomp_jax.rooms.benchmark.fields import Benchmark, numbers
from pomp_jax.rooms.benchmark.measurement import (
  Measurement,
  Step,
  measure_in_turn,
  plot,
)
from pomp_jax.rooms.benchmark.synthetic_clip import token_lengths
from pomp_jax.rooms.benchmark.towers import (
  IMPLEMENTATIONS,
  MODELS,
  OPEN_CLIPS,
  SEED,
  dense_flops,
  open_clip_settings,
)

_FLAGS = (
  "implementations",
  "model",
  "m",
  "k",
  "dtype",
  "repeats",
  "rows_at_a_time",
)


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(usage=__doc__)
  defaults = Benchmark(k="128+1000", implementations="shared")
  for name in _FLAGS:
    default = getattr(defaults, name)
    parser.add_argument(f"--{name}", type=type(default), default=default)
  parser.add_argument("--plot", type=pathlib.Path)
  flags = vars(parser.parse_args())
  plot_file = flags.pop("plot")
  fields = dataclasses.replace(defaults, **flags)
  lengths_N = token_lengths()
  rows = []
  for (k,) in numbers(fields.k):
    lengths_K = np.random.default_rng(SEED).choice(lengths_N, k, replace=False)
    names = fields.implementations.split("+")
    steps = [IMPLEMENTATIONS[name](fields, lengths_K) for name in names]
    steps.append(torch_step(fields, k))
    rows += measure_in_turn(steps, fields.dtype, fields.repeats)
  if plot_file is not None:
    plot(plot_file, rows)


def torch_step(fields: Benchmark, k: int) -> tuple[Measurement, Step]:
  """Builds torch's step of K rows, `rows_at_a_time` rows after one another.

  Rows are of equal cost: all positions are computed, whatever the name's length.
  """
  config = MODELS[fields.model]
  n_rows = min(fields.rows_at_a_time, k)
  tokens = config.max_position_embeddings * k
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
    growth = process.submit(_growth_mib, fields, n_rows).result()
  flops = dense_flops(config, tokens)
  measurement = Measurement(
    "torch", k, token_lengths().size, tokens, n_rows, flops, growth
  )
  return measurement, build_step(fields, k, n_rows)


def build_step(fields: Benchmark, k: int, rows_at_a_time: int) -> Step:
  """Returns the step of K rows, which a warm-up runs with the first part alone."""
  dtype = torch.bfloat16 if fields.dtype == "bfloat16" else torch.float32
  config, n_prefix = MODELS[fields.model], fields.m + 1
  n_positions, width = config.max_position_embeddings, config.hidden_size
  build = _open_clip_tower if fields.model in OPEN_CLIPS else _huggingface_tower
  encode, positions = build(fields.model, dtype)
  context = 0.02 * torch.randn(n_prefix, width, dtype=dtype)
  context.requires_grad_()

  def part(n_rows):
    rest = torch.zeros(n_rows, n_positions - n_prefix, width, dtype=dtype)
    hidden = torch.cat([context.expand(n_rows, -1, -1), rest], dim=1) + positions
    # The feature stands three tokens behind the prefix, as of a name of two tokens.
    encode(hidden, n_prefix + 3).square().sum().backward()

  def step(warm_up):
    for start in range(0, 1 if warm_up else k, rows_at_a_time):
      part(min(rows_at_a_time, k - start))

  return step


def _huggingface_tower(model, dtype):
  """Returns HuggingFace's encoder of embedded rows, and its position embeddings."""
  from transformers import CLIPTextModelWithProjection

  config = MODELS[model]
  tower = CLIPTextModelWithProjection(config).to(dtype).eval().requires_grad_(False)
  n_positions = config.max_position_embeddings
  mask = torch.full((n_positions, n_positions), torch.finfo(dtype).min).triu_(1)
  mask = mask[None, None].to(dtype)

  def encode(hidden, at):
    hidden = tower.text_model.encoder(inputs_embeds=hidden, attention_mask=mask)[0]
    return tower.text_projection(tower.text_model.final_layer_norm(hidden)[:, at])

  return encode, tower.text_model.embeddings.position_embedding.weight


def _open_clip_tower(model, dtype):
  """Returns open_clip's encoder of embedded rows, and its position embeddings."""
  from open_clip.model import _build_text_tower

  settings = open_clip_settings(model)
  quick = settings.get("quick_gelu", False)
  tower = _build_text_tower(
    settings["embed_dim"], settings["text_cfg"], quick_gelu=quick
  )
  tower = tower.to(dtype).eval().requires_grad_(False)

  def encode(hidden, at):
    read = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask))[:, at]
    dense = tower.text_projection
    return dense(read) if callable(dense) else read @ dense

  return encode, tower.positional_embedding


def _growth_mib(fields: Benchmark, n_rows: int) -> float:
  """Growth of the process by a step, after a step of one row, MiB."""
  build_step(fields, 1, 1)(True)
  step = build_step(fields, n_rows, n_rows)
  before = peak_mib()
  step(True)
  return peak_mib() - before


if __name__ == "__main__":
  main()
