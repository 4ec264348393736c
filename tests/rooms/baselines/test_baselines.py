"""Every method in the main job, the table over all of them, and what Tip-Adapter's
keys are."""

import dataclasses
import importlib
import json
import re

import numpy as np
from PIL import Image
import pytest

from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.views import Augmentation, draw_view, make_view
from pomp_jax.evaluate import named_prompts, opening
from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.baselines import baselines, classifiers, tip_adapter
from pomp_jax.rooms.baselines.fields import Tip, Tokens
from pomp_jax.rooms.baselines.finished_run import FinishedRun
from pomp_jax.rooms.baselines.reports import method_labels
from pomp_jax.train import pretrain
from pomp_jax.train.batches import open_fetch
from pomp_jax.train.watch import TrainingError
from tests.support.oracles import unit
from tests.support.pictures import encode, natural_image
from tests.support.report_page import Page
from tests.support.small_run import changed, small_config

pytestmark = pytest.mark.usefixtures("few_texts")

SPLITS = ("base", "novel", "shifted")
# Published recipes, and variants of them.
CONFIGS = (
  "coop",
  "cocoop",
  "vpt",
  "vpt:shallow",
  "maple",
  "linear_probe",
  "tip_adapter",
)
CONFIGS += ("tip_adapter:tuned", "zero_shot")


def tiny_config(**changes):
  """Ten classes, two steps; `changes` by full field name."""
  small = {
    "data.n_classes": 10,
    "batch_size": 8,
    "k": 5,
    "steps": 2,
    "checkpoint.every": 2,
    "eval.images": 16,
    "tip.epochs": 1,
    "tip.views": 2,
    "probe.iterations": 20,
    "tip.beta_steps": 3,
    "tip.alpha_steps": 3,
  }
  return small_config(**small | changes)


@pytest.fixture
def told(tmp_path, monkeypatch):
  """What processes are told by the first, and whether its results were in `run/` by
  then."""
  told, from_first = [], pretrain.hosts.from_first

  def noted(value, what, **more):
    told.append((what, (tmp_path / "run" / "results.json").exists()))
    return from_first(value, what, **more)

  monkeypatch.setattr(pretrain.hosts, "from_first", noted)
  return told


def assert_left_when_written(told):
  """The last that processes wait for is the results, which are in the folder by
  then."""
  assert told[0] == ("the run's results", False)
  assert told[-1] == ("the run's results", True)


# Several depths are held in `test_learners`, and for one method here. At depth 1
# `maple` has no array for deeper layers: orbax saves no empty ones.
PROMPTS = {
  "cocoop": {},
  "vpt_deep": {"prompt.depth": 3},
  "maple": {"prompt.depth": 1, "prompt.m": 2, "prompt.init": "a photo of a"},
}


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_of_every_kind_are_learned_and_evaluated(
  method, one_layer, tmp_path, told
):
  workdir, config = tmp_path / "run", tiny_config(method=method, **PROMPTS[method])
  if config.prompt.of(Tokens).depth == 1:
    config = changed(config, {"clip.model": one_layer})
  pretrain.check(config, str(workdir))
  told.clear()
  results = pretrain.run(config, str(workdir))
  assert_left_when_written(told)
  assert (results["method"], results["steps"]) == (method, 2)
  for split in SPLITS:
    scores = results["eval"][split]
    assert 0 <= scores["prompt"]["top1"] <= scores["prompt"]["top5"] <= 1
    assert results["top1"][split] == scores["prompt"]["top1"]
    # Two images of each class for 16: what was evaluated, not the limit.
    assert results["eval_images"][split] == scores["prompt"]["images"] == 20
  assert not (workdir / "prompt.npz").exists()
  found = named_prompts.read_prompts([str(workdir / "checkpoints")], "evaluate.prompts")
  assert found[-1].step == 2 and isinstance(found[-1].prompt, FinishedRun)
  # Finished: the same again, from the file.
  assert pretrain.run(config, str(workdir)) == RunFolder(workdir).read_results()


