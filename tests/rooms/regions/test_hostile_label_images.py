"""Hostile label images: refused as tests/faults/test_hostile_images.py says."""

import pytest

from pomp_jax.rooms.regions import label_images
from tests.faults.test_hostile_images import check_left_out


@pytest.mark.parametrize("reader", [label_images.read_rgb, label_images.image_size])
def test_hostile_images_are_left_out(reader, tmp_path, monkeypatch):
  check_left_out(reader, tmp_path / "x.jpg", monkeypatch)
