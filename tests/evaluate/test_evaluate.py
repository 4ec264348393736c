"""The evaluate job: figures against torch's CLIP, resumption, tables, bad input.

One evaluation, of packaged and own sets, under words and learned prompts, is shared by
most tests.
"""

import csv
import dataclasses
import json
import os
import shutil
from unittest import mock

import numpy as np
from PIL import Image
import pytest
import scipy.special
import sklearn.metrics
import torch

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Clip
from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.source import Files, LabelledSet, SourceError, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import evaluate
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.evaluate.sets_to_evaluate import sets_to_evaluate
from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder, read_json
from tests.support.clips import (
  huggingface_outputs,
  with_kernel,
  words_as_prompt,
  write_random_clip,
)
from tests.support.data_files import write_set
from tests.support.small_run import changed, run_job, small_config

# Pictures of each set: no multiple of the devices or of the batch.
SIZES = {"dtd": 37, "eurosat": 21, "imagenet_a": 45}
# Learned prompts that are words, so that torch can say them.
WORDS = ("a photo of a", "one")
SETS = """
set = [
  {{name = "satellite", root = "eurosat", names = "names.txt", base = "seen.txt", novel = {novel}}},
  {{name = "my textures", root = "dtd", names = "dtd", templates = ["one {{}}."]}},
  {{name = "archive", reader = "coop", dataset = "eurosat", root = {root}}},
]
"""


def sets_of(config):
  return sets_to_evaluate(config.evaluate, config.data, config.eval)


class Case:
  """The folder with `clip/`, `data/` for $DATA, a user's `own/` and the finished
  `run/`."""

  def __init__(self, folder):
    self.folder, self.own, self.workdir = folder, folder / "own", folder / "run"
    self.clip = load_clip(str(folder / "clip"))
    self.model = torch.load(folder / "model.pt", weights_only=False)
    with np.load(folder / "pictures.npz") as stored:
      self.pictures = {name: stored[name] for name in SIZES}
      self.labels = {name: stored[f"{name} labels"] for name in SIZES}

  def config(self, **changes):
    """An evaluation of no set yet; `changes` of the group `evaluate`."""
    settings = {
      "suite": "none",
      "root": str(self.folder / "data"),
      "batch_size": 16,
    } | changes
    settings = {f"evaluate.{field}": value for field, value in settings.items()}
    # One shape for all sets: compiled once.
    fields = {"job": "evaluate", "clip.model": str(self.folder / "clip")}
    return small_config(**fields | settings)

  @property
  def shared_config(self):
    """The config of `run/`."""
    prompts = f"hand_written;{self.own}/0.npz;{self.own}/1.npz"
    return self.config(
      sets=";".join(SIZES), sets_file=f"{self.own}/sets.toml", prompts=prompts
    )

  def cosines(self, name, template="", kept=None):
    """By torch, of a set's pictures of `kept` classes with these classes; and the
    labels."""
    listed = load_class_list(name)
    kept = np.arange(len(listed)) if kept is None else kept
    mine, names = np.isin(self.labels[name], kept), [listed.names[c] for c in kept]
    shown = self.pictures[name][mine], names, template or listed.template
    cosines = torch_cosines(self.clip, self.model, *shown)
    return cosines, np.searchsorted(kept, self.labels[name][mine])

  def top1(self, *which):
    """By torch: accuracy and number of pictures; arguments of `cosines`."""
    cosines, labels = self.cosines(*which)
    return np.mean(cosines.argmax(-1) == labels), len(labels)


def torch_cosines(clip, model, pictures, names, template):
  texts = [template.replace("{}", name.replace("_", " ")) for name in names]
  output = huggingface_outputs(clip, model, pictures, texts)
  return (output.image_embeds @ output.text_embeds.T).double().numpy()


