"""The recipe's augmentations, against torchvision's functions and its random crops."""

import math

import numpy as np
from PIL import Image, ImageEnhance
import pytest
from scipy import stats
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from pomp_jax.data import images, views
from pomp_jax.data.synthetic import natural_image
from pomp_jax.data.views import OPERATIONS, View, draw_view, make_view

IMAGE = natural_image(0, 60, 80)
BICUBIC = InterpolationMode.BICUBIC


def affine(image, shear=(0.0, 0.0), translate=(0.0, 0.0)):
  return F.affine(
    image,
    angle=0.0,
    translate=list(translate),
    scale=1.0,
    shear=[math.degrees(math.atan(s)) for s in shear],
    center=[0, 0],
  )


# The same operations in torchvision's terms; on Pillow's images and on tensors.
TORCHVISION = {
  "autocontrast": lambda image, m: F.autocontrast(image),
  "brightness": F.adjust_brightness,
  "color": F.adjust_saturation,
  "contrast": F.adjust_contrast,
  "equalize": lambda image, m: F.equalize(image),
  "identity": lambda image, m: image,
  "invert": lambda image, m: F.invert(image),
  "posterize": lambda image, m: F.posterize(image, int(m)),
  "rotate": F.rotate,
  "sharpness": F.adjust_sharpness,
  "shear_x": lambda image, m: affine(image, shear=(m, 0)),
  "shear_y": lambda image, m: affine(image, shear=(0, m)),
  # Tensors take no threshold above 255: there nothing is inverted.
  "solarize": lambda image, m: F.solarize(image, m) if m <= 255 else image,
  # Ours says where a pixel comes from, torchvision's where it goes.
  "translate_x": lambda image, m: affine(image, translate=(-m * 80, 0)),
  "translate_y": lambda image, m: affine(image, translate=(0, -m * 60)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_torchvisions(name):
  apply, low, high = OPERATIONS[name]
  tensor = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1)
  for share in (0.0, 0.21, 0.5, 0.83, 0.999):
    magnitude = low + (high - low) * share
    found = np.asarray(apply(IMAGE, magnitude))
    np.testing.assert_array_equal(found, TORCHVISION[name](IMAGE, magnitude))
    # The tensor functions are other code. They turn and shift about other pixel centres.
    if name.split("_")[0] not in ("rotate", "shear", "translate"):
      other = TORCHVISION[name](tensor, magnitude).permute(1, 2, 0).numpy()
      assert np.abs(found.astype(int) - other).max() <= 1, magnitude


def test_sharpness_equals_pillows_on_any_pixels():
  noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
  for pixels in (noise, 255 * (noise > 127).astype(np.uint8), noise[:3, :3], noise[:2], noise[:1]):
    image = Image.fromarray(pixels)
    for magnitude in (0.1, 0.7, 1.0, 1.9):
      expected = ImageEnhance.Sharpness(image).enhance(magnitude)
      np.testing.assert_array_equal(OPERATIONS["sharpness"].apply(image, magnitude), expected)


def test_operations_leave_their_input_alone():
  before = np.array(IMAGE)
  for apply, low, high in OPERATIONS.values():
    apply(IMAGE, (low + 2 * high) / 3)
  np.testing.assert_array_equal(before, IMAGE)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_resize_and_flip_equal_torchvisions(flip, monkeypatch):
  for left, top, width, height in ((0, 0, 80, 60), (7, 11, 40, 33), (50, 2, 21, 57)):
    expected = F.resized_crop(IMAGE, top, left, height, width, [32, 32], BICUBIC)
    expected = np.asarray(F.hflip(expected) if flip else expected).astype(int)
    view = View((left, top, width, height), flip, ())
    assert np.abs(np.asarray(make_view(IMAGE, view, 32)) - expected).max() <= 2
    with monkeypatch.context() as pillow:
      pillow.setattr(images, "Resizer", None)
      np.testing.assert_array_equal(make_view(IMAGE, view, 32), expected)


def test_operations_follow_in_order():
  view = View((0, 0, 80, 60), False, (("posterize", 4.0), ("brightness", 1.3)))
  plain = make_view(IMAGE, view._replace(operations=()), 32)
  expected = F.adjust_brightness(F.posterize(plain, 4), 1.3)
  np.testing.assert_array_equal(make_view(IMAGE, view, 32), expected)
  # The other order gives something else.
  assert np.any(np.asarray(F.posterize(F.adjust_brightness(plain, 1.3), 4)) != np.asarray(expected))


def draw(count, width=500, height=375, **changes):
  arguments = {"augment": "recipe", "seed": 0, "epoch": 0, "view": 0} | changes
  return [draw_view(width, height, index=index, **arguments) for index in range(count)]


@pytest.mark.parametrize(
  "width, height, least_area", [(500, 375, 0.08), (300, 900, 0.08), (60, 61, 0.08), (500, 375, 0.5)]
)
def test_crops_are_distributed_as_torchvisions(width, height, least_area):
  torch.manual_seed(0)
  image = Image.new("L", (width, height))
  expected = np.array(
    [RandomResizedCrop.get_params(image, [least_area, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
  )[:, [1, 0, 3, 2]]
  found = np.array([view.crop for view in draw(3000, width, height, crop_area=least_area)])
  left, top, w, h = found.T
  assert (w > 0).all() and (h > 0).all() and (left >= 0).all() and (top >= 0).all()
  assert (left + w <= width).all() and (top + h <= height).all()
  for ours, theirs in zip(found.T, expected.T, strict=True):
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01
  for of in (lambda crop: crop[:, 2] * crop[:, 3], lambda crop: crop[:, 2] / crop[:, 3]):
    assert stats.ks_2samp(of(found), of(expected)).pvalue > 0.01


@pytest.mark.parametrize("width, height", [(1000, 20), (20, 1000), (1, 1)])
def test_images_that_no_crop_fits_are_cropped_in_the_centre(width, height):
  theirs = RandomResizedCrop.get_params(Image.new("L", (width, height)), [2.0, 2.0], [3 / 4, 4 / 3])
  never = np.ones((10, 4)) - 1e-9
  left, top, w, h = views._crop(width, height, never, views.CROP_AREA)
  if (width, height) != (1, 1):
    assert (top, left, h, w) == theirs
  assert draw(1, width, height)[0].crop[2] >= 1


def test_flips_and_operations_are_drawn_as_the_recipe_says():
  drawn = draw(6000)
  assert abs(np.mean([view.flip for view in drawn]) - 0.5) < 0.02
  counts = np.bincount([len(view.operations) for view in drawn], minlength=3) / 6000
  np.testing.assert_allclose(counts, [0.16, 0.48, 0.36], atol=0.02)
  every = [operation for view in drawn for operation in view.operations]
  names = [name for name, _ in every]
  expected = np.full(15, len(every) / 15)
  assert set(names) == set(OPERATIONS)
  assert stats.chisquare([names.count(name) for name in OPERATIONS], expected).pvalue > 0.01
  twice = np.mean(
    [len({name for name, _ in view.operations}) == 1 for view in drawn if len(view.operations) == 2]
  )
  assert abs(twice - 1 / 15) < 0.015
  for name, (_, low, high) in OPERATIONS.items():
    magnitudes = [(m - low) / (high - low) for found, m in every if found == name]
    assert stats.kstest(magnitudes, "uniform").pvalue > 0.001, name
  assert all(not view.operations for view in draw(50, augment="crop_flip"))


def test_a_view_is_a_function_of_seed_image_epoch_and_view():
  base = {"augment": "recipe", "seed": 3, "index": 5, "epoch": 2, "view": 1}
  views = [draw_view(500, 375, **base)]
  views += [
    draw_view(500, 375, **base | {name: base[name] + 1})
    for name in ("seed", "index", "epoch", "view")
  ]
  # And not of an exchange of these, nor of what else was drawn before.
  views.append(draw_view(500, 375, **base | {"index": 2, "epoch": 5}))
  assert len(set(views)) == len(views)
  assert draw_view(500, 375, **base) == views[0]
  crop_flip = draw_view(500, 375, **base | {"augment": "crop_flip"})
  assert crop_flip == views[0]._replace(operations=())


def test_the_draws_stay_what_they_are():
  # Caches of features depend on them: a release that draws otherwise makes these useless.
  drawn = draw_view(500, 375, augment="recipe", seed=1, index=2, epoch=3, view=8)
  operations = (("translate_y", -0.22585426698362165), ("color", 0.3535856250018684))
  assert drawn == View((45, 61, 214, 272), True, operations)
