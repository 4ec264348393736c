"""The reports of trainings and evaluations, as pages, Markdown and LaTeX; means, and
labels."""

import operator
import string

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from pomp_jax import __version__
from pomp_jax.evaluate.metrics import paired_difference
from pomp_jax.files import provenance
from pomp_jax.registry import METHODS
from pomp_jax.report import drawing
from pomp_jax.report.bootstrap import bootstrap
from pomp_jax.report.evaluation_report import (
  SetFigures,
  accuracy_by_group,
  comparisons_by_group,
  counts_by_group,
)
from pomp_jax.report.labels import method_label, prompt_labels, run_labels, shorten
from tests.support.report_page import AWKWARD, PATHS, Case, check_page, page_of

PROMPTS = (*PATHS, AWKWARD)


def score(top1):
  found = {"images": 1000, "classes": 50, "top1": top1, "top5": 0.9, "macro_top1": 0.4}
  found |= {"top1_interval": [top1 - 0.03, top1 + 0.02], "ece": 0.05}
  return found | {
    "reliability": {"images": [1], "confidence": [0.5], "accuracy": [0.5]}
  }


def training_results():
  splits = {"base": 0.511, "novel": 0.622}
  found = {
    "method": "cocoop",
    "seed": 3,
    "clip_model": "world",
    "n_classes": 1000,
    "k": 64,
  }
  found |= {"correction": "log", "steps": 240, "seconds": 12.5, "eval_seconds": 1.5}
  found |= {"images_per_second": 99.0, "eval_images": dict.fromkeys(splits, 1000)}
  found["eval_classes"] = dict.fromkeys(splits, 50)
  found["eval"] = {
    split: {"prompt": score(top1), "hand_written": score(top1 - 0.1)}
    for split, top1 in splits.items()
  }
  return found


def evaluation_results():
  top1 = {label: 0.511 + i / 10 for i, label in enumerate(PROMPTS)}
  steps = [
    {"label": label, "step": 80 if label == PATHS[0] else None} for label in PROMPTS
  ]
  found = {"clip_model": "world", "prompts": steps, "published": {}}
  found["missing"] = {"<eurosat>": "no folder & no file"}
  found["accuracy"] = {
    "own": {"top1": {label: {"dtd": own} for label, own in top1.items()}}
  }
  found["intervals"] = {
    "own": {"top1": {label: {"dtd": [0.4, 0.9]} for label in PROMPTS}}
  }
  found |= {
    "images": {"own": {"top1": {"dtd": 1000}}},
    "classes": {"own": {"top1": {"dtd": 50}}},
  }
  scores = {label: score(own) for label, own in top1.items()}
  found["splits"] = {}
  return found | {
    "sets": {"dtd": {"split": "test", "unreadable": 2, "prompts": scores}}
  }


