"""The evaluate job: figures against torch's CLIP, resumption, two processes, tables, bad input."""

import json
import os

import numpy as np
from PIL import Image
import pytest
import scipy.special
import torch

from pomp_jax.clip import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.encoder import Encoder
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.inference.named_prompts import features_under
from pomp_jax.inputs.evaluation_sets import evaluation_sets
from pomp_jax.jobs import evaluate
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.step import create_state
from tests.support.clips import pooled, write_random_clip
from tests.support.data_files import write_set
from tests.support.processes import run_in_processes
from tests.support.small_run import changed, small_config

# Pictures of each set: no multiple of the devices or of the batch.
SIZES = {"dtd": 37, "eurosat": 21, "imagenet_a": 45}
BATCH = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A random CLIP, $DATA with three sets, and torch's cosines and the labels of each."""
  folder = tmp_path_factory.mktemp("evaluate")
  model = write_random_clip(folder / "clip")
  clip = load_clip(str(folder / "clip"))
  rng = np.random.default_rng(0)
  expected = {}
  for name, n in SIZES.items():
    classes = load_class_list(name)
    pictures = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    cosines = torch_cosines(clip, model, pictures, classes.names, classes.template)
    # A half is labelled as this CLIP sees it, the rest at random.
    labels = np.where(rng.random(n) < 0.5, cosines.argmax(-1), rng.integers(0, len(classes), n))
    order = np.argsort(labels, kind="stable")
    write_set(folder / "data", name, pictures[order], labels[order])
    expected[name] = (pictures[order], labels[order], cosines[order])
  return folder, clip, model, expected


def torch_cosines(clip, model, pictures, names, template):
  texts = [template.replace("{}", name.replace("_", " ")) for name in names]
  tokens = clip.tokenizer(texts, return_tensors="pt", padding=True)
  pixels = (pictures / 255 - np.array(clip.mean)) / np.array(clip.std)
  with torch.no_grad():
    output = model(**tokens, pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)).float())
  return (output.image_embeds @ output.text_embeds.T).double().numpy()


def config_for(data, suite, **changes):
  settings = {
    "job": "evaluate",
    "clip.model": str(data[0] / "clip"),
    "evaluate.suite": suite,
    "evaluate.root": str(data[0] / "data"),
    "evaluate.batch_size": BATCH,
    "clip.chunk": 16,  # one shape for all sets: compiled once
  }
  return small_config(**settings | changes)


def run(config, workdir):
  evaluate.check(config, str(workdir))
  return evaluate.run(config, str(workdir))


@pytest.fixture(scope="module")
def cross_dataset(data, tmp_path_factory):
  """The config of two sets under two prompts, its folder, and its results."""
  config = config_for(
    data,
    "cross_dataset",
    **{"evaluate.sets": "dtd; eurosat", "evaluate.prompts": "hand_written;{}."},
  )
  workdir = tmp_path_factory.mktemp("run")
  return config, workdir, run(config, workdir)


def test_figures_equal_torch(data, cross_dataset):
  _, clip, _, expected = data
  results = cross_dataset[2]
  for name in ("dtd", "eurosat"):
    figures = results["sets"][name]["prompts"]["hand_written"]
    _, labels, cosines = expected[name]
    rank = np.sum(cosines > cosines[np.arange(len(labels)), labels][:, None], axis=-1)
    right = rank == 0
    assert 0.3 < right.mean() < 0.9
    assert figures["top1"] == pytest.approx(right.mean())
    assert figures["top5"] == pytest.approx(np.mean(rank < 5))
    assert figures["macro_top1"] == pytest.approx(
      np.mean([right[labels == c].mean() for c in np.unique(labels)])
    )
    confidence = scipy.special.softmax(clip.logit_scale * cosines, axis=-1).max(-1)
    assert figures["mean_confidence"] == pytest.approx(confidence.mean(), abs=1e-5)
    assert figures["images"] == len(labels)
    assert "hierarchy" not in figures
  top1 = results["accuracy"]["cross_dataset"]["top1"]["hand_written"]
  # Over two of the ten: not what tables call the mean.
  assert list(top1) == ["dtd", "eurosat", "mean of 2"]
  assert top1["mean of 2"] == pytest.approx((top1["dtd"] + top1["eurosat"]) / 2)
  assert results["images"]["cross_dataset"]["top1"] == {n: SIZES[n] for n in ("dtd", "eurosat")}


