"""The evaluate job: figures against torch's CLIP, resumption, two processes, tables, bad input."""

import json
import os

from coop_folder import write_set
from job_processes import run_in_processes
import numpy as np
import pytest
from random_clip import write_random_clip
import scipy.special
from small_run import small_config
import torch

from pomp_jax.clip import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.data.source import SourceError
from pomp_jax.data.vocabularies import ClassList, load_class_list
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.jobs import evaluate
from pomp_jax.jobs.evaluation_sets import evaluation_sets
from pomp_jax.jobs.named_prompts import features_under
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.train_step import create_state
from pomp_jax.transfer import Encoder

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
  top1 = results["accuracy"]["top1"]["hand_written"]
  assert list(top1) == ["dtd", "eurosat", "mean"]
  assert top1["mean"] == pytest.approx((top1["dtd"] + top1["eurosat"]) / 2)


def test_an_ensemble_is_the_mean_of_its_texts(data):
  _, clip, model, _ = data
  classes = ClassList(("star", "grey_wolf"), None, "{}.", ("a photo of a {}.", "a drawn {}."))
  mean = 0
  for template in classes.ensemble:
    texts = [template.replace("{}", name) for name in ("star", "grey wolf")]
    tokens = clip.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
      features = model.get_text_features(**tokens).double().numpy()
    mean = mean + features / np.linalg.norm(features, axis=-1, keepdims=True) / 2
  found = features_under(Encoder(clip, chunk=8), classes, "ensemble")
  expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_folder_holds_every_figure_and_tables(cross_dataset):
  _, workdir, results = cross_dataset
  assert json.loads((workdir / "results.json").read_text()) == results
  stored = json.loads((workdir / "sets" / "dtd.json").read_text())
  figures = stored["prompts"]["hand_written"]
  assert len(stored["classes"]) == len(figures["per_class"]["top1"]) == 47
  images, top1 = (np.array(figures["per_class"][key], float) for key in ("images", "top1"))
  assert np.nansum(images * top1) == pytest.approx(SIZES["dtd"] * figures["top1"])
  assert np.nanmean(top1) == pytest.approx(figures["macro_top1"])
  assert {file.name for file in (workdir / "plots").iterdir()} == {
    "accuracy.png",
    "calibration.png",
  }
  row = results["accuracy"]["top1"]["{}."]
  assert f"{100 * row['dtd']:.1f}" in (workdir / "results.md").read_text()
  assert r"\toprule" in (workdir / "results.tex").read_text()
  # A mean over two of the ten does not stand beside the published one.
  assert results["published"] == {}


