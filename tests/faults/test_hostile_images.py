"""Hostile images: refused in one line, for little memory, and no program is started.

Damaged images: tests/data/test_images.py. Hostile archives:
tests/files/test_prompt_file.py.
"""

from collections.abc import Callable, Iterator
import io
import pathlib
import re
import subprocess
import warnings

from PIL import Image, PngImagePlugin
import pytest

from pomp_jax.data.images import ImageError, load_rgb, open_image, read_image

# The largest image takes 320 MiB in Pillow: as it is stored, and in RGB.
PEAK_MIB = 350

_EPS = (
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
)


def encoded(kind: str, size: tuple[int, int], mode: str = "1", **options) -> bytes:
  file = io.BytesIO()
  Image.new(mode, size).save(file, kind, **options)
  return file.getvalue()


def hostile_images() -> Iterator[tuple[str, bytes]]:
  """Yields files that must not be decoded: other languages, headers with too many
  pixels."""
  yield "EPS", _EPS
  yield (
    "EPS behind a preview",
    b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + _EPS,
  )
  yield "WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(200)
  yield "PNG just above the limit", encoded("PNG", (8200, 8200))
  yield "PNG as a thread", encoded("PNG", (100_000, 1))
  yield "PPM", b"P6 60000 60000 255\n" + bytes(300)
  jpeg = encoded("JPEG", (16, 16), "RGB")
  size = jpeg.index(b"\xff\xc0") + 5
  yield "JPEG", jpeg[:size] + (65_500).to_bytes(2) * 2 + jpeg[size + 4 :]
  yield "TIFF", encoded("TIFF", (9000, 9000), compression="group4")
  text = PngImagePlugin.PngInfo()
  text.add_text("a", "\0" * 200 * 2**20, zip=True)
  yield "PNG with a text of 200 MiB", encoded("PNG", (8, 8), pnginfo=text)


READERS = {
  "tests": lambda path: read_image(path, 64),
  "views": lambda path: load_rgb(open_image(path.read_bytes(), "x.jpg"), "x.jpg"),
}


def peak_mib(call: Callable[[], object]) -> float:
  """Rise of this process's memory in MiB while the call runs; 0 where Linux does not
  tell."""

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
def test_hostile_images_are_left_out(reader, tmp_path, monkeypatch):
  # A crop may have any shape.
  check_left_out(
    READERS[reader], tmp_path / "x.jpg", monkeypatch, threads=reader == "tests"
  )


def check_left_out(
  reader: Callable[[pathlib.Path], object],
  path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  *,
  threads: bool = False,
) -> None:
  """Asserts that a reader refuses each hostile image, of one pixel's width too with
  `threads`."""
  monkeypatch.setattr(
    subprocess, "Popen", lambda *_, **__: pytest.fail("starts a program")
  )

  def read():
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
      warnings.simplefilter("ignore")
      reader(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500

  for name, content in hostile_images():
    if threads or name != "PNG as a thread":
      path.write_bytes(content)
      assert peak_mib(read) < PEAK_MIB, name
