"""Shared elements of the plots: what the ticks of logarithmic axes say, names, one look."""

import re

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
import pytest

from pomp_jax.report import drawing

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


def test_a_dollar_is_no_formula():
  """As Matplotlib reads it: an even number of unescaped dollars would start one."""
  figure, (axes,) = drawing.panels(1, 3.0, 3.0, "$x_{ and $y")
  drawing.label_panel(axes, drawing.name("a $b_{ and $c"))
  FigureCanvasAgg(figure).draw()