def test_a_set_that_is_done_is_not_done_again(cross_dataset, monkeypatch):
  config, workdir, results = cross_dataset
  files = {
    name: json.loads((workdir / "sets" / f"{name}.json").read_text()) for name in ("dtd", "eurosat")
  }
  computed = []

  def counted(config, encoder, source, classes, prompts):
    name = "dtd" if len(classes) == 47 else "eurosat"
    computed.append((name, len(source)))
    figures = files[name]["prompts"]["hand_written"]
    return {
      "seconds": files[name]["seconds"],
      "classes": classes.names,
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
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    run(config, workdir)
    assert [name for name, _ in computed] == ["dtd", "eurosat"]
  assert computed[1] == ("eurosat", 11)
  computed.clear()
  run(config, workdir)
  assert computed == []


def test_base_to_new(data, tmp_path):
  _, labels, cosines = data[3]["eurosat"]
  config = config_for(data, "base_to_new", **{"evaluate.sets": "eurosat"})
  accuracy = run(config, tmp_path)["accuracy"]
  base, new, harmonic = (accuracy[kind]["hand_written"] for kind in ("base", "new", "harmonic"))
  # Each half is told apart among its own classes.
  for found, kept in ((base, slice(0, 5)), (new, slice(5, None))):
    classes = np.arange(10)[kept]
    mine = np.isin(labels, classes)
    answers = classes[cosines[mine][:, kept].argmax(-1)]
    assert found["eurosat"] == pytest.approx(np.mean(answers == labels[mine]))
  expected = 2 / (1 / base["eurosat"] + 1 / new["eurosat"])
  assert harmonic["eurosat"] == harmonic["mean"] == pytest.approx(expected)


def test_the_harmonic_mean_over_sets_is_that_of_the_means():
  top1 = {"dtd/base": 0.8, "dtd/new": 0.4, "eurosat/base": 0.6, "eurosat/new": 0.2}
  sets = {name: {"prompts": {"p": {"top1": value}}} for name, value in top1.items()}
  accuracy = evaluate.accuracy_by_kind("base_to_new", sets, ["p"])
  assert accuracy["base"]["p"] == pytest.approx({"dtd": 0.8, "eurosat": 0.6, "mean": 0.7})
  assert accuracy["harmonic"]["p"]["mean"] == pytest.approx(2 * 0.7 * 0.3 / (0.7 + 0.3))


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
    config.evaluate.sets = "novel"
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
      ("", ConfigError, "evaluate.prompts: got '', takes one or more"),
      ("nothing.npz", ConfigError, "got 'nothing.npz', takes one or more"),
      ("{}.;{}.", ConfigError, "none twice"),
      (str(tmp_path), ConfigError, "which has checkpoints/ in it"),
    ]:
      config.evaluate.prompts = text
      with pytest.raises(error, match=message):
        evaluate.check(config, str(tmp_path / "run"))
    narrow = tmp_path / "narrow.npz"
    save_prompt(narrow, Prompt(np.zeros((4, 7), np.float32), "other"))
    config.evaluate.prompts = str(narrow)
    with pytest.raises(
      PromptFileError, match=r"narrow\.npz, set base: context \[4, 7\] has width 7"
    ):
      evaluate.check(config, str(tmp_path / "run"))
    damaged = tmp_path / "damaged" / "checkpoints" / "4"
    damaged.mkdir(parents=True)
    config.evaluate.prompts = str(damaged.parents[1])
    with pytest.raises((ConfigError, CheckpointError), match="damaged"):
      evaluate.check(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"sets": "dtt"}, ConfigError, r"evaluate.sets: got 'dtt'.*did you mean 'dtd'"),
    ({"sets": "dtd;dtd"}, ConfigError, "different ones"),
    ({"sets": "food101"}, SourceError, "split_zhou_Food101.json: can't be read"),
    ({"sets": "dtd", "root": "/no/such"}, ConfigError, "evaluate.root: got '/no/such'"),
    ({"sets": "dtd", "root": ""}, ConfigError, "evaluate.root: got ''"),
    (
      {"suite": "imagenet21k", "sets": ""},
      ConfigError,
      "evaluate.reader: got 'coop', takes tfds or folder",
    ),
  ],
)
def test_bad_sets(data, tmp_path, changes, error, message):
  config = config_for(data, "cross_dataset")
  for field, value in changes.items():
    config.evaluate[field] = value
  with pytest.raises(error, match=message):
    evaluate.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_labels_that_do_not_match_the_vocabulary(data, tmp_path):
  pictures, labels, _ = data[3]["eurosat"]
  write_set(tmp_path, "eurosat", pictures, labels)
  file = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
  text = file.read_text()
  config = config_for(data, "cross_dataset", **{"evaluate.sets": "eurosat"})
  config.evaluate.root = str(tmp_path)
  file.write_text(text.replace('"Forest"', '"Woods"'))
  with pytest.raises(SourceError, match="label 1 is 'Woods', but 'Forest' in its class list"):
    evaluate.check(config, str(tmp_path / "run"))
  content = json.loads(text)
  content = {part: [item for item in items if item[1] < 9] for part, items in content.items()}
  file.write_text(json.dumps(content))
  with pytest.raises(SourceError, match="eurosat: 9 classes, but its class list has 10"):
    evaluate.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