def test_an_ensemble_is_the_mean_of_its_texts(data):
  _, clip, model, _ = data
  classes = ClassList(("star", "grey_wolf"), None, "{}.", ("a photo of a {}.", "a drawn {}."))
  mean = 0
  for template in classes.ensemble:
    texts = [template.replace("{}", name) for name in ("star", "grey wolf")]
    tokens = clip.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
      features = pooled(model.get_text_features(**tokens)).double().numpy()
    mean = mean + features / np.linalg.norm(features, axis=-1, keepdims=True) / 2
  found = features_under(Encoder(clip, chunk=8), classes, "ensemble")
  expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_folder_holds_every_figure_and_tables(cross_dataset):
  _, workdir, results = cross_dataset
  assert RunFolder(workdir).read_results() == results
  stored = json.loads((workdir / "sets" / "dtd.json").read_text())
  figures = stored["prompts"]["hand_written"]
  assert len(stored["classes"]) == len(figures["per_class"]["top1"]) == 47
  images, top1 = (np.array(figures["per_class"][key], float) for key in ("images", "top1"))
  assert np.nansum(images * top1) == pytest.approx(SIZES["dtd"] * figures["top1"])
  assert np.nanmean(top1) == pytest.approx(figures["macro_top1"])
  assert {file.name for file in (workdir / "plots").iterdir()} == {
    "accuracy_cross_dataset_top1.png",
    "calibration.png",
  }
  row = results["accuracy"]["cross_dataset"]["top1"]["{}."]
  files = sorted(file.name for file in (workdir / "clip_benchmark").iterdir())
  assert files == [
    f"{name}.json"
    for name in ("dtd_hand_written", "dtd_prompt", "eurosat_hand_written", "eurosat_prompt")
  ]
  record = json.loads((workdir / "clip_benchmark" / "dtd_hand_written.json").read_text())
  assert record["metrics"] == {
    "acc1": figures["top1"],
    "acc5": figures["top5"],
    "mean_per_class_recall": figures["macro_top1"],
  }
  assert len((workdir / "clip_benchmark.csv").read_text().splitlines()) == 5
  assert f"{100 * row['dtd']:.1f}" in (workdir / "results.md").read_text()
  assert r"\toprule" in (workdir / "results.tex").read_text()
  # A mean over two of the ten does not stand beside the published one.
  assert results["published"] == {"cross_dataset": {"top1": {}}}


def test_a_set_that_is_done_is_not_done_again(cross_dataset, monkeypatch):
  config, workdir, results = cross_dataset
  files = {
    name: json.loads((workdir / "sets" / f"{name}.json").read_text()) for name in ("dtd", "eurosat")
  }
  computed = []

  def counted(config, encoder, labelled, prompts):
    name = "dtd" if len(labelled.classes) == 47 else "eurosat"
    computed.append((name, len(labelled.source)))
    figures = files[name]["prompts"]["hand_written"]
    return {
      "seconds": files[name]["seconds"],
      "split": labelled.split,
      "unreadable": 0,
      "classes": labelled.classes.names,
      "prompts": {named.label: figures for named in prompts},
    }

  monkeypatch.setattr(evaluate, "_evaluate", counted)
  assert run(config, workdir) == results
  assert computed == []
  # As if it had been stopped after the first set.
  os.unlink(workdir / "results.json")
  os.unlink(workdir / "sets" / "eurosat.json")
  again = run(config, workdir)
  assert computed == [("eurosat", SIZES["eurosat"])]
  assert list(again["sets"]) == ["dtd", "eurosat"]
  # What the figures depend on has changed: the prompts, the images, the CLIP.
  for field, value in [
    ("evaluate.prompts", "hand_written"),
    ("evaluate.images", 11),
    ("clip.dtype", "bfloat16"),
  ]:
    computed.clear()
    config = changed(config, {field: value})
    run(config, workdir)
    assert [name for name, _ in computed] == ["dtd", "eurosat"]
  assert computed[1] == ("eurosat", 11)
  computed.clear()
  run(config, workdir)
  assert computed == []


def test_base_to_new(data, tmp_path):
  _, labels, cosines = data[3]["eurosat"]
  config = config_for(data, "base_to_new", **{"evaluate.sets": "eurosat"})
  accuracy = run(config, tmp_path)["accuracy"]["base_to_new"]
  base, new, harmonic = (accuracy[kind]["hand_written"] for kind in ("base", "new", "harmonic"))
  # Each half is told apart among its own classes.
  for found, kept in ((base, slice(0, 5)), (new, slice(5, None))):
    classes = np.arange(10)[kept]
    mine = np.isin(labels, classes)
    answers = classes[cosines[mine][:, kept].argmax(-1)]
    assert found["eurosat"] == pytest.approx(np.mean(answers == labels[mine]))
  expected = 2 / (1 / base["eurosat"] + 1 / new["eurosat"])
  assert harmonic["eurosat"] == pytest.approx(expected)


