"""Every method in the main job, the table over all of them, and their configs."""

import importlib
import json

import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.inference import named_prompts
from pomp_jax.inference.metrics import wilson_interval
from pomp_jax.jobs import baselines, pretrain
from pomp_jax.train import methods
from pomp_jax.train.watch import TrainingError
from tests.support.small_run import changed, small_config

SPLITS = ("base", "novel", "shifted")
# Published recipes, and variants of them.
CONFIGS = ("coop", "cocoop", "vpt", "vpt:shallow", "maple", "linear_probe", "tip_adapter")
CONFIGS += ("tip_adapter:tuned", "zero_shot")


def tiny_config(**changes):
  """Thirty classes, two steps; `changes` by full field name."""
  small = {
    "data.n_classes": 30,
    "batch_size": 8,
    "k": 10,
    "steps": 2,
    "checkpoint.every": 2,
    "eval.images": 40,
    "tip.epochs": 1,
    "tip.views": 2,
    "probe.iterations": 20,
    "tip.beta_steps": 3,
    "tip.alpha_steps": 3,
  }
  return small_config(**small | changes)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
  """Without the ensembles of 7 and 80 texts, which `test_zero_shot` has."""
  texts = {name: methods._ZERO_SHOT[name] for name in ("hand_written", "class_name")}
  monkeypatch.setattr(methods, "_ZERO_SHOT", texts)


@pytest.fixture
def told(tmp_path, monkeypatch):
  """What processes are told by the first, and whether its results were in `run/` by then."""
  told, from_first = [], pretrain.hosts.from_first

  def noted(value, what):
    told.append((what, (tmp_path / "run" / "results.json").exists()))
    return from_first(value, what)

  monkeypatch.setattr(pretrain.hosts, "from_first", noted)
  return told


def assert_left_when_written(told):
  """The last that processes wait for is the results, which are in the folder by then."""
  assert told[0] == ("the run's results", False)
  assert told[-1] == ("the run's results", True)


PROMPTS = {
  "cocoop": {},
  "vpt_deep": {"prompt.depth": 3},
  "maple": {"prompt.depth": 3, "prompt.m": 2, "prompt.init": "a photo of a"},
}


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_of_every_kind_are_learned_and_evaluated(method, tmp_path, told):
  workdir, config = tmp_path / "run", tiny_config(method=method, **PROMPTS[method])
  pretrain.check(config, str(workdir))
  told.clear()
  results = pretrain.run(config, str(workdir))
  assert_left_when_written(told)
  assert (results["method"], results["steps"]) == (method, 2)
  for split in SPLITS:
    scores = results["eval"][split]
    assert 0 <= scores["prompt"]["top1"] <= scores["prompt"]["top5"] <= 1
    assert results["top1"][split] == scores["prompt"]["top1"]
    # 30 classes, so two images of each for 40: what was evaluated, not the limit.
    assert results["eval_images"][split] == scores["prompt"]["images"] == 60
  assert not (workdir / "prompt.npz").exists()
  with pytest.raises(CheckpointError, match=f"is of method '{method}'; a prompt"):
    named_prompts.read_prompts([str(workdir)], "evaluate.prompts")
  # Finished: the same again, from the file.
  assert pretrain.run(config, str(workdir)) == RunFolder(workdir).read_results()


def test_zero_shot(monkeypatch, tmp_path, told):
  """The texts one by one, and the mean of their unit features on the sphere again."""
  texts = ("a {}.", "the {} in a photo", "{}")
  monkeypatch.setattr(
    methods, "_ZERO_SHOT", {"hand_written": "hand_written", "three": "ensemble:imagenet_7"}
  )
  monkeypatch.setattr(named_prompts, "load_templates", lambda name: texts)
  config = tiny_config(method="zero_shot", **{"eval.images": 200})
  results = pretrain.run(config, str(tmp_path / "run"))
  assert_left_when_written(told)
  encoder = inputs.open_encoder(config)
  for split in SPLITS:
    source = inputs.open_source(config.data, split, n_images=200)
    images = encoder.image_features(source.images(np.arange(len(source)))).astype(np.float64)
    each = [encoder.class_features(source.names, text).astype(np.float64) for text in texts]
    total = sum(each)
    for name, classes in {
      "three": total / np.linalg.norm(total, axis=1, keepdims=True),
      "hand_written": encoder.class_features(source.names, "a photo of a {}."),
    }.items():
      right = (images @ classes.T).argmax(1) == source.labels
      assert results["eval"][split][name]["top1"] == pytest.approx(right.mean(), abs=0.006)
    assert results["top1"][split] == results["eval"][split]["hand_written"]["top1"]


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter", "tip_adapter_f"])
def test_classifiers_of_known_classes_are_evaluated_on_these_alone(method, tmp_path):
  results = pretrain.run(tiny_config(method=method), str(tmp_path))
  assert list(results["top1"]) == ["base"]
  assert results["not_evaluated"] == ["novel", "shifted"]
  assert results["top1"]["base"] == results["eval"]["base"][method]["top1"] > 1 / 30
  assert results["eval_images"] == {"base": 60}
  assert results["found"]["validation_images"] == 60
  low, high = results["eval"]["base"][method]["top1_interval"]
  assert low < results["top1"]["base"] <= high
  stored = np.load(tmp_path / "classifier.npz")
  assert len(stored["names"]) == 30
  assert set(results["found"]) >= ({"strength"} if method == "linear_probe" else {"alpha", "beta"})


def test_a_rate_that_breaks_all_keys_fails_and_leaves_no_result(tmp_path):
  config = tiny_config(method="tip_adapter_f", **{"optim.lr": 1e6})
  with pytest.raises(TrainingError, match="tip_adapter_f: the keys are not finite after epoch 1"):
    pretrain.run(config, str(tmp_path / "run"))
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["features"]