def write_case(folder):
  """Writes all that `Case` reads, but the run."""
  model = write_random_clip(folder / "clip")
  torch.save(model, folder / "model.pt")
  clip, rng, arrays = load_clip(str(folder / "clip")), np.random.default_rng(0), {}
  for name, n in SIZES.items():
    classes = load_class_list(name)
    pictures = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    cosines = torch_cosines(clip, model, pictures, classes.names, classes.template)
    # A half is labelled as this CLIP sees it, the rest at random.
    labels = np.where(
      rng.random(n) < 0.5, cosines.argmax(-1), rng.integers(0, len(classes), n)
    )
    order = np.argsort(labels, kind="stable")
    arrays |= {name: pictures[order], f"{name} labels": labels[order]}
    write_set(folder / "data", name, pictures[order], labels[order])
  np.savez(folder / "pictures.npz", **arrays)
  own = folder / "own"
  for name in ("eurosat", "dtd"):
    names = load_class_list(name).names
    for i, label in enumerate(arrays[f"{name} labels"]):
      (own / name / names[label]).mkdir(parents=True, exist_ok=True)
      Image.fromarray(arrays[name][i]).save(own / name / names[label] / f"{i:03}.png")
  names = load_class_list("eurosat").names
  (own / "names.txt").write_text("\n".join(names))
  (own / "seen.txt").write_text("\n".join(names[1::2]))
  novel, root = json.dumps(names[:5:2]), json.dumps(str(folder / "data"))
  (own / "sets.toml").write_text(SETS.format(novel=novel, root=root))
  for number, words in enumerate(WORDS):
    save_prompt(own / f"{number}.npz", words_as_prompt(clip, words))


@pytest.fixture(scope="module")
def case(shared):
  def make(folder):
    write_case(folder)
    run_job(Case(folder).shared_config, folder / "run")

  return Case(shared("evaluate", make))


@pytest.fixture(scope="module")
def results(case):
  return RunFolder(case.workdir).read_results()


@pytest.fixture
def no_drawings(monkeypatch):
  """Figures and tables alone: what draws is tested on the shared run."""
  monkeypatch.setattr(evaluate, "plots", mock.Mock())


def test_figures_equal_torch(case, results):
  for name in ("dtd", "eurosat"):
    figures = results["sets"][name]["prompts"]["hand_written"]
    cosines, labels = case.cosines(name)
    rank = np.sum(cosines > cosines[np.arange(len(labels)), labels][:, None], axis=-1)
    right = rank == 0
    assert 0.3 < right.mean() < 0.9
    assert figures["top1"] == pytest.approx(right.mean())
    assert figures["top5"] == pytest.approx(np.mean(rank < 5))
    confidence = scipy.special.softmax(case.clip.logit_scale * cosines, axis=-1).max(-1)
    assert figures["mean_confidence"] == pytest.approx(confidence.mean(), abs=1e-5)
    assert figures["images"] == len(labels)
    assert "hierarchy" not in figures
  top1 = results["accuracy"]["cross_dataset"]["top1"]["hand_written"]
  # Over two of the ten: not what tables call the mean.
  assert top1["mean of 2"] == pytest.approx((top1["dtd"] + top1["eurosat"]) / 2)
  assert results["images"]["cross_dataset"]["top1"] == {
    n: SIZES[n] for n in ("dtd", "eurosat")
  }
  # Two hundred classes of ImageNet, and the tree.
  figures = results["sets"]["imagenet_a"]["prompts"]["hand_written"]
  top1, n_images = case.top1("imagenet_a")
  assert figures["classes"] == 200
  assert figures["top1"] == pytest.approx(top1)
  assert figures["errors"]["images"] == n_images - round(top1 * n_images)
  assert figures["hierarchy"]["at_depth"]["1"] >= figures["hierarchy"]["top1"]


def test_each_table_has_the_counts_and_splits_of_its_own_sets(case, results):
  sizes = {name: len(load_class_list(name)) for name in SIZES}
  own = {"my textures": sizes["dtd"], "archive": sizes["eurosat"]}
  assert results["classes"] == {
    "cross_dataset": {"top1": {name: sizes[name] for name in ("dtd", "eurosat")}},
    "cross_domain": {"top1": {"imagenet_a": sizes["imagenet_a"]}},
    "own": {
      "base": {"satellite": 5},
      "novel": {"satellite": 3},
      "harmonic": {"satellite": 8},
      "top1": own,
    },
  }
  assert results["splits"] == {
    "cross_dataset": {"dtd": "test", "eurosat": "test"},
    "cross_domain": {"imagenet_a": "test"},
    "own": {"satellite": "all", "my textures": "all", "archive": "test"},
  }
  for name in SIZES:
    without = sizes[name] - len(np.unique(case.labels[name]))
    found = results["sets"][name]
    assert (found["listed_classes"], found["missing_classes"]) == (sizes[name], without)
    assert found["unreadable"] == 0


