"""The ablate job: cells equal to runs of their own, resumption, failures, what it leaves.

Its grid is in test_ablate_grid.py.
"""

import contextlib
import csv
import json
import tempfile

import numpy as np
import pytest

from pomp_jax import hosts, inputs
from pomp_jax.ablation.grid import make_cells
from pomp_jax.ablation.lanes import Trained, lane_groups, lanes_at_a_time
from pomp_jax.ablation.shared import Shared
from pomp_jax.config import ConfigError, validate
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import ablate, pretrain
from pomp_jax.train import batches, setup
from pomp_jax.train.watch import TrainingError
from tests.support.processes import Processes
from tests.support.small_run import small_config, trained

# Two programs of lanes, and one with a bank.
GRID = "k=20|all;correction=log|none;seed=0|1 & sampling.name=posterior;k=20;seed=0"


def config_for(grid=GRID, **changes):
  settings = {"job": "ablate", "ablate.grid": grid, "steps": 6, "checkpoint.every": 2}
  return small_config(**settings | changes)


@pytest.fixture(scope="session")
def curved(one_layer):
  """A function: changes -> config of the grid above, with curves."""
  return lambda **changes: config_for(
    **{"clip.model": one_layer, "ablate.curve_every": 4, "ablate.lanes": 2} | changes
  )


def run(config, workdir):
  ablate.check(config, str(workdir))
  return ablate.run(config, str(workdir))


@pytest.fixture(scope="module")
def finished(shared, curved):
  """The folder and the results of the grid above; read only."""
  folder = shared("ablate", lambda folder: run(curved(), folder / "run")) / "run"
  return folder, json.loads((folder / "results.json").read_text())


def prompt_of(workdir, cell):
  return load_prompt((workdir / "cells" / cell.file_name).with_suffix(".npz"))


@pytest.mark.parametrize("number", [2, 5])
def test_a_cell_equals_a_run_of_its_own(finished, curved, tmp_path, number):
  workdir, results = finished
  cell = make_cells(curved())[number]
  alone = pretrain.run(cell.config, str(tmp_path))
  context = load_prompt(tmp_path / "prompt.npz").context
  np.testing.assert_allclose(prompt_of(workdir, cell).context, context, atol=2e-5)
  stored = results["cells"][number]
  assert stored["name"] == cell.name
  # Its curve is of the run's validations.
  steps, validated = RunFolder(tmp_path).scalars()["validation_top1"]
  validated = dict(zip(steps, validated, strict=True))
  assert stored["curve"]["steps"] == [4, 6]
  expected = pytest.approx([validated[4], validated[6]], abs=1.01 / 64)
  assert stored["curve"]["top1"]["validation"] == expected
  for split, prompts in alone["eval"].items():
    # One image of 64 may fall on the other side of a tie.
    assert stored["top1"][split] == pytest.approx(prompts["prompt"]["top1"], abs=1.01 / 64)
    assert stored["images"][split] == prompts["prompt"]["images"] == alone["eval_images"][split]
    low, high = stored["top1_interval"][split]
    assert low < stored["top1"][split] < high
    assert set(stored["by_hand_interval"][split]) == set(stored["by_hand"][split])
    assert stored["by_hand"][split] == {
      name: scores["top1"] for name, scores in prompts.items() if name != "prompt"
    }


def test_a_stream_is_held_once_in_a_file_without_a_name(one_layer, tmp_path, monkeypatch):
  monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
  monkeypatch.setattr(tempfile, "tempdir", None)
  (tmp_path / "temporary").mkdir()
  folder = RunFolder(tmp_path / "run")
  shared = Shared(folder)
  cells = make_cells(config_for("optim.lr=0.1|0.2;seed=0|1", steps=4, **{"clip.model": one_layer}))
  runs = [shared.prepare(cell.config, folder) for cell in cells]
  one, other_seed, same, _ = (shared.stream(run) for run in runs)
  assert isinstance(one.features, np.memmap) and not list((tmp_path / "temporary").iterdir())
  assert np.shares_memory(one.features, same.features)
  assert not np.array_equal(one.labels, other_seed.labels)
  # Those of the images that a run reads, step by step.
  encoder, data = runs[0].encoder, runs[0].config.data
  source = inputs.open_training_source(data, encoder.clip.image_size)
  with contextlib.closing(
    batches.open_batches(runs[0].config, source, runs[0].fetch, encoder.mesh)
  ) as loader:
    for features, labels, batch in zip(one.features, one.labels, loader, strict=False):
      np.testing.assert_array_equal(labels, batch["label"])
      expected = encoder.image_features(batch["image"], unit=False)
      np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)


