"""Fonts for names in any script: found on the machine, and one warning where there is none."""

import logging
import warnings

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from pomp_jax.analysis import drawing, fonts

HAN, NAGARI = "\u4e2d", "\u0928"  # DejaVu Sans has neither


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
def machine(monkeypatch):
  """Installs fonts on a machine that has Matplotlib's alone."""
  manager = font_manager.fontManager
  own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
  monkeypatch.setattr(manager, "ttflist", own)
  monkeypatch.setattr(fonts, "_warned", set())
  found = []
  monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(found))

  def install(*paths):
    found.extend(paths)
    fonts._installed.cache_clear()

  install()
  yield install
  fonts._installed.cache_clear()
  manager._findfont_cached.cache_clear()


def save(path, *texts):
  """Draws the texts, and returns the grey values of the picture."""
  figure = Figure(figsize=(3, 1))
  for number, text in enumerate(texts):
    figure.text(0.05, 0.1 + 0.3 * number, text, fontsize=16)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    drawing.save(path, figure)
  with Image.open(path) as image:
    return np.asarray(image.convert("L")).astype(int)


def test_the_fewest_fonts_that_have_the_glyphs(machine, tmp_path):
  """Damaged and missing files are skipped."""
  (tmp_path / "damaged.ttf").write_bytes(b"no font")
  machine(
    str(tmp_path / "damaged.ttf"),
    str(tmp_path / "missing.ttf"),
    build_font(tmp_path / "a.ttf", "Han Alone", HAN),
    build_font(tmp_path / "b.ttf", "Both", HAN + NAGARI),
    build_font(tmp_path / "c.ttf", "Nagari Alone", NAGARI),
  )
  assert fonts.families_for(f"a {HAN}{NAGARI}") == ([fonts.DEFAULT, "Both"], "")
  assert fonts.families_for(f"{HAN}\U0001f9ff") == ([fonts.DEFAULT, "Both"], "\U0001f9ff")


def test_a_name_is_drawn_with_the_font_that_has_it(machine, tmp_path, caplog):
  """The font's glyph is a black square, unlike any box for a missing one."""
  without = save(tmp_path / "without.png", HAN)
  machine(build_font(tmp_path / "han.ttf", "Han", HAN))
  with caplog.at_level(logging.WARNING):
    caplog.clear()
    drawn = save(tmp_path / "with.png", HAN)
  assert not caplog.records
  dark = drawn < 50
  rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
  box = dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  assert box.mean() > 0.95 and min(box.shape) > 15
  assert (drawn != without).any()


def test_one_warning_names_the_scripts_that_no_font_has(machine, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    for number in range(2):
      save(tmp_path / f"{number}.png", f"{HAN} and {NAGARI}", NAGARI)
  [record] = caplog.records
  message = record.getMessage()
  for part in ("CJK", "Devanagari", HAN, NAGARI, "fonts-noto"):
    assert part in message
