"""Hostile images: refused in one line, for little memory, and no program is started.

Damaged images: tests/data/test_fuzz.py. Hostile archives: tests/files/test_prompt_file.py.
"""

from collections.abc import Callable, Iterator
import io
import pathlib
import re
import warnings
import zlib

from PIL import Image
import pytest

from pomp_jax.data.images import ImageError, decode_image, load_rgb, open_image

# The largest image takes 320 MiB in Pillow: as it is stored, and in RGB.
PEAK_MIB = 350

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def png(width: int, height: int, *more: bytes) -> bytes:
  """Makes a black PNG of 1 bit per pixel, at most a megabyte, with chunks before its pixels."""
  header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
  rows = bytes(min((width // 8 + 1) * height, 2**20))
  chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows, 1))]
  return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


def chunk(kind: bytes, content: bytes) -> bytes:
  body = kind + content
  return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def hostile_images() -> Iterator[tuple[str, bytes]]:
  """Yields files that must not be decoded: other languages, headers with too many pixels."""
  yield "EPS", _EPS
  yield "EPS behind a preview", b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + _EPS
  yield "WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(200)
  yield "PNG just above the limit", png(8200, 8200)
  yield "PNG as a thread", png(100_000, 1)
  yield "PPM", b"P6 60000 60000 255\n" + bytes(300)
  file = io.BytesIO()
  Image.new("RGB", (16, 16)).save(file, "JPEG")
  size = file.getvalue().index(b"\xff\xc0") + 5
  yield "JPEG", file.getvalue()[:size] + (65_500).to_bytes(2) * 2 + file.getvalue()[size + 4 :]
  file = io.BytesIO()
  Image.new("1", (9000, 9000)).save(file, "TIFF", compression="group4")
  yield "TIFF", file.getvalue()
  text = zlib.compress(bytes(200 * 2**20), 9)
  yield "PNG with a text of 200 MiB", png(8, 8, chunk(b"zTXt", b"a\0\0" + text))


READERS = {
  "tests": lambda content: decode_image(content, "x.jpg", 64),
  "views": lambda content: load_rgb(open_image(content, "x.jpg"), "x.jpg"),
}


def peak_mib(call: Callable[[], object]) -> float:
  """Rise of this process's memory in MiB while the call runs; 0 where Linux does not tell."""

  def memory(field: str) -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024

  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  except OSError:
    call()
    return 0.0
  before = memory("VmRSS")
  call()
  return max(0.0, memory("VmHWM") - before)


@pytest.mark.parametrize("reader", READERS)
def test_hostile_images_are_left_out(reader):
  def read(content):
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
      warnings.simplefilter("ignore")
      READERS[reader](content)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500

  for name, content in hostile_images():
    if (reader, name) != ("views", "PNG as a thread"):  # whose crops may have any shape
      assert peak_mib(lambda content=content: read(content)) < PEAK_MIB, name
