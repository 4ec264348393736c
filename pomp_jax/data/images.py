"""A user's own images, prepared as CLIP's test images are."""

from collections.abc import Iterator, Sequence
import contextlib
import io
import os
import pathlib

from jaxtyping import UInt8
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import is_unicode, printable

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Decoders that may read a file, whatever its name says. Not among them: those that start another
# program (EPS), and those that no data set uses.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Largest image that is decoded, by its header: 8192 x 8192, of which Pillow needs 320 MiB at most.
MAX_PIXELS = 2**26
# Version of the pixels that a file becomes: part of the key of features that are kept.
PREPARATION = 2

# Pixels of a deep image that are scaled at a time.
_BAND = 2**20
_WHITE_IS_ZERO = 0
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


class ImageError(InputError, ValueError):
  """Images that can't be read; the message is one line that names the file."""


def list_images(folder: str | os.PathLike) -> list[pathlib.Path]:
  """The image files directly in a folder, in order of name; see `list_image_files`.

  Raises:
    ImageError: no such folder, or no image in it.
  """
  path = pathlib.Path(folder)
  if not path.is_dir():
    raise ImageError(f"{folder}: no such folder of images")
  try:
    files = [path / name for name in list_image_files(path)]
  except OSError as error:
    raise ImageError(f"{folder}: can't be read ({error.strerror})") from error
  if not files:
    raise ImageError(f"{folder}: no images in it; accepted: {', '.join(EXTENSIONS)}")
  return files


def list_image_files(folder: str | os.PathLike) -> list[str]:
  """Names of the image files directly in a folder, sorted; links and hidden files are left out.

  Raises:
    ImageError: a name that is not Unicode text.
    OSError: no such folder.
  """
  with os.scandir(folder) as entries:
    names = sorted(
      entry.name
      for entry in entries
      if entry.name.lower().endswith(EXTENSIONS)
      and not entry.name.startswith(".")
      and entry.is_file(follow_symlinks=False)
    )
  for name in names:
    if not is_unicode(name):
      raise ImageError(f"{folder}: the file name {name!r} is not Unicode text")
  return names


def read_image(path: str | os.PathLike, size: int) -> UInt8[np.ndarray, "S S 3"]:
  """Reads one image file and prepares it; see `prepare`.

  Raises:
    ImageError: no such file, or not an image that Pillow can decode.
  """
  return _decode(path, str(path), size)


def decode_image(encoded: bytes, where: str, size: int) -> UInt8[np.ndarray, "S S 3"]:
  """Decodes one image from its bytes and prepares it; see `prepare`.

  Args:
    encoded: JPEG, PNG, or another of FORMATS.
    where: it comes from, for the message.
    size: S.

  Raises:
    ImageError: not an image that Pillow can decode.
  """
  return _decode(io.BytesIO(encoded), where, size)


def open_image(encoded: bytes, where: str) -> Image.Image:
  """Reads an image's header: its size is known, its pixels are not yet decoded.

  Raises:
    ImageError: none of FORMATS, or more than MAX_PIXELS.
  """
  with _readable(where):
    return _open(io.BytesIO(encoded))