@pytest.fixture
def done(case, results):
  """What the file of each set holds."""
  return {
    name: json.loads(
      (case.workdir / "sets" / f"{name.replace('/', '-')}.json").read_text()
    )
    | of
    for name, of in results["sets"].items()
  }


def test_published_figures_are_of_test_images_by_the_published_reader(case, done):
  """Of whole sets; one other set takes them from its table alone."""
  items, both = sets_of(case.shared_config), {"cross_dataset", "cross_domain"}

  def groups(items=items, sampled=False, **of_dtd):
    return set(
      evaluate._sums(items, done | {"dtd": done["dtd"] | of_dtd}, sampled)["published"]
    )

  assert groups() == groups(split="validation") == both
  assert groups(split="train") == groups(split="all") == {"cross_domain"}
  assert groups(unreadable=1) == {"cross_domain"}
  assert groups(sampled=True) == set()
  other = [
    item._replace(reader="folder") if item.name == "dtd" else item for item in items
  ]
  assert groups(other) == {"cross_domain"}


def test_plots_show_the_figures_of_their_tables(results, monkeypatch, tmp_path):
  drawn = mock.Mock()
  monkeypatch.setattr(evaluate, "plots", drawn)
  published = {
    "cross_dataset": {"top1": {"CoOp": {"figures": {"dtd": 60.0}, "source": "x"}}}
  }
  evaluate._draw(tmp_path, results | {"published": published})
  calls = {call.args[0].name: call for call in drawn.accuracy_panels.call_args_list}
  kinds = ("base", "novel", "harmonic", "top1")
  assert sorted(calls) == sorted(
    ["accuracy_cross_dataset_top1.png", "accuracy_cross_domain_top1.png"]
    + [f"accuracy_own_{kind}.png" for kind in kinds]
  )
  _, rows, labels = calls["accuracy_own_novel.png"].args
  novel = results["accuracy"]["own"]["novel"]
  assert rows == novel
  assert len(labels) == len(novel)
  assert calls["accuracy_own_novel.png"].kwargs == {
    "title": "Top-1 accuracy on novel classes (%): own sets",
    "images": {"satellite": results["images"]["own"]["novel"]["satellite"]},
    "classes": {"satellite": 3},
    "intervals": results["intervals"]["own"]["novel"],
    "published": {},
  }
  cross_dataset = calls["accuracy_cross_dataset_top1.png"].kwargs
  assert cross_dataset["published"] == {"CoOp": {"dtd": 60.0}}
  ((path, figures),) = [call.args for call in drawn.calibration_panels.call_args_list]
  assert path.name == "calibration.png"
  assert figures == {name: of["prompts"] for name, of in results["sets"].items()}


def test_what_only_the_tables_depend_on_is_in_the_key_of_the_results(case, monkeypatch):
  """No set is evaluated again."""
  keys, changes, config = [], {}, case.shared_config
  monkeypatch.setattr(RunFolder, "finished", lambda folder, key: keys.append(key) or {})

  def others(*given):
    of_dtd = lambda item: item._replace(**changes) if item.name == "dtd" else item
    return [of_dtd(item) for item in sets_to_evaluate(*given)]

  monkeypatch.setattr(evaluate, "sets_to_evaluate", others)
  for one in (
    {},
    {"column": "x"},
    {"group": "own"},
    {"part": "base"},
    {"reader": "folder"},
  ):
    changes |= one
    assert evaluate.run(config, str(case.workdir)) == {}
    changes.clear()
  # As many images as there are, but chosen.
  evaluate.run(config.replace({"evaluate.images": 10_000}), str(case.workdir))
  assert (
    keys[0] == read_json(case.workdir / "results.json")["key"] and len({*keys}) == 6
  )