def test_two_hundred_classes_of_imagenet_and_the_tree(data, tmp_path):
  _, _, _, expected = data
  config = config_for(data, "cross_domain", **{"evaluate.sets": "imagenet_a"})
  figures = run(config, tmp_path)["sets"]["imagenet_a"]["prompts"]["hand_written"]
  _, labels, cosines = expected["imagenet_a"]
  answers = cosines.argmax(-1)
  assert figures["classes"] == 200
  assert figures["top1"] == pytest.approx(np.mean(answers == labels))
  assert figures["errors"]["images"] == np.sum(answers != labels)
  assert figures["hierarchy"]["at_depth"]["1"] >= figures["hierarchy"]["top1"]


def test_two_processes_count_what_one_does(data, cross_dataset, tmp_path):
  config = config_for(data, "cross_dataset", **{"evaluate.sets": "dtd"})
  expected = cross_dataset[2]["sets"]["dtd"]["prompts"]["hand_written"]
  run_in_processes([(config, [tmp_path / "0", tmp_path / "1"])], tmp_path / "jobs.json")
  assert not (tmp_path / "1").exists()
  results = json.loads((tmp_path / "0" / "results.json").read_text())
  found = results["sets"]["dtd"]["prompts"]["hand_written"]
  # 37 images over two processes in batches of 16: the last has 5 of them, and is filled up.
  assert found["images"] == SIZES["dtd"]
  assert found["reliability"]["images"] == expected["reliability"]["images"]
  for key in ("top1", "top5", "macro_top1", "ece", "mean_confidence"):
    assert found[key] == pytest.approx(expected[key], abs=1e-6)


class TestTheWorld:
  """The embedded world, learned prompts and a run's checkpoints."""

  @pytest.fixture(scope="class")
  def prompts(self, tmp_path_factory):
    """A run's folder with two checkpoints, the second one's context as a prompt file."""
    folder = tmp_path_factory.mktemp("trained")
    learner = ContextLearner(PromptContext(4, 64, "end"), lambda *inputs: inputs)
    state = create_state(learner, sgd(lambda step: 0.1, 0.9, 0.0), seed=0)
    config = small_config().to_dict()
    contexts = {}
    with Checkpoints(folder / "checkpoints") as checkpoints:
      for step in (4, 8):
        contexts[step] = np.asarray(state.params["context"]) * (1 + step)
        saved = state.replace(params={"context": contexts[step]})
        checkpoints.save(step, saved, {"config": config}, metric=0.5)
    save_prompt(folder / "prompt.npz", Prompt(contexts[8], "world"))
    return folder

  def config(self, prompts):
    text = f"a photo of a {{}}.;{prompts}/prompt.npz;{prompts}"
    return small_config(job="evaluate", **{"evaluate.prompts": text, "clip.chunk": 16})

  def test_each_checkpoint_is_a_row(self, prompts, tmp_path):
    before = sorted(str(path) for path in prompts.rglob("*"))
    config = self.config(prompts)
    assert [item.name for item in evaluation_sets(config, 40)] == ["base", "novel", "shifted"]
    config = changed(config, {"evaluate.sets": "novel"})
    results = run(config, tmp_path)
    assert [row["step"] for row in results["prompts"]] == [None, None, 4, 8]
    for rows in results["sets"].values():
      file, first, last = (
        rows["prompts"][f"{prompts}{end}"] for end in ("/prompt.npz", "@4", "@8")
      )
      assert file == last
      assert file["mean_confidence"] != first["mean_confidence"]
    # Read, and not touched.
    assert sorted(str(path) for path in prompts.rglob("*")) == before

  def test_bad_prompts(self, prompts, tmp_path):
    config = self.config(prompts)
    for text, error, message in [
      ("", ConfigError, "evaluate.prompts"),
      ("nothing.npz", ConfigError, "evaluate.prompts: got 'nothing.npz'"),
      ("{}.;{}.", ConfigError, "none twice"),
      (str(tmp_path), ConfigError, "a run's folder with checkpoints or prompt.npz"),
    ]:
      config = changed(config, {"evaluate.prompts": text})
      with pytest.raises(error, match=message):
        evaluate.check(config, str(tmp_path / "run"))
    narrow = tmp_path / "narrow.npz"
    save_prompt(narrow, Prompt(np.zeros((4, 7), np.float32), "other"))
    config = changed(config, {"evaluate.prompts": str(narrow)})
    with pytest.raises(
      PromptFileError, match=r"narrow\.npz, set base: context \[4, 7\] has width 7"
    ):
      evaluate.check(config, str(tmp_path / "run"))
    damaged = tmp_path / "damaged" / "checkpoints" / "4"
    damaged.mkdir(parents=True)
    config = changed(config, {"evaluate.prompts": str(damaged.parents[1])})
    with pytest.raises((ConfigError, CheckpointError), match="damaged"):
      evaluate.check(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"sets": "dtt"}, ConfigError, r"evaluate.sets: got 'dtt'.*did you mean 'dtd'"),
    ({"sets": "dtd;dtd"}, ConfigError, "different ones"),
    ({"sets": "food101"}, SourceError, r"^\S+split_zhou_Food101.json: can't be read \("),
    ({"sets": "dtd", "root": "/no/such"}, ConfigError, "evaluate.root: got '/no/such'"),
    ({"sets": "dtd", "root": ""}, ConfigError, "evaluate.root: got ''"),
    (
      {"suite": "imagenet21k", "sets": ""},
      ConfigError,
      "evaluate.source: got 'coop', expected tfds or folder",
    ),
  ],
)
def test_bad_sets(data, tmp_path, changes, error, message):
  config = config_for(data, "cross_dataset")
  config = changed(config, {f"evaluate.{field}": value for field, value in changes.items()})
  with pytest.raises(error, match=message):
    evaluate.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


