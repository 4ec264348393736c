"""What class vectors say of a prompt that is read on a CLIP that it was not learned on:
the table of margins in docs/how-to/certainty.md.

pomp --config=demo_seeds --workdir=runs/demo_seeds
pomp --config=demo --workdir=runs/short --config.steps=60 --config.checkpoint.every=12 \
  --config.checkpoint.keep=5
python -m docs.studies.wrong_clip --runs runs/demo_seeds/seed_* runs/short

Prints the least and the largest of `evaluate.other_clip.Signs` for each kind of prompt
and CLIP. Every checkpoint of the runs is a prompt of its own; the last ones are also
read on other CLIPs, of the same shape:

- `another order`: the D numbers of the context vectors permuted, which is a CLIP as good
  as this one whose numbers are in another order;
- `normal`: weights drawn from the normal distribution, with the mean and the standard
  deviation of each array;
- `shuffled`: the weights of each array in random order.

Shapes: M context vectors, D width of the text tower.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.clip.text import token_table
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.evaluate.other_clip import LEAST_DISTANCE, PLAIN, Signs, signs_of
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.world import source

N_NAMES = 64
N_ORDERS = 10  # of the D numbers
N_CLIPS = 3  # of each kind of weights
TEXTS = (
  "a photo of a {}.",
  "a bad photo of a {}.",
  "an origami {}.",
  "a video game {}.",
)


class Reader:
  """A CLIP, and the vectors of the names under plain words."""

  def __init__(self, clip: Clip, names: Sequence[str]):
    self._names = names
    self._encoder = Encoder(clip)
    self._table_VxD = np.asarray(token_table(clip.params), np.float32)
    self._plain_SxE = self._encoder.class_features(names, PLAIN)

  def signs(self, prompt: Prompt | str) -> Signs:
    """What the class vectors under a prompt say; the norm of a text is 1."""
    context = self._table_VxD if isinstance(prompt, str) else prompt.context
    features_SxE = self._encoder.class_features(self._names, prompt)
    return signs_of(context, self._table_VxD, features_SxE, self._plain_SxE)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a row for each kind."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", nargs="+", required=True, help="folders of runs")
  options = parser.parse_args(argv)
  clip = load_clip("world")
  names = source("base", n_images=1).names
  rows = np.random.default_rng(0).choice(len(names), N_NAMES, replace=False)
  names = [names[row] for row in rows]
  print("| prompt, CLIP | prompts | distance | cosine | norm | below the margin |")
  print("| --- | --- | --- | --- | --- | --- |")
  here = Reader(clip, names)
  for text in TEXTS:
    show(f"`{text}`", [here.signs(text)])
  last = []
  for run in options.runs:
    checkpoints = read_prompts([f"{run}/checkpoints"], "--runs")
    checkpoints.sort(key=lambda named: named.step)
    last.append(checkpoints[-1])
    for named in checkpoints:
      show(f"its own, {named.label}", [here.signs(named.prompt)])
  for named in last:
    signs = [here.signs(prompt) for prompt in in_other_orders(named.prompt)]
    show(f"another order, {named.label}", signs)
  for kind in (normal_weights, shuffled_weights):
    readers = [Reader(with_weights(clip, kind, seed), names) for seed in range(N_CLIPS)]
    for named in last:
      signs = [reader.signs(named.prompt) for reader in readers]
      show(f"{kind.__name__.replace('_', ' ')}, {named.label}", signs)


def show(label: str, signs: Sequence[Signs]) -> None:
  """Prints the least and the largest of each sign."""
  columns = [
    _range([one.distance for one in signs]),
    _range([one.cosine for one in signs]),
    _range([one.norm for one in signs]),
  ]
  n_below = sum(one.distance < LEAST_DISTANCE for one in signs)
  cells = [label, str(len(signs)), *columns, str(n_below)]
  print(f"| {' | '.join(cells)} |", flush=True)


def _range(values: Sequence[float]) -> str:
  low = f"{min(values):.2f}"
  high = f"{max(values):.2f}"
  return low if low == high else f"{low} to {high}"


def in_other_orders(prompt: Prompt) -> Iterable[Prompt]:
  """Yields the prompt with the D numbers of its vectors in other orders."""
  for seed in range(N_ORDERS):
    order_D = np.random.default_rng(seed).permutation(prompt.context.shape[1])
    context_MxD = np.ascontiguousarray(prompt.context[:, order_D])
    yield dataclasses.replace(prompt, context=context_MxD)


def normal_weights(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Normal numbers with the mean and the standard deviation of the values."""
  return rng.normal(values.mean(), values.std(), values.shape).astype(values.dtype)


def shuffled_weights(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The values in random order."""
  return rng.permutation(values.ravel()).reshape(values.shape)


def with_weights(
  clip: Clip, draw: Callable[[np.ndarray, np.random.Generator], Any], seed: int
) -> Clip:
  """A CLIP of the same shape, with other matrices and the same biases and scales.

  Args:
    clip: the CLIP whose arrays are replaced.
    draw: function of an array and a generator.
    seed: random seed.
  """
  rng = np.random.default_rng(seed)
  replace = lambda array: draw(np.asarray(array), rng) if array.ndim >= 2 else array
  return dataclasses.replace(clip, params=jax.tree.map(replace, clip.params))


if __name__ == "__main__":
  main()
