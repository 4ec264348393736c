"""Orders of an ablation's arms against SciPy, and what their rows say."""

import pathlib

import numpy as np
import pytest
import scipy.stats

from pomp_jax.config import defaults, unpack, validate
from pomp_jax.config.command_line import load_config
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.rooms.reproduce import targets
from pomp_jax.rooms.reproduce.measure import Measured
from pomp_jax.rooms.reproduce.orders_stage import (
  Order,
  order_findings,
  order_row,
  welch,
)
from pomp_jax.rooms.reproduce.reproduction_report import succeeded, verdict_of
from pomp_jax.rooms.reproduce.retrained_stage import (
  Training,
  TrainingGroup,
  recipe_rows,
)
from pomp_jax.rooms.reproduce.rows import FAIL, NOT_RUN, PASS, UNDECIDED
from pomp_jax.rooms.reproduce.tables import (
  ACCURACIES,
  ARMS,
  OTHER_RECIPE_FIELDS,
  RECIPE_FIELDS,
  arm_of,
)

ORDER = Order("8 and 9", "a", "b", {"dtd": (66.5, 65.5)})


@pytest.mark.parametrize("seed", range(8))
def test_welch_is_that_of_scipy(seed):
  rng = np.random.default_rng(seed)
  first = rng.normal(0.66, 0.01, 2 + seed % 4)
  second = rng.normal(0.65, 0.02, 3)
  found = welch(first.tolist(), second.tolist())
  test = scipy.stats.ttest_ind(first, second, equal_var=False, alternative="greater")
  assert found.difference == pytest.approx(first.mean() - second.mean())
  assert found.p == pytest.approx(test.pvalue)
  interval = scipy.stats.ttest_ind(first, second, equal_var=False)
  low = interval.confidence_interval(0.90).low
  assert found.difference - found.reach == pytest.approx(low)
  # The interval leaves 0 out where the test says so.
  assert (found.difference > found.reach) == (test.pvalue < 0.05)


@pytest.mark.parametrize(("second", "p"), [(0.5, 0.0), (0.6, 0.5), (0.7, 1.0)])
def test_seeds_without_a_spread(second, p):
  found = welch([0.6, 0.6], [second, second])
  assert (found.reach, found.p) == (0.0, p)


def answers(*shares, n=200):
  """Answers of a seed for each share of right ones."""
  labels = np.zeros(n, int)
  measured = []
  for share in shares:
    given = np.where(np.arange(n) < round(share * n), 0, 1)
    measured.append(Measured(labels, given, 2, [], [], ""))
  return {"dtd": measured}


@pytest.mark.parametrize(
  ("better", "worse", "status"),
  [
    ((0.66, 0.665, 0.67), (0.60, 0.605, 0.61), PASS),
    ((0.60, 0.605, 0.61), (0.66, 0.665, 0.67), FAIL),
    ((0.60, 0.70, 0.65), (0.62, 0.66, 0.63), UNDECIDED),
    ((0.66,), (0.60, 0.61), NOT_RUN),
  ],
)
def test_a_row_says_what_the_seeds_decide(better, worse, status):
  row = order_row(ORDER, "dtd", ("dtd",), answers(*better), answers(*worse), False)
  assert row.status == status
  assert row.expected == pytest.approx(0.01)
  assert (row.got is None) == (status == NOT_RUN)
  found = order_findings([row])
  assert [one.subject for one in found] == (["dtd"] if status == FAIL else [])
  verdict = verdict_of([row], [one._asdict() for one in found])
  if status == UNDECIDED:
    assert "a over b on dtd" in verdict and "1 UNDECIDED" in verdict
  if status == FAIL:
    assert "a is worse than b" in verdict
  assert succeeded([row]) == (status == PASS)


def test_a_sample_adds_its_variance():
  """The seeds agree; the 200 images do not decide."""
  better, worse = answers(0.66, 0.665), answers(0.64, 0.645)
  whole = order_row(ORDER, "dtd", ("dtd",), better, worse, False)
  quick = order_row(ORDER, "dtd", ("dtd",), better, worse, True)
  right = [
    np.mean([m.answers == 0 for m in one["dtd"]], axis=0) for one in (better, worse)
  ]
  variance = np.var(right[0] - right[1]) / 200
  seeds = 2 * np.var([0.66, 0.665], ddof=1) / 2
  factor = scipy.stats.t.ppf(0.95, 2)
  assert whole.tolerance == pytest.approx(factor * seeds**0.5)
  assert quick.tolerance == pytest.approx(factor * (seeds + variance) ** 0.5)
  assert (whole.status, quick.status) == (PASS, UNDECIDED)


