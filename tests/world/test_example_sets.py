"""The world's pictures in folders, as a user's own sets: the same pixels, under the same names."""

import sys

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.inputs.own_sets import open_own_set, read_sets_file
from pomp_jax.world import example_sets


def test_the_folders_hold_the_world(tmp_path, monkeypatch, capsys):
  out = tmp_path / "sets"
  monkeypatch.setattr(sys, "argv", ["x", f"--out={out}", "--classes=3", "--images=2"])
  example_sets.main()
  assert str(out / "sets.toml") in capsys.readouterr().out
  sets = read_sets_file(out / "sets.toml")
  assert [own.name for own in sets] == ["known", "mixed", "shifted"]
  assert sets[1].parts == ("base", "novel")
  for own, part, split in [
    (sets[0], "all", "base"),
    (sets[1], "base", "base"),
    (sets[1], "novel", "novel"),
    (sets[2], "all", "shifted"),
  ]:
    source, classes, found = open_own_set(own, part, world.IMAGE_SIZE)
    assert found == "test"
    n_classes, n_images = (12, 1) if own.name == "known" else (3, 2)
    assert np.bincount(source.labels).tolist() == [n_images] * n_classes
    drawn = world.source(split, images_per_class=n_images)
    labels = [drawn.names.index(name) for name in classes.names]
    numbers = [int(key.rpartition("/")[2].removesuffix(".png")) for key in source.keys]
    indices = [n_images * labels[c] + n for c, n in zip(source.labels, numbers, strict=True)]
    # CLIP's preprocessing leaves pictures of its own size as they are.
    np.testing.assert_array_equal(
      source.images(np.arange(len(source))), drawn.images(np.array(indices))
    )


def test_the_same_files_again(tmp_path):
  for name in ("a", "b"):
    example_sets.write_pictures(tmp_path / name, "novel", 2, 1)
  first, again = (sorted((tmp_path / name).rglob("*.png")) for name in ("a", "b"))
  assert len(first) == 2
  assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
  with Image.open(first[0]) as image:
    assert (image.mode, image.size) == ("RGB", (40, 40))


@pytest.mark.parametrize("n_classes", [0, 99_999])
def test_classes_that_there_are_not(tmp_path, n_classes):
  with pytest.raises(ValueError, match="expected 1 to"):
    example_sets.write_pictures(tmp_path, "novel", n_classes, 1)
