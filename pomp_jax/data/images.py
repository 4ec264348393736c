"""Image files: decoding, CLIP's test preprocessing, and resized crops."""

from collections.abc import Iterator
import contextlib
import io
import math
import os
from typing import NamedTuple

from jaxtyping import UInt8
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pomp_jax.errors import InputError
from pomp_jax.files.paths import is_bucket, local_copy, read_bytes
from pomp_jax.files.terminal import printable

try:
  from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

  # Pillow's bicubic filter: a = -0.5.
  _BICUBIC = ResizeAlg.convolution(FilterType.catmull_rom)
except ImportError:
  Resizer = None

# Pillow reads AVIF from version 11.3 on, if it was built with AVIF support.
_AVIF = ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
EXTENSIONS = (
  ".bmp",
  ".gif",
  ".jpeg",
  ".jpg",
  ".png",
  ".tif",
  ".tiff",
  ".webp",
) + tuple(f".{name.lower()}" for name in _AVIF)
# Pictures that phones write and Pillow does not read.
UNREAD_EXTENSIONS = (".heic", ".heif", ".hif")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
UNREAD_REASON = "a HEIC picture, which is not read: convert it to JPEG"
# Decoders to try, whatever the file's name. EPS is excluded because it starts another
# program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *_AVIF)
# Most pixels, by its header, of an image that is decoded: 8192 x 8192. Pillow needs up
# to 320 MiB for such an image.
MAX_PIXELS = 2**26
PREPROCESSING_VERSION = 2  # version of `prepare`'s pixels, for cache keys
# Library behind `resized_crop`, for cache keys: the two libraries round differently.
RESIZER = "pillow" if Resizer is None else "cykooz"

_BAND_PIXELS = 2**20  # pixels of a deep grey image that are scaled at a time
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# EXIF orientation -> transposition that turns the stored pixels upright.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

File = str | os.PathLike | bytes  # a path, or the content of a file


class Resize(NamedTuple):
  """How images become S x S pixels; the defaults are those of OpenAI's CLIPs."""

  # True: resize both sides to S. False: resize the shorter side to S, crop the centre.
  squash: bool = False
  bilinear: bool = False  # bilinear instead of bicubic


CLIPS_RESIZE = Resize()


class ImageError(InputError, ValueError):
  """Unreadable images; the message is one line that names the file."""


def read_image(
  file: File,
  size: int,
  upright: bool = False,
  where: str = "",
  resize: Resize = CLIPS_RESIZE,
) -> UInt8[np.ndarray, "S S 3"]:
  """Decodes one image and applies the CLIP's test preprocessing; see `prepare`.

  Args:
    file: path, or the content of a file.
    size: S, pixels.
    upright: whether the image is turned as its EXIF orientation says.
    where: name of the image in errors; its path if "".
    resize: how the image becomes S x S pixels.

  Raises:
    ImageError: the image can't be read, or `prepare` rejects its pixels.
  """
  where = where or str(file)
  with _as_image_error(where), _open(file) as image:
    return prepare(image, size, upright, resize)


def sides(image: Image.Image, upright: bool) -> tuple[int, int]:
  """Width and height of an image from `open_image` after `to_rgb` has decoded it."""
  # Orientations 5 to 8 exchange width and height. Pillow turns TIFFs itself: for them
  # `size` already holds the sides of the turned image.
  on_its_side = upright and image.format != "TIFF" and 5 <= _orientation(image) <= 8
  return image.size[::-1] if on_its_side else image.size


def open_image(file: File, where: str = "") -> Image.Image:
  """Reads an image's header.

  Raises:
    ImageError: the file has none of FORMATS, or more than MAX_PIXELS.
  """
  with _as_image_error(where or str(file)):
    return _open(file)


