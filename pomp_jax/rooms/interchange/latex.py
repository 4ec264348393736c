"""A report as tables in LaTeX, for papers."""

from pomp_jax.report.report import Report, Section, Table, cells, headings

_LATEX_ESCAPES = {ord(letter): f"\\{letter}" for letter in "&%$#_{}"} | {
  ord("\\"): r"\textbackslash{}",
  ord("~"): r"\textasciitilde{}",
  ord("^"): r"\textasciicircum{}",
}


def latex(report: Report) -> str:
  r"""Formats the brief sections for a LaTeX document with `\usepackage{booktabs}`."""
  parts = [f"% {report.title}\n% {report.text}"]
  for section in report.sections:
    if section.brief and section.table:
      parts.append(_latex_table(section, section.table))
    elif section.brief:
      parts += [f"% {text}" for text in (section.title, section.text, *section.notes) if text]
  return "\n\n".join(parts) + "\n"


def _latex_table(section: Section, table: Table) -> str:
  escaped = lambda text: text.translate(_LATEX_ESCAPES)
  marks, columns = table.marks or [""] * len(table.rows), headings(table)
  rows = [map(escaped, columns), *cells(table, escaped, r"\textbf{{{}}}")]
  lines = [rf"{' & '.join(row)} \\" for row in rows]
  for r in reversed(range(len(marks))):
    if r == 0 or marks[r] != marks[r - 1]:
      lines.insert(1 + r, r"\midrule")
  caption = escaped(". ".join(filter(None, (section.title, section.text))))
  before = rf"""\begin{{table}}
\centering
\caption{{{caption}}}
\begin{{tabular}}{{l{"r" * (len(columns) - 1)}}}
\toprule"""
  notes = [rf"\par\footnotesize {escaped(note)}" for note in section.notes]
  return "\n".join([before, *lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"])
