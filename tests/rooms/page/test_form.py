"""What a visitor enters: accepted forms, and one line for each that is not."""

import io

import numpy as np
from PIL import Image
import pytest

from pomp_jax.errors import InputError
from pomp_jax.rooms.page import form


def encoded(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def noise(width, height, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  return Image.fromarray(pixels)


def test_names_are_distinct_lines():
  assert form.read_names(" red star \r\n\n blue ring\nred star\n", 2) == (
    "red star",
    "blue ring",
  )


def test_a_large_picture_is_reduced():
  read = form.read_picture(
    encoded(Image.new("RGB", (5000, 2500), (200, 30, 60)), "JPEG")
  )
  assert read.size == (form.LONGEST, form.LONGEST // 2)
  assert np.abs(np.asarray(read).astype(int) - [200, 30, 60]).max() <= 3


def test_what_the_file_says_beside_its_pixels_turns_it_and_is_dropped():
  exif = Image.Exif()
  exif[0x010E], exif[0x0112] = "a secret place", 6
  sent = encoded(noise(8, 16), "PNG", exif=exif)
  assert b"secret" in sent
  read = form.read_picture(sent)
  assert b"secret" not in form.png_of(read)
  np.testing.assert_array_equal(read, np.rot90(noise(8, 16), -1))


@pytest.mark.parametrize(
  ("content", "part"),
  [
    (b"", "the picture"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the picture"),
    (encoded(noise(64, 64))[:2000], "the picture"),
    (b"P6 9000 9000 255\n", "9000 x 9000 pixels"),  # a header alone, not decoded
  ],
)
def test_a_picture_that_is_none(content, part):
  with pytest.raises(InputError, match=part) as found:
    form.read_picture(content)
  assert "\n" not in str(found.value)


def test_boxes_come_back():
  boxes = form.read_boxes("0 0 10 5\n\n1.5, 2,3 ,4.25\n", 10, 5)
  np.testing.assert_array_equal(boxes, [[0, 0, 10, 5], [1.5, 2, 3, 4.25]])


@pytest.mark.parametrize(
  "text",
  [
    "1 2 3",
    "a b c d",
    "3 0 2 1",
    "0 0 11 5",
    "0 0 4 6",
    "0 0 nan 1",
    "0 0 1 1\n" * (form.MAX_BOXES + 1),
  ],
)
def test_boxes_that_are_none(text):
  with pytest.raises(InputError, match="boxes: got"):
    form.read_boxes(text, 10, 5)
