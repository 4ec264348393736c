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

# Pillow reads AVIF from 11.3 on, where it was built with it.
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
# Largest image that is decoded, by its header: 8192 x 8192, for which Pillow needs up
# to 320 MiB.
MAX_PIXELS = 2**26
PREPROCESSING_VERSION = 2  # of `prepare`'s pixels, for cache keys
# Library behind `resized_crop`, for cache keys: the two differ in rounding.
RESIZER = "pillow" if Resizer is None else "cykooz"

_BAND_PIXELS = 2**20  # pixels of a deep image that are scaled at a time
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# How the stored pixels of each EXIF orientation are turned.
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
  """How images become S x S pixels; as OpenAI's CLIPs by default."""

  # to a square; otherwise the shorter side to S, and the centre cropped
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
  """Prepares one image, of a path or the content at `where` (`prepare`); ImageError
  if it can't.

  Args:
    file: path, or the content of a file.
    size: S, pixels.
    upright: whether the image is turned as its EXIF orientation says.
    where: name of the image in errors; its path if "".
    resize: how the image becomes S x S pixels.
  """
  with _as_image_error(where or str(file)), _open(file) as image:
    return prepare(image, size, upright, resize)


def sides(image: Image.Image, upright: bool) -> tuple[int, int]:
  """Width and height that an image from `open_image` has once it is decoded; see
  `to_rgb`."""
  # Pillow turns TIFFs itself, and their header's sides are those of the turned image.
  on_its_side = upright and image.format != "TIFF" and 5 <= _orientation(image) <= 8
  return image.size[::-1] if on_its_side else image.size


def open_image(file: File, where: str = "") -> Image.Image:
  """Reads an image's header; ImageError if it is none of FORMATS, or above
  MAX_PIXELS."""
  with _as_image_error(where or str(file)):
    return _open(file)


