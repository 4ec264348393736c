"""Resampling matrices against torch's own interpolation."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.clip.torch_bicubic import bicubic_matrix
from tests.support.checks import assert_close


def _torch(image, **settings):
  pixels = torch.as_tensor(image)[None, None]
  return functional.interpolate(pixels, mode="bicubic", **settings)[0, 0].numpy()


@pytest.mark.parametrize("size", [(9, 31), (1, 5), (14, 14), (40, 2)])
def test_two_matrices_resize_as_torch(size):
  image = np.random.default_rng(0).standard_normal((14, 17), np.float32)
  found = bicubic_matrix(size[0], 14) @ image @ bicubic_matrix(size[1], 17).T
  assert_close(found, _torch(image, size=size))


@pytest.mark.parametrize("sides", [(7, 7), (28, 21), (14, 20)])
def test_a_scale_factor_moves_the_samples_as_in_torch(sides):
  # Grids of position embeddings in SCLIP and NACLIP.
  image = np.random.default_rng(0).standard_normal((14, 14), np.float32)
  scales = [(side + 0.1) / 14 for side in sides]
  rows, columns = (bicubic_matrix(n, 14, scale=s) for n, s in zip(sides, scales, strict=True))
  expected = _torch(image, scale_factor=scales, recompute_scale_factor=False)
  assert_close(rows @ image @ columns.T, expected)
  by_size = bicubic_matrix(sides[0], 14) @ image @ bicubic_matrix(sides[1], 14).T
  assert np.abs(by_size - expected).max() > 1e-2


@pytest.mark.parametrize("low, high", [(0, 14), (3, 4), (5, 14), (0, 6)])
def test_a_range_resizes_as_torch_resizes_the_crop(low, high):
  line = np.random.default_rng(0).standard_normal((14, 1), np.float32)
  found = jax.jit(bicubic_matrix, static_argnums=(0, 1))(8, 14, low, high) @ line
  assert_close(found, _torch(line[low:high], size=(8, 1)))


def test_pixels_beyond_the_line_count_as_zeros():
  line = np.random.default_rng(0).standard_normal((14, 1), np.float32)
  padded = np.concatenate([np.zeros((3, 1), np.float32), line, np.zeros((5, 1), np.float32)])
  assert_close(bicubic_matrix(8, 14, -3, 19) @ line, _torch(padded, size=(8, 1)))
