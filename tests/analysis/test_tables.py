"""Tables of an evaluation parsed back, their means, and the published figures' consistency."""

import re

import numpy as np
import pytest

from pomp_jax.analysis.tables import (
  SetFigures,
  accuracy_by_group,
  counts_by_group,
  evaluation_tables,
  latex,
  markdown,
  published,
)
from pomp_jax.config.registry import FOUR, TEN

COLUMNS = (*TEN, "mean")


def results(seed=0):
  rng = np.random.default_rng(seed)
  prompts = ("runs/a_1/prompt.npz", "a photo of a {}.")
  rows = {label: dict(zip(COLUMNS, rng.random(11), strict=True)) for label in prompts}
  figures = {"images": 1234, "top1": 0.5, "top1_interval": [0.4, 0.6], "top5": 0.75}
  figures |= {"macro_top1": 0.45, "ece": 0.0312}
  return {
    "accuracy": {"cross_dataset": {"top1": rows}},
    "intervals": {"cross_dataset": {"top1": {prompts[0]: {"dtd": [0.125, 0.25]}}}},
    "splits": {"cross_dataset": {"sun397": "all"}},
    "images": {"cross_dataset": {"top1": dict.fromkeys(TEN, 1234)}},
    "published": {"cross_dataset": {"top1": published("cross_dataset", "top1", rows)}},
    "sets": {
      name: {"split": "all" if name == "sun397" else "test"}
      | {"prompts": dict.fromkeys(prompts, figures)}
      for name in TEN
    },
  }


def test_markdown_reads_back():
  found = results()
  text = markdown(evaluation_tables(found))
  lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
  assert lines[0] == ["prompt", *(c + " (all)" * (c == "sun397") for c in COLUMNS)]
  assert text.count("(all): all images of a folder") == 2
  rows = found["accuracy"]["cross_dataset"]["top1"]
  for label, row in rows.items():
    line = next(line for line in lines if line[0].replace("\\", "") == label)
    values = [float(cell.partition(" ")[0].strip("*")) for cell in line[1:]]
    assert ("(12.5 to 25.0)" in line[1 + COLUMNS.index("dtd")]) == (label == next(iter(rows)))
    np.testing.assert_allclose(values, 100 * np.array(list(row.values())), atol=0.05001)
  assert ["POMP, paper [1]", *"-" * 10, "67.0"] in lines
  assert "\n[1] Ren et al." in text
  # How many images each figure is of; a mean is of none.
  assert ["images", *["1234"] * 10, "-"] in lines
  figures = ["1234", "50.0", "40.0", "60.0", "75.0", "45.0", "3.1"]
  assert ["dtd: a photo of a {}.", *figures] in lines
  # Images that nothing calls test images are not called so.
  assert any(line[0] == "sun397 (all): a photo of a {}." for line in lines)


def test_latex_has_no_bare_special_letters():
  text = latex(evaluation_tables(results()))
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
  assert r"a photo of a \{\}." in text
  assert r"runs/a\_1/prompt.npz" in text
  assert not re.search(r"(?<!\\)[%_#]", text)
  assert r"POMP, paper$^{1}$" in text
  assert "(12.5 to 25.0)" in text and "sun397 (all)" in text


def test_published_harmonic_means_are_those_of_their_bases_and_news():
  mean = {"p": {"mean": 0.5}}
  for name, method in published("base_to_new", "harmonic", mean).items():
    base, new = (
      published("base_to_new", kind, mean)[name]["figures"]["mean"] for kind in ("base", "new")
    )
    assert method["figures"]["mean"] == pytest.approx(2 / (1 / base + 1 / new), abs=0.006)


def found(group, column, part, top1, images=10):
  return SetFigures(group, column, part, {"p": {"top1": top1, "images": images}})


def test_the_harmonic_mean_over_sets_is_that_of_the_means():
  sets = [
    found("base_to_new", "dtd", "base", 0.8),
    found("base_to_new", "dtd", "new", 0.4, 7),
    found("base_to_new", "eurosat", "base", 0.6),
    found("base_to_new", "eurosat", "new", 0.2),
  ]
  kinds = accuracy_by_group(sets)["base_to_new"]
  assert kinds["base"]["p"] == pytest.approx({"dtd": 0.8, "eurosat": 0.6, "mean of 2": 0.7})
  harmonic = kinds["harmonic"]["p"]
  assert harmonic["dtd"] == pytest.approx(2 * 0.8 * 0.4 / (0.8 + 0.4))
  assert harmonic["mean of 2"] == pytest.approx(2 * 0.7 * 0.3 / (0.7 + 0.3))
  images = counts_by_group(sets, "images")["base_to_new"]
  assert images["harmonic"] == {"dtd": 17, "eurosat": 20}


def test_no_harmonic_mean_of_means_over_different_sets():
  """Nor where no set has both parts."""
  sets = [
    found("own", "a", "base", 0.8),
    found("own", "b", "base", 0.6),
    found("own", "b", "novel", 0.2),
    found("own", "c", "novel", 0.4),
  ]
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
