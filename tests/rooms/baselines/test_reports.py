"""The reports of methods and of seeds side by side: every figure is on their pages."""

import pytest

from pomp_jax.rooms.baselines.reports import method_labels
from tests.support.report_page import Case, check_page


def baselines_results():
  one = {"mean": 0.4, "std": 0.0, "values": [0.4], "images": 1000, "interval": [0.37, 0.43]}
  two = one | {"mean": 0.611, "std": 0.012, "values": [0.6, 0.62], "classes": 50}
  two |= {"t_interval": [0.5, 0.7]}
  cost = {"seconds": {"median": 7.25}, "peak_mib": None, "not_evaluated": []}
  methods = {
    "maple": cost | {"method": "maple", "n_runs": 2, "top1": {"base": two, "novel": two}},
    "linear_probe": cost | {"method": "linear_probe", "n_runs": 1, "top1": {"base": one}},
  }
  settings = [["maple", {"prompt.m": 2}], ["<own>", {}]]
  failed = {"<own>": "TrainingError: loss is nan & more"}
  return {"settings": settings, "methods": methods, "failed": failed}


def seeds_results():
  of_split = {
    "prompt": {"mean": 0.611, "std": 0.012, "values": [0.6, 0.622], "t_interval": [0.5, 0.7]},
    "hand_written": {"mean": 0.4, "std": 0.0, "values": [0.4, 0.4], "t_interval": [0.4, 0.4]},
  }
  scores = {
    name: {"images": 1000, "top1": top1, "top1_interval": [0.37, 0.43]}
    for name, top1 in of_split.items()
  }
  gain = {"top1": of_split["prompt"] | {"spread": 0.022}, "gain": 0.211}
  found = {"method": "pomp", "clip_model": "world", "seeds": [3, 5], "steps": 240, "k": 64}
  found |= {"n_classes": 1000, "correction": None, "eval_classes": {"base": 50}}
  found |= {"seconds": {"values": [7.25, 8.5]}, "eval": {"base": scores}}
  return found | {"gain": {"base": gain | {"best_hand_written": "hand_written"}}}


CASES = [
  Case(
    "baselines",
    baselines_results(),
    ("accuracy.png",),
    """2 methods side by side

method | seeds
MaPLe | 2 | 61.1 ± 1.2 | 61.1 ± 1.2
linear probe | 1 | 40.0 | -

method | error
<own> | TrainingError: loss is nan & more""",
  ),
  Case(
    "repeat",
    seeds_results(),
    ("accuracy.png",),
    """Training: 2 seeds, 1,000 classes

prompt | base, 1,000 images, 50 classes
learned prompt | 61.1 ± 1.2
hand-written prompt | 40.0 ± 0.0
learned prompt | images 37.0 to 43.0; seeds 50.0 to 70.0
hand-written prompt | images 37.0 to 43.0; seeds 40.0 to 40.0

split
base, 1,000 images, 50 classes | +21.1 | hand-written prompt | 2.2

seed | base, 1,000 images, 50 classes
3 | 60.0
5 | 62.2""",
    {"training of a seed (s)": "7.2, 8.5", "steps": "240"},
  ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.job)
def test_every_figure_is_on_the_page(case, tmp_path):
  parsed = check_page(case, tmp_path)
  links = {"seed_3/report.html", "seed_5/report.html"}
  assert (links <= set(parsed.links)) == (case.job == "repeat")


def test_methods_that_would_look_equal_keep_their_names():
  assert method_labels(["a_b", "pomp"]) == ["a b", "POMP"]
  assert method_labels(["a_b", "a b"]) == ["a_b", "a b"]