def test_each_lane_has_its_own_bank(tmp_path, monkeypatch):
  """Computed once for each seed."""
  computed, features = [], setup.training_class_features

  def counted(run, params):
    computed.append(run.config.seed)
    return features(run, params)

  monkeypatch.setattr(setup, "training_class_features", counted)
  grid = "sampling.name=posterior;seed=0|1;optim.lr=0.05|0.1"
  # Under a CLIP of fewer layers rounding decides what is drawn.
  config = config_for(grid, steps=4, **{"sampling.renew": 8})
  run(config, tmp_path / "both")
  assert sorted(computed) == [0, 1]
  for cell in make_cells(config)[2:]:
    context = trained(cell.config, tmp_path / f"alone_{cell.config.optim.lr}")
    np.testing.assert_allclose(prompt_of(tmp_path / "both", cell).context, context, atol=2e-5)


def test_other_methods_are_not_for_it(tmp_path):
  with pytest.raises(ConfigError, match=r"cell .*method: got 'cocoop', expected 'pomp'; job='base"):
    ablate.check(config_for("method=cocoop;seed=0"), str(tmp_path / "run"))


def test_lanes_differ(finished, curved):
  workdir, _ = finished
  contexts = [prompt_of(workdir, cell).context for cell in make_cells(curved())]
  assert len(contexts) == 7
  for i, one in enumerate(contexts):
    for other in contexts[:i]:
      assert np.abs(one - other).max() > 1e-4


