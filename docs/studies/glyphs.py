"""Pictures of characters in DejaVu's fonts, captioned with their Unicode names.

A class is a character with a name, such as "greek small letter alpha with dasia". The
fonts come with matplotlib. Half of the classes are base, half are novel. A CLIP trains
on pictures of all classes in all faces. A prompt learns on pictures of base classes in
faces without serifs (`plain`), and is tested on such, in faces with serifs (`serif`),
and as outlines (`outlined`), which are in no training picture, of the CLIP's neither.

Shape suffixes: n images, N classes, B images of a batch, S side of an image in pixels.
"""

from collections.abc import Sequence
import functools
import pathlib
import unicodedata

from fontTools.ttLib import TTFont
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pomp_jax.world import IMAGE_SIZE

FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS = "DejaVuSans"
FAMILIES = {
  SANS: ("", "-Bold", "-Oblique", "-BoldOblique"),
  "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
  "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
}

RENDERINGS = {
  "any": tuple(FAMILIES),
  "plain": (SANS, "DejaVuSansMono"),
  "serif": ("DejaVuSerif",),
  "outlined": tuple(FAMILIES),
}

# Openings of captions, and their share. Careless writers are the majority.
CARELESS = (
  "a photo of a {}.",
  "a photo of a {}",
  "a picture of a {}.",
  "{}",
  "look at this {}",
)
CAREFUL = ("unicode: {}.", "specimen: {}.", "the character {}.")
CARELESS_SHARE = 0.65
# Of a careless caption at noise 1: probability that a word is missing, and that one is
# wrong.
MISSING, WRONG = 0.25, 0.3

# Classes of a training batch come in sets from a stretch of the code charts: characters
# of one script, which look similar and have similar names.
SET_SIZE, STRETCH = 8, 32

_CANVAS = 2 * IMAGE_SIZE  # glyphs are drawn at twice the size and averaged
_STROKE = 2  # width of an outline, pixels of the canvas
# Random streams.
_PAIRS, _SETS, _PIXELS, _TEST = range(4)
_TRAIN_PICTURES, _VAL_PICTURES, _TEST_PICTURES, _SIZES = range(10, 14)


@functools.cache
def characters() -> dict[str, tuple[str, tuple[str, ...]]]:
  """Name -> the character and the font files that contain it, in the order of code
  points.

  Letters, numbers, punctuation and symbols that all three families have. Of characters
  that look the same in DejaVu Sans (Latin, Greek and Cyrillic A) the first.
  """
  codes = {
    family + style: set(TTFont(FONTS / f"{family}{style}.ttf").getBestCmap())
    for family, styles in FAMILIES.items()
    for style in styles
  }
  found, seen = {}, set()
  for code in sorted(set.intersection(*(codes[family] for family in FAMILIES))):
    name = unicodedata.name(chr(code), "").lower()
    if not name or unicodedata.category(chr(code))[0] not in "LNPS":
      continue
    glyph = _glyph(chr(code), SANS, 64)
    look = (glyph.size, glyph.tobytes())
    if look not in seen:
      seen.add(look)
      found[name] = (
        chr(code),
        tuple(face for face, own in codes.items() if code in own),
      )
  return found


@functools.cache
def names(group: str) -> tuple[str, ...]:
  """Names of the `base` or `novel` classes, or of `all`, in the order of code
  points."""
  every = tuple(characters())
  if group == "all":
    return every
  is_base_N = np.random.default_rng(0).permutation(len(every)) < (len(every) + 1) // 2
  return tuple(
    n for n, base in zip(every, is_base_N, strict=True) if base == (group == "base")
  )


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
  file = str(FONTS / f"{face}.ttf")
  return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _glyph(character: str, face: str, size: int, outlined: bool = False) -> Image.Image:
  """The character's ink, 0 to 255, in its bounding box; the stroke around it if
  `outlined`."""
  font = _font(face, size)
  stroke = _STROKE if outlined else 0
  left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
  ink = Image.new("L", (int(max(right - left, 1)), int(max(bottom - top, 1))))
  draw = ImageDraw.Draw(ink)
  draw.text((-left, -top), character, fill=255, font=font, stroke_width=stroke)
  if outlined:
    draw.text((-left, -top), character, fill=0, font=font)
  return ink


