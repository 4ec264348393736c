"""Reads and checks the input of a visitor: a picture, names, boxes.

No input can name a file of the server. Boxes are x0, y0, x1, y1 in pixels; the ends are
exclusive. Shapes: R boxes.
"""

import io
import re
from typing import NamedTuple

from jaxtyping import Float32
import numpy as np
from PIL import Image

from pomp_jax.data.class_lists import check_names
from pomp_jax.data.images import load_rgb, open_image
from pomp_jax.errors import InputError
from pomp_jax.files.terminal import quoted

# Longest side of a picture that is computed and shown, pixels.
LONGEST = 1024
MAX_BOXES = 20
MAX_PROMPTS = 8


class FormError(InputError, ValueError):
  """The page can't use an input; the message is one line."""


class Example(NamedTuple):
  """A picture to begin with; `names` and `boxes` have one item a line."""

  image: Image.Image
  names: str
  boxes: str = ""


def lines_of(text: str) -> list[str]:
  """The lines of a field that are not blank."""
  return list(filter(None, map(str.strip, text.splitlines())))


def read_names(text: str, most: int) -> tuple[str, ...]:
  """Reads 1 to `most` distinct names, one a line; FormError or VocabularyError."""
  names = tuple(dict.fromkeys(lines_of(text)))
  if not 0 < len(names) <= most:
    raise FormError(f"names: got {len(names):,}, expected 1 to {most:,}, one a line")
  check_names(names, "names")
  return names


def read_templates(text: str) -> tuple[str, ...]:
  """Reads distinct texts with one {} each, one a line; there may be none.

  Errors are FormError and VocabularyError.
  """
  texts = tuple(dict.fromkeys(lines_of(text)))
  if wrong := [one for one in texts if one.count("{}") != 1]:
    got = quoted(wrong[0])
    raise FormError(f"templates: got {got}, expected a text with one {{}} for the name")
  if texts:
    check_names(texts, "templates")
  return texts


def read_picture(content: bytes) -> Image.Image:
  """Decodes a picture to RGB, upright as browsers show it.

  A picture whose longer side exceeds LONGEST pixels is reduced to LONGEST pixels.

  Args:
    content: the uploaded file.

  Raises:
    FormError: the file is empty.
    ImageError: the file is no picture that `data.images` can decode.
  """
  if not content:
    raise FormError("the picture: the file is empty")
  image = open_image(content, "the picture")
  # Decoding a JPEG at 1/2, 1/4 or 1/8 of its size is faster. Take the smallest size
  # that is not below LONGEST.
  shrink = 1
  for divisor in (2, 4, 8):
    if max(image.size) >= divisor * LONGEST:
      shrink = divisor
  rgb, _ = load_rgb(image, "the picture", shrink, upright=True)
  rgb.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
  return rgb


def png_of(image: Image.Image) -> bytes:
  """Encodes a picture, without the metadata of its file."""
  file = io.BytesIO()
  Image.fromarray(np.asarray(image)).save(file, "PNG")
  return file.getvalue()


def read_boxes(text: str, width: int, height: int) -> Float32[np.ndarray, "R 4"]:
  """Reads boxes inside a picture, four numbers a line.

  Args:
    text: entered boxes, one a line.
    width: width of the picture in pixels.
    height: height of the picture in pixels.

  Returns:
    1 to MAX_BOXES boxes x0, y0, x1, y1 in pixels.

  Raises:
    FormError: there are no boxes or too many, or a line is no box inside the picture.
  """
  lines = lines_of(text)
  if not 0 < len(lines) <= MAX_BOXES:
    raise FormError(f"boxes: got {len(lines)}, expected 1 to {MAX_BOXES}, one a line")
  boxes = []
  for line in lines:
    try:
      box = [float(part) for part in re.split(r"[\s,]+", line)]
      x0, y0, x1, y1 = box
    except ValueError as error:
      raise FormError(
        f"boxes: got {line[:60]!r}, expected four numbers x0 y0 x1 y1"
      ) from error
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
      expected = f"expected x0 < x1 and y0 < y1 inside {width} x {height} pixels"
      raise FormError(f"boxes: got {line[:60]!r}, {expected}")
    boxes.append(box)
  return np.array(boxes, np.float32)
