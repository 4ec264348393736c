"""Fonts for text in any script: those of this machine that have the glyphs, behind DejaVu Sans.

Matplotlib takes one font and warns of each glyph that it lacks, each time that it draws. Here the
installed fonts are searched for such glyphs, and what no font has leaves one warning a script.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import functools
import logging
import unicodedata
import warnings

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

log = logging.getLogger(__name__)

# The font of all plots, which comes with Matplotlib.
DEFAULT = "DejaVu Sans"
# Letters, marks, digits and so on; joiners, variation selectors and spaces need no glyph.
_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
_SELECTORS = frozenset(range(0xFE00, 0xFE10))
_GET = (
  "install one (Debian and Ubuntu: apt install fonts-noto-core fonts-noto-cjk; other systems:"
  " https://fonts.google.com/noto), or put its .ttf or .otf file into ~/.fonts"
)
_warned: set[str] = set()  # scripts that a warning has named


@contextlib.contextmanager
def fitting(figure: Figure) -> Iterator[None]:
  """Gives all text of a figure fonts that have its glyphs, for the time that it is drawn in.

  One warning names each script, once a process, of which no font has a glyph. Matplotlib's own
  warnings of missing glyphs are silent.
  """
  for axes in figure.axes:
    # The texts of ticks are made when they are asked for.
    axes.get_xticklabels(), axes.get_yticklabels()
  texts = figure.findobj(Text)
  characters = {letter for text in texts for letter in text.get_text()}
  families, missing = families_for(characters)
  if len(families) > 1:
    for text in texts:
      text.set_fontfamily(families)
  new = sorted({script_of(letter) for letter in missing} - _warned)
  if new:
    _warned.update(new)
    shown = "".join(sorted(letter for letter in missing if script_of(letter) in new)[:20])
    log.warning(
      "plots: no font on this machine has these characters, which become boxes: %s (%s). To see"
      " them, %s",
      *(shown, ", ".join(new), _GET),
    )
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
    yield


def families_for(characters: Iterable[str]) -> tuple[list[str], str]:
  """Finds fonts that together have the glyphs of some characters.

  Returns:
    Families, DejaVu Sans first, then as few of the installed ones as a greedy choice finds; and the
    characters that none of them has, sorted.
  """
  wanted = {ord(letter) for letter in characters if _needs_a_glyph(letter)}
  wanted -= _characters_of(*_default())
  families, installed = [DEFAULT], _installed() if wanted else ()
  while wanted:
    # Of equal ones the first by name, so that the choice is the same everywhere.
    found = [(len(wanted & _characters_of(path, face)), name) for name, path, face in installed]
    most, name = max(found, key=lambda one: one[0], default=(0, ""))
    if not most:
      break
    families.append(name)
    for own, path, face in installed:
      wanted -= _characters_of(path, face) if own == name else set()
  return families, "".join(map(chr, sorted(wanted)))


def script_of(letter: str) -> str:
  """Names the script of a letter as Unicode's character names do, e.g. "Devanagari" or "CJK"."""
  name = unicodedata.name(letter, "")
  if name and unicodedata.category(letter)[0] in "LMN":
    word = name.split()[0].split("-")[0]
    return word if word == "CJK" else word.title()
  return "emoji and symbols"


def _needs_a_glyph(letter: str) -> bool:
  return unicodedata.category(letter) not in _INVISIBLE and ord(letter) not in _SELECTORS


def _default() -> tuple[str, int]:
  found = font_manager.findfont(font_manager.FontProperties(family=[DEFAULT]))
  return str(found), 0


@functools.lru_cache(maxsize=1)
def _installed() -> Sequence[tuple[str, str, int]]:
  """Name, file and face of the upright installed fonts that can be scaled, sorted by name.

  Matplotlib keeps a list of the fonts, which may be older than a font that was installed since.
  """
  manager = font_manager.fontManager
  listed = {entry.fname for entry in manager.ttflist}
  for path in font_manager.findSystemFonts():
    if path not in listed:
      with contextlib.suppress(Exception):  # of a damaged file
        manager.addfont(path)
  # Of a family the regular weight alone: the others have the same glyphs.
  upright = [
    entry
    for entry in manager.ttflist
    if entry.style == "normal"
    and entry.weight in (400, "normal", "regular")
    # Boxes for every character.
    and "lastresort" not in entry.name.lower().replace(" ", "")
  ]
  # Before Matplotlib 3.11 entries have no index: of a file with several faces it reads the first.
  return sorted({(entry.name, entry.fname, getattr(entry, "index", 0)) for entry in upright})


@functools.lru_cache(maxsize=256)
def _characters_of(path: str, face: int) -> frozenset[int]:
  """Code points with a glyph; none of a font of fixed sizes, such as a colour emoji's."""
  try:
    font = FT2Font(path, face_index=face) if face else FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
  except Exception:  # a damaged file, or one that has been removed
    return frozenset()
