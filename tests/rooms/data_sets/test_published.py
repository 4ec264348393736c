"""The published figures agree with one another."""

import pytest

from pomp_jax.rooms.data_sets.suites import published


def test_published_harmonic_means_are_those_of_their_bases_and_news():
  of = {kind: published("base_to_new", kind, {"p": {"mean": 0.5}}) for kind in ("base", "new")}
  for name, method in published("base_to_new", "harmonic", {"p": {"mean": 0.5}}).items():
    base, new = (rows[name]["figures"]["mean"] for rows in of.values())
    assert method["figures"]["mean"] == pytest.approx(2 / (1 / base + 1 / new), abs=0.006)
