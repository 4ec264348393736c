"""Fonts for names in any script: found on the machine, and one warning where there is none."""

import logging
import warnings

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from pomp_jax.analysis import drawing

HAN = "\u4e2d"  # DejaVu Sans has no glyph


def build_font(path, family, characters):
  """Writes a font that has these characters, as squares."""
  pen = TTGlyphPen(None)
  pen.moveTo((100, 0))
  for point in ((100, 800), (900, 800), (900, 0)):
    pen.lineTo(point)
  pen.closePath()
  square = pen.glyph()
  builder = FontBuilder(1000, isTTF=True)
  glyphs = [".notdef", *(f"u{ord(letter):04X}" for letter in characters)]
  builder.setupGlyphOrder(glyphs)
  builder.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in characters})
  builder.setupGlyf(dict.fromkeys(glyphs, square))
  builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
  builder.setupHorizontalHeader(ascent=800, descent=-200)
  builder.setupNameTable({"familyName": family, "styleName": "Regular"})
  builder.setupOS2(sTypoAscender=800, usWeightClass=400)
  builder.setupPost()
  builder.save(path)
  return str(path)


@pytest.fixture
def install(monkeypatch):
  """Installs fonts on a machine that has Matplotlib's alone."""
  manager = font_manager.fontManager
  own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
  monkeypatch.setattr(manager, "ttflist", own)
  monkeypatch.setitem(rcParams, "font.family", ["sans-serif"])
  drawing._warn_once.cache_clear()

  def install(path):
    manager.addfont(path)
    monkeypatch.setitem(rcParams, "font.family", drawing.families())

  yield install
  drawing._warn_once.cache_clear()
  manager._findfont_cached.cache_clear()


def save(path, *texts):
  """Draws the texts, and returns the grey values of the picture."""
  figure = Figure(figsize=(3, 1))
  for number, text in enumerate(texts):
    figure.text(0.05, 0.1 + 0.3 * number, text, fontsize=16)
  drawing.save(path, figure)
  with Image.open(path) as image:
    return np.asarray(image.convert("L")).astype(int)


def test_a_name_is_drawn_with_the_font_that_has_it(install, tmp_path, caplog):
  """The font's glyph is a black square, unlike any box for a missing one; one warning without."""
  with caplog.at_level(logging.WARNING):
    without = [save(tmp_path / "without.png", HAN, HAN) for _ in range(2)]
    [record] = caplog.records
    assert "fonts-noto-cjk" in record.getMessage()
    drawing._warn_once.cache_clear()
    caplog.clear()
    install(build_font(tmp_path / "han.ttf", "Noto Sans CJK JP", HAN))
    drawn = save(tmp_path / "with.png", HAN)
    assert not caplog.records
  dark = drawn < 50
  rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
  box = dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  assert box.mean() > 0.95 and min(box.shape) > 15
  assert (drawn != without[0]).any()


def test_other_warnings_of_a_picture_are_passed_on(tmp_path, monkeypatch):
  monkeypatch.setattr(Figure, "savefig", lambda *_, **__: warnings.warn("other", stacklevel=1))
  with pytest.warns(UserWarning, match="other"):
    drawing.save(tmp_path / "a.png", Figure())
