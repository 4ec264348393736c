"""The tables of a report in LaTeX and Markdown, beside the page."""

import re

import pytest

from pomp_jax.report.report import INTERVAL, Report, Section, Table, facts, markdown
from pomp_jax.rooms.data_sets.suites import published
from pomp_jax.rooms.interchange.latex import latex
from tests.report.test_reports import PROMPTS, evaluation_results
from tests.support.report_page import page_of


def test_markdown_and_latex_have_the_figures_of_the_page(tmp_path):
  """Published figures with their source beside ours, which are bold above the first
  prompt."""
  found = evaluation_results()
  top1 = {
    label: {"dtd": 0.511 + i / 10, "mean": 0.4} for i, label in enumerate(PROMPTS)
  }
  found["accuracy"] = {"cross_dataset": {"top1": top1}}
  found["images"] = {"cross_dataset": {"top1": {"dtd": 1234}}}
  ends = {
    PROMPTS[1]: {"dtd": [0.01, 0.2], "mean": [-0.1, 0.1]},
    PROMPTS[2]: {"dtd": [0.0, 0.4]},
  }
  found["differences"] = {
    "cross_dataset": {
      "top1": {
        label: {
          column: {"top1": 0.1, "interval": own} for column, own in of_label.items()
        }
        for label, of_label in ends.items()
      }
    }
  }
  found["published"] = {
    "cross_dataset": {"top1": published("cross_dataset", "top1", top1)}
  }
  found["splits"] = {"cross_dataset": {"dtd": "all"}}
  page_of("evaluate", tmp_path, found)
  text = (tmp_path / "results.md").read_text()
  lines = [
    line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")
  ]
  assert ["prompt", "dtd (all)", "mean"] in lines and ["images", "1,234", "-"] in lines
  assert ["POMP, paper \\[1]", "-", "67.0"] in lines and "\n[1] Ren et al." in text
  ours = [line[1:] for line in lines if len(line) == 3 and line[2] == "40.0"]
  assert ours == [["51.1", "40.0"], ["**61.1**", "40.0"], ["71.1", "40.0"]]
  assert "(all): all images of a folder" in text and "1 sets are missing" in text
  assert "a \\<b>&" in text  # escaped
  assert "## Prompts" in text and "## Calibration" not in text  # brief
  text = (tmp_path / "results.tex").read_text()
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 3
  body = "".join(line for line in text.splitlines() if not line.startswith("%"))
  assert not re.search(r"(?<!\\)[%_#]", body)
  assert re.findall(r"\\textbf\{([^}]*)\}", body) == ["61.1"]
  assert "/data" not in text  # paths of a machine
  assert "71.1" in body and "POMP, paper [1]" in body and r"of a \{\}." in body


PACKAGES = {"toprule": "booktabs", "rotatebox": "graphicx", "resizebox": "graphicx"}


def latex_of(rows, columns, text=INTERVAL, bold=((1, 1),)):
  table = Table(columns, rows, bold=list(bold))
  section = Section("part", text, table, brief=True)
  return latex(Report("title", "text of /home/me/runs", [section]))


@pytest.mark.parametrize("n_sets", [2, 11, 14])
def test_a_wide_table_is_compact_in_latex(n_sets):
  """Without intervals, and without the sentence on them; the header names what it
  needs."""
  row = ["51.1 (48.1 to 53.1)"] * n_sets
  rows = [
    [label, *row] for label in ("a photo of a {}.", "[x] learned (/home/me/demo)")
  ]
  text = latex_of(rows, ["prompt", *(f"stanford_cars {n}" for n in range(n_sets))])
  head, body = text.split(r"\begin{table}", 1)
  used = {package for command, package in PACKAGES.items() if rf"\{command}" in body}
  assert used and all(rf"\usepackage{{{package}}}" in head for package in used)
  assert ("48.1 to 53.1" in body) == ("In brackets" in body) == (n_sets == 2)
  assert body.count(r"\rotatebox") == (n_sets if n_sets > 2 else 0)
  assert "home" not in text
  # Behind the end of a line LaTeX reads "[x]" as a length.
  assert not re.search(r"\\\\\s*\[", body) and r"\textbf{51.1" in body


def test_a_long_table_is_divided_in_latex():
  text = latex_of([[f"set {n}", "-1.5"] for n in range(90)], ["set", "difference"])
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
  assert all(rf"set {n} & $-$1.5 \\" in text for n in range(90) if n != 1)


def test_each_part_of_a_long_table_has_its_own_bold_figures():
  bold = [1, 39, 40, 41, 89]
  text = latex_of(
    [[f"set {n}", f"{n}.5"] for n in range(90)],
    ["set", "difference"],
    bold=[(n, 1) for n in bold],
  )
  assert re.findall(r"\\textbf\{([^}]*)\}", text) == [f"{n}.5" for n in bold]


def test_each_part_of_a_long_table_has_its_own_marks():
  """A line stands above the first row of a page, and where the mark changes."""
  rows = [[f"set {n}", "1"] for n in range(90)]
  marks = ["learned"] * 50 + ["published"] * 40
  section = Section("part", table=Table(["set", "top-1"], rows, marks), brief=True)
  text = latex(Report("title", "text", [section]))
  below_a_line = re.findall(r"\\midrule\s+set (\d+)", text)
  assert below_a_line == ["0", "40", "50", "80"]


def test_headings_are_broken_and_a_sign_is_a_minus():
  text = latex_of(
    [["a-b", "-0.5 ± 0.1"]] * 2, ["prompt", "base, 2,000 images, 50 classes"]
  )
  assert r"\shortstack{base \\ 2,000 images \\ 50 classes}" in text
  assert r"a-b & $-$0.5 $\pm$ 0.1" in text


def test_tables_without_rows_or_headings_have_as_many_columns_as_their_cells():
  """A line of a LaTeX table with more cells than its columns is an error."""
  for table, columns in (
    (Table(("a", "b"), []), 2),
    (facts({"a": 1}), 2),
    (facts({}), 1),
  ):
    report = Report("title", "text", [Section("part", table=table, brief=True)])
    text = latex(report)
    [layout] = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    cells = {line.count("&") + 1 for line in text.splitlines() if line.endswith(r"\\")}
    assert (len(layout), cells) == (columns, {columns})
    lines = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert {line.count("|") - 1 for line in lines} == {columns}
