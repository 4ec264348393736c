"""What a restart may change, what it says of other devices and images, and its
roll-backs."""

import json
import logging
import types
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import ConfigError, defaults, fields_of
from pomp_jax.files.checkpoints import Checkpoints, Restored
from pomp_jax.files.features import FeatureStoreError
from pomp_jax.files.run_folder import RunFolder, read_json, write_json
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.step import TrainState
from pomp_jax.train import loop, resume
from pomp_jax.train.fill_features import check_same_images
from pomp_jax.train.resume import Checkpoint, check_same_run
from pomp_jax.train.training import Run
from pomp_jax.train.watch import BadLossError, TrainingError

MAY_CHANGE = {
  *(
    "accumulate",
    "mesh.class_size",
    "clip.memory_gib",
    "profile_steps",
    "compilation_cache",
  ),
  *("dry_run", "dry_run_rate", "log.every", "log.tracker"),
  *("checkpoint.every", "checkpoint.keep", "checkpoint.on_failure"),
  *("data.threads", "data.workers", "data.max_corrupt", "data.root", "data.cache"),
  *("data.features", "data.feature_store", "roll_backs"),
}


def test_each_other_field_of_a_training_stays_as_it_was(tmp_path):
  folder, fields = RunFolder(tmp_path), {*fields_of("pretrain")}
  folder.config.write_text(json.dumps(defaults().to_dict()))
  refused = set()
  for field in fields:
    try:
      check_same_run({field: "another"}, folder)
    except ConfigError as error:
      assert error.field == field
      refused.add(field)
  assert fields - refused == MAY_CHANGE & fields
  # Lists in JSON are tuples in a config.
  check_same_run(defaults().flat(), folder)


def run_of(n_groups, data_size):
  mesh = types.SimpleNamespace(shape={"data": data_size})
  return mock.Mock(
    spec=Run, n_groups=n_groups, encoder=types.SimpleNamespace(mesh=mesh)
  )


@pytest.mark.parametrize(
  ("groups", "devices", "level", "parts"),
  [
    (2, 1, None, []),
    # The same groups on other devices.
    (2, 4, logging.INFO, ["1 devices, before it were 4: same draws"]),
    (
      8,
      1,
      logging.WARNING,
      ["from step 6 on", "2 groups", "were 8;", "config.accumulate=4 keeps"],
    ),
    # No number of micro-steps gives these groups.
    (3, 1, logging.WARNING, ["2 groups of a batch", "before it were 3"]),
  ],
)
def test_a_restart_on_other_devices_says_what_differs(
  caplog, groups, devices, level, parts
):
  caplog.set_level("INFO")
  meta = {"groups": groups, "devices": devices}
  resume._warn_of_other_devices(run_of(2, 2), 5, meta)
  assert [record.levelno for record in caplog.records] == [level] * (level is not None)
  assert all(part in caplog.text for part in parts), caplog.text
  assert ("config.accumulate" in caplog.text) == (groups == 8)


def test_a_checkpoint_holds_where_its_run_was(monkeypatch):
  monkeypatch.setattr(resume.hosts, "devices", lambda: [0, 1, 2])
  run = mock.Mock(
    spec=Run, n_groups=6, config={"k": 3}, loop=types.SimpleNamespace(batch_size=8)
  )
  before = Checkpoint(5, None, 2.5, [4, 7], 1, 3, {"steps": 5, "loss": 0.5})
  assert before.meta(run) == {
    "seconds": 2.5,
    "position": 64,  # images: five steps, and three batches that were skipped
    "unreadable": [4, 7],
    "detour": {"roll_backs": 1, "batches": 3},
    "judge": {"steps": 5, "loss": 0.5},
    "devices": 3,
    "groups": 6,
    "config": {"k": 3},
  }