def load_rgb(
  image: Image.Image, where: str, shrink: int = 1, upright: bool = False
) -> tuple[Image.Image, int]:
  """Decodes the pixels of an image from `open_image`; a JPEG optionally smaller.

  A JPEG stores cosines of 8 x 8 blocks. A factor `shrink` above 1 decodes only some of
  the cosines, which divides both sides by the factor. That is faster than decoding all
  cosines and resizing.

  Args:
    image: image whose pixels are not decoded yet.
    where: name of the image in errors.
    shrink: factor 1, 2, 4 or 8 that divides the sides of a JPEG.
    upright: whether the image is turned as its EXIF orientation says.

  Returns:
    RGB image, see `to_rgb`, and the factor that was applied: 1 for another format.

  Raises:
    ImageError: the pixels can't be decoded, or `to_rgb` rejects them.
  """
  with _as_image_error(where):
    if shrink == 1 or not isinstance(image, JpegImageFile):
      return to_rgb(image, upright), 1
    image.draft(None, (image.width // shrink, image.height // shrink))
    return to_rgb(image, upright), shrink


def to_rgb(image: Image.Image, upright: bool = False) -> Image.Image:
  """Converts an image of any Pillow mode to RGB, 8 bits a channel, as CLIP's
  preprocessing does.

  Transparency is dropped. Pillow would clip greys of more than 8 bits at 255, so this
  function scales them:

  - 16 bits (PNG, PPM, TIFF) or 12 (TIFF): the high byte, as Pillow reads 16-bit
    colours.
  - 32-bit integers (TIFF): by the largest value of the image. Values are unchanged if
    it is at most 255; otherwise, up to 65535, they become the high byte of 16 bits.
  - float (TIFF, PFM): by the largest value of the image. Values are multiplied by 255
    if it is at most 1, unchanged if it is at most 255, and otherwise, up to 65535,
    divided by 257. All are rounded.

  Args:
    image: Pillow image.
    upright: whether the image is turned as its EXIF orientation says, which CLIP's
      preprocessing ignores.

  Raises:
    ImageError: grey values are negative, not finite or above 65535, or Pillow can't
      convert the colours.
  """
  image.load()
  rgb = _unturned_rgb(image)
  if not upright:
    return rgb
  turn = _TURNS.get(_orientation(image))
  if turn is None:
    return rgb
  return rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
  """EXIF orientation, 1 to 8 if valid; 1 (as stored) for an image without one."""
  try:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception:  # broken EXIF raises many errors, but the pixels are readable
    return 1


def _unturned_rgb(image: Image.Image) -> Image.Image:
  """Converts decoded pixels to RGB without turning them; see `to_rgb`.

  Raises:
    ImageError: Pillow can't convert the colours, or greys are out of range.
  """
  if image.mode == "RGB":  # `convert` would copy the image
    return image
  is_deep_grey = image.mode in ("I", "F") or image.mode.startswith("I;")
  if is_deep_grey:
    return _deep_grey_as_rgb(image)
  try:
    return image.convert("RGB")
  except ValueError as error:
    raise ImageError(f"colours of mode {image.mode}") from error


def _deep_grey_as_rgb(image: Image.Image) -> Image.Image:
  """Scales greys of more than 8 bits, in bands of rows so that memory stays small.

  Raises:
    ImageError: values are negative, not finite or above 65535.
  """
  tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
  bits = tags.get(_TIFF_BITS, (16,))[0]
  factor = _grey_factor(image, bits)
  is_inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO

  grey = Image.new("L", image.size)
  n_rows = max(1, _BAND_PIXELS // image.width)
  for top in range(0, image.height, n_rows):
    bottom = min(top + n_rows, image.height)
    box = (0, top, image.width, bottom)
    values = np.asarray(image.crop(box))
    if not np.isfinite(values).all():
      raise ImageError("values that are not finite")
    scaled = values * factor
    # Integers lose their low bits. Floats are measurements, so they are rounded.
    whole = np.rint(scaled) if image.mode == "F" else np.floor(scaled)
    band = whole.astype(np.uint8)
    if is_inverted:
      band = 255 - band
    grey.paste(Image.fromarray(band), box)
  return grey.convert("RGB")


def _grey_factor(image: Image.Image, bits: int) -> float:
  """Factor that scales the deep greys of an image to 0..255; see `to_rgb`.

  Args:
    image: image of mode "F", "I" or "I;..".
    bits: bits of a value of mode "I;..".

  Raises:
    ImageError: values are outside 0..65535.
  """
  if image.mode.startswith("I;"):
    return 2.0 ** (8 - bits)
  low, high = np.asarray(image.getextrema()).tolist()
  if not 0 <= low <= high <= 65535:
    raise ImageError(f"grey values from {low} to {high}, expected 0 to 65535")
  if image.mode == "F":
    if high <= 1:
      return 255.0
    return 1.0 if high <= 255 else 1 / 257
  has_16_bits = image.format in ("PNG", "PPM") or high > 255
  return 1 / 256 if has_16_bits else 1.0


def _open(file: File) -> Image.Image:
  """Opens an image of one of FORMATS without decoding its pixels.

  Raises:
    ImageError: the file has another format, or more than MAX_PIXELS by its header.
  """
  if not isinstance(file, bytes) and is_bucket(file):
    file = read_bytes(file)
  try:
    opened = io.BytesIO(file) if isinstance(file, bytes) else local_copy(file)
    image = Image.open(opened, formats=FORMATS)
  except UnidentifiedImageError as error:
    # Replace Pillow's message, which contains the address of an object.
    reason = f"none of {', '.join(FORMATS)}"
    if _is_heic(file):
      reason = UNREAD_REASON
    raise ImageError(reason) from error

  width, height = image.size
  if width * height > MAX_PIXELS:
    image.close()
    raise ImageError(f"{width} x {height} pixels, expected at most {MAX_PIXELS}")
  return image


def _is_heic(file: File) -> bool:
  """Whether a file begins with a HEIC header, whatever its name."""
  if not isinstance(file, bytes):
    with open(file, "rb") as opened:
      file = opened.read(12)
  return file[4:8] == b"ftyp" and file[8:12] in _HEIC_BRANDS


@contextlib.contextmanager
def _as_image_error(where: str) -> Iterator[None]:
  """Turns every Exception but MemoryError into ImageError.

  Pillow raises exceptions of many classes for broken files.
  """
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    raise ImageError(
      f"{where}: not a readable image ({printable(str(error))})"
    ) from error


def prepare(
  image: Image.Image | np.ndarray,
  size: int,
  upright: bool = False,
  resize: Resize = CLIPS_RESIZE,
) -> UInt8[np.ndarray, "S S 3"]:
  """Applies a CLIP's test preprocessing: RGB (`to_rgb`), resized to S x S pixels.

  By default the shorter side is resized to S and the centre is cropped, with the
  rounding of torchvision, which CLIP uses.

  Args:
    image: Pillow image of any mode, or uint8 [H,W,3].
    size: S, pixels.
    upright: whether the image is turned as its EXIF orientation says.
    resize: how the image becomes S x S pixels.

  Raises:
    ImageError: the array has another type or shape, `to_rgb` rejects the pixels, or the
      sides are too unequal to resize.
  """
  if not isinstance(image, Image.Image):
    image = _from_array(np.asarray(image))
  image = to_rgb(image, upright)
  resampling = Image.Resampling.BICUBIC
  if resize.bilinear:
    resampling = Image.Resampling.BILINEAR
  if resize.squash:
    return np.asarray(image.resize((size, size), resampling))

  # `int` truncates the longer side, as torchvision's Resize does.
  shorter = min(image.size)
  width = int(size * image.width / shorter)
  height = int(size * image.height / shorter)
  if width * height > MAX_PIXELS:
    raise ImageError(f"{image.width} x {image.height} pixels are too narrow")
  image = image.resize((width, height), resampling)

  # `round` takes halves to the even number, as torchvision's CenterCrop does.
  left = round((width - size) / 2)
  top = round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def _from_array(pixels: np.ndarray) -> Image.Image:
  """Wraps uint8 [H,W,3]; ImageError for another array."""
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
    description = f"{pixels.dtype} {list(pixels.shape)}"
    raise ImageError(
      f"an image is {description}, expected uint8 [H,W,3] or a Pillow image"
    )
  return Image.fromarray(pixels)


def check_decodes(image: bytes) -> None:
  """Raises ImageError if an image can't be decoded to its last line."""
  with _as_image_error("the image"), _open(image) as opened:
    # A JPEG decodes faster at an eighth of its sides; all of its data is still read.
    opened.draft("RGB", (opened.width // 8, opened.height // 8))
    opened.load()


def resized_crop(
  image: Image.Image, box: tuple[float, float, float, float], size: int
) -> Image.Image:
  """Crops an RGB image and resizes the crop to S x S (bicubic).

  Pixels outside the box have no influence. If the box ends within a pixel, the fraction
  enters the weights of the border pixels. `cykooz-resizer` agrees with Pillow within
  rounding and is six times as fast, because it uses vector instructions.

  Args:
    image: RGB image.
    box: left, top, right, bottom, pixels.
    size: S, pixels.
  """
  left, top, right, bottom = box
  # Crop the whole pixels that the box touches, then move the box to the crop's corner.
  first_column = math.floor(left)
  first_row = math.floor(top)
  part = image.crop((first_column, first_row, math.ceil(right), math.ceil(bottom)))
  left -= first_column
  right -= first_column
  top -= first_row
  bottom -= first_row
  if Resizer is None:
    return part.resize(
      (size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )

  crop_box = CropBox(left, top, right - left, bottom - top)
  result = Image.new("RGB", (size, size))
  # A Resizer keeps buffers, so threads must not share one.
  Resizer().resize_pil(part, result, ResizeOptions(_BICUBIC, crop_box=crop_box))
  return result
