"""Views of images with region maps: place, scale and flip against the whole image."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.annotations import AnnotationError
from pomp_jax.data.images import ImageError
from pomp_jax.data.mask_views import (
  MaskAugmentation,
  MaskViews,
  Place,
  RegionMap,
  RegionMaps,
  cut,
  draw_place,
  largest_regions,
  map_of_masks,
)
from pomp_jax.data.pixels import PixelError

LABELS = np.array([4, -1, 2], np.int32)
CROPS = MaskAugmentation("crop_flip", seed=5, scales=(0.5, 2.0))


class Maps:
  """Three images, the last of which can't be read."""

  error: Exception = ImageError("image 2: broken")
  names = ("a", "b")
  labels = np.zeros(3, np.int32)

  def __len__(self):
    return 3

  def region_map(self, index):
    if index == 2:
      raise self.error
    rng = np.random.default_rng(index)
    shape = (24, 36) if index else (30, 20)
    return RegionMap(
      rng.integers(0, 256, (*shape, 3), np.uint8),
      rng.integers(-1, 3, shape).astype(np.int16),
      LABELS,
    )

  def where(self, index):
    return f"image {index}"


def test_the_whole_image_fits_and_begins_in_the_corner():
  assert isinstance(Maps(), RegionMaps) and not isinstance(object(), RegionMaps)
  views = MaskViews(Maps(), 48, 4)
  records, readable = views(np.array([0, 1]), np.array([0, 3]))
  assert records.shape == (2, 1) and readable.all()
  assert records["sides"][:, 0].tolist() == [[48, 32], [32, 48]]
  for record, index in zip(records[:, 0], (0, 1), strict=True):
    rows, columns = record["sides"]
    whole = Maps().region_map(index)
    image = Image.fromarray(whole.image).resize((columns, rows), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(record["image"][:rows, :columns], image)
    assert not record["image"][rows:].any() and not record["image"][:, columns:].any()
    assert (record["owners"][rows:] == -1).all() and (record["owners"][:, columns:] == -1).all()


@pytest.mark.parametrize(
  "place", [Place(24, 36, 0, 0, 24, 36, False), Place(24, 36, 3, 5, 9, 8, True)]
)
def test_a_view_at_the_scale_of_the_image_has_its_pixels(place):
  whole = Maps().region_map(1)
  part = cut(whole, place)
  rows, columns = (
    slice(place.top, place.top + place.rows),
    slice(place.left, place.left + place.columns),
  )
  turn = slice(None, None, -1 if place.flip else 1)
  np.testing.assert_array_equal(part.image, whole.image[rows, columns][:, turn])
  np.testing.assert_array_equal(part.owners, whole.owners[rows, columns][:, turn])


def test_a_view_is_cut_out_of_the_scaled_image():
  """Scales of height and width differ where sides are rounded; here 3 and 2 times."""
  whole = Maps().region_map(0)
  place = Place(90, 40, 7, 11, 40, 25, False)
  part = cut(whole, place)
  rows = ((np.arange(40) + 7 + 0.5) / 3).astype(int)
  columns = ((np.arange(25) + 11 + 0.5) / 2).astype(int)
  np.testing.assert_array_equal(part.owners, whole.owners[np.ix_(rows, columns)])
  scaled = np.asarray(Image.fromarray(whole.image).resize((40, 90), Image.Resampling.BILINEAR))
  inner = (slice(3, -3), slice(3, -3))  # the border of a cut knows nothing beyond it
  difference = part.image[inner].astype(int) - scaled[7:47, 11:36][inner]
  assert np.abs(difference).max() <= 1
  turned = cut(whole, place._replace(flip=True))
  np.testing.assert_array_equal(turned.image, part.image[:, ::-1])
  np.testing.assert_array_equal(turned.owners, part.owners[:, ::-1])


def test_places_are_inside_and_follow_the_seed_image_and_epoch():
  drawn = [draw_place(30, 20, 32, CROPS, index=index, epoch=1) for index in range(200)]
  for place in drawn:
    assert 0 <= place.top <= place.height - place.rows
    assert 0 <= place.left <= place.width - place.columns
    assert place.rows == min(32, place.height) and place.columns == min(32, place.width)
    assert abs(place.height / place.width - 1.5) < 0.1
  assert len(set(drawn)) > 150
  scales = [place.width / 32 for place in drawn]
  assert min(scales) < 0.6 and max(scales) > 1.9 and abs(np.mean(scales) - 1.25) < 0.1
  assert 0.35 < np.mean([place.flip for place in drawn]) < 0.65
  other = MaskAugmentation("crop_flip", seed=6)
  assert drawn[199] == draw_place(30, 20, 32, CROPS, index=199, epoch=1)
  assert drawn[199] != draw_place(30, 20, 32, CROPS, index=199, epoch=2)
  assert drawn[199] != draw_place(30, 20, 32, other, index=199, epoch=1)


def test_regions_without_pixel_or_class_are_dropped_and_the_largest_are_first():
  owners = np.array([[0, 0, 1, 1], [2, 2, 2, 4], [-1, 4, 4, 4]], np.int16)
  labels = np.array([7, -1, 9, 8, 6], np.int32)
  found, kept = largest_regions(owners, labels, 5)
  assert kept.tolist() == [6, 9, 7]
  assert found.tolist() == [[2, 2, -1, -1], [1, 1, 1, 0], [-1, 0, 0, 0]]
  found, kept = largest_regions(owners, labels, 1)
  assert kept.tolist() == [6]
  assert (found >= 0).sum() == 4


def test_smaller_masks_are_in_front():
  masks = np.zeros((3, 2, 4), bool)
  masks[0, :, :2], masks[1], masks[2, 0, 1:] = True, True, True
  assert map_of_masks(masks, 2, 4).tolist() == [[0, 2, 2, 2], [0, 0, 1, 1]]
  assert (map_of_masks(masks[:0], 2, 4) == -1).all()


@pytest.mark.parametrize("error", [ImageError, AnnotationError, PixelError])
def test_an_unreadable_image_or_label_is_told(error):
  maps = Maps()
  maps.error = error("image 2: broken")
  records, readable = MaskViews(maps, 32, 2, CROPS)(np.array([2, 0]), np.array([0, 0]))
  assert readable.tolist() == [False, True]
  assert not records["image"][0].any() and records["image"][1].any()