def test_a_checkpoint_comes_back_field_by_field(monkeypatch):
  """From the step and the JSON beside the state."""
  monkeypatch.setattr(resume, "place_bank", lambda run, state: state)
  run = mock.Mock(
    spec=Run, n_groups=6, config={}, loop=types.SimpleNamespace(batch_size=8)
  )
  statistics = {"steps": 5, "loss": 0.5}
  before = Checkpoint(5, "state", 2.5, [4, 7], 1, 3, statistics)
  defaults_of_fields = Checkpoint._field_defaults
  assert all(
    getattr(before, name) != value for name, value in defaults_of_fields.items()
  )
  meta = json.loads(json.dumps(before.meta(run)))
  assert resume._checkpoint(run, Restored(5, "state", meta)) == before


def test_features_of_other_images_are_refused_by_what_differs(tmp_path):
  folder, made_from = RunFolder(tmp_path), {"images": "a", "views": 2, "image_size": 32}
  check_same_images(folder, made_from)
  path = folder.path / "training_images.json"
  assert read_json(path) == made_from
  check_same_images(folder, made_from)
  with pytest.raises(
    FeatureStoreError, match="images is 'a', this .* 'b': .*images were added"
  ):
    check_same_images(folder, made_from | {"images": "b"})
  with pytest.raises(
    FeatureStoreError, match="views is 2, .* needs 3: the CLIP or its prep"
  ):
    check_same_images(folder, made_from | {"views": 3})
  # Another version did not write all of them.
  write_json(path, {"images": "a"})
  check_same_images(folder, made_from)


@pytest.mark.parametrize(
  ("roll_backs", "told"),
  [(0, "training stops. "), (2, "training stops after 2 roll-backs. ")],
)
def test_a_bad_loss_ends_a_run_where_no_roll_back_is_left(tmp_path, roll_backs, told):
  settings = types.SimpleNamespace(roll_backs=roll_backs)
  run = mock.Mock(spec=Run, loop=settings, folder=RunFolder(tmp_path))
  before, error = (
    Checkpoint(8, None, roll_backs=roll_backs),
    BadLossError("loss is nan", 9),
  )
  with pytest.raises(
    TrainingError, match=f"^loss is nan: {told}.*{tmp_path}/checkpoints"
  ) as found:
    loop._roll_back(run, mock.Mock(spec=Checkpoints), before, error)
  assert found.value.__cause__ is error


def test_a_roll_back_takes_the_last_good_checkpoint_and_skips_what_was_bad(
  monkeypatch, caplog
):
  good = mock.Mock(**{"rolled_back.return_value": Checkpoint(4, None, roll_backs=2)})
  monkeypatch.setattr(loop, "resume", lambda run, checkpoints: good)
  settings = types.SimpleNamespace(roll_backs=3)
  encoder = types.SimpleNamespace(mesh="mesh")
  run = mock.Mock(spec=Run, loop=settings, seed=5, encoder=encoder)
  before = Checkpoint(6, None, roll_backs=1)
  checkpoints = mock.Mock(spec=Checkpoints)
  found = loop._roll_back(run, checkpoints, before, BadLossError("loss is 9", 7))
  assert found.step == 4
  good.rolled_back.assert_called_once_with(before, 7, 5, "mesh")
  assert "ROLLED BACK to step 4" in caplog.text and "2 of at most 3" in caplog.text


def test_a_bank_is_stored_as_it_is_for_any_devices():
  """Whole and in float32, without the rows that fill the last device."""
  mesh = make_mesh()
  rows = np.arange(12, dtype=np.float32).reshape(6, 2)
  source = types.SimpleNamespace(names=tuple("abcde"))
  run = mock.Mock(spec=Run, source=source, encoder=types.SimpleNamespace(mesh=mesh))
  state = TrainState(step=3, params={}, opt_state=(), seed_key=np.zeros(2, np.uint32))
  state = state.replace(bank=replicate(rows.astype("bfloat16"), mesh))
  found = resume.gather_bank(run, state)
  assert found.step == 3 and found.bank.dtype == np.float32
  np.testing.assert_array_equal(found.bank, rows[:5])
