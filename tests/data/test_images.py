"""Image files: decoding and preprocessing against torchvision; resized crops against float64."""

import io
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin
import pytest
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
import transformers

from pomp_jax.data import images
from pomp_jax.data.images import (
  ImageError,
  decode_image,
  list_images,
  prepare,
  read_image,
  resized_crop,
)
from pomp_jax.data.synthetic import natural_image

# Its name from transformers 5 on, where the other is torchvision's.
PillowProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)


@pytest.mark.parametrize("size", [224, 32, 33])
@pytest.mark.parametrize("surplus", range(9))
@pytest.mark.parametrize("tall", [False, True])
def test_the_crop_is_torchvisions(size, surplus, tall):
  # The shorter side is `size` already, so that the surplus of the longer is known.
  shape = (size + surplus, size) if tall else (size, size + surplus)
  image = Image.fromarray(np.random.default_rng(surplus).integers(0, 256, (*shape, 3), np.uint8))
  torchvision = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
  np.testing.assert_array_equal(prepare(image, size), np.asarray(torchvision(image)))


@pytest.mark.parametrize("shape", [(48, 48), (100, 60), (37, 90), (20, 31), (33, 32)])
def test_prepare_equals_the_image_processor(shape):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
  processor = PillowProcessor(
    size={"shortest_edge": 32},
    crop_size={"height": 32, "width": 32},
    do_normalize=False,
    do_rescale=False,
  )
  expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
  found = prepare(image, 32)
  assert found.dtype == np.uint8
  # Both crop to the centre; where the surplus is odd that one rounds down, torchvision to even.
  if (int(32 * max(shape) / min(shape)) - 32) % 2 == 0:
    np.testing.assert_array_equal(found, expected)
  assert found.shape == expected.shape


def test_grey_and_transparent_images_become_rgb(tmp_path):
  for mode in ("L", "RGBA", "P", "1"):
    file = tmp_path / f"{mode}.png"
    Image.new(mode, (40, 50)).save(file)
    assert read_image(file, 16).shape == (16, 16, 3)


def test_listing(tmp_path):
  for name in ("b.PNG", "a.jpg", "notes.txt"):
    (tmp_path / name).touch()
  assert [file.name for file in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
  with pytest.raises(ImageError, match="none"):
    list_images(tmp_path / "none")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ImageError, match="empty"):
    list_images(tmp_path / "empty")


def test_broken_files(tmp_path):
  good = tmp_path / "good.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(good)
  bad = tmp_path / "bad.png"
  for content in (b"", b"text", good.read_bytes()[:200]):
    bad.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png"):
      read_image(bad, 16)
  with pytest.raises(ImageError, match=r"none\.png"):
    read_image(tmp_path / "none.png", 16)


def grey_files(folder):
  """Deep grey files of a ramp, and the 8 bits that each of its values becomes."""
  ramp = np.linspace(0, 65535, 40 * 50).round().astype(np.uint16).reshape(40, 50)
  high = (ramp // 256).astype(np.uint8)
  files = {}

  def save(name, image, expected, **options):
    image.save(folder / name, **options)
    files[name] = expected

  save("16.png", Image.fromarray(ramp), high)
  save("16.tif", Image.fromarray(ramp), high)
  save("16_lzw.tif", Image.fromarray(ramp), high, compression="tiff_lzw")
  save("16.pgm", Image.fromarray(ramp), high)
  save("big_endian.tif", Image.frombytes("I;16B", (50, 40), ramp.astype(">u2").tobytes()), high)
  white_is_zero = TiffImagePlugin.ImageFileDirectory_v2()
  white_is_zero[262] = 0
  save("white_is_zero.tif", Image.fromarray(ramp), 255 - high, tiffinfo=white_is_zero)
  save("signed_32.tif", Image.fromarray(ramp.astype(np.int32)), high)
  save("8_in_32.tif", Image.fromarray(high.astype(np.int32)), high)
  unit = (ramp / 65535).astype(np.float32)
  save("unit.tif", Image.fromarray(unit), np.rint(unit.astype(np.float64) * 255))
  eight = (ramp / 257).astype(np.float32)
  save("float_8.tif", Image.fromarray(eight), np.rint(eight))
  save("float_16.tif", Image.fromarray(ramp.astype(np.float32)), np.rint(ramp / 257))
  return files


def test_deep_greys_are_scaled_and_not_clipped(tmp_path):
  for name, expected in grey_files(tmp_path).items():
    found = images.to_rgb(Image.open(tmp_path / name))
    expected = expected.astype(np.uint8)
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1), name)
    # The same through every reader.
    small = np.asarray(prepare(Image.fromarray(expected), 16))
    np.testing.assert_array_equal(read_image(tmp_path / name, 16), small, name)
    encoded = (tmp_path / name).read_bytes()
    np.testing.assert_array_equal(decode_image(encoded, name, 16), small, name)
    loaded, _ = images.load_rgb(images.open_image(encoded, name), name)
    np.testing.assert_array_equal(loaded, found, name)


def test_a_16_bit_png_is_seen_as_the_same_picture_of_8_bits(tmp_path):
  eight = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
  for factor in (256, 257):
    Image.fromarray(eight.astype(np.uint16) * factor).save(tmp_path / "deep.png")
    found = images.to_rgb(Image.open(tmp_path / "deep.png"))
    np.testing.assert_array_equal(found, Image.fromarray(eight).convert("RGB"))