def load_rgb(
  image: Image.Image, where: str, shrink: int = 1, upright: bool = False
) -> tuple[Image.Image, int]:
  """Decodes the pixels of an image from `open_image`; see `to_rgb`.

  `shrink` is a factor 1, 2, 4 or 8 by which a JPEG's sides are divided in decoding,
  from fewer of its stored cosines. Also returns the factor that was applied: `shrink`,
  or 1 for other formats.

  Args:
    image: image whose pixels are not decoded yet.
    where: name of the image in errors.
    shrink: factor 1, 2, 4 or 8.
    upright: whether the image is turned as its EXIF orientation says.
  """
  with _as_image_error(where):
    if shrink > 1 and isinstance(image, JpegImageFile):
      image.draft(None, (image.width // shrink, image.height // shrink))
    else:
      shrink = 1
    return to_rgb(image, upright), shrink


def to_rgb(image: Image.Image, upright: bool = False) -> Image.Image:
  """Converts an image of any Pillow mode to RGB, 8 bits a channel, as CLIP's
  preprocessing does.

  With `upright` it is turned as its EXIF orientation says, which CLIP's preprocessing
  ignores. Transparency is dropped. Pillow clips deep greys at 255, so they are scaled
  here:

  - 16 bits (PNG, PPM, TIFF) or 12 (TIFF): the high byte, as Pillow reads 16-bit
    colours.
  - 32 bits (TIFF): integers up to 255 unchanged, up to 65535 the high byte of 16 bits.
  - float (TIFF, PFM), rounded: values up to 1 times 255, up to 255 unchanged, up to
    65535 over 257.

  ImageError for negative, non-finite or larger values, or colours that Pillow can't
  convert.
  """
  image.load()
  turn = _TURNS.get(_orientation(image)) if upright else None
  return _unturned_rgb(image) if turn is None else _unturned_rgb(image).transpose(turn)


def _orientation(image: Image.Image) -> int:
  try:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception:  # broken EXIF fails in many ways, and makes no picture unreadable
    return 1


def _unturned_rgb(image: Image.Image) -> Image.Image:
  if image.mode == "RGB":  # convert would copy it
    return image
  if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
    try:
      return image.convert("RGB")
    except ValueError as error:
      raise ImageError(f"colours of mode {image.mode}") from error
  tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
  factor = _grey_factor(image, tags.get(_TIFF_BITS, (16,))[0])
  inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
  grey = Image.new("L", image.size)
  rows = max(1, _BAND_PIXELS // image.width)
  for top in range(0, image.height, rows):
    box = (0, top, image.width, min(top + rows, image.height))
    values = np.asarray(image.crop(box))
    if not np.isfinite(values).all():
      raise ImageError("values that are not finite")
    scaled = values * factor
    # Integers lose their low bits. Floats are measurements, so they are rounded.
    band = (np.rint(scaled) if image.mode == "F" else np.floor(scaled)).astype(np.uint8)
    grey.paste(Image.fromarray(255 - band if inverted else band), box)
  return grey.convert("RGB")


def _grey_factor(image: Image.Image, bits: int) -> float:
  """Factor that scales a deep grey value to 0..255; `bits` is its size unless it has
  32."""
  if image.mode.startswith("I;"):
    return 2.0 ** (8 - bits)
  low, high = np.asarray(image.getextrema()).tolist()
  if not 0 <= low <= high <= 65535:
    raise ImageError(f"grey values from {low} to {high}, expected 0 to 65535")
  if image.mode == "F":
    return 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
  return 1 / 256 if image.format in ("PNG", "PPM") or high > 255 else 1.0


def _open(file: File) -> Image.Image:
  if not isinstance(file, bytes) and is_bucket(file):
    file = read_bytes(file)
  try:
    opened = io.BytesIO(file) if isinstance(file, bytes) else local_copy(file)
    image = Image.open(opened, formats=FORMATS)
  except UnidentifiedImageError as error:
    if _is_heic(file):
      raise ImageError(UNREAD_REASON) from error
    # Pillow's own message contains the object's address.
    raise ImageError(f"none of {', '.join(FORMATS)}") from error
  if image.width * image.height > MAX_PIXELS:
    image.close()
    raise ImageError(
      f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}"
    )
  return image


def _is_heic(file: File) -> bool:
  """Whether a file begins as HEIC does, whatever its name."""
  if not isinstance(file, bytes):
    with open(file, "rb") as opened:
      file = opened.read(12)
  return file[4:8] == b"ftyp" and file[8:12] in _HEIC_BRANDS


@contextlib.contextmanager
def _as_image_error(where: str) -> Iterator[None]:
  """Turns any error of Pillow's into ImageError: broken files raise errors of many
  classes."""
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
  """A CLIP's test preprocessing: RGB (`to_rgb`), resized, by default with a centre
  crop.

  ImageError for another array, pixels that `to_rgb` rejects, or sides too unequal to
  resize.

  Args:
    image: Pillow image of any mode, or uint8 [H,W,3].
    size: S, pixels.
    upright: whether the image is turned as its EXIF orientation says.
    resize: how the image becomes S x S pixels.
  """
  if not isinstance(image, Image.Image):
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      found = f"{image.dtype} {list(image.shape)}"
      raise ImageError(f"an image is {found}, expected uint8 [H,W,3] or a Pillow image")
    image = Image.fromarray(image)
  image = to_rgb(image, upright)
  resampling = (
    Image.Resampling.BILINEAR if resize.bilinear else Image.Resampling.BICUBIC
  )
  if resize.squash:
    return np.asarray(image.resize((size, size), resampling))
  shorter = min(image.size)
  # Truncated as in torchvision's Resize, which CLIP uses.
  width, height = (int(size * side / shorter) for side in image.size)
  if width * height > MAX_PIXELS:
    raise ImageError(f"{image.width} x {image.height} pixels are too narrow")
  image = image.resize((width, height), resampling)
  # Rounded to even as in torchvision's CenterCrop.
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def check_decodes(image: bytes) -> None:
  """Raises ImageError if an image can't be decoded to its last line."""
  with _as_image_error("the image"), _open(image) as opened:
    # That reads all data of a JPEG.
    opened.draft("RGB", (opened.width // 8, opened.height // 8))
    opened.load()


def resized_crop(
  image: Image.Image, box: tuple[float, float, float, float], size: int
) -> Image.Image:
  """Crops an RGB image and resizes the crop to S x S (bicubic); pixels outside have no
  influence.

  `cykooz-resizer` agrees with Pillow within rounding, six times as fast by vector
  instructions. `box` is left, top, right, bottom in pixels; fractions weight the border
  pixels.

  Args:
    image: RGB image.
    box: left, top, right, bottom, pixels.
    size: S, pixels.
  """
  left, top = math.floor(box[0]), math.floor(box[1])
  part = image.crop((left, top, math.ceil(box[2]), math.ceil(box[3])))
  x, y, right, bottom = within = (
    box[0] - left,
    box[1] - top,
    box[2] - left,
    box[3] - top,
  )
  if Resizer is None:
    return part.resize((size, size), Image.Resampling.BICUBIC, box=within)
  options = ResizeOptions(_BICUBIC, crop_box=CropBox(x, y, right - x, bottom - y))
  result = Image.new("RGB", (size, size))
  # A Resizer keeps buffers, so threads must not share one.
  Resizer().resize_pil(part, result, options)
  return result
