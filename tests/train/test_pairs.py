"""Pairs of a training's features: each is in a row below, or refused
(tests/config/test_pairs.py).

A row is trained for two steps, and its second step is taken again from the first
checkpoint with the other source of image features: online instead of stored, or stored
instead of online.
"""

import itertools

import jax
import numpy as np
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.files.checkpoints import read_checkpoint
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup, training
from pomp_jax.train.fill_features import fill_features
from tests.support.checks import assert_close, spy
from tests.support.small_run import small_config

# Levels of each feature, the first of which is the default, and the fields of the
# others.
FACTORS = {
  "method": {"pomp": {}, "cocoop": {"method": "cocoop"}},
  "sampler": {
    "uniform": {},
    "hard": {"sampling.name": "hard"},
    "posterior": {"sampling.name": "posterior"},
    "hierarchical": {"sampling.name": "hierarchical"},
  },
  "exclude": {
    "none": {},
    "similar": {"sampling.exclude": "similar"},
    "kin": {"sampling.exclude": "kin"},
  },
  "positives": {"own": {}, "batch": {"sampling.batch_positives": True}},
  "loss": {
    "softmax": {},
    "sigmoid": {"loss": "sigmoid", "logit_bias": -5.0},
    "l1": {"loss": "l1"},
  },
  "consistency": {
    "none": {},
    "squared": {"consistency_squared": 2.0},
    "kl": {"consistency_kl": 2.0},
  },
  "average": {
    "none": {},
    "ema": {"optim.average": "ema"},
    "gaussian": {"optim.average": "gaussian"},
  },
  "groups": {"one": {}, "two": {"accumulate": 2}},
  "context": {"shared": {}, "specific": {"prompt.class_specific": True}},
  "position": {"end": {}, "middle": {"prompt.position": "middle"}},
  "classes": {"sampled": {}, "all": {"negatives": "all"}},
  "views": {
    "one": {},
    "two": {"data.augment": "crop_flip", "data.views": 2, "data.view_epochs": 1},
  },
  "optimizer": {"sgd": {}, "adamw": {"optim.name": "adamw", "optim.clip_norm": 1.0}},
}
# Each pair of levels that is not refused is in one of them; the first have most of the
# pairs.
ROWS = """
pomp hierarchical kin own l1 none ema one specific middle sampled two adamw
pomp posterior similar own sigmoid kl gaussian two specific middle all one sgd
pomp uniform similar batch sigmoid kl none one shared end sampled two adamw
cocoop uniform none own softmax squared gaussian one shared middle sampled two adamw
cocoop hierarchical none batch softmax squared none two shared end all one sgd
cocoop uniform kin batch l1 none ema two shared end all one sgd
pomp hard similar own softmax squared ema one specific end all one adamw
pomp hard none batch l1 kl none two specific middle sampled two sgd
pomp posterior kin batch l1 squared gaussian one shared end sampled one adamw
pomp posterior none own softmax none none two shared middle all two adamw
pomp hard kin own sigmoid none gaussian one shared end sampled one sgd
cocoop hierarchical none own sigmoid kl ema two shared middle all one sgd
pomp uniform kin own softmax kl none two specific end all two sgd
pomp hierarchical similar own l1 none gaussian two specific end sampled one adamw
pomp posterior similar batch sigmoid squared ema two shared end all two sgd
"""
LEVELS = [tuple(row.split()) for row in ROWS.strip().splitlines()]
# Two steps are compiled in each row, so that few of them are in the first tier.
_FEW = 2
_OTHERS = pytest.mark.slow("the first rows have a third of the pairs")


def fields_of(levels):
  """The fields of a row, or of a part: of factors by name."""
  changes = {}
  for factor, level in levels.items():
    changes |= FACTORS[factor][level]
  return changes


def test_each_pair_is_in_a_row_or_refused():
  missing = set()
  for one, other in itertools.combinations(FACTORS, 2):
    places = list(FACTORS).index(one), list(FACTORS).index(other)
    together = {tuple(row[place] for place in places) for row in LEVELS}
    for pair in itertools.product(FACTORS[one], FACTORS[other]):
      if pair not in together:
        missing.add(pair)
        with pytest.raises(ConfigError):
          validate(
            small_config(**fields_of(dict(zip((one, other), pair, strict=True))))
          )
  others = "hard", "posterior", "similar", "specific"
  assert missing == {("cocoop", other) for other in others}


def take(config, folder):
  """Trains to the last step; returns the run and its state there."""
  run = setup.prepare(config, folder)
  folder.create()
  fill_features(run.data, run.clip, folder, run.source, run.encoder)
  return run, loop.train(run).state


@pytest.mark.parametrize(
  "row",
  [*LEVELS[:_FEW], *(pytest.param(row, marks=_OTHERS) for row in LEVELS[_FEW:])],
  ids="-".join,
)
def test_a_row(row, one_layer, tmp_path, monkeypatch):
  levels = dict(zip(FACTORS, row, strict=True))
  changes = {"clip.model": one_layer, "data.n_classes": 16, "k": 6, "prompt.m": 2}
  changes |= {"batch_size": 8, "steps": 2, "checkpoint.every": 1, "eval.images": 16}
  changes |= {"optim.average_mean": 1.0, "optim.average_decay": 0.5, "log.every": 1}
  changes |= fields_of(levels)
  config, folder = small_config(**changes), RunFolder(tmp_path)
  kinds = ("stored", "online") if levels["groups"] == "two" else ("online", "stored")
  validate(config)
  seen = spy(monkeypatch, [(training, "topk_accuracy")])
  run, state = take(config.replace({"data.features": kinds[0]}), folder)
  first, second = (
    read_checkpoint(folder.checkpoints / str(step)).state for step in (1, 2)
  )

  # The result is the mean of the parameters after both steps.
  steps_per_epoch = run.steps_per_epoch
  weights = {
    "none": [0.0, 1.0],
    "ema": [0.5, 1.0],
    "gaussian": [np.exp(-0.5 * (step / steps_per_epoch - 1) ** 2) for step in (1, 2)],
  }[levels["average"]]
  mean = lambda *leaves: np.average(
    np.array(leaves, np.float64), axis=0, weights=weights
  )
  result = jax.tree.map(np.asarray, run.result(state))
  jax.tree.map(
    assert_close, result, jax.tree.map(mean, first["params"], second["params"])
  )
  leaves = zip(*map(jax.tree.leaves, (first["params"], second["params"])), strict=True)
  assert all((one != other).any() for one, other in leaves)

  # The prompt that is saved is the one that was validated.
  if levels["method"] == "pomp":
    features = run.encoder.class_features(run.source.names, run.prompt_of(state))
    assert_close(seen["topk_accuracy.class_features_NxE"], features)

  # The second step is taken again.
  folder.checkpoints.joinpath("2").rename(tmp_path / "taken")
  take(config.replace({"data.features": kinds[1]}), folder)
  found = read_checkpoint(folder.checkpoints / "2").state
  jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), found, second)
