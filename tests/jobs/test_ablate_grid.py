"""The grid: which cells it makes, and what it refuses."""

import pytest

from pomp_jax.ablation.grid import make_cells
from pomp_jax.config import ConfigError
from tests.support.small_run import small_config


def cells(grid, **changes):
  return make_cells(small_config(job="ablate", **{"ablate.grid": grid, **changes}))


def test_every_combination_is_a_cell():
  found = cells("k=16|64; correction=log|none; optim.lr=0.1|0.2|1e-3")
  assert [tuple(cell.values.values()) for cell in found] == [
    (k, correction, lr)
    for k in (16, 64)
    for correction in ("log", "none")
    for lr in (0.1, 0.2, 1e-3)
  ]
  assert len({cell.key for cell in found}) == len({cell.file_name for cell in found}) == 12
  for cell in found:
    assert cell.config.job == "pretrain"
    assert cell.config.k == cell.values["k"]
    assert cell.config.correction == cell.values["correction"]
    assert cell.config.optim.lr == cell.values["optim.lr"]
    assert cell.config.batch_size == 16
  assert found[0].name == "k=16, correction=log, optim.lr=0.1"


def test_all_classes_are_run_once_whatever_the_correction():
  found = cells("k=16|all;correction=log|none;seed=0|1")
  assert [cell.name for cell in found] == [
    "k=16, correction=log, seed=0",
    "k=16, correction=log, seed=1",
    "k=16, correction=none, seed=0",
    "k=16, correction=none, seed=1",
    "k=all, correction=-, seed=0",
    "k=all, correction=-, seed=1",
  ]
  assert [cell.config.negatives for cell in found] == 4 * ["sampled"] + 2 * ["all"]


def test_fields_that_a_sampler_does_not_read_make_no_cell():
  found = cells("sampling.name=uniform|posterior;k=16|all;sampling.renew=0|8;seed=0")
  assert [cell.name for cell in found] == [
    "sampling.name=uniform, k=16, sampling.renew=-, seed=0",
    "sampling.name=-, k=all, sampling.renew=-, seed=0",
    "sampling.name=posterior, k=16, sampling.renew=0, seed=0",
    "sampling.name=posterior, k=16, sampling.renew=8, seed=0",
  ]
  # The exclusion by similar text features reads a bank.
  similar = {"sampling.exclude": "similar"}
  assert len(cells("k=16|all;sampling.renew=0|8", **similar)) == 4


def test_several_grids_are_joined():
  found = cells("k=all;seed=0|1 & k=16;steps=5|12;seed=0 & k=16;seed=0")
  assert [cell.name for cell in found] == [
    "k=all, seed=0, steps=12",
    "k=all, seed=1, steps=12",
    "k=16, seed=0, steps=5",
    # The last grid's cell is this one.
    "k=16, seed=0, steps=12",
  ]


def test_negatives_as_a_field_of_its_own():
  found = cells("negatives=all|sampled;k=16|64")
  assert [cell.values for cell in found] == [
    {"negatives": "all", "k": "all"},
    {"negatives": "sampled", "k": 16},
    {"negatives": "sampled", "k": 64},
  ]


def test_the_key_is_of_what_the_result_depends_on():
  key = cells("seed=0")[0].key
  same = {"log.every": 5, "checkpoint.every": 2, "data.threads": 1, "ablate.lanes": 2}
  assert cells("seed=0", **same)[0].key == key
  assert cells("seed=0|1")[0].key == key
  for other in ({"optim.momentum": 0.8}, {"k": 21}, {"data.images_per_class": 3}, {"steps": 13}):
    assert cells("seed=0", **other)[0].key != key


@pytest.mark.parametrize(
  ("grid", "expected"),
  [
    ("kk=1|2", r"config\.kk: .*no such field .did you mean config\.k\?"),
    ("lr=1|2", r"config\.lr: .*did you mean config\.optim\.lr\?"),
    ("corection=log", r"config\.corection: .*did you mean config\.correction\?"),
    ("", r"config\.ablate\.grid: got '', expected fields separated by ';'"),
    ("k", r"config\.ablate\.grid: got 'k', expected fields"),
    ("k=16 & ", r"config\.ablate\.grid: got ' ', expected fields separated by ';'"),
    ("k=16|16", r"config\.ablate\.grid: got 'k=16\|16', .*no value twice"),
    ("k=16||64", r"config\.ablate\.grid: got 'k=16\|\|64'"),
    ("k=16;k=64", r"config\.ablate\.grid: got 'k', expected each field once"),
    ("k=many", r"config\.k: got 'many', expected a value of type int"),
    ("correction=log|ln", r"config\.correction: got 'ln', expected one of"),
    (
      "job=pretrain",
      r"config\.ablate\.grid: got 'job', expected a field that a training depends on",
    ),
    ("log.every=1|2", r"config\.ablate\.grid: got 'log\.every'"),
    ("ablate.lanes=1|2", r"config\.ablate\.grid: got 'ablate\.lanes'"),
  ],
)
def test_bad_grids_are_one_line(grid, expected):
  with pytest.raises(ConfigError, match=expected):
    cells(grid)
