"""Tables of an evaluation, read back; and what was published, against itself."""

import re

import numpy as np
import pytest

from pomp_jax.analysis.tables import Row, Table, evaluation_tables, latex, markdown, published
from pomp_jax.data.suites import SUITES, TEN

COLUMNS = (*TEN, "mean")


def results(seed=0):
  rng = np.random.default_rng(seed)
  prompts = ("runs/a_1/prompt.npz", "a photo of a {}.")
  rows = {label: dict(zip(COLUMNS, rng.random(11), strict=True)) for label in prompts}
  figures = {"top1": 0.5, "top5": 0.75, "macro_top1": 0.45, "ece": 0.0312}
  return {
    "accuracy": {"top1": rows},
    "published": {"top1": published("cross_dataset", "top1")},
    "sets": {name: {"prompts": dict.fromkeys(prompts, figures)} for name in TEN},
  }


def test_markdown_reads_back():
  found = results()
  text = markdown(evaluation_tables(found))
  lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
  assert lines[0] == ["prompt", *COLUMNS]
  for label, row in found["accuracy"]["top1"].items():
    line = next(line for line in lines if line[0].replace("\\", "") == label)
    values = [float(cell.strip("*")) for cell in line[1:]]
    np.testing.assert_allclose(values, 100 * np.array(list(row.values())), atol=0.05001)
  # Bold: the higher of the two in each column.
  bold = {line[0]: [cell.startswith("**") for cell in line[1:]] for line in lines[2:4]}
  first, second = bold.values()
  a, b = (np.array(list(row.values())) for row in found["accuracy"]["top1"].values())
  assert first == (a > b).tolist()
  assert second == (b > a).tolist()
  assert ["POMP, paper [1]", *"-" * 10, "67.0"] in lines
  assert "\n[1] Ren et al." in text
  assert ["dtd: a photo of a {}.", "50.0", "75.0", "45.0", "3.1"] in lines


def test_latex_has_a_cell_for_each_column_and_no_bare_special_letters():
  text = latex(evaluation_tables(results()))
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
  body = text[: text.index(r"\end{tabular}")]
  rows = [line for line in body.splitlines() if line.endswith(r"\\")]
  # Two of ours, four published, and the head.
  assert len(rows) == 7
  for row in rows:
    assert len(re.split(r"(?<!\\)&", row)) == 12
  assert r"a photo of a \{\}." in text
  assert r"runs/a\_1/prompt.npz" in text
  assert not re.search(r"(?<!\\)[%_#]", text)
  assert r"POMP, paper$^{1}$" in text


def test_one_prompt_alone_is_not_bold():
  table = Table("t", "c", ("x",), (Row("a", (1.0,)), Row("b", (2.0,), 1)), ("note",))
  assert "**" not in markdown([table])


def test_what_was_published_is_of_these_suites():
  for suite, entry in SUITES.items():
    for kind in ("top1", "base", "new", "harmonic"):
      for method in published(suite, kind).values():
        assert set(method["figures"]) <= {*entry.sets, "mean"}
        assert all(0 < value < 100 for value in method["figures"].values())
        assert len(method["source"]) > 20


def test_published_harmonic_means_are_those_of_their_bases_and_news():
  for name, method in published("base_to_new", "harmonic").items():
    base, new = (published("base_to_new", k)[name]["figures"]["mean"] for k in ("base", "new"))
    assert method["figures"]["mean"] == pytest.approx(2 / (1 / base + 1 / new), abs=0.006)
