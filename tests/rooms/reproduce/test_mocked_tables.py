"""Tables of the paper on mocked data of the true layouts, from command to verdict."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from pomp_jax.config import unpack
from pomp_jax.config.command_line import load_config
from pomp_jax.data.class_lists import FOUR, TEN, load_class_list
from pomp_jax.evaluate import class_features, named_prompts
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.main import main
from pomp_jax.rooms.data_sets import coop
from pomp_jax.rooms.reproduce import (
  accuracies,
  controls_stage,
  reproduce,
  targets,
  verify,
)
from pomp_jax.rooms.reproduce.orders_stage import DIFFERENCE
from pomp_jax.rooms.reproduce.rows import from_dict
from pomp_jax.rooms.reproduce.tables import (
  ACCURACIES,
  IMAGENET21K,
  METHODS,
  method_name,
)
from pomp_jax.rooms.reproduce.tolerances import Tolerance
from tests.support.clips import write_random_clip
from tests.support.pictures import encode, natural_image
from tests.support.small_run import run_job, small_config

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


@pytest.fixture(scope="session")
def two_sets(shared):
  """EuroSAT and DTD with an image a class, and a random CLIP."""

  def fill(root):
    for name in ("eurosat", "dtd"):
      write_split_set(root / "DATA", name)
    write_random_clip(root / "clip")

  return shared("reproduce_two_sets", fill)


@pytest.fixture
def only_two(monkeypatch):
  """Leaves of the fourteen sets the two, with the images that they have."""
  items = reproduce._items
  counts = {"eurosat": 10, "dtd": 47}
  kept = lambda *of: [item for item in items(*of) if item.name in counts]
  monkeypatch.setattr(reproduce, "_items", kept)
  monkeypatch.setattr(accuracies, "TEST_IMAGES", counts)


@pytest.mark.slow("fourteen sets, 3,600 names")
def test_fourteen_sets_from_command_to_verdict(fourteen, tmp_path, monkeypatch, capsys):
  counts = dict.fromkeys((*TEN, *FOUR), None)
  for name in counts:
    listed = name if name not in ("imagenet_v2", "imagenet_sketch") else "imagenet1k"
    counts[name] = len(load_class_list(listed).names)
  monkeypatch.setattr(accuracies, "TEST_IMAGES", counts)
  more = ("--config.reproduce.quick", "--config.reproduce.recorded_by=a test")
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
  assert first["subject"].split(", ") == [*TEN, *FOUR]
  assert first["sentence"].startswith("14 sets have another number of images, such as")
  assert first["sentence"].endswith("caltech101: 100 images, and 2,465 are published")


@pytest.mark.slow("57 images and their sentences through a ViT-B/16")
@pytest.mark.usefixtures("only_two")
def test_a_clip_of_true_size_fails_at_the_controls(two_sets, tmp_path, capsys):
  clip = "synthetic:openai/clip-vit-base-patch16"
  arguments = f"table=cross_dataset,root={two_sets / 'DATA'},clip={clip}"
  workdir = tmp_path / "run"
  assert main([f"--config=reproduce:{arguments}", f"--workdir={workdir}"]) == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(workdir)
  assert status["Controls", "dtd"] == status["Controls", "eurosat"] == {"FAIL"}
  first = content["findings"][0]
  assert (first["kind"], first["subject"]) == ("weights", "all sets")
  assert main([f"--config=reproduce:verify={workdir}"]) == 0


def patch_texts(monkeypatch, texts_of):
  """Replaces the texts of hand-written prompts, for features and for their lengths."""
  for module in (class_features, named_prompts):
    monkeypatch.setattr(module, "texts_of", texts_of)


def write_records(root, picture):
  """ImageNet-21K as a folder: a picture in each class folder of the test split."""
  classes = load_class_list(IMAGENET21K)
  picture.write_bytes(JPEGS[0])
  for split, synsets in (
    ("imagenet21k_train", classes.synsets[:1]),
    ("imagenet21k_val", classes.synsets),
  ):
    for synset in synsets:
      (root / split / synset).mkdir(parents=True)
      (root / split / synset / "x.jpg").hardlink_to(picture)
  return len(classes.synsets)


@pytest.mark.slow("10,450 class folders and their names")
def test_imagenet21k_from_command_to_verdict(fourteen, tmp_path, monkeypatch, capsys):
  root = tmp_path / "RECORDS"
  n_images = write_records(root, tmp_path / "x.jpg")
  monkeypatch.setattr(accuracies, "TEST_IMAGES", {IMAGENET21K: n_images})
  # The random CLIP's tokenizer has a token a letter.
  texts = {"hand_written": ("a {}.",), "ensemble": ("a {}.", "the {}.")}
  patch_texts(monkeypatch, lambda prompt, _: texts[prompt])
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


def finished_run(folder, recipe, seed, **changes):
  """A finished training with the fields of a packaged config, and a random context."""
  config = unpack(load_config(recipe), "pretrain").replace({"seed": seed, **changes})
  run = RunFolder(folder)
  run.create(config.to_dict())
  context_MxD = np.random.default_rng(seed).normal(size=(4, 32)).astype(np.float32)
  save_prompt(run.prompt, Prompt(context_MxD, "random", "end"))
  run.write_results({"job": "pretrain", "method": "pomp"})
  return folder


@pytest.fixture(scope="session")
def trained_methods(shared, two_sets):
  """Finished trainings: two of CoOp, one of KgCoOp, and one of VPT without a prompt."""

  def fill(root):
    for seed in (1, 2):
      finished_run(root / "runs" / f"coop_{seed}", "coop:imagenet", seed)
    finished_run(root / "runs" / "kgcoop", "kgcoop", 1)
    small = {"k": 4, "batch_size": 8, "steps": 1, "checkpoint.every": 1}
    small |= {"data.n_classes": 0, "eval.images": 0, "prompt.visual_tokens": 2}
    small |= {"data.source": "folder", "data.root": str(root / "pictures")}
    small |= {"clip.model": str(two_sets / "clip"), "method": "vpt_shallow"}
    for number in range(24):
      split = "train" if number % 3 else "test"
      write(root / "pictures" / split / f"kind {number % 8}" / f"{number}.jpg", number)
    run_job(small_config(**small), root / "runs" / "vpt")

  return shared("reproduce_methods", fill) / "runs"


def baselines(two_sets, trained_methods, workdir):
  runs = ";".join(str(path) for path in sorted(trained_methods.iterdir()))
  arguments = f"table=baselines,root={two_sets / 'DATA'},clip={two_sets / 'clip'}"
  return main(
    [
      f"--config=reproduce:{arguments}",
      f"--workdir={workdir}",
      f"--config.reproduce.runs={runs}",
    ]
  )


@pytest.mark.slow("a training of VPT")
def test_baselines_stop_at_the_controls_of_random_weights(
  two_sets, trained_methods, only_two, tmp_path, capsys
):
  assert baselines(two_sets, trained_methods, tmp_path / "run") == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  assert status["Inputs", "dtd"] == {"PASS", "NOT RUN"}
  assert status["Controls", "dtd"] == {"FAIL"}
  assert status["Published prompts", "all sets"] == {"NOT RUN"}
  of_dtd = {
    row["quantity"]: row["why"]
    for row in content["rows"]
    if (row["stage"], row["subject"]) == ("Retrained", "dtd")
  }
  # VPT's recipe is not that of the little training.
  names = {"top-1, CoOp", "top-1, KgCoOp", "top-1, VPT"}
  assert of_dtd.keys() == names
  assert of_dtd["top-1, CoOp"] == "stopped: Controls failed for the set"
  assert of_dtd["top-1, VPT"] == "stopped: Retrained failed for the recipe"
  missing = {
    row["quantity"]: row["why"]
    for row in content["rows"]
    if (row["stage"], row["subject"]) == ("Retrained", "all sets")
  }
  assert missing["top-1, LASP"] == "there is no trainer of LASP here"
  assert missing.keys() == {"top-1, LASP", "top-1, CoCoOp", "top-1, MaPLe"}
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.mark.slow("a training of VPT")
def test_a_method_is_compared_with_its_row(
  two_sets, trained_methods, only_two, tmp_path, monkeypatch
):
  """With controls that pass, random contexts are worse than CoOp on DTD."""
  all_pass = lambda *_, **__: Tolerance(1.0, "a test")
  monkeypatch.setattr(controls_stage, "control_tolerance", all_pass)
  # Fields of the little training stand for VPT's.
  monkeypatch.setattr(reproduce, "_fields_of", lambda method: {})
  assert baselines(two_sets, trained_methods, tmp_path / "run") == 1
  content, _ = read(tmp_path / "run")
  rows = {
    row["quantity"]: row
    for row in content["rows"]
    if (row["stage"], row["subject"]) == ("Retrained", "dtd")
  }
  assert rows["top-1, CoOp"]["expected"] == 0.419
  assert rows["top-1, CoOp"]["source"] == "table 2, CoOp"
  assert (rows["top-1, CoOp"]["status"], rows["top-1, CoOp"]["n"]) == ("FAIL", 2)
  right = [
    one["right"] / one["images"]
    for one in content["answers"]
    if (one["stage"], one["set"]) == ("Retrained", "dtd")
    and one["prompt"].startswith("CoOp, seed")
  ]
  assert len(right) == 2
  assert rows["top-1, CoOp"]["got"] == pytest.approx(np.mean(right))
  assert rows["top-1, VPT"]["why"].startswith("one seed has no interval")
  assert rows["top-1, KgCoOp"]["status"] == "NOT RUN"
  assert rows["top-1, KgCoOp"]["got"] is not None
  assert rows["top-1, KgCoOp"]["why"] == "table 2 has no row of KgCoOp"
  sentences = [one["sentence"] for one in content["findings"]]
  assert "trainings of CoOp are worse than the target on" in " ".join(sentences)
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.fixture(scope="session")
def ablated(shared):
  """Finished trainings of three arms, three seeds each; those of K = 500 as cells."""

  def fill(root):
    recipe = "imagenet21k_vit_b16:m=4"
    for seed in range(3):
      finished_run(root / f"k1000_{seed}", recipe, seed)
      changes = {"correction": "none"}
      finished_run(root / f"none_{seed}", recipe, 10 + seed, **changes)
    cells = RunFolder(root / "cells_of_500")
    cells.create({})
    (root / "cells_of_500" / "cells").mkdir()
    for seed in range(3):
      config = unpack(load_config(recipe), "pretrain").replace({"k": 500, "seed": seed})
      rng = np.random.default_rng(20 + seed)
      context_MxD = rng.normal(size=(4, 32)).astype(np.float32)
      prompt = Prompt(context_MxD, "random", "end", config.to_dict())
      save_prompt(root / "cells_of_500" / "cells" / f"{seed}.npz", prompt)
    cells.write_results({"job": "ablate"})

  return shared("reproduce_ablated", fill)


@pytest.fixture
def smaller_means(monkeypatch):
  """Means over the two sets that are there."""
  means = {"mean of 10": ("eurosat", "dtd"), "mean of 4": ("dtd",)}
  smaller = dataclasses.replace(ACCURACIES["ablation"], means=means)
  monkeypatch.setitem(ACCURACIES, "ablation", smaller)


def ablation(two_sets, runs, workdir, *more):
  root = two_sets / "DATA"
  return main(
    [
      f"--config=reproduce:table=ablation,root={root},data={root}",
      f"--config.clip.model={two_sets / 'clip'}",
      f"--workdir={workdir}",
      f"--config.reproduce.runs={';'.join(map(str, runs))}",
      *more,
    ]
  )


def of_orders(content):
  return {
    (row["subject"], row["quantity"].removeprefix(DIFFERENCE)): row
    for row in content["rows"]
    if row["quantity"].startswith(DIFFERENCE)
  }


@pytest.mark.slow("compiles the towers")
def test_an_ablation_stops_at_the_controls_of_random_weights(
  two_sets, ablated, only_two, smaller_means, tmp_path, capsys
):
  runs = sorted(ablated.iterdir())
  assert ablation(two_sets, runs, tmp_path / "run") == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  assert status["Controls", "dtd"] == {"FAIL"}
  rows = of_orders(content)
  assert len(rows) == 3 * 5 + 6
  assert {row["status"] for row in rows.values()} == {"NOT RUN"}
  why = rows["mean of 4", "K = 1000 over K = 500"]["why"]
  assert why == "stopped: dtd: Controls failed for the set"
  why = rows["mean of 4", "K = 500 over K = 100"]["why"]
  assert why.startswith("no training of K = 100")
  why = rows["mean of 10", "K = 1000, m = 1 over K = 1000, m = 1.5"]["why"]
  assert why.startswith("no training of K = 1000, m = 1:")
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.mark.slow("compiles the towers")
def test_an_ablation_tests_the_order_of_its_arms(
  two_sets, ablated, only_two, smaller_means, tmp_path, monkeypatch
):
  all_pass = lambda *_, **__: Tolerance(1.0, "a test")
  monkeypatch.setattr(controls_stage, "control_tolerance", all_pass)
  ablation(two_sets, sorted(ablated.iterdir()), tmp_path / "run")
  content, _ = read(tmp_path / "run")
  row = of_orders(content)["mean of 10", "K = 1000 over K = 1000, no correction"]
  assert row["expected"] == pytest.approx(0.012)
  figures = []
  for arm in ("K = 1000", "K = 1000, no correction"):
    shares = [
      [
        one["right"] / one["images"]
        for one in content["answers"]
        if one["stage"] == "Retrained" and one["set"] == name
        if one["prompt"] in [f"{arm}, seed {seed}" for seed in (0, 1, 2, 10, 11, 12)]
      ]
      for name in ("eurosat", "dtd")
    ]
    figures.append(np.mean(shares, axis=0))
    assert len(figures[-1]) == 3
  assert row["got"] == pytest.approx(figures[0].mean() - figures[1].mean())
  test = scipy.stats.ttest_ind(*figures, equal_var=False, alternative="greater")
  assert f"p = {test.pvalue:.2g};" in row["why"]
  expected = "UNDECIDED"
  if test.pvalue < 0.05:
    expected = "PASS"
  if test.pvalue > 0.95:
    expected = "FAIL"
  assert row["status"] == expected
  assert not list((tmp_path / "run" / ".eval_results").glob("*over*"))
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0
  rows = [from_dict(one) for one in content["rows"]]
  assert verify._orders(content, rows) == []
  moved = [one._replace(tolerance=1.0) for one in rows if one.rule == "order"]
  assert len(verify._orders(content, moved)) == len(moved) > 0


@pytest.mark.slow("fifteen sets, 14,000 names")
def test_an_ablation_on_all_fifteen_sets(
  fourteen, ablated, tmp_path, monkeypatch, capsys
):
  root = tmp_path / "RECORDS"
  counts = {IMAGENET21K: write_records(root, tmp_path / "x.jpg")}
  for name in (*TEN, *FOUR):
    listed = name if name not in ("imagenet_v2", "imagenet_sketch") else "imagenet1k"
    counts[name] = len(load_class_list(listed).names)
  monkeypatch.setattr(accuracies, "TEST_IMAGES", counts)
  # The random CLIP's tokenizer has a token a letter.
  patch_texts(monkeypatch, lambda prompt, _: ("a {}.",))
  runs = [ablated / name for name in ("k1000_0", "k1000_1", "none_0", "none_1")]
  command_line = [
    f"--config=reproduce:table=ablation,root={root},data={fourteen / 'DATA'}",
    f"--config.clip.model={fourteen / 'clip'}",
    f"--config.reproduce.runs={';'.join(map(str, runs))}",
    "--config.reproduce.quick",
    f"--workdir={tmp_path / 'run'}",
  ]
  assert main(command_line) == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  assert {name for stage, name in status if stage == "Controls"} >= counts.keys()
  sources = {
    row["subject"]: row["source"]
    for row in content["rows"]
    if row["stage"] == "Controls" and row["got"] is not None
  }
  assert sources[IMAGENET21K] == "table 1, zero-shot CLIP"
  assert sources["dtd"] == "table 2, hard prompt"
  assert status["Controls", IMAGENET21K] == {"FAIL"}
  assert {row["status"] for row in of_orders(content).values()} == {"NOT RUN"}
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


def test_a_training_that_is_no_arm(two_sets, tmp_path, capsys):
  odd = finished_run(tmp_path / "odd", "imagenet21k_vit_b16:m=4", 0, k=77)
  assert ablation(two_sets, [odd], tmp_path / "run") == 2
  assert "k=77, correction=log10" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


@pytest.mark.slow("compiles the towers")
def test_an_arm_of_another_recipe(two_sets, only_two, smaller_means, tmp_path):
  recipe = "imagenet21k_vit_b16:m=4"
  changes = {"optim.lr": 0.02, "k": 500}
  runs = [finished_run(tmp_path / str(n), recipe, n, **changes) for n in range(2)]
  runs.append(finished_run(tmp_path / "1000", recipe, 0))
  assert ablation(two_sets, runs, tmp_path / "run") == 1
  content, status = read(tmp_path / "run")
  assert "FAIL" in status["Retrained", "recipe, K = 500"]
  (found,) = (one for one in content["findings"] if one["stage"] == "Retrained")
  assert (found["kind"], found["subject"]) == ("optimizer", "recipe, K = 500")
  why = of_orders(content)["mean of 4", "K = 1000 over K = 500"]["why"]
  assert why == "stopped: the recipe of K = 500 failed"


def test_baselines_take_runs_alone(two_sets, tmp_path, capsys):
  save_prompt(tmp_path / "m4.npz", Prompt(np.ones((4, 32), np.float32), "x"))
  command_line = [
    f"--config=reproduce:table=baselines,root={two_sets / 'DATA'}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.clip.model={two_sets / 'clip'}",
  ]
  for field, value in (("prompts", tmp_path / "m4.npz"), ("train", 3)):
    assert main([*command_line, f"--config.reproduce.{field}={value}"]) == 2
    assert f"config.reproduce.{field}" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("recipe", "name"),
  [
    ("coop:imagenet", "CoOp"),
    ("cocoop", "CoCoOp"),
    ("vpt", "VPT"),
    ("vpt:shallow", "VPT"),
    ("maple:cross", "MaPLe"),
    ("kgcoop", "KgCoOp"),
    ("promptsrc:cross", "PromptSRC"),
    ("promptsrc:prompt", "PromptSRC"),
    ("protext", "ProText"),
    ("protext:shallow", "ProText"),
    ("kdpl", "KDPL"),
    ("imagenet21k_vit_b16", "POMP"),
  ],
)
def test_a_training_is_named_after_its_paper(recipe, name):
  fields = unpack(load_config(recipe), "pretrain").flat()
  assert method_name(fields) == name


def test_each_row_of_table_2_is_a_method_or_a_control():
  rows = {"hard prompt", "POMP", *(one.name for one in METHODS)}
  assert targets.tables()["2"]["rows"].keys() == rows
  for method in METHODS:
    if method.recipe:
      fields = reproduce._fields_of(method)
      assert fields["data.dataset"] == "imagenet1k"
      assert fields["data.classes"] == "all" and fields["data.shots"] == 16