def test_own_sets_under_two_prompts_and_a_text_equal_torch(case, results):
  """Folders and CoOp's layout, named in one file, beside named sets."""
  accuracy, images = (results[key]["own"] for key in ("accuracy", "images"))
  columns = ("satellite", "my textures", "archive")
  by_hand = "a photo of a {}.", "one {}.", load_class_list("eurosat").template
  texts = {"hand_written": dict(zip(columns, by_hand, strict=True))}
  for i, words in enumerate(WORDS):
    texts[f"{case.own}/{i}.npz"] = dict.fromkeys(columns, f"{words} {{}}.")
  parts = {"base": np.arange(1, 10, 2), "novel": np.arange(0, 5, 2)}
  for label, text in texts.items():
    for column, name in (("my textures", "dtd"), ("archive", "eurosat")):
      top1, n_images = case.top1(name, text[column])
      assert accuracy["top1"][label][column] == pytest.approx(top1)
      assert images["top1"][column] == n_images == SIZES[name]
    for part, kept in parts.items():
      top1, n_images = case.top1("eurosat", text["satellite"], kept)
      assert accuracy[part][label] == pytest.approx({"satellite": top1})
      assert images[part] == {"satellite": n_images}
    base, novel = (accuracy[part][label]["satellite"] for part in parts)
    harmonic = 2 * base * novel / (base + novel) if base + novel else 0
    assert accuracy["harmonic"][label]["satellite"] == pytest.approx(harmonic)
  assert list(accuracy["top1"]["hand_written"]) == [
    "my textures",
    "archive",
    "mean of 2",
  ]
  # A mean over some sets does not stand beside the published one, and own sets have
  # none.
  assert results["published"] == {
    "cross_dataset": {"top1": {}},
    "cross_domain": {"top1": {}},
  }


def test_the_tables_hold_each_class_error_and_difference(case, results):
  """Those of two prompts on a set, by torch."""
  workdir, names, first = case.workdir, load_class_list("dtd").names, "hand_written"
  labels, answers = case.cosines("dtd")[1], {}
  for label, text in {first: "", f"{case.own}/1.npz": f"{WORDS[1]} {{}}."}.items():
    answer = answers[label] = case.cosines("dtd", text)[0].argmax(-1)
    mine = {"set": "dtd", "prompt": label}.items()
    classes, errors, [line] = (
      [row for row in csv.DictReader((workdir / file).open()) if mine <= row.items()]
      for file in ("classes.csv", "confusions.csv", "results.csv")
    )
    matrix = sklearn.metrics.confusion_matrix(labels, answer, labels=range(len(names)))
    counts, classes = matrix.sum(axis=1), {row["class"]: row for row in classes}
    assert [int(classes[name]["images"]) for name in names] == counts.tolist()
    for c in np.flatnonzero(counts):
      assert float(classes[names[c]]["top1"]) == pytest.approx(matrix[c, c] / counts[c])
    wrong = np.argwhere(matrix * (1 - np.eye(len(names))))
    assert {(row["class"], row["answer"]): int(row["images"]) for row in errors} == {
      (names[label], names[other]): matrix[label, other] for label, other in wrong
    }
    assert {row["class"]: int(row["images_of_class"]) for row in errors} == {
      names[c]: counts[c] for c in np.unique(wrong[:, 0])
    }
    assert float(line["top1"]) == pytest.approx(np.mean(answer == labels))
    figures = results["sets"]["dtd"]["prompts"][label]
    found = [
      float(line[name]) for name in ("top1_low", "top1_high", "ece", "macro_top1")
    ]
    assert found == [*figures["top1_interval"], figures["ece"], figures["macro_top1"]]
    difference = np.mean((answer == labels) * 1.0 - (answers[first] == labels))
    assert float(line["difference"] or 0) == pytest.approx(difference)
    assert (line["reference"] == first) == (label != first)


def test_the_folder_holds_a_report_plots_and_records(case, results):
  workdir = case.workdir
  assert results["sets"]["dtd"]["by_class"]["confused"]
  assert (workdir / "plots/confusions_dtd.png").exists()
  assert not (workdir / "plots/confusions_imagenet_a.png").exists()
  report = (workdir / "report.html").read_text()
  assert "Most confused names" in report and "Accuracy of classes" in report
  # Images that were not held out are marked in every table.
  assert "satellite (all)" in (workdir / "results.md").read_text()
  # One for each prompt of each set.
  assert len(list((workdir / "clip_benchmark").iterdir())) == 3 * len(results["sets"])


