"""Means over the sets of a suite, and the published figures beside ours."""

import pytest

from pomp_jax.data.class_lists import FOUR, TEN
from pomp_jax.report.evaluation_report import (
  accuracy_by_group,
)
from pomp_jax.rooms.data_sets.suites import published
from tests.report.test_reports import found


def test_the_ten_and_the_four_have_means_of_their_own():
  sets = [found("cross_dataset", name, "all", 0.1 * i) for i, name in enumerate(TEN)]
  sets += [found("cross_domain", name, "all", 0.2 * i) for i, name in enumerate(FOUR)]
  sets += [
    found("imagenet1k", "imagenet1k", "all", 0.9),
    found("own", "mine", "all", 0.7),
  ]
  tables = accuracy_by_group(sets)
  assert tables["cross_dataset"]["top1"]["p"]["mean"] == pytest.approx(0.45)
  assert tables["cross_domain"]["top1"]["p"]["mean"] == pytest.approx(0.3)
  assert tables["imagenet1k"]["top1"]["p"] == {"imagenet1k": 0.9}
  assert tables["own"]["top1"]["p"] == {"mine": 0.7}


def test_published_harmonic_means_are_those_of_their_bases_and_news():
  of = {
    kind: published("base_to_new", kind, {"p": {"mean": 0.5}})
    for kind in ("base", "new")
  }
  for name, method in published(
    "base_to_new", "harmonic", {"p": {"mean": 0.5}}
  ).items():
    base, new = (rows[name]["figures"]["mean"] for rows in of.values())
    assert method["figures"]["mean"] == pytest.approx(
      2 / (1 / base + 1 / new), abs=0.006
    )
