"""Each field of the job reaches the run, and what can't be is one line."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from pomp_jax.config import ConfigError, defaults, validate
from pomp_jax.config.command_line import load_config
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError
from pomp_jax.rooms.reproduce import accuracies, reproduce, world_sets
from pomp_jax.rooms.reproduce.fields import TABLES
from pomp_jax.rooms.reproduce.measure import QUICK
from pomp_jax.rooms.reproduce.region_tables import REGION_TABLES
from pomp_jax.rooms.reproduce.rows import CONTROLS, compared
from pomp_jax.rooms.reproduce.tables import ACCURACIES, RELEASED, WORLD_RECIPE
from tests.rooms.reproduce.rehearsals import WORLD_CLIP


class Recorder(accuracies.Reproduction):
  """Stages that only note what they get."""

  seen: dict = {}

  def inputs(self):
    self.seen.update(record=bool(self.record), quick=self.quick, dtype=self.dtype)
    self.seen["first"] = self.sets.open("known").source.where(0)
    self.digests = {"clip": {}, "sets": {}}

  def controls(self):
    self._add([compared(CONTROLS, "known", "a text", "a", "a")], ())

  def published(self, prompts):
    self.seen["prompts"] = list(prompts)

  def retrained(self, group):
    self.seen["trainings"] = [one.label for one in group.trainings]


@pytest.fixture
def recorded(monkeypatch, tmp_path, world_data):
  """A function: fields -> what the stages saw; `workdir` is its folder."""

  def run(**fields):
    Recorder.seen = {}
    changes = {f"reproduce.{name}": value for name, value in fields.items()}
    config = defaults("reproduce").replace(
      {"reproduce.root": str(world_data), **changes}
    )
    validate(config)
    reproduce.check(config, str(tmp_path / "run"))
    reproduce.run(config, str(tmp_path / "run"))
    return Recorder.seen

  def retrain(trainings):
    Recorder.seen["seeds"] = [one.seed for one in trainings.values()]
    Recorder.seen["folders"] = [*map(pathlib.Path, trainings)]
    return []

  monkeypatch.setattr(accuracies, "Reproduction", Recorder)
  monkeypatch.setattr(accuracies, "retrain", retrain)
  return run


def finished_training(folder, seed):
  run = RunFolder(folder)
  run.create({**defaults().replace({"seed": seed}).to_dict()})
  save_prompt(run.prompt, Prompt(np.ones((4, 64), np.float32), "world"))
  run.write_results({"job": "pretrain"})
  return str(folder)


def test_each_field_reaches_the_run(recorded, tmp_path, world_data):
  before = recorded()
  assert before["first"].startswith(str(world_data))
  assert before["prompts"] == ["released, M = 4"]
  assert not before["quick"] and "seeds" not in before
  assert recorded(quick=True)["quick"] and QUICK == 200
  save_prompt(tmp_path / "own.npz", Prompt(np.ones((16, 64), np.float32), "world"))
  found = recorded(prompts=(str(tmp_path / "own.npz"),))
  assert found["prompts"] == ["released, M = 16"]
  assert recorded(train=3)["seeds"] == [0, 1, 2]
  folder = tmp_path / "run" / "trainings"
  assert Recorder.seen["folders"] == [folder / f"seed_{seed}" for seed in range(3)]
  runs = (finished_training(tmp_path / "a", 5), finished_training(tmp_path / "b", 6))
  assert recorded(runs=runs)["trainings"] == ["seed 5", "seed 6"]
  assert not (tmp_path / "run" / "digests.json").exists()
  recorded(recorded_by="a reader")
  content = json.loads((tmp_path / "run" / "digests.json").read_text())
  assert content["recorded_by"] == "a reader" and content["table"] == "world"
  assert (
    reproduce.run(
      defaults("reproduce").replace({"reproduce.verify": str(tmp_path / "run")}), ""
    )
    == {}
  )
  # `table` and `data` decide what is refused.
  with pytest.raises(ConfigError, match=r"config\.reproduce\.data"):
    recorded(table="ablation")
  with pytest.raises(ConfigError, match=r"config\.reproduce\.data"):
    recorded(data=str(tmp_path))


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"table": "cross_dataset"}, "reproduce.root"),
    ({"root": "nowhere"}, "reproduce.root"),
    ({"runs": ("nowhere",)}, "reproduce.runs"),
    ({"verify": "nowhere"}, "reproduce.verify"),
    ({"train": -1}, "reproduce.train"),
    ({"table": "table 2"}, "reproduce.table"),
  ],
)
def test_fields_that_cannot_be(changes, field):
  named = {f"reproduce.{name}": value for name, value in changes.items()}
  with pytest.raises(ConfigError) as error:
    validate(defaults("reproduce").replace(named))
  assert error.value.field == field


def test_each_table_has_a_definition():
  assert {*TABLES} == ACCURACIES.keys() | REGION_TABLES.keys()
  assert not ACCURACIES.keys() & REGION_TABLES.keys()


def test_a_folder_without_any_of_the_sets(tmp_path):
  fields = {"reproduce.table": "cross_dataset", "reproduce.root": str(tmp_path)}
  config = defaults("reproduce").replace(fields)
  with pytest.raises(ConfigError) as error:
    reproduce.check(config, str(tmp_path / "run"))
  assert error.value.field == "reproduce.root"


def test_prompts_and_runs_that_do_not_fit(tmp_path):
  save_prompt(tmp_path / "p.npz", Prompt(np.ones((4, 512), np.float32), "other"))
  fields = {"reproduce.prompts": (str(tmp_path / "p.npz"),)}
  with pytest.raises(ConfigError) as error:
    reproduce.check(defaults("reproduce").replace(fields), "unused")
  assert error.value.field == "reproduce.prompts"
  fields = {"reproduce.runs": (str(tmp_path),)}
  with pytest.raises(RunFolderError, match=r"results\.json"):
    reproduce.check(defaults("reproduce").replace(fields), "unused")


@pytest.mark.parametrize(
  ("argument", "clip"),
  [
    ("table=world", "world"),
    ("table=cross_dataset", "openai/clip-vit-base-patch16"),
    ("table=imagenet21k,clip=world", "world"),
  ],
)
def test_the_config_takes_the_clip_of_the_table(argument, clip):
  config = load_config(f"reproduce:{argument},train=0")
  assert config.clip.model == clip
  assert config.reproduce.table == argument.split(",")[0].removeprefix("table=")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda content: content.pop("test"), "KeyError 'test'"),
    (lambda content: content["test"][0].__setitem__(1, 499), "label 499"),
    (lambda content: content.update(test=[["a.png", 1, "x"]]), "gaps"),
    (lambda content: content.update(test=[1]), "TypeError"),
  ],
)
def test_a_split_file_that_cannot_be(rehearsal, change, message):
  path = rehearsal.data / "known" / "split.json"
  content = json.loads(path.read_text())
  change(content)
  path.unlink()
  path.write_text(json.dumps(content))
  with pytest.raises(world_sets.SourceError, match=message):
    world_sets.open_set(rehearsal.data, "known")


def test_a_seed_of_another_recipe_is_refused_first(tmp_path, monkeypatch):
  """Also a finished one, and nothing is written."""
  workdir = tmp_path / "run"
  config = defaults("reproduce").replace({"reproduce.train": 2})
  reproduce.check(config, str(workdir))
  recipe = reproduce._recipe(ACCURACIES["world"], "", config.clip.model)
  (first, training), (second, _) = reproduce._trainings(
    config.reproduce, recipe, config.replace, str(workdir)
  ).items()
  RunFolder(first).create(training.to_dict())
  RunFolder(first).write_results({"job": "pretrain"})
  # The same recipe; the second seed has not begun.
  reproduce.check(config, str(workdir))

  monkeypatch.setitem(WORLD_RECIPE, "optim.lr", 0.2)
  with pytest.raises(ConfigError, match="seed_0") as error:
    reproduce.check(config, str(workdir))
  assert error.value.field == "optim.lr"
  assert "\n" not in str(error.value)
  reproduce.check(config.replace({"reproduce.train": 0}), str(workdir))

  monkeypatch.setitem(WORLD_RECIPE, "optim.lr", 0.1)
  shutil.copytree(WORLD_CLIP, tmp_path / "clip")
  other = config.replace({"clip.model": str(tmp_path / "clip")})
  with pytest.raises(ConfigError) as error:
    reproduce.check(other, str(workdir))
  assert error.value.field == "clip.model"
  assert {path.name for path in pathlib.Path(first).parent.iterdir()} == {"seed_0"}
  assert not pathlib.Path(second).exists()


def test_released_prompts_have_two_lengths():
  assert sorted(RELEASED) == [4, 16]