@pytest.fixture
def computed(case, monkeypatch, no_drawings):
  """Classes and images of the sets that are computed from now on; their figures are
  borrowed."""
  stored = json.loads((case.workdir / "sets" / "eurosat.json").read_text())
  figures = stored["prompts"]["hand_written"]
  figures = {
    key: figures[key] for key in figures if key not in ("per_class", "confusions")
  }
  found = []

  def counted(encoder, labelled, prompts, *more):
    found.append((len(labelled.classes), len(labelled.source)))
    prompts = {named.label: figures for named in prompts}
    of_set = {
      "split": labelled.split,
      "classes": labelled.classes.names,
      "prompts": prompts,
    }
    return {"seconds": stored["seconds"], "unreadable": 0} | of_set

  monkeypatch.setattr(evaluate, "_evaluate", counted)
  return found


def test_a_set_that_is_done_is_not_done_again(case, results, computed, copy_of):
  config, workdir = case.shared_config, copy_of(case.workdir)
  plain = lambda value: json.loads(json.dumps(value))
  assert plain(run_job(config, workdir)).items() <= results.items()
  # As if it had been stopped after the first set.
  for name in ("results.json", "sets/eurosat.json", "clip_benchmark.csv"):
    (workdir / name).unlink()
  again = run_job(config, workdir)
  assert computed == [(10, SIZES["eurosat"])]
  assert list(again["sets"]) == list(results["sets"])
  assert all(
    (workdir / name).exists() for name in ("results.json", "clip_benchmark.csv")
  )
  # A damaged set of a finished evaluation.
  damaged = workdir / "sets/eurosat.json"
  damaged.write_text(f"{damaged.read_text()}x")
  computed.clear()
  run_job(config, workdir)
  assert computed == [(10, SIZES["eurosat"])]
  # What the figures depend on has changed: the prompts, the images, the CLIP.
  config = changed(config, {"evaluate.sets_file": "", "evaluate.sets": "dtd;eurosat"})
  for field, value in (
    ("evaluate.prompts", "hand_written;{}."),
    ("evaluate.images", 11),
    ("clip.dtype", "bfloat16"),
  ):
    computed.clear()
    config = changed(config, {field: value})
    run_job(config, workdir)
    images = (
      (11, 11) if field != "evaluate.prompts" else (SIZES["dtd"], SIZES["eurosat"])
    )
    assert computed == list(zip((47, 10), images, strict=True))


def test_published_figures_stand_beside_those_of_all_images_alone(
  case, no_drawings, tmp_path
):
  shutil.copytree(case.folder / "data", tmp_path / "data")
  config = case.config(sets="eurosat", root=str(tmp_path / "data"))
  config = changed(config, {"data.max_corrupt": 0.1})
  assert "cross_dataset" in run_job(config, tmp_path / "all")["published"]
  part = run_job(changed(config, {"evaluate.images": 20}), tmp_path / "part")
  assert "cross_dataset" not in part["published"]
  # Whether a class has an image is known of all images alone.
  assert part["sets"]["eurosat"]["missing_classes"] is None
  damaged = next((tmp_path / "data" / "eurosat").rglob("0003.png"))
  damaged.write_bytes(b"no image")
  fewer = run_job(config, tmp_path / "fewer")
  assert (
    fewer["sets"]["eurosat"]["unreadable"] == 1
    and "cross_dataset" not in fewer["published"]
  )