def test_zero_shot(monkeypatch, tmp_path, told):
  """The texts one by one, and the mean of their unit features on the sphere again."""
  texts = ("a {}.", "the {} in a photo", "{}")
  monkeypatch.setattr(
    classifiers,
    "_ZERO_SHOT",
    {"hand_written": "hand_written", "three": "ensemble:imagenet_7"},
  )
  monkeypatch.setattr(named_prompts, "load_templates", lambda name: texts)
  config = tiny_config(method="zero_shot", **{"eval.images": 200})
  results = pretrain.run(config, str(tmp_path / "run"))
  assert_left_when_written(told)
  encoder = opening.open_encoder(config.clip)
  for split in SPLITS:
    source = opening.open_source(config.data, split, n_images=200)
    images = encoder.image_features(source.images(np.arange(len(source)))).astype(
      np.float64
    )
    each = [
      encoder.class_features(source.names, text).astype(np.float64) for text in texts
    ]
    total = sum(each)
    for name, classes in {
      "three": total / np.linalg.norm(total, axis=1, keepdims=True),
      "hand_written": encoder.class_features(source.names, "a photo of a {}."),
    }.items():
      right = (images @ classes.T).argmax(1) == source.labels
      assert results["eval"][split][name]["top1"] == pytest.approx(
        right.mean(), abs=0.006
      )
    assert results["top1"][split] == results["eval"][split]["hand_written"]["top1"]


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter", "tip_adapter_f"])
def test_classifiers_of_known_classes_are_evaluated_on_these_alone(method, tmp_path):
  results = pretrain.run(tiny_config(method=method), str(tmp_path))
  assert list(results["top1"]) == ["base"]
  assert results["not_evaluated"] == ["novel", "shifted"]
  assert results["top1"]["base"] == results["eval"]["base"][method]["top1"] > 1 / 10
  assert results["eval_images"] == {"base": 20}
  assert results["found"]["validation_images"] == 20
  low, high = results["eval"]["base"][method]["top1_interval"]
  assert low < results["top1"]["base"] <= high
  stored = np.load(tmp_path / "classifier.npz")
  assert len(stored["names"]) == 10
  assert set(results["found"]) >= (
    {"strength"} if method == "linear_probe" else {"alpha", "beta"}
  )


def test_a_rate_that_breaks_all_keys_fails_and_leaves_no_result(tmp_path):
  config = tiny_config(method="tip_adapter_f", **{"optim.lr": 1e6})
  with pytest.raises(
    TrainingError, match="tip_adapter_f: the keys are not finite after epoch 1"
  ):
    pretrain.run(config, str(tmp_path / "run"))
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["features"]


@pytest.mark.parametrize("name", CONFIGS)
def test_published_recipes_run_on_the_world(name, tmp_path):
  """That the recipes themselves are valid is held in tests/config."""
  name, _, variant = name.partition(":")
  argument = f"{variant},world" if variant else "world"
  config = unpack(
    importlib.import_module(f"pomp_jax.configs.{name}").get_config(argument)
  )
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))


def test_the_table_of_methods_marks_what_fails_and_is_resumed(
  one_layer, tmp_path, monkeypatch
):
  """In this process: another one takes seconds to start."""
  monkeypatch.setattr(
    baselines, "in_own_process", lambda function, *inputs: function(*inputs)
  )
  monkeypatch.setattr(baselines, "_share_programs", lambda folder: None)
  fields = {"repeat.seeds": (0, 1), "clip.model": one_layer}
  fields["baselines.methods"] = (
    "zero: method=zero_shot; probe: method=linear_probe; pomp: prompt.m=2;"
    " broken: prompt.m=2, optim.lr=1e30"
  )
  config = tiny_config(job="baselines", **fields)
  baselines.check(config, str(tmp_path))
  with pytest.raises(
    TrainingError, match="1 methods failed, the first, broken: TrainingError: "
  ):
    baselines.run(config, str(tmp_path))
  results = json.loads((tmp_path / "results.json").read_text())
  assert set(results["failed"]) == {"broken"}
  assert results["failed"]["broken"].startswith("TrainingError: ")
  assert set(results["methods"]) == {
    "probe",
    "pomp",
    "zero_hand_written",
    "zero_class_name",
  }
  pomp, probe = results["methods"]["pomp"], results["methods"]["probe"]
  assert (pomp["n_runs"], probe["n_runs"]) == (2, 1)
  runs = [
    json.loads((tmp_path / f"pomp/seed_{s}/results.json").read_text()) for s in (0, 1)
  ]
  assert pomp["top1"]["novel"]["values"] == [run["top1"]["novel"] for run in runs]
  assert set(pomp["top1"]) == set(SPLITS) and set(probe["top1"]) == {"base"}
  for found in (*pomp["top1"].values(), *probe["top1"].values()):
    assert found["images"] == 20
    assert found["interval"] == pytest.approx(wilson_interval(found["mean"], 20))
  assert all(row["peak_mib"] > 50 for row in results["methods"].values())
  page = Page((tmp_path / "report.html").read_text())
  rows = {row[0]: row[1:] for row in page.table("method", "seeds")}
  novel = pomp["top1"]["novel"]
  assert f"{100 * novel['mean']:.1f} ± {100 * novel['std']:.1f}" in rows["POMP"]
  assert (rows["POMP"][0], rows["probe"].count("-")) == ("2", 2)
  assert page.table("method", "error") == [["broken", results["failed"]["broken"]]]
  assert (tmp_path / "plots" / "accuracy.png").exists()

  stored = (tmp_path / "pomp" / "results.json").stat().st_mtime_ns
  config = config.replace({"baselines.methods": config.baselines.methods[:-1]})
  again = baselines.run(config, str(tmp_path))
  assert again["methods"] == results["methods"] and not again["failed"]
  assert (tmp_path / "pomp" / "results.json").stat().st_mtime_ns == stored

  # Fewer seeds are another table; nothing runs for it, and no peak is measured.
  config = config.replace({"repeat.seeds": (1,)})
  fewer = baselines.run(config, str(tmp_path))["methods"]["pomp"]
  assert (fewer["n_runs"], fewer["peak_mib"]) == (1, None)
  assert fewer["top1"]["novel"]["values"] == [runs[1]["top1"]["novel"]]