def test_each_printed_order_is_that_of_its_table():
  table = ACCURACIES["ablation"]
  for one in table.orders:
    assert {one.better, one.worse} <= ARMS.keys()
    for subject, (better, worse) in one.printed.items():
      assert better > worse, (one.source, subject)
  rows = targets.tables()["8 and 9"]["rows"]
  compared = {name for one in table.orders for name in (one.better, one.worse)}
  assert rows.keys() <= compared
  margins = {(one.better, one.worse): one.printed for one in table.orders[-6:]}
  assert margins["K = 319, m = 0.5", "K = 319, no correction"] == {
    "mean of 10": (65.7, 65.2)
  }
  assert margins["K = 1000, m = 1", "K = 1000, m = 1.5"] == {"mean of 10": (67.0, 66.4)}
  # Each figure of the table stands in an order.
  printed = {figure for one in margins.values() for figure in one["mean of 10"]}
  rows = targets.tables()["12"]["rows"].values()
  assert printed == {figure for row in rows for figure in row}
  found = table.target(("2", "hard prompt"), "imagenet21k_p_w21")
  assert found == (21.8, "table 1", "zero-shot CLIP")


def test_an_arm_is_known_by_its_fields():
  plain = {"k": 1000, "sampling.name": "uniform", "correction": "log10"}
  for name, changes in ARMS.items():
    assert arm_of({**plain, **changes}) == name
  assert arm_of({**plain, "k": 100, "sampling.name": "hard"}) is None
  # The recipe's own field tells it from the published correction.
  assert arm_of({**plain, "correction": "log"}) == "K = 1000"
  fixed = {**plain, "correction": "none", "margin": 0.5}
  assert arm_of(fixed) == "K = 1000, m = 0.5"
  assert arm_of(fixed | {"margin": 0.7}) is None
  assert arm_of(fixed | {"sampling.name": "hard"}) is None


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_can_be_trained(name):
  config = unpack(load_config(ACCURACIES["ablation"].recipe_of_runs), "pretrain")
  fields = {**ARMS[name], "data.source": "world", "data.augment": "none"}
  fields |= {"data.views": 1, "data.dataset": "", "eval.images": 1}
  fields |= {"clip.model": "world", "data.shots": 0, "data.names": ""}
  validate(config.replace(fields))


def test_the_published_correction_is_nearly_the_margin_of_table_12():
  """log10 of (N - 1) / (K - 1), N = 10,450: what the page says."""
  page = pathlib.Path("docs/reproduce/index.md").read_text()
  margins = [np.log10((10_450 - 1) / (k - 1)) for k in (1000, 319)]
  said = f"log10 is {margins[0]:.2f} at K = 1000 and {margins[1]:.2f} at K = 319"
  assert said in " ".join(page.split())


# Fields of a training that don't decide what it learns: where things lie, how they are
# computed, what is written, and the seeds. `checkpoint.select` does.
NOT_OF_THE_RECIPE = (
  "job",
  "seed",
  "dry_run",
  "dry_run_rate",
  "compilation_cache",
  "profile_steps",
  "accumulate",
  "roll_backs",
  "mesh.class_size",
  "eval.images",
  "eval.template",
  "checkpoint.every",
  "checkpoint.keep",
  "checkpoint.on_failure",
  "log.every",
  "log.tracker",
  # The weights and the data have digests of their own.
  "clip.model",
  "clip.image_tower",
  "clip.text_tower",
  "clip.activation",
  "clip.image_chunk",
  "clip.memory_gib",
  "data.root",
  "data.cache",
  "data.feature_store",
  "data.features",
  "data.annotations",
  "data.novel",
  "data.threads",
  "data.workers",
  "data.max_corrupt",
  "data.augment_seed",
  "data.shots_seed",
)
# Fields of methods of which no table has a row.
OF_OTHER_METHODS = ("kdpl.", "probe.", "tip.")


def test_each_field_is_of_the_recipe_or_does_not_decide_what_is_learned():
  compared = [
    name
    for fields in (RECIPE_FIELDS, OTHER_RECIPE_FIELDS)
    for names in fields.values()
    for name in names
  ]
  accounted = sorted([*compared, *NOT_OF_THE_RECIPE])
  all_fields = [
    name
    for name in defaults("pretrain").flat()
    if not name.startswith(OF_OTHER_METHODS)
  ]
  assert accounted == sorted(all_fields)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("optim.weight_decay", "optimizer"),
    ("checkpoint.select", "optimizer"),
    ("sampling.temperature", "sampling"),
    ("margin", "correction"),
    ("data.crop_area", "training data"),
    ("prompt.init", "prompt"),
  ],
)
def test_a_field_that_is_not_the_recipes_is_a_finding(name, kind):
  recipe = dict(defaults("pretrain").flat())
  trainings = [
    Training(
      f"seed {seed}",
      recipe | {"seed": seed, name: "other"},
      Prompt(np.full((2, 4), seed, np.float32), "clip"),
    )
    for seed in range(3)
  ]
  rows, findings = recipe_rows(TrainingGroup("retrained", trainings, recipe, None))
  [finding] = findings
  assert (finding.kind, finding.subject) == (kind, "recipe")
  assert f"{name} is other in the training, and {recipe[name]}" in finding.sentence
  assert [row.quantity for row in rows if row.status == FAIL] == [name]
