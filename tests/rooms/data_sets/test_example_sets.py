"""The folders of pictures that docs/generators/example_sets.py writes."""

import sys

import numpy as np
import pytest

from docs.generators import example_sets
from pomp_jax import world
from pomp_jax.rooms.data_sets.own_sets import open_own_set, read_sets_file


def test_the_folders_hold_the_world(tmp_path, monkeypatch, capsys):
  out = tmp_path / "sets"
  monkeypatch.setattr(sys, "argv", ["x", f"--out={out}", "--classes=3", "--images=2"])
  example_sets.main()
  assert str(out / "sets.toml") in capsys.readouterr().out
  sets = read_sets_file(out / "sets.toml")
  assert [own.name for own in sets] == ["known", "mixed", "shifted"]
  known, mixed, shifted = sets
  rows = [(known, "all", "base"), (mixed, "base", "base"), (mixed, "novel", "novel")]
  for own, part, split in [*rows, (shifted, "all", "shifted")]:
    source, classes, found = open_own_set(own, part)
    assert found == "test"
    n_classes, n_images = (12, 1) if own.name == "known" else (3, 2)
    assert np.bincount(source.labels).tolist() == [n_images] * n_classes
    drawn = world.source(split, images_per_class=n_images)
    shown = n_images * drawn.names.index(classes.names[0]) + np.arange(n_images)
    # CLIP's preprocessing leaves pictures of its own size as they are.
    images = source.replace(image_size=world.IMAGE_SIZE).images(np.arange(n_images))
    np.testing.assert_array_equal(images, drawn.images(shown))
  with pytest.raises(ValueError, match="expected 1 to"):
    example_sets.write_pictures(tmp_path, "novel", 99_999, 1)