def chunk(kind, content):
  body = kind + content
  return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def png(width, height, depth, colour, rows):
  header = width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 0])
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colours_and_greys_agree(tmp_path):
  """Pillow writes no 16-bit colours; these bytes are by the PNG specification."""
  values = np.random.default_rng(0).integers(0, 65536, (20, 30), np.uint16).astype(">u2")
  grey = b"".join(b"\0" + row.tobytes() for row in values)
  colour = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in values)
  pictures = [
    images.to_rgb(Image.open(io.BytesIO(png(30, 20, 16, kind, rows))))
    for kind, rows in ((0, grey), (2, colour))
  ]
  np.testing.assert_array_equal(*pictures)


def test_bands_join(monkeypatch):
  ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  whole = images.to_rgb(Image.fromarray(ramp))
  monkeypatch.setattr(images, "_BAND_PIXELS", 1000)
  np.testing.assert_array_equal(images.to_rgb(Image.fromarray(ramp)), whole)


@pytest.mark.parametrize("value", [-1.0, 70_000.0, np.inf, -np.inf, np.nan])
def test_greys_that_can_not_be_scaled_are_unreadable(tmp_path, value):
  values = np.full((40, 50), 0.5, np.float32)
  values[20, 30] = value
  Image.fromarray(values).save(tmp_path / "float.tif")
  with pytest.raises(ImageError, match=r"float\.tif"):
    read_image(tmp_path / "float.tif", 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_as_pillow_converts_them(mode):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
  image = Image.fromarray(pixels, "RGBA")
  image = image.convert("RGB").convert(mode) if mode not in ("LA", "RGBA") else image.convert(mode)
  np.testing.assert_array_equal(images.to_rgb(image), image.convert("RGB"))


def test_arrays_of_other_types_are_refused():
  for array in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
    with pytest.raises(ImageError, match=r"uint8 \[H,W,3\]"):
      prepare(array, 8)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_file_starts_no_program(tmp_path, monkeypatch):
  def start(*arguments, **options):
    pytest.fail(f"starts {arguments}")

  monkeypatch.setattr(subprocess, "Popen", start)
  (tmp_path / "a.jpg").write_bytes(EPS)
  for read in (
    lambda: read_image(tmp_path / "a.jpg", 16),
    lambda: decode_image(EPS, "a.jpg", 16),
    lambda: images.load_rgb(images.open_image(EPS, "a.jpg"), "a.jpg"),
  ):
    with pytest.raises(ImageError, match=r"a\.jpg"):
      read()


def test_a_bomb_is_refused_by_its_header(tmp_path):
  """20 KB that stand for 81 megapixels, which Pillow alone would decode."""
  side = 9000
  (tmp_path / "bomb.png").write_bytes(png(side, side, 1, 0, bytes((side // 8 + 1) * side)))
  assert (tmp_path / "bomb.png").stat().st_size < 20_000
  code = (
    "import resource; from pomp_jax.data.images import ImageError, read_image\n"
    "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    f"try: read_image({str(tmp_path / 'bomb.png')!r}, 224)\n"
    "except ImageError as error: print(error)\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
  )
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  message, kib = run.stdout.splitlines()
  assert "81000000" not in message and "9000 x 9000" in message and "67108864" in message
  assert int(kib) < 10_000


def test_a_large_photograph_is_read(tmp_path):
  """ImageNet's largest have some 60 megapixels."""
  (tmp_path / "large.png").write_bytes(png(8192, 8192, 1, 0, bytes(1025 * 8192)))
  assert not read_image(tmp_path / "large.png", 16).any()


def weights(start, end, length, size):
  """How much each of `length` pixels adds to each of `size`: Keys' cubic, stretched to shrink."""
  scale = (end - start) / size
  stretch = max(scale, 1)
  centres = start + (np.arange(size)[:, None] + 0.5) * scale
  x = np.abs(np.arange(length) + 0.5 - centres) / stretch
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  w = np.where(x < 1, near, np.where(x < 2, far, 0))
  return w / w.sum(1, keepdims=True)


def defined(image, box, size):
  """The box alone, resized in float64."""
  left, top = int(box[0]), int(box[1])
  right, bottom = -int(-box[2] // 1), -int(-box[3] // 1)
  pixels = np.asarray(image).astype(float)[top:bottom, left:right]
  across = weights(box[0] - left, box[2] - left, right - left, size)
  down = weights(box[1] - top, box[3] - top, bottom - top, size)
  return np.clip(np.einsum("yh,hwc,xw->yxc", down, pixels, across, optimize=True), 0, 255)


def boxes(width, height, count):
  rng = np.random.default_rng(0)
  for i in range(count):
    w, h = rng.integers(1, width), rng.integers(1, height)
    left, top = rng.integers(0, width - w), rng.integers(0, height - h)
    # Of a JPEG decoded at an eighth, a box may start and end anywhere.
    shift = rng.integers(0, 8, 2) / 8 if i % 2 else (0, 0)
    x, y = left + shift[0], top + shift[1]
    yield float(x), float(y), float(x + w), float(y + h)


@pytest.mark.parametrize("installed", [True, False])
def test_resizing_is_what_its_definition_says(installed, monkeypatch):
  assert images.RESIZER == "cykooz"
  if not installed:
    monkeypatch.setattr(images, "Resizer", None)
  image = natural_image(0, 150, 200)
  for box in boxes(200, 150, 40):
    found = np.asarray(resized_crop(image, box, 32))
    assert np.abs(found - defined(image, box, 32)).max() < 2, box


def test_where_overshoots_are_cut_it_errs_as_pillow_does(monkeypatch):
  noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  image = Image.fromarray(noise)
  errors = {}
  for name in ("cykooz", "pillow"):
    if name == "pillow":
      monkeypatch.setattr(images, "Resizer", None)
    errors[name] = np.mean(
      [
        np.abs(np.asarray(resized_crop(image, box, 32)) - defined(image, box, 32)).mean()
        for box in boxes(200, 150, 40)
      ]
    )
  assert errors["cykooz"] < 1.1 * errors["pillow"] < 1