def test_each_part_of_a_set_has_its_own_key(encoder, tmp_path, monkeypatch):
  """Alone: a set whose key stays the same keeps figures that are another's."""
  for folder in ("images", "others"):
    (tmp_path / folder).mkdir()
    for name in ("a.png", "b.png", "c.png"):
      Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
  stored = StoredImages(
    ["x", "y"], [0, 1], ["a.png", "b.png"], Files(tmp_path / "images")
  )
  classes, own = ClassList(("x", "y")), Clip()
  prompts = [NamedPrompt("one", "a {}."), NamedPrompt("two", "the {}.")]

  def key(
    source=stored,
    classes=classes,
    own=own,
    clip=encoder.clip,
    name="set",
    split="test",
    prompts=prompts,
    more=(),
  ):
    of = Encoder(clip, chunk=8)
    (found,) = evaluate._keys(
      own, of, {name: LabelledSet(source, classes, split)}, prompts, more
    ).values()
    return found

  of_clip = lambda **changes: dataclasses.replace(encoder.clip, **changes)
  first = key()
  assert key() == first
  others = [
    key(stored.replace(keys=np.array(["a.png", "c.png"], np.dtypes.StringDType()))),
    key(stored.replace(labels=np.array([0, 0], np.int32))),
    key(stored.replace(storage=Files(tmp_path / "others"))),
    key(stored.replace(upright=True)),
    key(classes=ClassList(("x", "z"))),
    key(classes=ClassList(("x", "y"), ("n01440764", "n02084071"))),
    key(own=Clip(dtype="bfloat16")),
    key(own=Clip(text_tower="reference")),
    key(clip=of_clip(squash=True)),
    key(
      clip=with_kernel(encoder.clip, "text_projection", np.ones((32, 24), np.float32))
    ),
    key(name="other"),
    key(split="validation"),
    key(prompts=prompts[:1]),
    key(prompts=prompts[::-1]),
    key(prompts=[NamedPrompt("other", "a {}."), prompts[1]]),
    key(prompts=[NamedPrompt("one", "an {}."), prompts[1]]),
    key(more=("0.5",)),
  ]
  # An image under its old name, of another size or the same, is another one.
  for second in (1, 2):
    Image.new("RGB", (8, 8), (second, 0, 0)).save(tmp_path / "images" / "b.png")
    os.utime(tmp_path / "images" / "b.png", (second, second))
    others.append(key())
  monkeypatch.setattr(evaluate, "_VERSION", f"{evaluate._VERSION} and more")
  others.append(key())
  assert len({first, *others}) == 1 + len(others), [
    [first, *others].index(one) for one in others
  ]


def test_other_pictures_under_the_same_names_are_evaluated_anew(
  case, computed, tmp_path
):
  shutil.copytree(case.own / "eurosat", tmp_path / "other")
  for root, count in ((case.own / "eurosat", 1), (tmp_path / "other", 2)):
    own = ({"name": "a", "root": str(root)},)
    run_job(case.config().replace({"evaluate.own_sets": own}), tmp_path / "run")
    assert len(computed) == count


def test_a_run_is_a_row_and_on_request_each_checkpoint(
  pretrained, no_drawings, tmp_path
):
  prompts = f"a photo of a {{}}.;{pretrained};{pretrained}/checkpoints"
  config = small_config(job="evaluate", **{"evaluate.prompts": prompts})
  assert [item.name for item in sets_of(config)] == ["base", "novel", "shifted"]
  results = run_job(changed(config, {"evaluate.sets": "novel"}), tmp_path)
  assert [row["step"] for row in results["prompts"]] == [None, None, 4, 8, 12]
  assert results["sets"]["novel"]["missing_classes"] is None  # the world has no list
  rows = results["sets"]["novel"]["prompts"]
  file, first, last = (rows[f"{pretrained.name}{end}"] for end in ("", "@4", "@12"))
  assert {**file, "difference": 0} == {**last, "difference": 0}
  assert file["mean_confidence"] != first["mean_confidence"]


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"prompts": "{}.;{}."}, ConfigError, "none twice"),
    ({"prompts": "EMPTY"}, ConfigError, "a finished run's folder"),
    (
      {"prompts": "narrow.npz"},
      PromptFileError,
      r"narrow\.npz, set dtd: context \[4, 7\] has ",
    ),
    ({"prompts": "damaged/checkpoints"}, (ConfigError, CheckpointError), "damaged"),
    ({"sets": "dtt"}, ConfigError, r"evaluate.sets: got 'dtt'.*did you mean 'dtd'"),
    (
      {"sets": "food101"},
      SourceError,
      r"^\S+split_zhou_Food101.json: can't be read \(",
    ),
    ({"root": "/no/such"}, ConfigError, "evaluate.root: got '/no/such'"),
    (
      {"suite": "imagenet21k", "sets": ""},
      ConfigError,
      "evaluate.source: .* expected tfds or fol",
    ),
    (
      {"sets": "eurosat", "root": "."},
      SourceError,
      "label 1 is 'Woods', but 'Forest' in its cl",
    ),
    ({"own_sets": ({"name": "dtd", "root": "x"},)}, SourceError, "'dtd'"),
  ],
)
def test_bad_input_is_found_before_it_writes(
  case, tmp_path, monkeypatch, changes, error, message
):
  monkeypatch.chdir(tmp_path)
  save_prompt("narrow.npz", Prompt(np.zeros((4, 7), np.float32), "other"))
  (tmp_path / "damaged" / "checkpoints" / "4").mkdir(parents=True)
  (tmp_path / "EMPTY").mkdir()
  file = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
  shutil.copytree(case.folder / "data" / "eurosat", file.parent)
  file.write_text(file.read_text().replace('"Forest"', '"Woods"'))
  with pytest.raises(error, match=message):
    evaluate.check(case.config(**{"sets": "dtd"} | changes), "run")
  assert not (tmp_path / "run").exists()


