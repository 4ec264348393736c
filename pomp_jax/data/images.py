"""A user's own images, prepared as CLIP's test images are."""

from collections.abc import Iterator, Sequence
import contextlib
import io
import math
import os
import pathlib

from jaxtyping import UInt8
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pomp_jax.files.quoting import is_unicode

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageError(ValueError):
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
    encoded: JPEG, PNG, or another format that Pillow knows.
    where: it comes from, for the message.
    size: S.

  Raises:
    ImageError: not an image that Pillow can decode.
  """
  return _decode(io.BytesIO(encoded), where, size)


def open_image(encoded: bytes, where: str) -> Image.Image:
  """Reads an image's header: its size is known, its pixels are not yet decoded.

  Raises:
    ImageError: not an image that Pillow knows, or one of more than twice
      `PIL.Image.MAX_IMAGE_PIXELS`.
  """
  with _readable(where):
    return Image.open(io.BytesIO(encoded))


def load_rgb(image: Image.Image, where: str, shrink: int = 1) -> tuple[Image.Image, int]:
  """Decodes the pixels of an image from `open_image`, in RGB as CLIP's preprocessing has it.

  So an orientation in EXIF is not heeded, and transparency is dropped.

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
    # An RGB image would be copied by convert.
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB"), shrink


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
  """Everything that Pillow raises is an ImageError: broken files find their way to many errors."""
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    raise ImageError(f"{where}: not a readable image ({error})") from error


def _decode(file: str | os.PathLike | io.BytesIO, where: str, size: int) -> np.ndarray:
  with _readable(where), Image.open(file) as image:
    return prepare(image, size)


def prepare(image: Image.Image | np.ndarray, size: int) -> UInt8[np.ndarray, "S S 3"]:
  """CLIP's test preprocessing: shorter side to `size` (bicubic), centre crop, RGB.

  Args:
    image: a Pillow image, or uint8 [H,W,3].
    size: S, what the vision tower takes, pixels.

  Raises:
    ImageError: sides so unequal that the image would be huge at this size.
  """
  if not isinstance(image, Image.Image):
    image = Image.fromarray(np.asarray(image, np.uint8))
  image = image.convert("RGB")
  width, height = image.size
  shorter = min(width, height)
  # Truncated as torchvision's Resize does, which CLIP uses.
  width, height = int(size * width / shorter), int(size * height / shorter)
  if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
    raise ImageError(f"{image.width} x {image.height} pixels are too narrow")
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)))


def prepare_batch(
  images: Sequence[Image.Image | np.ndarray], size: int
) -> UInt8[np.ndarray, "B S S 3"]:
  """`prepare` for each of some images."""
  return np.stack([prepare(image, size) for image in images])
