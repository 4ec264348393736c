"""Folders of images and label images, and what is refused."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.data.images import ImageError
from pomp_jax.data.pixels import IGNORED, PixelError, open_pixels, write_labels

CLASSES = ClassSplit(
  (("cat",), ("dog",), ("sky",)), ("base", "base", "novel"), ((1,), (4, 5), (9,))
)
VALUES = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


@pytest.fixture
def folders(tmp_path):
  """Two images and one pair; the other image has no label."""
  for name in ("images", "labels"):
    (tmp_path / name).mkdir()
  rng = np.random.default_rng(0)
  for stem in ("a", "b"):
    pixels = rng.integers(0, 256, (2, 3, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / f"{stem}.png")
  Image.fromarray(VALUES).save(tmp_path / "labels" / "a.png")
  return tmp_path


def opened(folders, values="index", **options):
  return open_pixels(folders / "images", folders / "labels", CLASSES, values, **options)


def test_pairs_by_stem(folders):
  pixels = opened(folders)
  assert pixels.keys == ("a",) and len(pixels) == 1
  with Image.open(folders / "images" / "a.png") as image:
    np.testing.assert_array_equal(pixels.image(0), np.asarray(image))
  np.testing.assert_array_equal(pixels.labels(0), [[0, 1, 2], [IGNORED, 2, 0]])
  pixels.check()


def test_reduce_zero_label_equals_mmsegs_arithmetic(folders):
  # mmseg: 0 becomes 255, all others go down by one, and 254 becomes 255.
  expected = VALUES.copy()
  expected[expected == 0] = 255
  expected = (expected - 1).astype(int)
  expected[expected == 254] = IGNORED
  np.testing.assert_array_equal(opened(folders, "reduce_zero_label").labels(0), expected)


def test_listed_values_palettes_and_16_bits(folders):
  label = folders / "labels" / "a.png"
  palette = Image.fromarray(np.array([[1, 4, 5], [9, 9, 255]], np.uint8), mode="P")
  palette.putpalette(list(range(255, -1, -1)) * 3)
  palette.save(label)
  expected = np.array([[0, 1, 1], [2, 2, IGNORED]])
  np.testing.assert_array_equal(opened(folders, "listed").labels(0), expected)
  Image.fromarray(np.array([[0, 1, 2], [2, 1, 65535]], np.uint16)).save(label)
  expected = [[0, 1, 2], [2, 1, IGNORED]]
  np.testing.assert_array_equal(opened(folders, ignore=65535).labels(0), expected)


@pytest.mark.parametrize("n_classes", [3, 255, 256, 2400])
def test_written_labels_are_read_again(folders, n_classes):
  labels = np.array([[0, 1, n_classes - 1], [IGNORED, 2, 0]], np.int32)
  write_labels(folders / "labels" / "a.png", labels, n_classes)
  classes = ClassSplit(tuple((str(c),) for c in range(n_classes)), ("-",) * n_classes)
  ignore = 255 if n_classes <= 255 else 65535
  pixels = open_pixels(folders / "images", folders / "labels", classes, ignore=ignore)
  np.testing.assert_array_equal(pixels.labels(0), labels)
  with pytest.raises(ValueError, match=str(n_classes)):
    write_labels(folders / "x.png", labels + 1, n_classes)
  assert not (folders / "x.png").exists()


def save(path, pixels):
  """Writes a label image, or removes it."""
  path.unlink(missing_ok=True)
  if isinstance(pixels, bytes):
    path.write_bytes(pixels)
  elif pixels is not None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
  ("file", "pixels", "parts"),
  [
    ("labels/c.png", VALUES, ["c.png"]),
    ("images/a.bmp", VALUES, ["a.bmp", "a.png"]),
    ("labels/a.png", VALUES + 1, ["value 3", "a.png"]),
    ("labels/a.png", VALUES[:, :2], ["2 x 2", "a.png"]),
    ("labels/a.png", np.stack([VALUES] * 3, axis=-1), ["RGB", "a.png"]),
    ("labels/a.tiff", np.full((2, 3), 70_000, np.int32), ["16 bits", "a.tiff"]),
    ("labels/a.png", b"\x89PNG\r\n\x1a\n", ["a.png"]),
    ("labels/a.png", None, ["labels"]),
  ],
)
def test_unusable_folders_and_labels(folders, file, pixels, parts):
  (folders / "labels" / "a.png").unlink()
  save(folders / file, pixels)
  with pytest.raises((PixelError, ImageError)) as error:
    opened(folders).check()
  assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_fields_and_missing_folders(folders):
  names = ClassSplit(CLASSES.synonyms, CLASSES.groups)
  for options, error in (
    ({"values": "zero"}, "listed"),
    ({"ignore": 2}, "2"),
    ({"classes": names, "values": "listed"}, "third column"),
    ({"labels": folders / "missing"}, "missing"),
  ):
    fields = {"images": folders / "images", "labels": folders / "labels", "classes": CLASSES}
    with pytest.raises((PixelError, ImageError), match=error):
      open_pixels(**fields | options)