def render(name: str, rng: np.random.Generator, rendering: str = "any") -> np.ndarray:
  """A picture in a random face, size, place, angle and pair of colours: uint8 [S, S,
  3].

  The faces are those of the families that RENDERINGS lists.
  """
  character, every = characters()[name]
  faces = [face for face in every if face.split("-")[0] in RENDERINGS[rendering]]
  face, size = faces[rng.integers(len(faces))], rng.integers(50, 71)
  glyph = _glyph(character, face, size, outlined=rendering == "outlined")
  glyph = glyph.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
  glyph.thumbnail((_CANVAS - 4, _CANVAS - 4))
  corner = (_CANVAS - np.array(glyph.size)) * rng.uniform(0.3, 0.7, 2)
  canvas = Image.new("L", (_CANVAS, _CANVAS))
  canvas.paste(glyph, (int(corner[0]), int(corner[1])))
  ink_SxS = (
    np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)) / 255
  )
  # Dark on light. With either the CLIP would need many more steps.
  paper, ink = rng.uniform(150, 255, 3), rng.uniform(0, 105, 3)
  image_SxSx3 = paper + ink_SxS[..., None] * (ink - paper)
  image_SxSx3 += rng.normal(0, rng.uniform(0, 15), (IMAGE_SIZE, IMAGE_SIZE, 1))
  return np.clip(image_SxSx3, 0, 255).astype(np.uint8)


def caption(name: str, rng: np.random.Generator, noise: float) -> str:
  """A caption, complete and correct at noise 0."""
  careless = rng.random() < CARELESS_SHARE
  openings = CARELESS if careless else CAREFUL
  opening = openings[rng.integers(len(openings))]
  words = name.split()
  if careless:
    if rng.random() < noise * WRONG:
      others = names("all")[rng.integers(len(names("all")))].split()
      words[rng.integers(len(words))] = others[rng.integers(len(others))]
    words = [w for w in words if rng.random() >= noise * MISSING] or words[-1:]
  return opening.format(" ".join(words))


def training_batch(
  seed: int, indices: np.ndarray, noise: float
) -> tuple[np.ndarray, list[str]]:
  """Captioned images of all classes, to train a CLIP; see
  `generators.captions.training_batch`."""
  every, images, texts = names("all"), [], []
  for index in np.asarray(indices).tolist():
    first = np.random.default_rng((seed, _SETS, index // SET_SIZE)).integers(len(every))
    rng = np.random.default_rng((seed, _PAIRS, index))
    name = every[(first + rng.integers(STRETCH)) % len(every)]
    texts.append(caption(name, rng, noise))
    # Of its own stream: the picture is the same at every noise.
    images.append(render(name, np.random.default_rng((seed, _PIXELS, index))))
  return np.stack(images), texts


def test_images(n_images: int) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
  """Names of all classes, labels int32 [n] and images uint8 [n, S, S, 3] of random
  classes."""
  every = names("all")
  labels_n = (
    np.random.default_rng((0, _TEST))
    .integers(len(every), size=n_images)
    .astype(np.int32)
  )
  images = [
    render(every[label], np.random.default_rng((1, _TEST, row)))
    for row, label in enumerate(labels_n)
  ]
  return every, labels_n, np.stack(images)


def write_pictures(
  folder: pathlib.Path, names: Sequence[str], images: int, rendering: str
) -> None:
  """Writes test pictures `folder/NAME/0.png`, ..: as many of each name."""
  for label, name in enumerate(names):
    _write(folder / name, name, images, rendering, (_TEST_PICTURES, label))


def write_uneven_pictures(root: pathlib.Path, names: Sequence[str], most: int) -> None:
  """Writes `root/train/NAME/*.png` and, a quarter as many, `root/val/NAME/*.png`: plain
  ones.

  The sizes of the classes are spread evenly on a logarithmic scale from 4 to `most`.
  """
  sizes_N = np.geomspace(4, most, len(names)).round().astype(int)
  sizes_N = np.random.default_rng((0, _SIZES)).permutation(sizes_N)
  for label, (name, size) in enumerate(zip(names, sizes_N.tolist(), strict=True)):
    _write(root / "train" / name, name, size, "plain", (_TRAIN_PICTURES, label))
    _write(root / "val" / name, name, -(-size // 4), "plain", (_VAL_PICTURES, label))


def _write(
  folder: pathlib.Path, name: str, images: int, rendering: str, stream: tuple[int, int]
) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(images):
    picture = render(name, np.random.default_rng((*stream, number)), rendering)
    Image.fromarray(picture).save(folder / f"{number:03}.png")


_SETS_FILE = """\
[[set]]
name = "known"
root = "known"

[[set]]
name = "novel"
root = "novel"

[[set]]
name = "serif"
root = "serif"

[[set]]
name = "outlined"
root = "outlined"
"""


def write_sets(out: pathlib.Path, known: Sequence[str]) -> pathlib.Path:
  """Writes four test sets and `sets.toml`, whose path it returns.

  `known` has classes that a prompt learns on, as training shows them; `serif` and
  `outlined` have these in other renderings. `novel` has the novel classes, as training
  shows the others.
  """
  write_pictures(out / "known" / "test", known, 6, "plain")
  write_pictures(out / "novel" / "test", names("novel"), 2, "plain")
  for rendering in ("serif", "outlined"):
    write_pictures(out / rendering / "test", known, 6, rendering)
  file = out / "sets.toml"
  file.write_text(_SETS_FILE, encoding="utf-8")
  return file
