"""Labels of prompts and methods: what they say, and that different names never look equal."""

import string

from hypothesis import given
from hypothesis import strategies as st
import pytest

from pomp_jax.registry import METHODS
from pomp_jax.report import drawing
from pomp_jax.report.labels import method_label, prompt_labels, shorten

PARTS = st.sampled_from(["runs", "a", "b", "seed_0", "prompt.npz", "best.npz", "rows.npy", "x@20"])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
TEXTS = st.sampled_from(
  ["a photo of a {}.", "{}.", "hand_written", "ensemble", "hf:me/a", "hf:b/a"]
)
# Few letters, so that names share their ends.
NAMES = st.lists(st.text("ab c", min_size=1, max_size=60), min_size=1, max_size=30, unique=True)


@pytest.mark.parametrize(
  ("names", "labels"),
  [
    # The part that differs, with the method in it.
    (
      [f"/data/runs/baselines/{run}/prompt.npz" for run in ("coop/seed_0", "pomp/seed_0")],
      ["learned, coop", "learned, pomp"],
    ),
    (["/x/a/last/prompt.npz", "/x/b/last/prompt.npz"], ["learned, a", "learned, b"]),
    # Equal names in different folders, and one path inside the other.
    (["a/best.npz", "b/best.npz"], ["learned, a", "learned, b"]),
    (["runs/a", "runs/a/b/prompt.npz"], ["learned, a", "learned, b"]),
    (["demo", "runs/demo"], ["learned, demo", "learned, runs/demo"]),
    # One alone keeps its folder.
    (["/home/me/runs/demo/prompt.npz"], ["learned, runs/demo"]),
    (["runs/demo@20", "runs/demo@80"], ["learned, demo@20", "learned, demo@80"]),
    (
      ["hf:me/prompts", "a {}.", "hand_written"],
      ["learned, hf:me/prompts", "a {}.", "hand-written prompt"],
    ),
    (["ensemble:imagenet", "w/zs.npy"], ["ensemble:imagenet", "class features, w/zs.npy"]),
    # The same file, written in two ways: only the names tell them apart.
    (["runs/a", "./runs/a"], ["runs/a", "./runs/a"]),
    (["gs://bucket/a/prompt.npz", "gs://bucket/b"], ["learned, a", "learned, b"]),
  ],
)
def test_labels_of_prompts(names, labels):
  assert prompt_labels(names) == labels


@given(st.lists(PATHS | TEXTS, max_size=8, unique=True))
def test_different_prompts_have_different_labels(names):
  labels = prompt_labels(names)
  assert len(set(labels)) == len(labels) == len(names)


def test_every_method_has_the_name_of_its_paper_or_keeps_its_own():
  assert all(method_label(name) != name for name in METHODS)
  labels = {"tip_adapter_f": "Tip-Adapter-F", "pomp_k_16": "POMP k 16", "my_own": "my own"}
  assert {name: method_label(name) for name in labels} == labels


def test_a_cut_keeps_both_ends():
  assert shorten("maroon ribbed lightning bolt on navy", 20) == "maroon rib\u2026t on navy"
  assert shorten("short", 34) == "short"
  assert len(shorten(string.ascii_letters * 3, 34)) == 34


@given(NAMES, st.integers(3, 40))
def test_cut_names_stay_distinct(names, length):
  short = drawing.names([*names, names[0]], length)
  assert len(set(short)) == len(names) and short[0] == short[-1]
  # Numbers of up to 30 names need two digits and a space.
  assert all(len(one) <= max(length, 6) for one in short)
  # A name that fits stays whole, unless all are numbered.
  kept = [one == name for one, name in zip(short, names, strict=False) if len(name) <= length]
  assert all(kept) or all(one[0].isdigit() for one in short)