def test_methods_that_would_look_equal_keep_their_names():
  assert method_labels(["a_b", "pomp"]) == ["a b", "POMP"]
  assert method_labels(["a_b", "a b"]) == ["a_b", "a b"]


def test_values_keep_the_spaces_within_them():
  methods = (
    "one : k = 5 , prompt.init = a photo of a; two: k=6; three: method=zero_shot"
  )
  best = {"prompt.init": "best", "checkpoint.select": "best"}
  config = tiny_config(job="baselines", **best, **{"baselines.methods": methods})
  found = baselines.method_runs(config.baselines.methods, config.replace, "runs")
  one, two, three = (runs[0][0] for runs in found.values())
  assert (one.k, one.prompt.init, two.k, two.prompt.init) == (
    5,
    "a photo of a",
    6,
    "best",
  )
  assert three.prompt.init == ""  # zero-shot CLIP has no start


def of_methods(text):
  return {"job": "baselines", "baselines.methods": text}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (of_methods(""), "config.baselines.methods"),
    (of_methods("pomp"), "config.baselines.methods: got 'pomp'"),
    (of_methods("../x: k=5"), "config.baselines.methods: got '../x'"),
    (of_methods("a: k=5; a: k=6"), "no label twice"),
    (of_methods("a: method=cocop"), "config.method: got 'cocop'"),
    (of_methods("a: lrr=5"), "config.lrr"),
    (
      of_methods("a: method=maple,prompt.depth=4"),
      "prompt.depth: got 4, expected at most 3",
    ),
    *(
      ({"job": job, "repeat.seeds": seeds}, "config.repeat.seeds")
      for job in ("repeat", "baselines")
      for seeds in [(), (0, 0), (0.5,), ("x",), (-1,), (2**32,), (True, False)]
    ),
    (
      {"job": "repeat", "method": "zero_shot"},
      "method: got 'zero_shot', expected one of pomp",
    ),
    (
      {"method": "zero_shot", "data.augment": "crop_flip"},
      "got 'crop_flip', expected 'none'",
    ),
    (
      {"method": "linear_probe", "data.augment": "crop_flip"},
      "got 'crop_flip', expected 'none'",
    ),
    ({"method": "vtp_deep"}, "did you mean 'vpt_deep'"),
    (
      {"method": "maple", "prompt.position": "front"},
      "prompt.position: got 'front', expected",
    ),
    ({"method": "maple", "clip.text_tower": "reference"}, "'shared'"),
    (
      {"method": "cocoop", "prompt.class_specific": True},
      "config.prompt.class_specific: got True",
    ),
    (
      {"method": "vpt_shallow", "prompt.depth": 2},
      "prompt.depth: got 2, expected 1 where",
    ),
    ({"eval.images": 0}, "config.eval.images: got 0, expected 1 or more where"),
    (
      {"method": "vpt_deep", "prompt.visual_tokens": 0},
      "config.prompt.visual_tokens: got 0",
    ),
  ],
)
def test_bad_input_is_a_line_and_writes_nothing(changes, message, tmp_path):
  with pytest.raises(ConfigError, match=re.escape(message)):
    config = tiny_config(**changes)
    validate(config)
    (baselines if config.job == "baselines" else pretrain).check(
      config, str(tmp_path / "run")
    )
  assert not (tmp_path / "run").exists()


def tip_config(**changes):
  """Six classes, two images of each; three views make a key, two epochs are trained."""
  small = {
    "method": "tip_adapter_f",
    "data.n_classes": 6,
    "data.augment": "crop_flip",
    "data.crop_area": 0.3,
    "data.augment_seed": 4,
    "eval.images": 12,
    "tip.views": 3,
    "tip.epochs": 2,
    "tip.alpha_steps": 2,
    "tip.beta_steps": 2,
  }
  return small_config(**small | changes)


@pytest.fixture(scope="module")
def encoder():
  return opening.open_encoder(tip_config().clip)


