"""The predict job on folders of pictures, on one picture, and with a run's folder as prompt."""

import csv
import json

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.clip import load_clip
from pomp_jax.config import validate
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
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


def csv_of(folder):
  with open(folder / "results.csv", newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_folders_within_folders_under_a_runs_prompt(tmp_path):
  """The CSV file holds what the JSON file does, whatever the names of files and classes are."""
  images, run = tmp_path / "images", tmp_path / "run"
  keys = ['-b/+1,"2".png', "=cmd|' '!A1.png", "a/b/ü\n.png", "a/c.png", "z.png"]
  pixels = world.source("novel", n_images=len(keys)).images(np.arange(len(keys)))
  for key, image in zip(keys, pixels, strict=True):
    (images / key).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(images / key)
  for hidden in (".git/d.png", "a/.d.png"):
    (images / hidden).parent.mkdir(exist_ok=True)
    (images / hidden).write_bytes((images / "z.png").read_bytes())
  (images / "link").symlink_to(images / "a")
  (tmp_path / "names.txt").write_text('red star\nblue "ring", large\n')
  run.mkdir()
  clip = load_clip(str(world.CLIP_PATH))
  context = (
    np.random.default_rng(0)
    .normal(0, 0.02, (4, clip.config.text_config.hidden_size))
    .astype(np.float32)
  )
  save_prompt(run / "prompt.npz", Prompt(context, "world"))
  results = {}
  for name, path in (("all", images), ("one", images / "a" / "c.png")):
    fields = {"images": path, "names": tmp_path / "names.txt", "prompt": run}
    fields = {f"predict.{field}": str(value) for field, value in fields.items()}
    config = small_config(job="predict", **fields)
    validate(config)
    predict.check(config, str(tmp_path / name))
    results[name] = predict.run(config, str(tmp_path / name))["images"]
  assert list(results["all"]) == keys
  (single,) = results["one"].items()
  assert single[0] == "c.png"
  for found, expected in zip(single[1], results["all"]["a/c.png"], strict=True):
    assert found["name"] == expected["name"]
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4)
  stored = RunFolder(tmp_path / "all").read_results()["images"]
  expected = [
    {"file": key, "rank": str(rank), "name": one["name"], "probability": str(one["probability"])}
    for key, best in stored.items()
    for rank, one in enumerate(best, 1)
  ]
  rows = csv_of(tmp_path / "all")
  assert not any(row["file"].startswith(("=", "-")) for row in rows)
  assert [row | {"file": row["file"].removeprefix("./")} for row in rows] == expected
  # What is written there is the file's path still.
  assert all((images / row["file"]).is_file() for row in rows)
  by_hand = Classifier(clip, Prompt(context, "world"), ["red star", 'blue "ring", large'])
  (best,) = by_hand.predict([pixels[keys.index("z.png")]], top=5)
  assert [one["name"] for one in stored["z.png"]] == [name for name, _ in best]
