"""Splits and shots of CoOp's data sets, as `config.data` names them."""

import json

from PIL import Image
import pytest

from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import opening
from pomp_jax.rooms.data_sets import coop
from tests.evaluate.test_image_splits import data, keys, listed, names_of


def test_coop_and_its_names(tmp_path):
  split = {
    part: [[f"{part}{i}.jpg", i % 3, "abc"[i % 3]] for i in range(count)]
    for part, count in (("train", 9), ("val", 6), ("test", 12))
  }
  (tmp_path / "dtd/images").mkdir(parents=True)
  for path, _, _ in sum(split.values(), []):
    Image.new("RGB", (8, 8)).save(tmp_path / "dtd/images" / path)
  (tmp_path / "dtd/split_zhou_DescribableTextures.json").write_text(json.dumps(split))
  settings = {"source": "coop", "dataset": "dtd"}
  few = data(tmp_path, shots=2, **settings)
  sizes = [
    len(opening.open_source(few, part)) for part in ("train", "validation", "test")
  ]
  assert sizes == [6, 6, 12]
  found = keys(data(tmp_path, shots=1, shots_seed=3, **settings), "train")
  assert found == set(
    coop.open_coop(tmp_path, "dtd", shots=1, seed=3)["train"].keys.tolist()
  )
  names = listed(tmp_path, "three.txt", ["one", "two", "three"])
  assert names_of(data(tmp_path, names=names, **settings), "test") == (
    "one",
    "two",
    "three",
  )
  names = listed(tmp_path, "two.txt", ["one", "two"])
  with pytest.raises(SourceError, match=r"data\.names: got 2"):
    opening.n_training_classes(data(tmp_path, names=names, **settings))