def fitted(config, encoder, folder, monkeypatch):
  """The Tip-Adapter that a run would evaluate."""
  data, clip, n_images = config.data, config.clip, config.eval.images

  def run(_, folder, fit):
    return classifiers.fitted_by(fit, data, clip, n_images, encoder, folder)._asdict()

  monkeypatch.setattr(classifiers, "run", run)
  return tip_adapter.run(config, RunFolder(folder))["classifier"]


def learned(config, encoder, folder, monkeypatch):
  """Keys of the training-free adapter, and the features and labels that tuning was
  given."""
  given = {}

  def tune(adapter, epochs, labels, **settings):
    given.update(epochs=list(epochs), labels=labels, settings=settings)
    return adapter

  monkeypatch.setattr(tip_adapter, "tune", tune)
  return fitted(config, encoder, folder, monkeypatch), given


def raw_features(encoder, source, epoch):
  """Each image's view of an epoch, drawn and made one by one."""
  views = []
  for index, pixels in enumerate(source.images(np.arange(len(source)))):
    view = draw_view(
      40, 40, Augmentation("crop_flip", seed=4, crop_area=0.3), index, epoch, 0
    )
    views.append(np.asarray(make_view(Image.fromarray(pixels), view, 40)))
  return encoder.image_features(np.stack(views), unit=False)


def test_keys_are_means_over_views_and_training_sees_fresh_ones(
  encoder, tmp_path, monkeypatch
):
  config = tip_config()
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  source = opening.open_source(config.data, "train")
  epochs = [raw_features(encoder, source, epoch) for epoch in range(5)]
  np.testing.assert_allclose(adapter.keys, unit(sum(epochs[:3]) / 3), atol=2e-5)
  np.testing.assert_array_equal(adapter.labels, source.labels)
  assert len(given["epochs"]) == given["settings"]["n_epochs"] == 2
  for found, expected in zip(given["epochs"], epochs[3:], strict=True):
    np.testing.assert_allclose(found, unit(expected), atol=2e-5)
    # Neither the keys nor each other.
    assert np.abs(found - adapter.keys).max() > 0.01
  assert np.abs(given["epochs"][0] - given["epochs"][1]).max() > 0.01
  np.testing.assert_array_equal(given["labels"], source.labels)


def test_without_augmentation_the_images_are_as_in_the_test(
  encoder, tmp_path, monkeypatch
):
  config = tip_config(**{"data.augment": "none"})
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  split = split_features(encoder, opening.open_source(config.data, "train"))
  for found in (adapter.keys, *given["epochs"]):
    np.testing.assert_allclose(found, split.features, atol=2e-5)


def test_several_views_of_an_image_are_several_rows(encoder, tmp_path, monkeypatch):
  config = tip_config(**{"data.views": 2})
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  assert [len(found) for found in given["epochs"]] == [24, 24] and len(
    adapter.keys
  ) == 12
  np.testing.assert_array_equal(given["labels"], np.repeat(adapter.labels, 2))


def test_images_that_cannot_be_read_have_no_key(encoder, tmp_path):
  for i in range(5):
    (tmp_path / f"{i}.jpg").write_bytes(
      encode(natural_image(i, 50, 60)) if i != 3 else b"no"
    )
  keys = [f"{i}.jpg" for i in range(5)]
  source = StoredImages(
    "ab", np.array([0, 1, 0, 1, 0]), keys, Files(tmp_path), image_size=40
  )
  data = tip_config(**{"data.max_corrupt": 0.2}).data
  folder = RunFolder(tmp_path / "run")
  features = lambda data: tip_adapter.view_features(
    data, source, encoder, open_fetch(data, source, encoder, folder), 2
  )
  for epoch in features(data):
    assert epoch.readable.tolist() == [True, True, True, False, True]
    assert np.isfinite(epoch.features).all() and epoch.features.shape[:2] == (5, 1)
  data = dataclasses.replace(data, max_corrupt=0.0)
  with pytest.raises(
    CorruptDataError, match=r"1 of 5 images can't be read, 0 are .*3\.jpg"
  ):
    next(features(data))


def test_settings_are_those_of_the_data_set_unless_given(caplog):
  """The published ones themselves are held in tests/config."""
  caplog.set_level("INFO")
  coop = {"data.source": "coop", "data.dataset": "eurosat"}
  found_of = lambda config: tip_adapter.tip_settings(config.of(Tip), config.data)
  found = found_of(tip_config(**coop | {"tip.epochs": 0}))
  assert found == (2.0, 10.0, 12.0, 100, "hand_written")
  found = found_of(tip_config(**coop | {"tip.alpha": 9.0, "tip.beta_max": 3.0}))
  assert found == (9.0, 10.0, 3.0, 2, "hand_written") and not caplog.text
  assert found_of(tip_config())[:3] == (1.17, 3.0, 7.0)
  assert "no published settings" in caplog.text