def test_a_suites_name_among_sets_stands_for_its_own(case):
  config = case.config(sets="cross_domain;dtd", sets_file=str(case.own / "sets.toml"))
  found = [item.group for item in sets_of(config)]
  assert found == ["cross_domain"] * 4 + ["cross_dataset"] + ["own"] * 4


def test_what_is_missing_is_listed_together(case, no_drawings, copy_of, caplog):
  """Before anything is computed; or left out, and then no mean is called the
  suite's."""
  own, workdir = copy_of(case.own, "own"), copy_of(case.workdir, "run")
  file = own / "sets.toml"
  file.write_text(file.read_text().replace('"dtd"', '"gone"', 1))
  changes = {"suite": "fourteen", "sets": "", "sets_file": str(file)}
  changes = {f"evaluate.{field}": value for field, value in changes.items()}
  config = changed(case.shared_config, changes)
  with pytest.raises(
    SourceError, match="12 of 18 sets can't be opened: caltech101, "
  ) as error:
    evaluate.check(config, str(workdir))
  assert "evaluate.skip_missing=true" in str(error.value)
  lines = [message for message in caplog.messages if message.startswith("missing: ")]
  assert len(lines) == 12
  assert any("split_zhou_Food101.json" in line for line in lines)
  assert any("set 'my textures'" in line and "gone" in line for line in lines)
  caplog.clear()
  results = run_job(config.replace({"evaluate.skip_missing": True}), workdir)
  # Told once, by the check or by the run.
  for name in results["missing"]:
    assert sum(line.startswith(f"missing: {name}: ") for line in caplog.messages) == 1
  assert len(results["missing"]) == 12
  assert results["published"] == {
    "cross_dataset": {"top1": {}},
    "cross_domain": {"top1": {}},
  }
  assert "12 sets are missing: caltech101," in (workdir / "results.md").read_text()


def test_the_folder_that_data_names_is_one_set(case, tmp_path):
  """Neither the world's splits, nor parts of its classes that nobody asked for."""
  config = case.config().replace(
    {
      "data.source": "folder",
      "data.root": str(case.own / "eurosat"),
      "data.n_classes": 0,
    }
  )
  (item,) = sets_of(config)
  source, classes, split = item.open()
  assert item.name == f"eurosat/{split}"
  names = load_class_list("eurosat").names
  assert sorted(classes.names) == sorted(
    names[c] for c in np.unique(case.labels["eurosat"])
  )
  assert source.images(np.arange(2)).shape == (2, 224, 224, 3)
  halves = config.replace({"data.classes": "base", "data.shots": 1})
  parts = {item.part: item.open() for item in sets_of(halves)}
  assert list(parts) == ["base", "new"]
  assert parts["base"].classes.names + parts["new"].classes.names == classes.names
  assert {part.split for part in parts.values()} == {"test"} == {split}
  assert item.reader == "folder"
  for field, value in (("suite", "world"), ("sets", "base")):
    other = changed(config, {f"evaluate.{field}": value})
    with pytest.raises(
      ConfigError, match=rf"evaluate\.{field}: got '{value}'.*sets_file"
    ):
      evaluate.check(other, str(tmp_path / "run"))
