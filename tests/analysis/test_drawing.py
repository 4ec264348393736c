"""Shared elements of the plots: what the ticks of logarithmic axes say, names, one look."""

import re

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from pomp_jax.analysis import drawing

PLAIN = re.compile(r"\d{1,3}(,\d{3})*(\.\d+)?|\d+(\.\d+)?")


def ticks(axes, which):
  """Positions and texts of the ticks that can be seen, after the figure was drawn."""
  axis = axes.xaxis if which == "x" else axes.yaxis
  low, high = sorted(axis.get_view_interval())
  drawn = [(tick.get_loc(), tick.label1.get_text()) for tick in axis.get_major_ticks()]
  return [(at, text) for at, text in drawn if low <= at <= high]


def log_panel(low, high, which="x", values=()):
  figure, (axes,) = drawing.panels(1, 3.0, 3.0)
  axes.plot([low, high], [low, high], "o")
  drawing.log_axis(axes, which, values)
  drawing.label_panel(axes, "", "x", "y", grid="both")
  FigureCanvasAgg(figure).draw()
  return axes


@given(st.floats(-6, 6), st.floats(0.001, 9, exclude_min=True), st.sampled_from(["x", "y"]))
def test_ticks_of_a_log_axis_are_plain_numbers_at_their_place(power, decades, which):
  found = ticks(log_panel(10**power, 10 ** (power + decades), which), which)
  assert 2 <= len(found) <= 10
  for at, text in found:
    assert PLAIN.fullmatch(text), text
    assert float(text.replace(",", "")) == pytest.approx(at, rel=1e-5)
  assert len({text for _, text in found}) == len(found)


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (9, 45, {"10", "20", "40"}),
    (1.9, 45, {"2", "4", "10", "20", "40"}),
    (0.05, 0.6, {"0.1", "0.2", "0.4"}),
    (200, 40_000, {"1,000", "10,000"}),
  ],
)
def test_round_ticks(low, high, expected):
  assert expected <= {text for _, text in ticks(log_panel(low, high), "x")}


def test_measured_values_are_the_ticks():
  values = [1024, 16, 64, 256, 64]
  found = ticks(log_panel(16, 1024, values=values), "x")
  assert found == [(16, "16"), (64, "64"), (256, "256"), (1024, "1,024")]
  many = ticks(log_panel(1, 100, values=range(1, 100)), "x")
  assert len(many) <= 10


def test_plain_numbers():
  texts = {1e-4: "0.0001", 0.25: "0.25", 1.0: "1", 40.0: "40", 21841: "21,841", 1e6: "1,000,000"}
  for value, text in texts.items():
    assert drawing.plain_number(value) == text


def test_a_dollar_is_no_formula():
  """As Matplotlib reads it: an even number of unescaped dollars would start one."""
  figure, (axes,) = drawing.panels(1, 3.0, 3.0, "$x_{ and $y")
  drawing.label_panel(axes, drawing.name("a $b_{ and $c"))
  FigureCanvasAgg(figure).draw()


def test_sizes_of_text_are_the_same_everywhere():
  figure, axes_of = drawing.panels(2, 3.0, 3.0, "title")
  for axes in axes_of:
    axes.plot([1, 2], [1, 2], label="line")
    drawing.label_panel(axes, "panel", "x", "y")
    drawing.legend(axes)
  FigureCanvasAgg(figure).draw()
  sizes = {
    text.get_fontsize() for axes in axes_of for text in (*axes.get_xticklabels(), axes.xaxis.label)
  }
  assert sizes == {drawing.TEXT}
  assert np.unique([axes.title.get_fontsize() for axes in axes_of]) == [drawing.HEADING]
