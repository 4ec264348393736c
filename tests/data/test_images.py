"""A user's images: prepared as HuggingFace's CLIP image processor does."""

import numpy as np
from PIL import Image
import pytest
from transformers import CLIPImageProcessor

from pomp_jax.data.images import ImageError, list_images, prepare, read_image


@pytest.mark.parametrize("shape", [(48, 48), (100, 60), (37, 90), (20, 31), (33, 32)])
def test_prepare_equals_the_image_processor(shape):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
  processor = CLIPImageProcessor(
    size={"shortest_edge": 32},
    crop_size={"height": 32, "width": 32},
    do_normalize=False,
    do_rescale=False,
  )
  expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
  found = prepare(image, 32)
  assert found.dtype == np.uint8
  # Both crop to the centre; where the surplus is odd they may differ by a pixel's shift.
  if (int(32 * max(shape) / min(shape)) - 32) % 2 == 0:
    np.testing.assert_array_equal(found, expected)
  assert found.shape == expected.shape


def test_grey_and_transparent_images_become_rgb(tmp_path):
  for mode in ("L", "RGBA", "P", "1"):
    file = tmp_path / f"{mode}.png"
    Image.new(mode, (40, 50)).save(file)
    assert read_image(file, 16).shape == (16, 16, 3)


def test_listing(tmp_path):
  for name in ("b.PNG", "a.jpg", "notes.txt"):
    (tmp_path / name).touch()
  assert [file.name for file in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
  with pytest.raises(ImageError, match="no such folder"):
    list_images(tmp_path / "none")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ImageError, match="no images in it"):
    list_images(tmp_path / "empty")


def test_broken_files(tmp_path):
  good = tmp_path / "good.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(good)
  bad = tmp_path / "bad.png"
  for content in (b"", b"text", good.read_bytes()[:200]):
    bad.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png"):
      read_image(bad, 16)
  with pytest.raises(ImageError, match=r"none\.png"):
    read_image(tmp_path / "none.png", 16)
