"""Sheets of pictures: letters that can be read however wide they are, and legends that fit."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from pomp_jax.analysis import sheets

NAMES = [f"maroon ribbed lightning bolt on teal {n}" for n in range(12)]
# A page shows a sheet at most as wide as this, inches.
SHOWN = 12.0


@pytest.mark.parametrize(("columns", "n_classes"), [(2, 12), (4, 3), (7, 12), (13, 3)])
def test_letters_of_a_sheet_that_is_reduced_to_a_page(columns, n_classes):
  legends = [sheets.colours_of(range(n_classes)), sheets.colours_of(range(3))]
  pictures = [[np.zeros((4, 4, 3), np.uint8)] * columns] * 2
  headings = [f"learned, coop/seed_{n}" for n in range(columns)]
  figure, axes_of = sheets.picture_rows(pictures, legends, headings, NAMES, "2 of 400 images")
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  whole = figure.bbox
  reduced = min(1.0, SHOWN / figure.get_figwidth())
  first, second = (legend.get_window_extent() for legend in figure.legends)
  assert first.y0 >= second.y1  # one above the other
  assert second.y0 >= 0 and max(first.x1, second.x1) <= whole.x1
  shown = reduced * figure.legends[1].get_texts()[0].get_fontsize()
  assert shown > 6
  titles = [axes.title.get_window_extent() for axes in axes_of[0]]
  assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))
