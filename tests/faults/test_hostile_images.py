"""Hostile and damaged images and lists of names: refused in one line, for little memory.

Hostile archives and pickles: tests/files/test_prompt_file.py and test_pickles.py.
"""

from collections.abc import Iterator
import io
import sys
import warnings
import zlib

from hypothesis import given
import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_lists import VocabularyError, read_names
from pomp_jax.data.images import ImageError, decode_image, load_rgb, open_image
from tests.support.fuzzing import damaged
from tests.support.memory import peak_mib
from tests.support.prompt_files import refusal

# The largest image takes 320 MiB in Pillow: as it is stored, and in RGB.
PEAK_MIB = 350

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
_started: list[str] = []
sys.addaudithook(
  lambda event, arguments: (
    _started.append(str(arguments)) if event in ("subprocess.Popen", "os.system") else None
  )
)


def read_image(content: bytes) -> np.ndarray | None:
  """Reads an image as tests and as views do, which must agree; None if it is left out."""
  found, n_started = None, len(_started)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      found = decode_image(content, "x.jpg", 64)
      assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)
    except ImageError as error:
      assert str(error).isprintable() and len(str(error)) < 500, error
    try:
      whole, _ = load_rgb(open_image(content, "x.jpg"), "x.jpg")
      assert whole.mode == "RGB"
      # One of them alone may refuse its size.
      assert found is not None or max(whole.size) > 50 * min(whole.size)
    except ImageError:
      assert found is None
  assert len(_started) == n_started, _started[n_started:]
  return found


def encoded(kind: str, image: Image.Image | None = None) -> bytes:
  file = io.BytesIO()
  (image or Image.new("RGB", (16, 16), (200, 30, 90))).save(file, kind)
  return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_images(kind):
  y, x = np.mgrid[:90, :120]
  waves = 127 + 120 * np.sin(x[..., None] / [9, 14, 23] + y[..., None] / 11)
  content = encoded(kind, Image.fromarray(waves.astype(np.uint8)))
  expected = decode_image(content, "x", 64)

  @given(damaged([content]))
  def check(bad):
    found = read_image(bad)
    # The other formats have no checksum: a flipped bit can be another picture to any decoder. Of a
    # PNG a part that is repeated behind its end is ignored.
    assert kind != "PNG" or found is None or np.array_equal(found, expected)

  check()


def png(width: int, height: int, *more: bytes) -> bytes:
  """Makes a black PNG of 1 bit per pixel, at most a megabyte, with chunks before its pixels."""
  header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
  rows = bytes(min((width // 8 + 1) * height, 2**20))
  chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows, 1))]
  return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


def chunk(kind: bytes, content: bytes) -> bytes:
  body = kind + content
  return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def resized(content: bytes, start: int, size: bytes) -> bytes:
  return content[:start] + size + content[start + len(size) :]


def hostile_images() -> Iterator[tuple[str, bytes]]:
  """Yields files that must not be decoded: other languages, headers with too many pixels."""
  yield "EPS", _EPS
  yield "EPS behind a preview", b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + _EPS
  yield "PostScript", b"%!PS\n/Helvetica findfont 9 scalefont setfont showpage\n"
  yield "PDF", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n"
  yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
  yield "WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(200)
  yield "MPEG", b"\0\0\1\xb3" + bytes(200)
  yield "PNG just above the limit", png(8200, 8200)
  yield "PNG of 40,000 x 40,000", png(40_000, 40_000)
  yield "PNG as a thread", png(100_000, 1)
  yield "PPM", b"P6 60000 60000 255\n" + bytes(300)
  yield "PGM of 16 bits", b"P5 60000 60000 65535\n" + bytes(300)
  yield "BMP", resized(encoded("BMP"), 18, (50_000).to_bytes(4, "little") * 2)
  yield "GIF", resized(encoded("GIF"), 6, (65_535).to_bytes(2, "little") * 2)
  jpeg = encoded("JPEG")
  yield "JPEG", resized(jpeg, jpeg.index(b"\xff\xc0") + 5, (65_500).to_bytes(2) * 2)
  file = io.BytesIO()
  Image.new("1", (9000, 9000)).save(file, "TIFF", compression="group4")
  yield "TIFF", file.getvalue()
  text = zlib.compress(bytes(200 * 2**20), 9)
  yield "PNG with a text of 200 MiB", png(8, 8, chunk(b"zTXt", b"a\0\0" + text))


def test_hostile_images_are_left_out():
  for name, content in hostile_images():
    found = []
    peak = peak_mib(lambda content=content, found=found: found.append(read_image(content)))
    assert found == [None], name
    assert peak < PEAK_MIB, (name, peak)


def test_the_largest_image_is_read():
  content, found = encoded("PNG", Image.new("1", (8192, 8192))), []
  assert peak_mib(lambda: found.append(read_image(content))) < PEAK_MIB
  np.testing.assert_array_equal(found[0], np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
  "content",
  [b"cat\n" * (20 * 2**20), b"cat\ndog\ncat", b"cat\nr\0d"],
  ids=["large", "twice", "NUL"],
)
def test_hostile_names_are_refused(tmp_path, content):
  path = tmp_path / "names.txt"
  path.write_bytes(content)
  assert peak_mib(lambda: refusal(path, read_names, VocabularyError)) < 100