def test_what_it_leaves(finished):
  workdir, results = finished
  assert json.loads((workdir / "results.json").read_text())["cells"] == results["cells"]
  with open(workdir / "cells.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["k"] for row in rows] == ["20"] * 4 + ["all"] * 2 + ["20"]
  for row, cell in zip(rows, results["cells"], strict=True):
    assert float(row["novel_top1"]) == cell["top1"]["novel"]
    assert float(row["seconds"]) == cell["seconds"] > 0
    assert float(row["memory_mib"]) == cell["memory_mib"] > 0
    assert row["error"] == ""
    novel = cell["curve"]["top1"]["novel"][-1]
    assert novel == pytest.approx(cell["top1"]["novel"], abs=1.01 / 64)
  plots = {path.name for path in (workdir / "plots").iterdir()}
  assert plots == {"sweep.png", "time_to_accuracy.png"}
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2 and "Time to accuracy" in page
  assert page.count("<tr") > 6
  assert results["missing"] == []


def test_each_kind_is_timed_once(finished):
  times = finished[1]["step_times"]
  assert [tuple(time["values"].values()) for time in times] == [
    (20, "log", "uniform"),
    (20, "none", "uniform"),
    ("all", None, None),
    (20, "log", "posterior"),
  ]
  for time in times:
    assert 0 < time["least_seconds"] <= time["step_seconds"] < 60
    assert (time["first_bank_seconds"] > 0) == (time["values"]["sampling.name"] == "posterior")


def test_a_curve_needs_validation_images(tmp_path, monkeypatch):
  monkeypatch.setattr(ablate.inputs, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match=r"config\.ablate\.curve_every: got 4, expected 0 for data"):
    ablate.check(config_for(**{"ablate.curve_every": 4}), str(tmp_path / "run"))


SCORE = {"top1": 0.5, "top5": 0.7, "images": 4, "top1_interval": [0.2, 0.8]}


@pytest.fixture
def synthetic(monkeypatch):
  """A function that replaces the training: contexts of zeros, and the losses that it is told.

  Nothing is compiled. Cells whose values are among `crashing` raise; what was trained is returned.
  """
  monkeypatch.setattr(Shared, "stream", lambda *_: None)
  monkeypatch.setattr(Shared, "references", lambda *_: {"novel": {"hand_written": SCORE}})
  monkeypatch.setattr(Shared, "evaluate", lambda *_: {"novel": {"prompt": SCORE}})

  def install(losses_of=lambda cell: np.ones(3, np.float32), crashing=()):
    trained = []

    def train(job, group, streams, size):
      for cell in group:
        if cell.values in crashing:
          raise MemoryError("no room")
        trained.append(cell.name)
        context = np.zeros((cell.config.prompt.m, job.encoder.clip.text_width), np.float32)
        yield Trained(context, losses_of(cell), 1.0, 1.0)

    monkeypatch.setattr(ablate, "train_lanes", train)
    return trained

  return install


def test_cells_that_are_done_are_not_done_again(finished, curved, copy_of, synthetic, monkeypatch):
  folder = copy_of(finished[0])
  monkeypatch.setattr(ablate, "_step_times", lambda *_: [])
  cells = make_cells(curved())
  files = [folder / "cells" / cell.file_name for cell in cells[1:]]
  times = [file.stat().st_mtime_ns for file in files]
  (folder / "cells" / cells[0].file_name).unlink()
  trained = synthetic()
  again = run(curved(), folder)
  assert trained == [cells[0].name]
  assert again["cells"][1:] == finished[1]["cells"][1:]
  assert [file.stat().st_mtime_ns for file in files] == times
  # Nor without a curve, but for another one.
  trained.clear()
  grid = "k=20;correction=none;seed=0 & sampling.name=posterior;k=20;seed=0"
  run(curved(**{"ablate.grid": grid, "ablate.curve_every": 0}), folder)
  assert trained == []
  run(curved(**{"ablate.grid": grid, "ablate.curve_every": 3}), folder)
  assert len(trained) == 2


def _losses(cell):
  """Those of an absurd rate are not finite."""
  return np.array([1, np.nan if cell.config.optim.lr == 1e30 else 1, 1], np.float32)


def test_a_cell_that_fails_is_marked_and_the_rest_goes_on(tmp_path, synthetic):
  """The loss of some cells is not finite; another one crashes, in whatever program it is."""
  config = config_for("k=20|21;optim.lr=0.05|0.06|1e30")
  synthetic(_losses, [{"k": 21, "optim.lr": 0.06}])
  with pytest.raises(TrainingError, match=r"3 of 6 cells failed, the first, k=20, optim.lr=1e\+30"):
    run(config, tmp_path)
  stored = json.loads((tmp_path / "results.json").read_text())["cells"]
  errors = [cell["error"] for cell in stored]
  not_finite = "BadLossError: loss is nan at step 2"
  assert errors == [None, None, not_finite, None, "MemoryError: no room", not_finite]
  page = (tmp_path / "report.html").read_text()
  assert "MemoryError: no room" in page
  synthetic(_losses)
  with pytest.raises(TrainingError, match="2 of 6 cells failed"):
    run(config, tmp_path)
  stored = json.loads((tmp_path / "results.json").read_text())["cells"]
  assert [cell["error"] is None for cell in stored] == [True, True, False, True, True, False]


def test_a_spike_in_a_cells_loss_marks_it(tmp_path, synthetic):
  losses = np.ones(30, np.float32)
  losses[24] = 6.0
  synthetic(lambda cell: np.minimum(losses, 2.0 if cell.values["seed"] else 9.0))
  line = "BadLossError: loss is 6 at step 25, "
  with pytest.raises(TrainingError, match=f"1 of 2 cells failed, the first, seed=0: {line}"):
    run(config_for("seed=0|1", loss_spike=5.0), tmp_path / "spike")
  assert all(cell["error"] is None for cell in run(config_for("seed=0|1"), tmp_path)["cells"])


def test_parts_are_put_together_and_fail_for_their_own_cells_alone(tmp_path, synthetic):
  def part(number):
    return run(config_for("k=20|21;seed=0", **{"ablate.part": f"{number}/2"}), tmp_path)

  trained = synthetic(crashing=[{"k": 20, "seed": 0}])
  with pytest.raises(TrainingError, match="1 of 1 cells failed, the first, k=20, seed=0"):
    part(1)
  results = part(2)
  assert [cell["error"] for cell in results["cells"]] == ["MemoryError: no room", None]
  assert trained == ["k=21, seed=0"] and results["missing"] == []
  (tmp_path / "cells" / make_cells(config_for("k=20|21;seed=0"))[1].file_name).unlink()
  synthetic()
  assert part(1)["missing"] == ["k=21, seed=0"]
  assert len(part(2)["cells"]) == 2


def test_what_breaks_a_cell_in_one_process_is_raised_where_there_are_several(
  tmp_path, synthetic, monkeypatch
):
  """The others may be in the midst of the cell; two processes do it below."""
  synthetic(crashing=[{"seed": 0}])
  monkeypatch.setattr(ablate, "_missing", lambda folder, groups: list(groups))
  monkeypatch.setattr(ablate.jax, "process_count", lambda: 2)
  shared = Shared(RunFolder(tmp_path))
  monkeypatch.setattr(Shared, "prepare", lambda *_: None)
  monkeypatch.setattr(ablate, "_most_lanes", lambda run: 1)
  with pytest.raises(MemoryError):
    ablate._run_group(shared, RunFolder(tmp_path), make_cells(config_for("seed=0")))


_BREAKS = """
from absl import app
import jax
from jax.experimental import multihost_utils
import numpy as np
from pomp_jax import main
from pomp_jax.jobs import ablate
from pomp_jax.ablation.lanes import Trained
from pomp_jax.ablation.shared import Shared

def train(job, group, streams, size):
  for cell in group:
    # The first process comes here once the cell before is written.
    multihost_utils.sync_global_devices(f"before {cell.name}")
    if cell.values["seed"] == 1 and jax.process_index() == 1:
      raise MemoryError("no room")
    multihost_utils.sync_global_devices(cell.name)
    context = np.zeros((cell.config.prompt.m, job.encoder.clip.text_width), np.float32)
    yield Trained(context, np.ones(3, np.float32), 1.0, 1.0)

ablate.train_lanes = train
Shared.stream = lambda *_: None
Shared.references = lambda *_: {"novel": {}}
score = {"top1": 0.5, "top5": 0.7, "images": 4, "top1_interval": [0.2, 0.8]}
Shared.evaluate = lambda *_: {"novel": {"prompt": score}}
app.run(main.main, flags_parser=main.parse_flags)
"""


@pytest.mark.slow("two processes; the quick variant is above")
def test_what_breaks_a_cell_in_one_of_two_processes_ends_both(tmp_path):
  """The other one is in the midst of the cell; the cell before stays."""
  (tmp_path / "start.py").write_text(_BREAKS)
  changed = {"data.n_classes": 61, "k": 10, "job": "ablate", "ablate.grid": "k=10;seed=0|1|2"}
  fields = [f"--config.{field}={value}" for field, value in changed.items()]
  command = [str(tmp_path / "start.py"), "--config=configs/demo.py", f"--workdir={tmp_path}/run"]
  with Processes(2, [*command, *fields]) as processes:
    found = processes.finish()
  assert [status for status, _ in found.values()] == [1, 1], found
  for _, output in found.values():
    assert "MemoryError: no room" in output
  assert "ended: MemoryError: no room" in found[0][1]
  (cell,) = (tmp_path / "run" / "cells").glob("*.json")
  assert json.loads(cell.read_text())["values"] == {"k": 10, "seed": 0}


def test_only_the_first_process_reads_the_folder(monkeypatch):
  cells = make_cells(config_for("k=20;seed=0|1"))
  given = []

  def from_first(value, what):
    given.append((value, what))
    return [[True, False]]

  monkeypatch.setattr(hosts, "is_first", lambda: False)
  monkeypatch.setattr(hosts, "from_first", from_first)
  assert ablate._missing(RunFolder("/nowhere"), [cells]) == [[cells[1]]]
  assert given == [(None, "the cells that are done")]


def test_which_cells_are_lanes():
  cells = make_cells(config_for("k=20|30;correction=log|log10|none;optim.lr=0.1|0.2;seed=0|1"))
  groups = lane_groups(cells)
  assert [len(group) for group in groups] == [12, 12]
  assert {cell.config.k for cell in groups[0]} == {20}
  assert len(lane_groups(make_cells(config_for("prompt.m=2|4;seed=0|1")))) == 2
  assert [lanes_at_a_time(6, most) for most in (0, 1, 2, 4, 6, 100)] == [1, 1, 2, 3, 6, 6]


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/", "a/b"])
def test_parts_that_are_none(part):
  with pytest.raises(ConfigError, match=r"config\.ablate\.part"):
    validate(config_for(**{"ablate.part": part}))


@pytest.mark.parametrize(
  ("grid", "line"),
  [
    ("k=20|301", r"cell k=301: config\.k: got 301, expected at most the number of classes"),
    # Known once the CLIP's tokenizer is read.
    ("seed=0|1;prompt.init=red|a", r"cell seed=0, prompt\.init=red: .*expected words of prompt\.m"),
  ],
)
def test_a_cell_that_can_not_be_is_found_before_anything_is_written(tmp_path, grid, line):
  with pytest.raises(ConfigError, match=f"^{line}"):
    run(config_for(grid), tmp_path / "run")
  assert not (tmp_path / "run").exists()