class TestOwnSets:
  """A user's own data: folders and CoOp's layout in one file, two learned prompts beside a text."""

  WORDS = ("a photo of a", "one")

  @pytest.fixture(scope="class")
  def own(self, data, tmp_path_factory):
    """A file of three sets, and two prompts that are words, so that torch can say them."""
    folder, clip, _, expected = data
    home = tmp_path_factory.mktemp("own")
    for name in ("eurosat", "dtd"):
      names = load_class_list(name).names
      for i, (picture, label) in enumerate(zip(*expected[name][:2], strict=True)):
        (home / name / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / name / names[label] / f"{i:03}.png")
    names = load_class_list("eurosat").names
    (home / "names.txt").write_text("\n".join(names))
    (home / "seen.txt").write_text("\n".join(names[1::2]))
    (home / "sets.toml").write_text(f"""
[[set]]
name = "satellite"
root = "eurosat"
names = "names.txt"
base = "seen.txt"
novel = {json.dumps(names[:5:2])}
[[set]]
name = "my textures"
root = "dtd"
names = "dtd"
templates = ["one {{}}."]
[[set]]
name = "archive"
reader = "coop"
dataset = "eurosat"
root = {json.dumps(str(folder / "data"))}
""")
    table = np.asarray(clip.text_params["text_model"]["embeddings"]["token_embedding"]["embedding"])
    for number, words in enumerate(self.WORDS):
      ids = clip.tokenizer(words, add_special_tokens=False)["input_ids"]
      save_prompt(home / f"{number}.npz", Prompt(table[ids], "random"))
    return home

  @pytest.fixture(scope="class")
  def finished(self, data, own, tmp_path_factory):
    prompts = f"hand_written;{own}/0.npz;{own}/1.npz"
    config = config_for(
      data,
      "none",
      **{"evaluate.sets_file": str(own / "sets.toml"), "evaluate.prompts": prompts},
    )
    workdir = tmp_path_factory.mktemp("run")
    return config, workdir, run(config, workdir)

  def top1(self, data, name, template, kept=None):
    """What torch says, told apart among some of the classes."""
    _, clip, model, expected = data
    names = load_class_list(name).names
    kept = np.arange(len(names)) if kept is None else kept
    pictures, labels, _ = expected[name]
    mine = np.isin(labels, kept)
    cosines = torch_cosines(clip, model, pictures[mine], [names[c] for c in kept], template)
    return np.mean(kept[cosines.argmax(-1)] == labels[mine]), int(mine.sum())

  def test_three_sets_under_two_prompts_and_a_text_equal_torch(self, data, own, finished):
    results = finished[2]
    accuracy, images = (results[key]["own"] for key in ("accuracy", "images"))
    texts = {
      f"{own}/0.npz": dict.fromkeys(("satellite", "my textures", "archive"), "a photo of a {}."),
      f"{own}/1.npz": dict.fromkeys(("satellite", "my textures", "archive"), "one {}."),
      "hand_written": {
        "satellite": "a photo of a {}.",
        "my textures": "one {}.",
        "archive": load_class_list("eurosat").template,
      },
    }
    parts = {"base": np.arange(1, 10, 2), "novel": np.arange(0, 5, 2)}
    for label, text in texts.items():
      for column, name in (("my textures", "dtd"), ("archive", "eurosat")):
        top1, n_images = self.top1(data, name, text[column])
        assert accuracy["top1"][label][column] == pytest.approx(top1)
        assert images["top1"][column] == n_images == SIZES[name]
      for part, kept in parts.items():
        top1, n_images = self.top1(data, "eurosat", text["satellite"], kept)
        assert accuracy[part][label] == pytest.approx({"satellite": top1})
        assert images[part] == {"satellite": n_images}
      base, novel = (accuracy[part][label]["satellite"] for part in parts)
      harmonic = 2 * base * novel / (base + novel) if base + novel else 0
      assert accuracy["harmonic"][label]["satellite"] == pytest.approx(harmonic)
    assert list(accuracy["top1"]["hand_written"]) == ["my textures", "archive", "mean of 2"]
    # What the images are: of folders without splits nothing says that they are for testing.
    splits = {name: of_set["split"] for name, of_set in results["sets"].items()}
    assert splits == {
      "satellite/base": "all",
      "satellite/novel": "all",
      "my textures": "all",
      "archive": "test",
    }
    assert results["published"] == {}

  def test_tables_and_plots(self, finished):
    _, workdir, results = finished
    text = (workdir / "results.md").read_text()
    assert "## Top-1 accuracy on novel classes (%): own sets" in text
    assert f"| images | {SIZES['dtd']} | {SIZES['eurosat']} | - |" in text
    assert {file.name for file in (workdir / "plots").iterdir()} == {
      "calibration.png",
      *(f"accuracy_own_{kind}.png" for kind in ("top1", "base", "novel", "harmonic")),
    }
    assert (workdir / "sets" / "satellite-novel.json").exists()

  def test_other_pictures_under_the_same_names_are_evaluated_anew(self, data, own, tmp_path):
    config = config_for(data, "none")
    found = []
    for color in ("black", "white"):
      for index, name in enumerate(("ant", "bee", "cat", "dog")):
        (tmp_path / color / name).mkdir(parents=True)
        rng = np.random.default_rng(index + 10 * (color == "black"))
        picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / color / name / "0.png")
      config = config.replace(
        {"evaluate.own_sets": ({"name": "a", "root": str(tmp_path / color)},)}
      )
      results = run(config, tmp_path / "run")
      found.append(results["sets"]["a"]["prompts"]["hand_written"]["mean_confidence"])
    assert found[0] != found[1]

  def test_beside_named_sets(self, data, own):
    config = config_for(data, "none", **{"evaluate.sets_file": str(own / "sets.toml")})
    config = changed(config, {"evaluate.sets": "imagenet_a;dtd"})
    items = evaluation_sets(config, 32)
    assert [(item.name, item.group) for item in items] == [
      ("imagenet_a", "cross_domain"),
      ("dtd", "cross_dataset"),
      ("satellite/base", "own"),
      ("satellite/novel", "own"),
      ("my textures", "own"),
      ("archive", "own"),
    ]
    # A suite's name stands for its sets; a suite brings all of its own.
    config = changed(config, {"evaluate.sets": "cross_domain;dtd"})
    assert len(evaluation_sets(config, 32)) == 4 + 1 + 4
    config = changed(config, {"evaluate.sets": "", "evaluate.suite": "fourteen"})
    assert len(evaluation_sets(config, 32)) == 14 + 4
    config = changed(config, {"evaluate.sets": "fourteen;imagenet1k"})
    assert len(evaluation_sets(config, 32)) == 15 + 4
    # A set that is called as its suite is the set.
    config = changed(config, {"evaluate.suite": "imagenet21k", "evaluate.sets": "imagenet21k"})
    config = config.replace({"evaluate.source": "tfds"})
    assert evaluation_sets(config, 32)[0].name == "imagenet21k"
    config = changed(
      config, {"evaluate.suite": "fourteen", "evaluate.sets": "", "evaluate.source": "coop"}
    )
    config = config.replace({"evaluate.own_sets": ({"name": "dtd", "root": "x"},)})
    with pytest.raises(SourceError, match="'dtd'"):
      evaluation_sets(config, 32)

  def test_what_is_missing_is_listed_together(self, data, own, tmp_path, caplog):
    """Before anything is computed; or left out, and then no mean is called the suite's."""
    text = (own / "sets.toml").read_text().replace('"dtd"', '"gone"', 1)
    file = own / "other.toml"
    file.write_text(text)
    config = config_for(data, "fourteen", **{"evaluate.sets_file": str(file)})
    with pytest.raises(SourceError, match="12 of 18 sets can't be opened: caltech101, ") as error:
      evaluate.check(config, str(tmp_path / "run"))
    assert "evaluate.skip_missing=true" in str(error.value)
    lines = [message for message in caplog.messages if message.startswith("missing: ")]
    assert len(lines) == 12
    assert any("split_zhou_Food101.json" in line for line in lines)
    assert any("set 'my textures'" in line and "gone" in line for line in lines)
    assert not (tmp_path / "run").exists()
    config = config.replace({"evaluate.skip_missing": True})
    caplog.clear()
    results = run(config, tmp_path / "run")
    # Told once, by the check or by the run.
    for name in results["missing"]:
      assert sum(line.startswith(f"missing: {name}: ") for line in caplog.messages) == 1
    assert len(results["missing"]) == 12
    assert "split_zhou_Food101.json" in results["missing"]["food101"]
    kinds = results["accuracy"]
    assert list(kinds["cross_dataset"]["top1"]["hand_written"]) == ["dtd", "eurosat", "mean of 2"]
    assert list(kinds["cross_domain"]["top1"]["hand_written"]) == ["imagenet_a"]
    assert results["published"] == {"cross_dataset": {"top1": {}}, "cross_domain": {"top1": {}}}
    assert "12 sets are missing: caltech101," in (tmp_path / "run" / "results.md").read_text()
    # Not one set is there.
    config = changed(config, {"evaluate.suite": "cross_dataset", "evaluate.sets": "food101;sun397"})
    config = config.replace({"evaluate.sets_file": ""})
    with pytest.raises(SourceError, match="2 of 2 sets can't be opened: food101, sun397$"):
      evaluate.check(config, str(tmp_path / "other"))

  def test_the_folder_that_data_names_is_one_set(self, data, own, tmp_path):
    """Neither the world's splits, nor parts of its classes that nobody asked for."""
    config = config_for(
      data, "none", **{"data.source": "folder", "data.root": str(own / "eurosat")}
    )
    config = config.replace({"data.n_classes": 0})
    items = evaluation_sets(config, 32)
    assert len(items) == 1
    assert items[0].name.startswith("eurosat/")
    _, labels, _ = data[3]["eurosat"]
    source, classes, split = items[0].open()
    assert items[0].name == f"eurosat/{split}"
    assert sorted(classes.names) == sorted(
      load_class_list("eurosat").names[label] for label in np.unique(labels)
    )
    assert source.images(np.arange(2)).shape == (2, 32, 32, 3)
    # With lists of base and novel classes, these.
    halves = config.replace({"data.classes": "base", "data.shots": 1})
    parts = {item.part: item.open() for item in evaluation_sets(halves, 32)}
    assert list(parts) == ["base", "new"]
    assert parts["base"].classes.names + parts["new"].classes.names == classes.names
    for field, value in (("suite", "world"), ("sets", "base")):
      other = changed(config, {f"evaluate.{field}": value})
      with pytest.raises(ConfigError, match=rf"evaluate\.{field}: got '{value}'.*sets_file"):
        evaluate.check(other, str(tmp_path / "run"))


def test_labels_that_do_not_match_the_vocabulary(data, tmp_path):
  pictures, labels, _ = data[3]["eurosat"]
  write_set(tmp_path, "eurosat", pictures, labels)
  file = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
  text = file.read_text()
  config = config_for(data, "cross_dataset", **{"evaluate.sets": "eurosat"})
  config = config.replace({"evaluate.root": str(tmp_path)})
  file.write_text(text.replace('"Forest"', '"Woods"'))
  with pytest.raises(SourceError, match="label 1 is 'Woods', but 'Forest' in its class list"):
    evaluate.check(config, str(tmp_path / "run"))
  content = json.loads(text)
  content = {part: [item for item in items if item[1] < 9] for part, items in content.items()}
  file.write_text(json.dumps(content))
  with pytest.raises(SourceError, match="eurosat: 9 classes, but its class list has 10"):
    evaluate.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
