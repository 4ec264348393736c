"""Views of training images: augmentations against torchvision, one decode, repeated
views."""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageOps
import pytest
from scipy import stats
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from pomp_jax import world
from pomp_jax.data.images import load_rgb, open_image
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.views import (
  CROP_AREA,
  OPERATIONS,
  Augmentation,
  View,
  _crop,
  draw_view,
  make_view,
  views,
)
from tests.support.pictures import encode, natural_image

RECIPE = Augmentation("recipe", n_views=3, seed=5)
IMAGE = natural_image(0, 60, 80)
BICUBIC = InterpolationMode.BICUBIC


def stored(folder, encoded):
  for i, content in enumerate(encoded):
    (folder / f"{i}.jpg").write_bytes(content)
  keys = [f"{i}.jpg" for i in range(len(encoded))]
  return StoredImages("a", np.zeros(len(keys), int), keys, Files(folder), image_size=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  pictures = [
    natural_image(0, 90, 120),
    natural_image(1, 400, 300),
    natural_image(2, 40, 50),
  ]
  return stored(
    tmp_path_factory.mktemp("images"), [encode(picture) for picture in pictures]
  )


@pytest.mark.parametrize("area", [CROP_AREA, 0.7])
def test_views_equal_torchvisions_transforms_of_the_same_draws(
  source, monkeypatch, area
):
  monkeypatch.setattr(
    "pomp_jax.data.views.load_rgb",
    lambda image, where, *_: (load_rgb(image, where)[0], 1),
  )
  monkeypatch.setattr("pomp_jax.data.images.Resizer", None)
  augmentation = Augmentation("crop_flip", n_views=3, seed=5, crop_area=area)
  found, readable = views(source, np.arange(3), np.full(3, 7), augmentation, 32)
  assert readable.all()
  for index in range(3):
    image = Image.open(io.BytesIO(source.encoded(index))).convert("RGB")
    for number in range(3):
      view = draw_view(*image.size, augmentation, index, 7, number)
      left, top, width, height = view.crop
      expected = F.resized_crop(image, top, left, height, width, [32, 32], BICUBIC)
      expected = F.hflip(expected) if view.flip else expected
      np.testing.assert_array_equal(found[index, number], expected)


def test_reduced_decoding_changes_little_and_only_where_it_may(source):
  """Half size and smaller, only if no crop of the image is enlarged by it."""
  augmentation, seen = Augmentation("crop_flip", n_views=3, seed=5), set()
  whole = Image.open(io.BytesIO(source.encoded(1)))
  for epoch in range(12):
    drawn = [draw_view(300, 400, augmentation, 1, epoch, view) for view in range(3)]
    found, _ = views(source, np.array([1]), np.array([epoch]), augmentation, 32)
    exact = np.stack([make_view(whole, view, 32) for view in drawn])
    smallest = min(min(view.crop[2:]) for view in drawn)
    shrink = max(s for s in (1, 2, 4, 8) if s == 1 or smallest >= s * 32)
    seen.add(shrink)
    difference = np.abs(found[0].astype(int) - exact).mean()
    assert difference == 0 if shrink == 1 else 0 < difference < 2.5
  assert len(seen) > 1 and max(seen) > 2


def test_a_reduced_jpeg_lies_where_the_whole_one_does():
  # 75 columns are 38 of two each: the last stands for half a pixel more than there is.
  image = natural_image(3, 61, 75).resize((750, 610))
  encoded = encode(image, quality=98)
  whole, one = load_rgb(open_image(encoded, "a"), "a")
  half, two = load_rgb(open_image(encoded, "a"), "a", 2)
  assert (one, two, whole.size, half.size) == (1, 2, (750, 610), (375, 305))
  view = draw_view(750, 610, Augmentation("crop_flip"), 0, 0, 0)
  exact = np.asarray(make_view(whole, view, 64)).astype(int)
  assert np.abs(np.asarray(make_view(half, view, 64, 2)) - exact).mean() < 1
  left, top, width, height = view.crop
  for moved in ((left + 6, top, width, height), (left, top + 6, width, height)):
    shifted = np.asarray(make_view(half, view._replace(crop=moved), 64, 2))
    assert np.abs(shifted - exact).mean() > 2
  png, one = load_rgb(open_image(encode(image, "PNG"), "a"), "a", 2)
  assert (one, png.size) == (1, (750, 610))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_views_of_a_turned_picture_are_those_of_its_upright_copy(tmp_path, orientation):
  """Of a wide one, so that crops drawn for its stored sides would differ."""
  exif, picture = Image.Exif(), natural_image(3, 40, 120)
  exif[0x0112] = orientation
  lying, standing = io.BytesIO(), io.BytesIO()
  picture.save(lying, "png", exif=exif)
  ImageOps.exif_transpose(Image.open(lying)).save(standing, "png")
  found = []
  for name, content in (("lying", lying), ("standing", standing)):
    (tmp_path / name).mkdir()
    own = stored(tmp_path / name, [content.getvalue()])
    own = own.replace(upright=name == "lying")
    found.append(views(own, np.zeros(4, int), np.arange(4), RECIPE, 32)[0])
  np.testing.assert_array_equal(*found)


def test_view_epochs_repeat_the_views(source):
  repeating, epochs = dataclasses.replace(RECIPE, view_epochs=2), np.arange(4)
  endless, shown = (
    views(source, epochs % 3, epochs, a, 32)[0] for a in (RECIPE, repeating)
  )
  assert len({view.tobytes() for image in endless for view in image}) == 12
  for row in range(4):
    # Views do not depend on the batch.
    single, _ = views(source, np.array([row % 3]), np.array([row % 2]), RECIPE, 32)
    np.testing.assert_array_equal(single[0], shown[row])
  assert repeating.versions(epochs).tolist() == [
    [0, 1, 2],
    [3, 4, 5],
    [0, 1, 2],
    [3, 4, 5],
  ]


def test_sources_that_store_images_or_draw_them(source):
  """Without augmentation images are as in the test."""
  found, readable = views(
    source, np.array([2, 0]), np.array([0, 9]), Augmentation(), 32
  )
  assert readable.all()
  np.testing.assert_array_equal(found[:, 0], source.images(np.array([2, 0])))
  source, indices = world.source("train", images_per_class=1), np.array([3, 900])
  plain, _ = views(source, indices, np.zeros(2, int), Augmentation(), 40)
  np.testing.assert_array_equal(plain[:, 0], source.images(indices))
  found, _ = views(source, indices, np.array([0, 4]), RECIPE, 40)
  image = Image.fromarray(source.images(indices)[1])
  drawn = draw_view(40, 40, RECIPE, 900, 4, 2)
  np.testing.assert_array_equal(found[1, 2], make_view(image, drawn, 40))


def test_unreadable_images_are_reported_and_the_others_shown(source, tmp_path):
  good = source.encoded(0)
  broken_png = encode(natural_image(0, 20, 20), "PNG")[:-30]
  bad = [b"", b"<html>404</html>", good[: len(good) // 2], good[:300], broken_png]
  mixed = stored(tmp_path, [*bad, good, good])
  (tmp_path / "5.jpg").unlink()
  found, readable = views(mixed, np.arange(7), np.zeros(7, int), RECIPE, 32)
  assert readable.tolist() == [False] * 6 + [True]
  assert not found[:6].any() and found[6].any()


def affine(image, shear=(0.0, 0.0), translate=(0.0, 0.0)):
  degrees = [math.degrees(math.atan(s)) for s in shear]
  return F.affine(image, 0.0, list(translate), scale=1.0, shear=degrees, center=[0, 0])


# RandAugment2 of the published recipe: ranges of the magnitudes, and the same
# operations in torchvision's terms, on Pillow's images and on tensors.
TORCHVISION = {
  "autocontrast": (0, 1, lambda image, m: F.autocontrast(image)),
  "brightness": (0.1, 1.9, F.adjust_brightness),
  "color": (0.1, 1.9, F.adjust_saturation),
  "contrast": (0.1, 1.9, F.adjust_contrast),
  "equalize": (0, 1, lambda image, m: F.equalize(image)),
  "identity": (0, 1, lambda image, m: image),
  "invert": (0, 1, lambda image, m: F.invert(image)),
  "posterize": (4, 8, lambda image, m: F.posterize(image, int(m))),
  "rotate": (-30, 30, F.rotate),
  "sharpness": (0.1, 1.9, F.adjust_sharpness),
  "shear_x": (-0.3, 0.3, lambda image, m: affine(image, shear=(m, 0))),
  "shear_y": (-0.3, 0.3, lambda image, m: affine(image, shear=(0, m))),
  # Tensors take no threshold above 255: there nothing is inverted.
  "solarize": (0, 256, lambda image, m: F.solarize(image, m) if m <= 255 else image),
  # Ours says where a pixel comes from, torchvision's where it goes.
  "translate_x": (-0.3, 0.3, lambda image, m: affine(image, translate=(-m * 80, 0))),
  "translate_y": (-0.3, 0.3, lambda image, m: affine(image, translate=(0, -m * 60))),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_equal_torchvisions(name):
  low, high, expected = TORCHVISION[name]
  image = IMAGE.copy()
  tensor = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1)
  for share in (0.0, 0.21, 0.5, 0.83, 0.999):
    magnitude = low + (high - low) * share
    found = np.asarray(OPERATIONS[name][0](image, magnitude))
    np.testing.assert_array_equal(found, expected(IMAGE, magnitude))
    # The tensor functions are other code. They turn and shift about other pixel
    # centres.
    if name.split("_")[0] not in ("rotate", "shear", "translate"):
      other = expected(tensor, magnitude).permute(1, 2, 0).numpy()
      assert np.abs(found.astype(int) - other).max() <= 1, magnitude
  np.testing.assert_array_equal(image, IMAGE)


def test_operations_follow_in_order():
  view = View((0, 0, 80, 60), False, (("posterize", 4.0), ("brightness", 1.3)))
  plain = make_view(IMAGE, view._replace(operations=()), 32)
  expected = np.asarray(F.adjust_brightness(F.posterize(plain, 4), 1.3))
  np.testing.assert_array_equal(make_view(IMAGE, view, 32), expected)
  # The other order gives something else.
  assert np.any(np.asarray(F.posterize(F.adjust_brightness(plain, 1.3), 4)) != expected)


def draw(count, width=500, height=375, kind="recipe", **changes):
  augmentation = Augmentation(kind, **changes)
  return [draw_view(width, height, augmentation, index, 0, 0) for index in range(count)]


@pytest.mark.parametrize(
  "width, height, area",
  [(500, 375, 0.08), (300, 900, 0.08), (60, 61, 0.08), (500, 375, 0.5)],
)
def test_crops_are_distributed_as_torchvisions(width, height, area):
  torch.manual_seed(0)
  image, ratios = Image.new("L", (width, height)), [3 / 4, 4 / 3]
  theirs = [
    RandomResizedCrop.get_params(image, [area, 1.0], ratios) for _ in range(3000)
  ]
  expected = np.array(theirs)[:, [1, 0, 3, 2]]
  found = np.array([view.crop for view in draw(3000, width, height, crop_area=area)])
  assert (found[:, 2:] > 0).all() and (found[:, :2] >= 0).all()
  assert (found[:, :2] + found[:, 2:] <= [width, height]).all()
  products = (
    lambda crop: crop[:, 2] * crop[:, 3],
    lambda crop: crop[:, 2] / crop[:, 3],
  )
  pairs = [
    *zip(found.T, expected.T, strict=True),
    *((of(found), of(expected)) for of in products),
  ]
  for ours, others in pairs:
    assert stats.ks_2samp(ours, others).pvalue > 0.01


@pytest.mark.parametrize("width, height", [(1000, 20), (20, 1000)])
def test_images_that_no_crop_fits_are_cropped_in_the_centre(width, height):
  theirs = RandomResizedCrop.get_params(
    Image.new("L", (width, height)), [2.0, 2.0], [3 / 4, 4 / 3]
  )
  left, top, w, h = _crop(width, height, np.ones((10, 4)) - 1e-9, CROP_AREA)
  assert (top, left, h, w) == theirs
  assert draw(1, 1, 1)[0].crop == (0, 0, 1, 1)


def test_flips_and_operations_are_drawn_as_the_recipe_says():
  drawn = draw(6000)
  assert abs(np.mean([view.flip for view in drawn]) - 0.5) < 0.02
  counts = np.bincount([len(view.operations) for view in drawn], minlength=3) / 6000
  np.testing.assert_allclose(counts, [0.16, 0.48, 0.36], atol=0.02)
  every = [operation for view in drawn for operation in view.operations]
  names = [name for name, _ in every]
  assert set(names) == set(TORCHVISION)
  expected = np.full(15, len(every) / 15)
  assert (
    stats.chisquare([names.count(name) for name in TORCHVISION], expected).pvalue > 0.01
  )
  pairs = [view.operations for view in drawn if len(view.operations) == 2]
  assert (
    abs(np.mean([first[0] == second[0] for first, second in pairs]) - 1 / 15) < 0.015
  )
  for name, (low, high, _) in TORCHVISION.items():
    magnitudes = [(m - low) / (high - low) for found, m in every if found == name]
    assert stats.kstest(magnitudes, "uniform").pvalue > 0.001, name
  assert all(not view.operations for view in draw(50, kind="crop_flip"))


def test_a_view_is_a_function_of_seed_image_epoch_and_view():
  augmentation = Augmentation("recipe", seed=1)
  # Another number each, and an exchange of two.
  numbers = [(2, 3, 8), (3, 3, 8), (2, 4, 8), (2, 3, 9), (3, 2, 8)]
  drawn = [draw_view(500, 375, augmentation, *own) for own in numbers]
  drawn.append(draw_view(500, 375, dataclasses.replace(augmentation, seed=2), 2, 3, 8))
  assert len(set(drawn)) == len(drawn)
  # Caches of features depend on the draws: a release that draws otherwise makes these
  # useless.
  operations = (("translate_y", -0.22585426698362165), ("color", 0.3535856250018684))
  assert drawn[0] == View((45, 61, 214, 272), True, operations)
  crop_flip = draw_view(500, 375, Augmentation("crop_flip", seed=1), 2, 3, 8)
  assert crop_flip == drawn[0]._replace(operations=())
