"""Hostile files, and images of 16 and 32 bits, by their description."""

from collections.abc import Iterator
import io
import pathlib
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.support.fuzzing import bombs

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def images(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
  """Yields files that must not be decoded: other languages, headers with too many pixels."""
  yield "EPS", _EPS
  yield "EPS behind a preview", b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + _EPS
  yield "PostScript", b"%!PS\n/Helvetica findfont 9 scalefont setfont showpage\n"
  yield "PDF", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n"
  yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
  yield "WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(200)
  yield "MPEG", b"\0\0\1\xb3" + bytes(200)
  for _ in range(4):
    side = int(rng.integers(9000, 40_000))
    yield f"PNG of {side} x {side}", png(side, side)
  width = int(rng.integers(70_000, 10**6))
  yield "PNG as a thread", png(width, 1)
  yield "PPM", b"P6 60000 60000 255\n" + bytes(300)
  yield "PGM of 16 bits", b"P5 60000 60000 65535\n" + bytes(300)
  bitmap = bytearray(_encoded("BMP"))
  bitmap[18:26] = (50_000).to_bytes(4, "little") * 2
  yield "BMP", bytes(bitmap)
  animation = bytearray(_encoded("GIF"))
  animation[6:10] = (65_535).to_bytes(2, "little") * 2
  yield "GIF", bytes(animation)
  jpeg = bytearray(_encoded("JPEG"))
  size = jpeg.index(b"\xff\xc0") + 5
  jpeg[size : size + 4] = (65_500).to_bytes(2) * 2
  yield "JPEG", bytes(jpeg)
  tiff = Image.new("1", (9000, 9000))
  file = io.BytesIO()
  tiff.save(file, "TIFF", compression="group4")
  yield "TIFF", file.getvalue()
  text = zlib.compress(bytes(200 * 2**20), 9)
  yield "PNG with a text of 200 MiB", png(8, 8, chunk(b"zTXt", b"a\0\0" + text))


def deep_greys(rng: np.random.Generator) -> Iterator[tuple[str, bytes, np.ndarray]]:
  """Yields descriptions, files, and the expected 8-bit pixels."""
  deep = rng.integers(0, 65536, (20, 30), np.uint16)
  high = (deep >> 8).astype(np.uint8)
  for kind in ("PNG", "TIFF", "PPM"):
    yield f"16 bits, {kind}", _encoded(kind, Image.fromarray(deep)), high
  yield "32 bits, TIFF", _encoded("TIFF", Image.fromarray(deep.astype(np.int32))), high
  for most, name in ((1, "1"), (255, "255"), (65535, "65535")):
    values = (rng.random((20, 30)) * most).astype(np.float32)
    values[0, 0] = most
    expected = np.rint(values.astype(np.float64) * (255 / most)).astype(np.uint8)
    yield f"float up to {name}, TIFF", _encoded("TIFF", Image.fromarray(values)), expected


def greys_without_a_scale(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
  """Yields images of floats and integers without a known white."""
  for value in (-1.0, 1e6, np.nan, np.inf):
    values = rng.random((20, 30)).astype(np.float32)
    values[rng.integers(20), rng.integers(30)] = value
    yield f"float with {value}", _encoded("TIFF", Image.fromarray(values))
  values = rng.integers(-9, 2**30, (20, 30), np.int32)
  yield "integers of 32 bits", _encoded("TIFF", Image.fromarray(values))


def archives() -> Iterator[tuple[str, bytes]]:
  """Yields npz files that claim gigabytes, or hold what no text tower takes."""
  text = {"clip_model": "a", "position": "end", "template": "{}.", "config": "{}"}
  good = {f"{name}.npy": _npy(np.array(value)) for name, value in text.items()}
  good["format_version.npy"] = _npy(np.array(1))
  gigabytes = npy_header((2**20, 1, 1024), "<f4") + bytes(64)
  head = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little")
  members = {
    "claims gigabytes": {"context.npy": gigabytes},
    "compressed zeros": {"context.npy": npy_header((4096, 16, 512), "<f4") + bytes(2**27)},
    "a million vectors": {"context.npy": _npy(np.ones((2**20, 1), np.float32))},
    "letters of gigabytes": {"context.npy": npy_header((2, 64), f"<U{2**24}") + bytes(64)},
    "a string of gigabytes": {"config.npy": npy_header((), f"<U{2**28}")},
    "a header of gigabytes": {"context.npy": head + b" " * 2**24},
    "pickled objects": {"context.npy": npy_header((2,), "|O") + b"\x80\x04]."},
    "no context": {},
  }
  for name, changed in members.items():
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      if name == "compressed zeros" and compression == zipfile.ZIP_STORED:
        continue  # that is a whole context, of 128 MiB
      file = io.BytesIO()
      with zipfile.ZipFile(file, "w", compression, compresslevel=1) as archive:
        for member, content in (good | changed).items():
          archive.writestr(member, content)
      yield name, file.getvalue()


def lists_of_names(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
  """Yields text files with lines that are no names."""
  for letter in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x1b\0\x9b\x07\b\t\r":
    line = int(rng.integers(1, 5))
    names = [f"class {i}" for i in range(6)]
    names[line] = f"red{letter}circle"
    yield f"U+{ord(letter):04X} in a name", "\n".join(names).encode()
  yield "a line of 10 MB", b"cat\n" + b"x" * 10**7
  yield "a file of 80 MB", b"cat\n" * (20 * 2**20)
  yield "a title for the terminal", b"\x1b]0;title\x07cat\ndog"
  yield "UTF-16", "cat\ndog".encode("utf-16")
  yield "Latin-1", "c\xe4t\ndog".encode("latin-1")
  yield "half a letter", "cät".encode()[:2]
  yield "the same name twice", b"cat\ndog\ncat"
  yield "an empty line", b"cat\n\ndog"
  yield "nothing", b""


def png(width: int, height: int, *more: bytes) -> bytes:
  """Makes a black PNG of 1 bit per pixel, at most a megabyte, with chunks before its pixels."""
  header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
  rows = bytes(min((width // 8 + 1) * height, 2**20))
  chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows, 1))]
  return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


def chunk(kind: bytes, content: bytes) -> bytes:
  """Makes a chunk of a PNG."""
  body = kind + content
  return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
  """Makes the header of an npy file, with any claim."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {"descr": dtype, "fortran_order": False, "shape": shape}
  )
  return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, array, allow_pickle=False)
  return file.getvalue()


def _encoded(kind: str, image: Image.Image | None = None) -> bytes:
  file = io.BytesIO()
  (image or Image.new("RGB", (16, 16), (200, 30, 90))).save(file, kind)
  return file.getvalue()


def pickles(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """Yields pickles that would create a folder, alone and in torch archives."""
  for number, content in enumerate(bombs(folder)):
    yield f"pickle {number}", content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("archive/data.pkl", content)
      archive.writestr("archive/version", "3\n")
    yield f"pickle {number} in an archive", file.getvalue()