def load_rgb(image: Image.Image, where: str, shrink: int = 1) -> tuple[Image.Image, int]:
  """Decodes the pixels of an image from `open_image`; see `to_rgb`.

  Args:
    image: opened, not yet decoded.
    where: it comes from, for the message.
    shrink: 1, 2, 4 or 8: a JPEG is decoded with sides smaller by this (from fewer of the cosines
      that it stores: sharper than averaging pixels, and faster than decoding all of them).

  Returns:
    The image in RGB, and by how much its sides were divided: `shrink`, or 1.

  Raises:
    ImageError: it can't be decoded.
  """
  with _readable(where):
    if shrink > 1 and isinstance(image, JpegImageFile):
      image.draft(None, (image.width // shrink, image.height // shrink))
    else:
      shrink = 1
    return to_rgb(image), shrink


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts an image of any Pillow mode to RGB, 8 bits a channel, as CLIP's preprocessing does.

  An orientation in EXIF is ignored, and transparency is dropped. Pillow's own conversion clips
  deep greys at 255, so these are scaled here:

  - 16 bits (PNG, PPM, TIFF), or 12 (TIFF): the high byte, as Pillow reads 16-bit colours.
  - 32 bits (TIFF): integers up to 255 stay, up to 65535 the high byte of 16 bits.
  - float (TIFF, PFM), rounded: values up to 1 times 255, up to 255 as they are, up to 65535 over
    257.

  Raises:
    ImageError: negative, not finite or larger values, or colours that Pillow can't convert.
  """
  # An RGB image would be copied by convert.
  image.load()
  if image.mode == "RGB":
    return image
  if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
    try:
      return image.convert("RGB")
    except ValueError as error:
      raise ImageError(f"colours of mode {image.mode}") from error
  factor = _factor(image)
  tags = getattr(image, "tag_v2", {})
  inverted = image.format == "TIFF" and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
  grey = Image.new("L", image.size)
  rows = max(1, _BAND // image.width)
  for top in range(0, image.height, rows):
    box = (0, top, image.width, min(top + rows, image.height))
    values = np.asarray(image.crop(box))
    if not np.isfinite(values).all():
      raise ImageError("values that are not finite")
    scaled = values * factor
    # Integers lose their low bits; a float is a measurement, and is rounded.
    band = (np.rint(scaled) if image.mode == "F" else np.floor(scaled)).astype(np.uint8)
    grey.paste(Image.fromarray(255 - band if inverted else band), box)
  return grey.convert("RGB")


def _factor(image: Image.Image) -> float:
  """What a deep grey value is multiplied by to lie in 0..255.

  Raises:
    ImageError: values that are negative, not finite, or too large.
  """
  if image.mode.startswith("I;"):
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,)) if image.format == "TIFF" else (16,)
    return 2.0 ** (8 - bits[0])
  low, high = image.getextrema()
  if not 0 <= low <= high <= 65535:
    raise ImageError(f"grey values from {low} to {high}; accepted: 0 to 65535")
  if image.mode == "F":
    return 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
  return 1 / 256 if image.format in ("PNG", "PPM") or high > 255 else 1.0


def _open(file: str | os.PathLike | io.BytesIO) -> Image.Image:
  try:
    image = Image.open(file, formats=FORMATS)
  except UnidentifiedImageError as error:
    # Pillow's own message has the object's address in it.
    raise ImageError(f"none of {', '.join(FORMATS)}") from error
  if image.width * image.height > MAX_PIXELS:
    image.close()
    raise ImageError(f"{image.width} x {image.height} pixels; accepted: at most {MAX_PIXELS}")
  return image


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
  """Everything that Pillow raises is an ImageError: broken files find their way to many errors."""
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    raise ImageError(f"{where}: not a readable image ({printable(str(error))})") from error


def _decode(file: str | os.PathLike | io.BytesIO, where: str, size: int) -> np.ndarray:
  with _readable(where), _open(file) as image:
    return prepare(image, size)


def prepare(image: Image.Image | np.ndarray, size: int) -> UInt8[np.ndarray, "S S 3"]:
  """CLIP's test preprocessing: RGB (`to_rgb`), shorter side to `size` (bicubic), centre crop.

  Args:
    image: a Pillow image, or uint8 [H,W,3].
    size: S, what the vision tower takes, pixels.

  Raises:
    ImageError: an array of another kind, pixels that `to_rgb` refuses, or sides so unequal that
      the image would be huge at this size.
  """
  if not isinstance(image, Image.Image):
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      found = f"{image.dtype} {list(image.shape)}"
      raise ImageError(f"an image is {found}; accepted: uint8 [H,W,3], or a Pillow image")
    image = Image.fromarray(image)
  image = to_rgb(image)
  width, height = image.size
  shorter = min(width, height)
  # Truncated as torchvision's Resize does, which CLIP uses.
  width, height = int(size * width / shorter), int(size * height / shorter)
  if width * height > MAX_PIXELS:
    raise ImageError(f"{image.width} x {image.height} pixels are too narrow")
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  # torchvision's CenterCrop: halves are rounded to the even pixel.
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def prepare_batch(
  images: Sequence[Image.Image | np.ndarray], size: int
) -> UInt8[np.ndarray, "B S S 3"]:
  """`prepare` for each of some images."""
  return np.stack([prepare(image, size) for image in images])