def _config(name, argument):
  return unpack(importlib.import_module(f"pomp_jax.configs.{name}").get_config(argument))


def test_coop_is_pomp_with_all_classes_as_negatives():
  """That this is K = N is held in `test_pretrain`, and to torch's softmax in `test_train_step`."""
  config = _config("coop", "")
  assert (config.method, config.negatives, config.prompt.m) == ("pomp", "all", 16)


@pytest.mark.parametrize("name", CONFIGS)
def test_published_recipes_run_on_the_world(name, tmp_path):
  """That the recipes themselves are valid is held in tests/config."""
  name, _, variant = name.partition(":")
  config = _config(name, f"{variant},world" if variant else "world")
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))


def test_a_variant_that_is_not_there():
  with pytest.raises(ConfigError, match=r"config\.shallow: .*one of the variants world, cross$"):
    _config("maple", "shallow")


def test_the_table_of_methods_marks_what_fails_and_is_resumed(tmp_path, monkeypatch):
  """In this process: another one takes seconds to start."""
  monkeypatch.setattr(baselines, "in_own_process", lambda function, *inputs: function(*inputs))
  monkeypatch.setattr(baselines, "_share_programs", lambda folder: None)
  config = tiny_config(job="baselines", **{"repeat.seeds": (0, 1)})
  config = changed(
    config,
    {
      "baselines.methods": "zero: method=zero_shot; probe: method=linear_probe;"
      " pomp: k=5, prompt.m=2;"
      " broken: k=5, prompt.m=2, optim.lr=1e30"
    },
  )
  baselines.check(config, str(tmp_path))
  with pytest.raises(TrainingError, match="1 methods failed, the first, broken: TrainingError: "):
    baselines.run(config, str(tmp_path))
  results = json.loads((tmp_path / "results.json").read_text())
  assert set(results["failed"]) == {"broken"}
  assert results["failed"]["broken"].startswith("TrainingError: ")
  assert set(results["methods"]) == {"probe", "pomp", "zero_hand_written", "zero_class_name"}
  pomp, probe = results["methods"]["pomp"], results["methods"]["probe"]
  assert (pomp["n_runs"], probe["n_runs"]) == (2, 1)
  runs = [json.loads((tmp_path / f"pomp/seed_{s}/results.json").read_text()) for s in (0, 1)]
  assert pomp["top1"]["novel"]["values"] == [run["top1"]["novel"] for run in runs]
  assert set(pomp["top1"]) == set(SPLITS) and set(probe["top1"]) == {"base"}
  for found in (*pomp["top1"].values(), *probe["top1"].values()):
    assert found["images"] == 60
    assert found["interval"] == pytest.approx(wilson_interval(found["mean"], 60))
  assert all(row["peak_mib"] > 50 for row in results["methods"].values())
  table = (tmp_path / "results.md").read_text()
  line = next(line for line in table.splitlines() if line.startswith("| probe"))
  assert line.count(" - ") == 2
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


def test_values_keep_the_spaces_within_them():
  methods = "one : k = 5 , prompt.init = a photo of a; two: k=6"
  config = tiny_config(job="baselines", **{"baselines.methods": methods})
  found = baselines.method_configs(config)
  assert (found["one"].k, found["one"].prompt.init, found["two"].k) == (5, "a photo of a", 6)


@pytest.mark.parametrize("seeds", [(), (0, 0), (0.5,), ("x",), (-1,), (2**32,), (True, False)])
@pytest.mark.parametrize("job", ["repeat", "baselines"])
def test_seeds_that_are_none(job, seeds):
  with pytest.raises(ConfigError, match=r"config\.repeat\.seeds"):
    validate(tiny_config(job=job, **{"repeat.seeds": seeds}))


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", r"config\.baselines\.methods"),
    ("pomp", r"config\.baselines\.methods: got 'pomp'"),
    ("../x: k=5", r"config\.baselines\.methods: got '../x'"),
    ("a: k=5; a: k=6", r"no label twice"),
    ("a: method=cocop", r"config\.method: got 'cocop'.*did you mean 'cocoop'"),
    ("a: lrr=5", r"config\.lrr"),
    ("a: method=maple,prompt.depth=4", r"config\.prompt\.depth: got 4, expected at most 3"),
  ],
)
def test_methods_that_do_not_read(text, expected, tmp_path):
  with pytest.raises(ConfigError, match=expected):
    config = tiny_config(job="baselines", **{"baselines.methods": text})
    baselines.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "method,field,value,message",
  [
    ("vtp_deep", "method", "vtp_deep", "did you mean 'vpt_deep'"),
    ("maple", "prompt.position", "front", "'end'"),
    ("maple", "clip.text_tower", "reference", "'shared'"),
    ("cocoop", "prompt.class_specific", True, ""),
    ("vpt_shallow", "prompt.depth", 2, "expected 1 where"),
    ("vpt_deep", "prompt.visual_tokens", 0, ""),
    ("tip_adapter", "tip.beta_steps", 0, ""),
    ("tip_adapter", "tip.alpha", -1.0, "expected 0"),
    ("linear_probe", "probe.iterations", 0, ""),
    ("zero_shot", "job", "repeat", "config.method: got 'zero_shot', expected one of pomp"),
  ],
)
def test_fields_that_a_method_does_not_take(method, field, value, message):
  with pytest.raises(ConfigError) as error:
    validate(tiny_config(method=method, **{field: value} if field != "method" else {}))
  found = f"config.{field}: got {value!r}" if field != "job" else ""
  assert found in str(error.value) and message in str(error.value)
