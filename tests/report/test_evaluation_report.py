"""Means of an evaluation's groups of sets, and of the published figures beside them."""

import pytest

from pomp_jax.report.evaluation_report import SetFigures, accuracy_by_group, counts_by_group
from pomp_jax.rooms.data_sets.suites import FOUR, TEN, published


def found(group, column, part, top1, images=10):
  return SetFigures(group, column, part, {"p": {"top1": top1, "images": images}})


def test_the_harmonic_mean_over_sets_is_that_of_the_means():
  parts = [("dtd", "base", 0.8), ("dtd", "new", 0.4, 7)]
  parts += [("eurosat", "base", 0.6), ("eurosat", "new", 0.2)]
  sets = [found("base_to_new", *part) for part in parts]
  kinds = accuracy_by_group(sets)["base_to_new"]
  assert kinds["base"]["p"] == pytest.approx({"dtd": 0.8, "eurosat": 0.6, "mean of 2": 0.7})
  harmonic = kinds["harmonic"]["p"]
  assert harmonic["dtd"] == pytest.approx(2 * 0.8 * 0.4 / (0.8 + 0.4))
  assert harmonic["mean of 2"] == pytest.approx(2 * 0.7 * 0.3 / (0.7 + 0.3))
  images = counts_by_group(sets, "images")["base_to_new"]
  assert images["harmonic"] == {"dtd": 17, "eurosat": 20}


def test_no_harmonic_mean_of_means_over_different_sets():
  """Nor where no set has both parts."""
  parts = (("a", "base", 0.8), ("b", "base", 0.6), ("b", "novel", 0.2), ("c", "novel", 0.4))
  sets = [found("own", *part) for part in parts]
  kinds = accuracy_by_group(sets)["own"]
  assert kinds["novel"]["p"] == pytest.approx({"b": 0.2, "c": 0.4, "mean of 2": 0.3})
  assert kinds["harmonic"]["p"] == pytest.approx({"b": 2 * 0.6 * 0.2 / 0.8})
  sets = [found("own", "a", "base", 0.8), found("own", "b", "novel", 0.4)]
  assert set(accuracy_by_group(sets)["own"]) == {"base", "novel"}
  assert set(counts_by_group(sets, "images")["own"]) == {"base", "novel"}


def test_the_ten_and_the_four_have_means_of_their_own():
  sets = [found("cross_dataset", name, "all", 0.1 * i) for i, name in enumerate(TEN)]
  sets += [found("cross_domain", name, "all", 0.2 * i) for i, name in enumerate(FOUR)]
  sets += [found("imagenet1k", "imagenet1k", "all", 0.9), found("own", "mine", "all", 0.7)]
  tables = accuracy_by_group(sets)
  assert tables["cross_dataset"]["top1"]["p"]["mean"] == pytest.approx(0.45)
  assert tables["cross_domain"]["top1"]["p"]["mean"] == pytest.approx(0.3)
  assert tables["imagenet1k"]["top1"]["p"] == {"imagenet1k": 0.9}
  assert tables["own"]["top1"]["p"] == {"mine": 0.7}


def test_published_harmonic_means_are_those_of_their_bases_and_news():
  of = {kind: published("base_to_new", kind, {"p": {"mean": 0.5}}) for kind in ("base", "new")}
  for name, method in published("base_to_new", "harmonic", {"p": {"mean": 0.5}}).items():
    base, new = (rows[name]["figures"]["mean"] for rows in of.values())
    assert method["figures"]["mean"] == pytest.approx(2 / (1 / base + 1 / new), abs=0.006)
