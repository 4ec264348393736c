"""Image files: preprocessing against open_clip and Dassl; resized crops against
float64."""

import io

import numpy as np
import open_clip
from PIL import Image, ImageOps, TiffImagePlugin
import pytest
import transformers

from pomp_jax.data import images
from pomp_jax.data.images import ImageError, prepare, read_image, resized_crop
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.views import Augmentation, views
from tests.support.pictures import encode, natural_image

# Its name from transformers 5 on, where the other is torchvision's.
PillowProcessor = getattr(
  transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor
)


@pytest.mark.parametrize("size", [224, 32, 33])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_prepare_is_open_clips_and_torchvisions(size, mode, interpolation):
  """The one transforms by the other."""
  settings = {"resize_mode": mode, "interpolation": interpolation}
  published = open_clip.transform.image_transform(
    size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, **settings
  )
  resize = images.Resize(mode == "squash", interpolation == "bilinear")
  # The shorter side is `size` already, so that the surplus of the longer is known.
  sides = [(size, size + surplus) for surplus in range(9)]
  for shape in [*sides, (48, 48), (100, 60), (37, 90), (20, 31), (33, 32)]:
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))):
      expected = np.rint(255 * published(image).numpy().transpose(1, 2, 0))
      np.testing.assert_array_equal(prepare(image, size, resize=resize), expected)
      np.testing.assert_array_equal(
        prepare(np.asarray(image), size, resize=resize), expected
      )


def many_modes():
  """One picture as files of every kind that crawls hold."""
  picture = natural_image(4, 75, 100)
  transparent = picture.copy()
  transparent.putalpha(natural_image(5, 75, 100).convert("L"))
  turned = Image.Exif()
  turned[0x0112] = 6
  black = natural_image(6, 75, 100).convert("L")
  return {
    "progressive": encode(picture, progressive=True),
    "grey": encode(picture.convert("L")),
    "cmyk": encode(picture.convert("CMYK")),
    "cmyk with black": encode(Image.merge("CMYK", [*picture.split(), black])),
    "orientation": encode(picture, exif=turned),
    "palette": encode(picture.quantize(64), "PNG"),
    "palette with a transparent colour": encode(
      picture.quantize(64), "PNG", transparency=3
    ),
    "alpha": encode(transparent, "PNG"),
    "grey and alpha": encode(transparent.convert("LA"), "PNG"),
    "one bit": encode(picture.convert("1"), "PNG"),
    "gif": encode(picture, "GIF"),
  }


@pytest.mark.parametrize("name, encoded", many_modes().items())
def test_every_kind_of_file_is_prepared_as_huggingface_does(name, encoded):
  """And as OpenAI's code: transparency is dropped. transformers 5 puts white behind
  it instead."""
  settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
  settings |= {"do_normalize": False, "do_rescale": False}
  found = read_image(encoded, 32, where=name)
  image = Image.open(io.BytesIO(encoded))
  # Without the file's transparent colour, which `convert` leaves in the image's facts.
  rgb = Image.fromarray(np.asarray(image.convert("RGB")))
  expected = PillowProcessor(**settings)(rgb, return_tensors="np")["pixel_values"][0]
  np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


