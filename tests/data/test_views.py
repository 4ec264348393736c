"""Views of training images: augmentations against torchvision, one decode, repeated views."""

import dataclasses
import io
import math
import struct

import numpy as np
from PIL import Image, ImageEnhance
import pytest
from scipy import stats
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F
import transformers

from pomp_jax import world
from pomp_jax.data import images
from pomp_jax.data.images import ImageError, decode_image, load_rgb, open_image
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.synthetic import encode, natural_image
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

# Its name from transformers 5 on, where the other is torchvision's.
PillowProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)

RECIPE = Augmentation("recipe", n_views=3, seed=5)


def stored(folder, encoded):
  """Files of these bytes."""
  for i, content in enumerate(encoded):
    (folder / f"{i}.jpg").write_bytes(content)
  keys = [f"{i}.jpg" for i in range(len(encoded))]
  return StoredImages("a", np.zeros(len(keys), int), keys, Files(folder), image_size=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  pictures = [natural_image(0, 90, 120), natural_image(1, 400, 300), natural_image(2, 40, 50)]
  return stored(tmp_path_factory.mktemp("images"), [encode(picture) for picture in pictures])


def test_views_equal_torchvisions_transforms_of_the_same_draws(source, monkeypatch):
  monkeypatch.setattr(
    "pomp_jax.data.views.load_rgb", lambda image, where, _: (load_rgb(image, where)[0], 1)
  )
  monkeypatch.setattr("pomp_jax.data.images.Resizer", None)
  augmentation = Augmentation("crop_flip", n_views=3, seed=5)
  found, readable = views(source, np.arange(3), np.full(3, 7), augmentation, 32)
  assert readable.all()
  for index in range(3):
    image = Image.open(io.BytesIO(source.encoded(index))).convert("RGB")
    for number in range(3):
      view = draw_view(*image.size, augment="crop_flip", seed=5, index=index, epoch=7, view=number)
      left, top, width, height = view.crop
      expected = F.resized_crop(
        image, top, left, height, width, [32, 32], InterpolationMode.BICUBIC
      )
      expected = F.hflip(expected) if view.flip else expected
      np.testing.assert_array_equal(found[index, number], expected)


def test_reduced_decoding_changes_little_and_only_where_it_may(source):
  """Half size and smaller, only if no crop of the image is enlarged by it."""
  size, seen = 32, set()
  for epoch in range(12):
    drawn = [
      draw_view(300, 400, augment="crop_flip", seed=5, index=1, epoch=epoch, view=view)
      for view in range(3)
    ]
    found, _ = views(
      source,
      np.array([1]),
      np.array([epoch]),
      Augmentation("crop_flip", n_views=3, seed=5),
      size,
    )
    whole = Image.open(io.BytesIO(source.encoded(1)))
    exact = np.stack([make_view(whole, view, size) for view in drawn])
    smallest = min(min(view.crop[2:]) for view in drawn)
    shrink = max(s for s in (1, 2, 4, 8) if s == 1 or smallest >= s * size)
    seen.add(shrink)
    difference = np.abs(found[0].astype(int) - exact)
    if shrink == 1:
      assert difference.max() == 0
    else:
      assert 0 < difference.mean() < 2.5
  assert len(seen) > 1 and max(seen) > 2


def test_a_reduced_jpeg_lies_where_the_whole_one_does():
  # 75 columns are 38 of two each: the last stands for half a pixel more than there is.
  image = natural_image(3, 61, 75).resize((750, 610))
  encoded = encode(image, quality=98)
  whole, one = load_rgb(open_image(encoded, "a"), "a")
  half, two = load_rgb(open_image(encoded, "a"), "a", 2)
  assert (one, two, whole.size, half.size) == (1, 2, (750, 610), (375, 305))
  view = draw_view(750, 610, augment="crop_flip", seed=0, index=0, epoch=0, view=0)
  exact = np.asarray(make_view(whole, view, 64)).astype(int)
  assert np.abs(np.asarray(make_view(half, view, 64, 2)) - exact).mean() < 1
  left, top, width, height = view.crop
  for moved in ((left + 6, top, width, height), (left, top + 6, width, height)):
    shifted = np.asarray(make_view(half, view._replace(crop=moved), 64, 2))
    assert np.abs(shifted - exact).mean() > 2
  png, one = load_rgb(open_image(encode(image, "PNG"), "a"), "a", 2)
  assert (one, png.size) == (1, (750, 610))


def test_views_do_not_depend_on_the_batch(source):
  whole, _ = views(source, np.array([0, 1, 2]), np.array([1, 2, 3]), RECIPE, 32)
  for row in range(3):
    single, _ = views(source, np.array([row]), np.array([row + 1]), RECIPE, 32)
    np.testing.assert_array_equal(single[0], whole[row])
  assert len({view.tobytes() for image in whole for view in image}) == 9


def test_view_epochs_repeat_the_views(source):
  index, repeating = np.zeros(1, int), dataclasses.replace(RECIPE, view_epochs=2)
  shown = [views(source, index, np.array([epoch]), repeating, 32)[0] for epoch in range(4)]
  np.testing.assert_array_equal(shown[0], shown[2])
  np.testing.assert_array_equal(shown[1], shown[3])
  assert np.any(shown[0] != shown[1])
  endless = views(source, index, np.array([2]), RECIPE, 32)[0]
  assert np.any(endless != shown[2])
  np.testing.assert_array_equal(views(source, index, np.array([1]), RECIPE, 32)[0], shown[1])


def test_without_augmentation_images_are_as_in_the_test(source):
  found, readable = views(source, np.array([2, 0]), np.array([0, 9]), Augmentation(), 32)
  assert readable.all()
  np.testing.assert_array_equal(found[:, 0], source.images(np.array([2, 0])))


def test_a_source_that_stores_nothing_is_augmented_too():
  source = world.source("train", images_per_class=1)
  indices = np.array([3, 900])
  plain, _ = views(source, indices, np.zeros(2, int), Augmentation(), 40)
  np.testing.assert_array_equal(plain[:, 0], source.images(indices))
  found, _ = views(source, indices, np.array([0, 4]), RECIPE, 40)
  assert found.shape == (2, 3, 40, 40, 3)
  image = Image.fromarray(source.images(indices)[1])
  drawn = draw_view(40, 40, augment="recipe", seed=5, index=900, epoch=4, view=2)
  np.testing.assert_array_equal(found[1, 2], make_view(image, drawn, 40))


def broken(good):
  """Files as crawls leave them."""
  bomb = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
  bomb[16:24] = struct.pack(">II", 100_000, 100_000)
  return {
    "empty": b"",
    "text": b"<html>404</html>",
    "truncated": good[: len(good) // 2],
    "no pixels": good[:300],
    "bomb": bytes(bomb),
    "broken PNG": encode(natural_image(0, 20, 20), "PNG")[:-30],
  }


def test_unreadable_images_are_reported_and_the_others_shown(source, tmp_path):
  good = source.encoded(0)
  bad = broken(good)
  mixed = stored(tmp_path, [*bad.values(), good])
  (tmp_path / "1.jpg").unlink()
  found, readable = views(mixed, np.arange(7), np.zeros(7, int), RECIPE, 32)
  assert readable.tolist() == [False] * 6 + [True]
  assert not found[:6].any() and found[6].any()
  for name, content in bad.items():
    with pytest.raises(ImageError, match="^x.jpg: not a readable image"):
      decode_image(content, "x.jpg", 32)
      pytest.fail(name)


def test_any_damage_is_an_image_or_an_image_error():
  rng = np.random.default_rng(0)
  picture = natural_image(0, 24, 32)
  forms = [encode(picture), encode(picture, "PNG"), encode(picture, "GIF"), encode(picture, "TIFF")]
  forms.append(encode(picture, "WEBP"))
  errors = 0
  for trial in range(600):
    damaged = bytearray(forms[trial % len(forms)])
    for _ in range(rng.integers(1, 8)):
      damaged[rng.integers(len(damaged))] = rng.integers(256)
    try:
      image, _ = load_rgb(open_image(bytes(damaged), "x"), "x")
      assert image.mode == "RGB"
    except ImageError:
      errors += 1
  assert errors > 100


def many_modes():
  """One picture as files of every kind that crawls hold."""
  picture = natural_image(4, 75, 100)
  transparent = picture.copy()
  transparent.putalpha(natural_image(5, 75, 100).convert("L"))
  turned = Image.Exif()
  turned[0x0112] = 6
  return {
    "rgb": encode(picture),
    "progressive": encode(picture, progressive=True),
    "grey": encode(picture.convert("L")),
    "cmyk": encode(picture.convert("CMYK")),
    "orientation": encode(picture, exif=turned),
    "palette": encode(picture.quantize(64), "PNG"),
    "palette with a transparent colour": encode(picture.quantize(64), "PNG", transparency=3),
    "alpha": encode(transparent, "PNG"),
    "grey and alpha": encode(transparent.convert("LA"), "PNG"),
    "one bit": encode(picture.convert("1"), "PNG"),
    "gif": encode(picture, "GIF"),
  }


@pytest.mark.parametrize("name, encoded", many_modes().items())
def test_every_kind_of_file_is_prepared_as_huggingface_does(name, encoded):
  """And as OpenAI's code: transparency is dropped. transformers 5 puts white behind it instead."""
  settings = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_normalize": False,
    "do_rescale": False,
  }
  found = decode_image(encoded, name, 32)
  image = Image.open(io.BytesIO(encoded))
  # Without the file's transparent colour, which `convert` leaves in the image's facts.
  rgb = Image.fromarray(np.asarray(image.convert("RGB")))
  slow = PillowProcessor(**settings)(rgb, return_tensors="np")["pixel_values"][0]
  np.testing.assert_array_equal(found, slow.transpose(1, 2, 0))
  # Tensors are resized by other code, which rounds elsewhere.
  processor = transformers.CLIPImageProcessorFast(**settings)
  fast = processor(rgb, return_tensors="pt")["pixel_values"][0]
  assert np.abs(found.astype(int) - fast.permute(1, 2, 0).numpy()).max() <= 1
  tensor = F.center_crop(F.resize(rgb, 32, InterpolationMode.BICUBIC), 32)
  np.testing.assert_array_equal(found, tensor)


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
  left, top, w, h = _crop(width, height, never, CROP_AREA)
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
