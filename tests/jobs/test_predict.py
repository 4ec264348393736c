"""The predict job on a folder of pictures."""

import json

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.clip import load_clip
from pomp_jax.inference.classify import Classifier
from pomp_jax.jobs import predict
from tests.support.small_run import small_config


def test_it_names_a_folder_of_images(tmp_path, capsys):
  source = world.source("novel", n_images=3)
  pixels = source.images(np.arange(3))
  names = [source.names[label] for label in source.labels]
  (tmp_path / "images").mkdir()
  for index, image in enumerate(pixels):
    Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
  (tmp_path / "names.txt").write_text("\n".join(sorted(names)))
  config = small_config(
    job="predict",
    **{
      "predict.images": str(tmp_path / "images"),
      "predict.names": str(tmp_path / "names.txt"),
      "predict.prompt": "a photo of a {}.",
      "predict.top": 2,
    },
  )
  predict.check(config, str(tmp_path / "run"))
  predict.run(config, str(tmp_path / "run"))
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  clip = load_clip(str(world.CLIP_PATH))
  expected = Classifier(clip, "a photo of a {}.", sorted(names)).predict(list(pixels), top=2)
  assert list(results["images"]) == ["0.png", "1.png", "2.png"]
  for found, best in zip(results["images"].values(), expected, strict=True):
    assert [row["name"] for row in found] == [name for name, _ in best]
    np.testing.assert_allclose([row["probability"] for row in found], [p for _, p in best], 1e-5)
  assert len(capsys.readouterr().out.splitlines()) == 3