@pytest.mark.parametrize("name, encoded", many_modes().items())
def test_pictures_become_rgb_before_they_are_resized(name, encoded):
  """As by Dassl, on which the baselines were published; open_clip resizes in the
  file's mode."""
  settings = {"is_train": False, "mean": (0.0,) * 3, "std": (1.0,) * 3}
  published = open_clip.transform.image_transform(32, **settings)
  image = Image.open(io.BytesIO(encoded))
  found = read_image(encoded, 32, where=name)
  # dassl/utils/tools.py, `read_image`, in front of torchvision's Resize and CenterCrop.
  rgb = Image.fromarray(np.asarray(image.convert("RGB")))
  of_dassl = np.rint(255 * published(rgb).numpy().transpose(1, 2, 0))
  np.testing.assert_array_equal(found, of_dassl)
  of_open_clip = np.rint(255 * published(image).numpy().transpose(1, 2, 0))
  # Inks without black are the inverted colours.
  is_open_clips = image.mode in ("RGB", "L") or name == "cmyk"
  assert np.array_equal(found, of_open_clip) == is_open_clips


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_upright_is_pillows_exif_transpose(kind, tmp_path):
  if kind not in images.FORMATS:
    pytest.skip("this Pillow has no AVIF")
  for orientation in range(10):  # 1 to 8 have a meaning
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(natural_image(4, 75, 100), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    opened = images.open_image(encoded, kind)
    assert images.sides(opened, True) == expected.size
    np.testing.assert_array_equal(
      images.load_rgb(opened, kind, upright=True)[0], expected
    )
    np.testing.assert_array_equal(
      read_image(encoded, 32, True, where=kind), prepare(expected, 32)
    )
    (tmp_path / "image").write_bytes(encoded)
    # Crops are drawn in the upright picture.
    source = StoredImages("a", [0], ["image"], Files(tmp_path)).replace(upright=True)
    expected.save(tmp_path / "turned.png")
    turned = StoredImages("a", [0], ["turned.png"], Files(tmp_path))
    shown = Augmentation("crop_flip", 2, crop_area=0.8)
    found, again = (
      views(one, np.arange(1), np.arange(1), shown, 48) for one in (source, turned)
    )
    np.testing.assert_array_equal(found[0], again[0])
  damaged = encode(natural_image(4, 75, 100), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
  turned, unturned = (
    read_image(damaged, 32, upright, where="a") for upright in (True, False)
  )
  np.testing.assert_array_equal(turned, unturned)


def test_unreadable_files_and_arrays(tmp_path):
  """Too large ones are in tests/faults/test_hostile_images.py."""
  bad, cases = (
    tmp_path / "bad.png",
    [b"", b"text", encode(natural_image(0, 64, 64), "PNG")[:200]],
  )
  for value in (-1.0, 70_000.0, np.inf, -np.inf, np.nan):
    values = np.full((40, 50), 0.5, np.float32)
    values[20, 30] = value
    cases.append(encode(Image.fromarray(values), "TIFF"))
  for content in cases:
    bad.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png: not a readable image \("):
      read_image(bad, 224)
  with pytest.raises(ImageError, match=r"none\.png"):
    read_image(tmp_path / "none.png", 16)
  for array in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
    with pytest.raises(ImageError, match=r"uint8 \[H,W,3\]"):
      prepare(array, 8)


def grey_files():
  """Deep grey images of a ramp by file name, options of saving, and the 8 bits they
  become."""
  ramp = np.linspace(0, 65535, 40 * 50).round().astype(np.uint16).reshape(40, 50)
  high = (ramp // 256).astype(np.uint8)
  big_endian = Image.frombytes("I;16B", (50, 40), ramp.astype(">u2").tobytes())
  white_is_zero = TiffImagePlugin.ImageFileDirectory_v2()
  white_is_zero[262] = 0
  unit, eight = (ramp / 65535).astype(np.float32), (ramp / 257).astype(np.float32)
  return {
    "16.png": (ramp, {}, high),
    "16.tif": (ramp, {}, high),
    "16.pgm": (ramp, {}, high),
    "big_endian.tif": (big_endian, {}, high),
    "white_is_zero.tif": (ramp, {"tiffinfo": white_is_zero}, 255 - high),
    "signed_32.tif": (ramp.astype(np.int32), {}, high),
    "unit.tif": (unit, {}, np.rint(unit.astype(np.float64) * 255)),
    "float_8.tif": (eight, {}, np.rint(eight)),
    "float_16.tif": (ramp.astype(np.float32), {}, np.rint(ramp / 257)),
  }


@pytest.mark.parametrize("name", grey_files())
def test_deep_greys_are_scaled_and_not_clipped(tmp_path, name, monkeypatch):
  monkeypatch.setattr(images, "_BAND_PIXELS", 1000)  # of 2000
  image, options, expected = grey_files()[name]
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(tmp_path / name, **options)
  found = images.to_rgb(Image.open(tmp_path / name))
  expected = expected.astype(np.uint8)
  np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
  # Readers prepare the same.
  small = prepare(Image.fromarray(expected), 16)
  np.testing.assert_array_equal(read_image(tmp_path / name, 16), small)
  np.testing.assert_array_equal(
    read_image((tmp_path / name).read_bytes(), 16, where=name), small
  )


def weights(start, end, length, size):
  """How much each of `length` pixels adds to each of `size`: Keys' cubic, stretched
  to shrink."""
  scale = (end - start) / size
  stretch = max(scale, 1)
  centres = start + (np.arange(size)[:, None] + 0.5) * scale
  x = np.abs(np.arange(length) + 0.5 - centres) / stretch
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  w = np.where(x < 1, near, np.where(x < 2, far, 0))
  return w / w.sum(1, keepdims=True)


def defined(image, box, size):
  """The box alone, resized in float64."""
  left, top, right, bottom = (
    *np.floor(box[:2]).astype(int),
    *np.ceil(box[2:]).astype(int),
  )
  pixels = np.asarray(image).astype(float)[top:bottom, left:right]
  across = weights(box[0] - left, box[2] - left, right - left, size)
  down = weights(box[1] - top, box[3] - top, bottom - top, size)
  return np.clip(
    np.einsum("yh,hwc,xw->yxc", down, pixels, across, optimize=True), 0, 255
  )


def boxes(width, height, count):
  rng = np.random.default_rng(0)
  for i in range(count):
    w, h = rng.integers(1, width), rng.integers(1, height)
    # Of a JPEG decoded at an eighth, a box may start and end anywhere.
    x, y = rng.integers([width - w, height - h]) + rng.integers(0, 8, 2) / 8 * (i % 2)
    yield float(x), float(y), float(x + w), float(y + h)


def test_resizing_is_what_its_definition_says_and_errs_as_pillow_does(monkeypatch):
  """Largest and mean errors of 40 crops; of noise, overshoots are cut."""
  assert images.RESIZER == "cykooz"
  noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  errors = []
  for resizer in (images.Resizer, None):
    monkeypatch.setattr(images, "Resizer", resizer)
    for image in (natural_image(0, 150, 200), Image.fromarray(noise)):
      found = [resized_crop(image, box, 32) for box in boxes(200, 150, 40)]
      expected = [defined(image, box, 32) for box in boxes(200, 150, 40)]
      errors.append(np.abs(np.stack([np.asarray(crop) for crop in found]) - expected))
  own, own_noise, pillow, pillow_noise = errors
  assert max(own.max(), pillow.max()) < 2
  assert own_noise.mean() < 1.1 * pillow_noise.mean() < 1
