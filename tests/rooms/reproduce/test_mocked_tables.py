"""Tables of the paper on mocked data of the true layouts, from command to verdict."""

import json

import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.evaluate import named_prompts, prompt_features
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.main import main
from pomp_jax.rooms.data_sets import coop
from pomp_jax.rooms.reproduce import accuracies
from pomp_jax.rooms.reproduce.tables import FOUR, IMAGENET21K, TEN
from tests.support.clips import write_random_clip
from tests.support.pictures import encode, natural_image

JPEGS = [encode(natural_image(seed, 40, 48)) for seed in range(3)]


def write(path, number):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(JPEGS[number % len(JPEGS)])


def write_split_set(root, name):
  """A set with CoOp's split file, one test image a class."""
  folder, images, file = coop._SPLIT_FILES[name]
  rows = []
  for label, own in enumerate(load_class_list(name).names):
    write(root / folder / images / f"{label}.jpg", label)
    rows.append([f"{label}.jpg", label, own])
  content = {"train": rows, "val": rows, "test": rows}
  (root / folder / file).write_text(json.dumps(content))


def write_aircraft(root):
  folder = root / "fgvc_aircraft"
  names = load_class_list("fgvc_aircraft").names
  lines = []
  for label, own in enumerate(names):
    write(folder / "images" / f"{label:07}.jpg", label)
    lines.append(f"{label:07} {own}")
  (folder / "variants.txt").write_text("\n".join(names) + "\n")
  for part in ("train", "val", "test"):
    (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


def write_imagenet(root, name):
  folder, below = coop._IMAGENETS[name]
  classes = load_class_list(
    name if name in ("imagenet_a", "imagenet_r") else "imagenet1k"
  )
  for label, synset in enumerate(classes.synsets):
    own = str(label) if name == "imagenet_v2" else synset
    write(root / folder / below["test"] / own / "x.JPEG", label)


@pytest.fixture(scope="session")
def fourteen(shared):
  """CoOp's $DATA with an image a class, and a random CLIP with two prompts."""

  def fill(root):
    for name in TEN:
      if name == "fgvc_aircraft":
        write_aircraft(root / "DATA")
      else:
        write_split_set(root / "DATA", name)
    for name in FOUR:
      write_imagenet(root / "DATA", name)
    write_random_clip(root / "clip")
    rng = np.random.default_rng(0)
    for m in (4, 16):
      context_MxD = rng.normal(size=(m, 32)).astype(np.float32)
      save_prompt(root / f"m{m}.npz", Prompt(context_MxD, str(root / "clip"), "end"))

  return shared("reproduce_fourteen", fill)


def command(root, table, folder, workdir, *more):
  prompts = ";".join(str(root / f"m{m}.npz") for m in (4, 16))
  return main(
    [
      f"--config=reproduce:table={table},root={root / folder},clip={root / 'clip'}",
      f"--workdir={workdir}",
      f"--config.reproduce.prompts={prompts}",
      *more,
    ]
  )


def read(workdir):
  content = json.loads((workdir / "reproduction.json").read_text())
  status = {}
  for row in content["rows"]:
    status.setdefault((row["stage"], row["subject"]), set()).add(row["status"])
  return content, status


@pytest.mark.slow("fourteen sets, 3,600 names")
def test_fourteen_sets_from_command_to_verdict(fourteen, tmp_path, monkeypatch, capsys):
  counts = dict.fromkeys((*TEN, *FOUR), None)
  for name in counts:
    listed = name if name not in ("imagenet_v2", "imagenet_sketch") else "imagenet1k"
    counts[name] = len(load_class_list(listed).names)
  monkeypatch.setattr(accuracies, "TEST_IMAGES", counts)
  more = ("--config.reproduce.quick", "--config.reproduce.record")
  more += ("--config.reproduce.recorded_by=a test",)
  assert command(fourteen, "cross_dataset", "DATA", tmp_path / "run", *more) == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  for name in counts:
    assert status["Inputs", name] == {"PASS", "NOT RUN"}, name
  # At a few images a class a random CLIP may be right by luck on EuroSAT alone.
  failed = {name for name in counts if "FAIL" in status["Controls", name]}
  assert {*counts} - failed <= {"eurosat"}
  assert status["Controls", "mean of 10"] == {"FAIL"}
  for name in failed:
    assert status["Published prompts", name] == {"NOT RUN"}
  first = content["findings"][0]
  assert (first["stage"], first["subject"]) == ("Controls", "all sets") or failed != {
    *counts
  }
  record = json.loads((tmp_path / "run" / "digests.json").read_text())
  assert record["sets"].keys() == counts.keys()
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.mark.slow("opens fourteen sets")
def test_another_number_of_images_fails_at_inputs(fourteen, tmp_path):
  assert command(fourteen, "cross_dataset", "DATA", tmp_path / "run") == 1
  content, status = read(tmp_path / "run")
  assert "FAIL" in status["Inputs", "dtd"]
  assert status["Controls", "dtd"] == {"NOT RUN"}
  first = content["findings"][0]
  assert (first["stage"], first["kind"]) == ("Inputs", "split")
  assert first["subject"] == "caltech101"
  assert first["sentence"] == "100 images, and 2,465 are published"


@pytest.mark.slow("10,450 class folders and their names")
def test_imagenet21k_from_command_to_verdict(fourteen, tmp_path, monkeypatch, capsys):
  classes = load_class_list(IMAGENET21K)
  root = tmp_path / "RECORDS"
  (tmp_path / "x.jpg").write_bytes(JPEGS[0])
  for split, synsets in (
    ("imagenet21k_train", classes.synsets[:1]),
    ("imagenet21k_val", classes.synsets),
  ):
    for synset in synsets:
      (root / split / synset).mkdir(parents=True)
      (root / split / synset / "x.jpg").hardlink_to(tmp_path / "x.jpg")
  monkeypatch.setattr(accuracies, "TEST_IMAGES", {IMAGENET21K: len(classes.synsets)})
  # The random CLIP's tokenizer has a token a letter.
  texts = {"hand_written": ("a {}.",), "ensemble": ("a {}.", "the {}.")}
  for module in (named_prompts, prompt_features):
    monkeypatch.setattr(module, "texts_of", lambda prompt, _: texts[prompt])
  own = tmp_path / "run"
  arguments = [
    f"--config=reproduce:table=imagenet21k,root={root},clip={fourteen / 'clip'}"
  ]
  assert main([*arguments, f"--workdir={own}", "--config.reproduce.quick"]) == 1
  assert "error: NOT REPRODUCED: Controls, weights" in capsys.readouterr().err
  content, status = read(own)
  assert status["Controls", IMAGENET21K] == {"FAIL"}
  sources = {row["source"] for row in content["rows"] if row["stage"] == "Controls"}
  assert sources == {"table 1, zero-shot CLIP", "table 1, prompt ensemble"}
