"""The predict job: names for folders of pictures, for one picture, and with a run's prompt."""

import csv

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.clip.load import load_clip
from pomp_jax.evaluate.classify import Classifier
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support.small_run import run_job, small_config

# Names of files and of classes that CSV, spreadsheets and consoles take for something else.
KEYS = ('-b/+1,"2".png', "=cmd|' '!A1.png", "a/b/ü\n.png", "a/c.png", "z.png")
NAMES = ["red star", 'blue "ring", large', "teal leaf"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Pictures in folders within folders, names, and a run's folder."""
  root = tmp_path_factory.mktemp("predict")
  for key, image in zip(KEYS, pixels(), strict=True):
    (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / key)
  for hidden in (".git/d.png", "a/.d.png"):
    (root / "images" / hidden).parent.mkdir(exist_ok=True)
    (root / "images" / hidden).write_bytes((root / "images" / "z.png").read_bytes())
  (root / "images" / "link").symlink_to(root / "images" / "a")
  (root / "names.txt").write_text("\n".join(NAMES))
  (root / "run").mkdir()
  context = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
  save_prompt(root / "run" / "prompt.npz", Prompt(context, "world"))
  return root


def pixels():
  return world.source("novel", n_images=len(KEYS)).images(np.arange(len(KEYS)))


def predicted(root, workdir, upright=False, **changes):
  """The rows of each picture in `results.json`."""
  fields = {"images": root / "images", "names": root / "names.txt", "prompt": root / "run"}
  fields = {f"predict.{field}": str(value) for field, value in (fields | changes).items()}
  run_job(small_config(job="predict", **fields, **{"data.upright": upright}), workdir)
  return RunFolder(workdir).read_results()["images"]


@pytest.mark.parametrize(("prompt", "top"), [("a photo of a {}.", 2), ("run", 5)])
def test_names_and_probabilities_are_the_classifiers(root, tmp_path, capsys, prompt, top):
  prompt = str(root / "run") if prompt == "run" else prompt
  found = predicted(root, tmp_path / "run", prompt=prompt, top=top)
  expected = Classifier(load_clip("world"), prompt, NAMES).predict(list(pixels()), top=top)
  assert list(found) == list(KEYS)
  for rows, best in zip(found.values(), expected, strict=True):
    assert [row["name"] for row in rows] == [name for name, _ in best]
    np.testing.assert_allclose([row["probability"] for row in rows], [p for _, p in best], 1e-5)
  # A line for each, whatever the file's name is.
  assert len(capsys.readouterr().out.splitlines()) == len(KEYS)


@pytest.mark.parametrize("upright", [False, True])
def test_one_picture(root, tmp_path, upright):
  """Also one that lies on its side, and whose EXIF says so."""
  picture, exif = Image.open(root / "images/a/c.png"), Image.Exif()
  exif[0x0112] = 6
  picture = picture.transpose(Image.Transpose.ROTATE_90) if upright else picture
  picture.save(tmp_path / "c.png", exif=exif)
  found = predicted(root, tmp_path / "one", upright, images=tmp_path / "c.png")
  [(key, rows)] = found.items()
  assert key == "c.png"
  for found, expected in zip(rows, predicted(root, tmp_path / "all")["a/c.png"], strict=True):
    assert found["name"] == expected["name"]
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4)


def test_the_csv_file_holds_what_the_json_file_does(root, tmp_path):
  """Whatever the names of files and classes are."""
  expected = [
    {"file": key, "rank": str(rank), "name": one["name"], "probability": str(one["probability"])}
    for key, best in predicted(root, tmp_path).items()
    for rank, one in enumerate(best, 1)
  ]
  with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert not any(row["file"].startswith(("=", "-")) for row in rows)
  assert [row | {"file": row["file"].removeprefix("./")} for row in rows] == expected
  # What is written there is the file's path still.
  assert all((root / "images" / row["file"]).is_file() for row in rows)