CASES = [
  Case(
    "pretrain",
    training_results(),
    ("accuracy.png", "predictions.png"),
    """CoCoOp.*1,000 classes

prompt | base, 1,000 images, 50 classes | novel, 1,000 images, 50 classes
learned (FOLDER) | 51.1 (48.1 to 53.1) | 62.2 (59.2 to 64.2)
hand-written prompt | 41.1 (38.1 to 43.1) | 52.2 (49.2 to 54.2)""",
  ),
  Case(
    "evaluate",
    evaluation_results(),
    ("accuracy_own_top1.png", "calibration.png"),
    """Evaluation on 1 data set

prompt | dtd
learned (one) | 51.1 (40.0 to 90.0)
learned (two) | 61.1 (40.0 to 90.0)
AWKWARD | 71.1 (40.0 to 90.0)
images | 1,000

called here
learned (one) | /data/runs/one/prompt.npz | 80
learned (two) | /data/runs/two/prompt.npz
AWKWARD

set | reason
<eurosat> | no folder & no file""",
    text="2 images could not be read",
  ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.job)
def test_every_figure_is_on_the_page(case, tmp_path):
  parsed = check_page(case, tmp_path)
  assert ("could not be read" in parsed.text) == (case.job == "evaluate")


@pytest.mark.parametrize(
  ("commit", "told"), [("a" * 40, "commit " + "a" * 10), (None, "pomp_jax ")]
)
def test_a_page_says_what_made_it(tmp_path, monkeypatch, commit, told):
  """The commit, or the release of an installed package."""
  monkeypatch.setattr(provenance, "commit", lambda: commit)
  parsed = page_of("pretrain", tmp_path, training_results())
  rows = {row[0]: row[1] for table in parsed.tables for row in table if len(row) == 2}
  assert told in parsed.text and (commit or f"pomp_jax {__version__}") in rows["commit"]


@pytest.mark.parametrize("upright", [True, False])
def test_an_evaluation_says_that_a_training_turned_its_pictures_otherwise(
  tmp_path, upright
):
  turned = {"turned_otherwise": {"upright": upright, "prompts": ["runs/x"]}}
  text = page_of("evaluate", tmp_path, evaluation_results() | turned).text
  assert f"data.upright={not upright}" in text and "runs/x" in text
  assert ("were turned as their EXIF" in text) == upright


def found(group, column, part, top1, images=10):
  return SetFigures(group, column, part, {"p": {"top1": top1, "images": images}})


def test_the_harmonic_mean_over_sets_is_that_of_the_means():
  parts = [("dtd", "base", 0.8), ("dtd", "new", 0.4, 7)]
  parts += [("eurosat", "base", 0.6), ("eurosat", "new", 0.2)]
  sets = [found("base_to_new", *part) for part in parts]
  kinds = accuracy_by_group(sets)["base_to_new"]
  assert kinds["base"]["p"] == pytest.approx(
    {"dtd": 0.8, "eurosat": 0.6, "mean of 2": 0.7}
  )
  harmonic = kinds["harmonic"]["p"]
  assert harmonic["dtd"] == pytest.approx(2 * 0.8 * 0.4 / (0.8 + 0.4))
  assert harmonic["mean of 2"] == pytest.approx(2 * 0.7 * 0.3 / (0.7 + 0.3))
  images = counts_by_group(sets, "images")["base_to_new"]
  assert images["harmonic"] == {"dtd": 17, "eurosat": 20}


def answers_of(n, top1, gained, lost):
  """Right answers of a prompt and of the reference to n images."""
  right = round(n * top1)
  own, reference = np.arange(n) < right, np.arange(n) < right
  reference[:gained], reference[right : right + lost] = False, True
  return own, reference


def test_intervals_of_means_are_those_of_a_bootstrap_over_images():
  """Of the images themselves, with another generator; of a harmonic mean, and of
  means."""
  parts = {("a", "base"): (900, 0.8, 60, 20), ("a", "new"): (500, 0.6, 40, 25)}
  parts |= {("b", "base"): (400, 0.9, 20, 25), ("b", "new"): (700, 0.3, 50, 70)}
  sets, answers = [], {}
  for (name, part), (n, top1, gained, lost) in parts.items():
    own, reference = answers[name, part] = answers_of(n, top1, gained, lost)
    difference = paired_difference(gained, lost, n)
    figures = {"images": n, "top1": float(own.mean()), "top1_interval": [0.1, 0.9]}
    first = figures | {"top1": float(reference.mean())}
    prompts = {"first": first, "p": figures | {"difference": difference}}
    sets.append(SetFigures("base_to_new", name, part, prompts))
  accuracy = accuracy_by_group(sets)
  intervals, differences = (
    found["base_to_new"] for found in comparisons_by_group(sets, accuracy)
  )
  generator = np.random.default_rng(1)

  def drawn(chosen):
    """Draws of the harmonic mean over base and new of the mean over sets, of both
    prompts."""
    found = []
    for _ in range(1500):
      means = []
      for part in ("base", "new"):
        rows = [answers[name, part] for name in chosen]
        picked = [generator.integers(len(own), size=len(own)) for own, _ in rows]
        means.append(
          np.mean(
            [
              (own[i].mean(), other[i].mean())
              for (own, other), i in zip(rows, picked, strict=True)
            ],
            axis=0,
          )
        )
      found.append(2 / (1 / means[0] + 1 / means[1]))
    return np.array(found)

  for column, chosen in (("a", "a"), ("mean of 2", "ab")):
    found = drawn(chosen)
    quantiles = lambda values: pytest.approx(
      np.quantile(values, [0.025, 0.975]), abs=0.005
    )
    assert intervals["harmonic"]["p"][column] == quantiles(found[:, 0])
    difference = differences["harmonic"]["p"][column]
    assert difference["interval"] == quantiles(found[:, 0] - found[:, 1])
    both = (
      accuracy["base_to_new"]["harmonic"][label][column] for label in ("p", "first")
    )
    assert difference["top1"] == pytest.approx(operator.sub(*both))
  # A set has its own; the first prompt has no difference.
  assert intervals["base"]["p"]["a"] == [0.1, 0.9]
  assert differences["base"]["p"]["a"] == sets[0].prompts["p"]["difference"]
  assert (
    differences["harmonic"]["first"] == {} and "mean of 2" in intervals["base"]["first"]
  )
  assert (intervals, differences) == tuple(
    found["base_to_new"] for found in comparisons_by_group(sets, accuracy)
  )


def test_a_bootstrap_of_all_right_answers_has_an_interval():
  figures = {"images": 50, "top1": 1.0, "difference": paired_difference(0, 0, 50)}
  found = bootstrap([[figures], [figures]])
  low, high = found["interval"]
  assert 0.9 < low < high == 1.0
  low, high = found["difference"]["interval"]
  assert low < 0.0 < high
  assert bootstrap([[figures | {"top1": 0.0}], [figures]])["interval"][0] == 0.0


def test_no_harmonic_mean_of_means_over_different_sets():
  """Nor where no set has both parts."""
  parts = (
    ("a", "base", 0.8),
    ("b", "base", 0.6),
    ("b", "novel", 0.2),
    ("c", "novel", 0.4),
  )
  sets = [found("own", *part) for part in parts]
  kinds = accuracy_by_group(sets)["own"]
  assert kinds["novel"]["p"] == pytest.approx({"b": 0.2, "c": 0.4, "mean of 2": 0.3})
  assert kinds["harmonic"]["p"] == pytest.approx({"b": 2 * 0.6 * 0.2 / 0.8})
  sets = [found("own", "a", "base", 0.8), found("own", "b", "novel", 0.4)]
  assert set(accuracy_by_group(sets)["own"]) == {"base", "novel"}
  assert set(counts_by_group(sets, "images")["own"]) == {"base", "novel"}


PARTS = st.sampled_from(
  ["runs", "a", "b", "seed_0", "prompt.npz", "best.npz", "rows.npy", "x@20"]
)
NAMED = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
TEXTS = st.sampled_from(
  ["a photo of a {}.", "{}.", "hand_written", "ensemble", "hf:me/a", "hf:b/a"]
)
# Few letters, so that names share their ends.
NAMES = st.lists(
  st.text("ab c", min_size=1, max_size=60), min_size=1, max_size=30, unique=True
)


@pytest.mark.parametrize(
  ("names", "labels"),
  [
    # The part that differs, with the method in it.
    (
      [
        f"/data/runs/baselines/{run}/prompt.npz"
        for run in ("coop/seed_0", "pomp/seed_0")
      ],
      ["learned (coop)", "learned (pomp)"],
    ),
    (["/x/a/last/prompt.npz", "/x/b/last/prompt.npz"], ["learned (a)", "learned (b)"]),
    # Equal names in different folders, and one path inside the other.
    (["a/best.npz", "b/best.npz"], ["learned (a)", "learned (b)"]),
    (["runs/a", "runs/a/b/prompt.npz"], ["learned (a)", "learned (b)"]),
    (["demo", "runs/demo"], ["learned (demo)", "learned (runs/demo)"]),
    # One alone keeps its folder.
    (["/home/me/runs/demo/prompt.npz"], ["learned (demo)"]),
    (["runs/demo@20", "runs/demo@80"], ["learned (demo@20)", "learned (demo@80)"]),
    (
      ["hf:me/prompts", "a {}.", "hand_written"],
      ["learned (hf:me/prompts)", "a {}.", "hand-written prompt"],
    ),
    (
      ["ensemble:imagenet", "w/zs.npy"],
      ["ensemble:imagenet", "class features (zs.npy)"],
    ),
    # The same file, written in two ways: only the names tell them apart.
    (["runs/a", "./runs/a"], ["runs/a", "./runs/a"]),
    (["gs://bucket/a/prompt.npz", "gs://bucket/b"], ["learned (a)", "learned (b)"]),
  ],
)
def test_labels_of_prompts(names, labels):
  assert prompt_labels(names) == labels


@pytest.mark.parametrize("folder", ["demo", "ensemble"])
def test_a_runs_prompt_has_one_name(folder):
  """In its own report and in that of an evaluation beside texts."""
  own = run_labels(["prompt", "hand_written"], folder)
  assert own == prompt_labels([f"/x/{folder}/prompt.npz", "hand_written"])
  assert run_labels(["prompt"], "") == ["learned prompt"]


@given(st.lists(NAMED | TEXTS, max_size=8, unique=True))
def test_different_prompts_have_different_labels(names):
  labels = prompt_labels(names)
  assert len(set(labels)) == len(labels) == len(names)


def test_every_method_has_the_name_of_its_paper_or_keeps_its_own():
  assert all(method_label(name) != name for name in METHODS)
  labels = {
    "tip_adapter_f": "Tip-Adapter-F",
    "pomp_k_16": "POMP k 16",
    "my_own": "my own",
  }
  assert {name: method_label(name) for name in labels} == labels


def test_a_cut_keeps_both_ends():
  assert (
    shorten("maroon ribbed lightning bolt on navy", 20) == "maroon rib\u2026t on navy"
  )
  assert shorten("short", 34) == "short"
  assert len(shorten(string.ascii_letters * 3, 34)) == 34


@given(NAMES, st.integers(3, 40))
def test_cut_names_stay_distinct(names, length):
  short = drawing.names([*names, names[0]], length)
  assert len(set(short)) == len(names) and short[0] == short[-1]
  # Numbers of up to 30 names need two digits and a space.
  assert all(len(one) <= max(length, 6) for one in short)
  # A name that fits stays whole, unless all are numbered.
  kept = [
    one == name for one, name in zip(short, names, strict=False) if len(name) <= length
  ]
  assert all(kept) or all(one[0].isdigit() for one in short)
