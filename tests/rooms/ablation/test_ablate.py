"""The ablate job: its grid, cells equal to runs of their own, resumption, failures."""

import csv
import itertools
import json
import tempfile
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.config.every_job import flatten
from pomp_jax.evaluate import opening
from pomp_jax.files.prompt_file import Prompt, load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.ablation import ablate, shared_inputs
from pomp_jax.rooms.ablation import grid as grids
from pomp_jax.rooms.ablation.shared_inputs import SharedInputs
from pomp_jax.rooms.ablation.vmapped_training import (
  Trained,
  lanes_of_program,
  program_groups,
)
from pomp_jax.train import pretrain
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import TrainingError
from tests.support.small_run import run_job, small_config, trained

# Two programs of lanes, and one with a bank.
GRID = "k=20|all;correction=log|none;seed=0|1 & sampling.name=posterior;k=20;seed=0"


def config_for(grid=GRID, **changes):
  settings = {"job": "ablate", "ablate.grid": grid, "steps": 6, "checkpoint.every": 2}
  return small_config(**settings | changes)


@pytest.fixture(scope="session")
def curved(one_layer):
  """A function: changes -> config of the grid above, with curves."""
  # Averages, so that a cell that stored the last parameters would be another prompt.
  own = {"clip.model": one_layer, "ablate.curve_every": 4, "ablate.lanes": 2}
  own |= {"optim.average": "ema", "optim.average_decay": 0.5}
  return lambda **changes: config_for(**own | changes)


def make_cells(config):
  return grids.make_cells(config.ablate.grid, config.replace)


def make_cells_of(grid=GRID, **changes):
  return make_cells(config_for(grid, **changes))


@pytest.fixture(scope="module")
def finished(shared, curved):
  """The folder and the results of the grid above; read only. 10 to 20 core-seconds
  to compile."""
  folder = shared("ablate", lambda folder: run_job(curved(), folder / "run")) / "run"
  return folder, json.loads((folder / "results.json").read_text())


def prompt_of(workdir, cell):
  return load_prompt(workdir / "cells" / f"{cell.stem}.npz")


def rows_of(workdir):
  return list(csv.DictReader((workdir / "cells.csv").read_text().splitlines()))


@pytest.mark.parametrize("number", [2, 5])
def test_a_cell_equals_a_run_of_its_own(finished, curved, tmp_path, number):
  workdir, results = finished
  cell = make_cells(curved())[number]
  alone = pretrain.run(curved().replace(cell.overrides), str(tmp_path))
  context = load_prompt(tmp_path / "prompt.npz").context
  np.testing.assert_allclose(prompt_of(workdir, cell).context, context, atol=2e-5)
  stored = results["cells"][number]
  assert stored["name"] == cell.name
  assert stored["steps"] == alone["steps"] and stored["error"] is None
  # At most two cells are trained as one program; one with a bank is alone.
  assert (stored["lanes"], results["cells"][-1]["lanes"]) == (2, 1)
  # Its curve is of the run's validations.
  validated = dict(zip(*RunFolder(tmp_path).scalars()["validation_top1"], strict=True))
  assert stored["curve"]["steps"] == [4, 6]
  expected = pytest.approx([validated[4], validated[6]], abs=1.01 / 64)
  assert stored["curve"]["top1"]["validation"] == expected
  for split, prompts in alone["eval"].items():
    # One image of 64 may fall on the other side of a tie.
    assert stored["top1"][split] == pytest.approx(
      prompts["prompt"]["top1"], abs=1.01 / 64
    )
    assert (
      stored["images"][split]
      == prompts["prompt"]["images"]
      == alone["eval_images"][split]
    )
    low, high = stored["top1_interval"][split]
    assert low < stored["top1"][split] < high
    del prompts["prompt"]
    assert stored["by_hand"][split] == {
      name: of["top1"] for name, of in prompts.items()
    }
    assert stored["by_hand_interval"][split].keys() == prompts.keys()


def test_a_stream_is_held_once_in_a_file_without_a_name(
  one_layer, tmp_path, monkeypatch
):
  monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
  monkeypatch.setattr(tempfile, "tempdir", None)
  (tmp_path / "temporary").mkdir()
  folder = RunFolder(tmp_path / "run")
  config = config_for("optim.lr=0.1|0.2;seed=0|1", steps=4, **{"clip.model": one_layer})
  shared = SharedInputs(folder, config.replace)
  runs = list(map(shared.prepare, make_cells(config)))
  one, other_seed, same, _ = (shared.stream(run) for run in runs)
  assert isinstance(one.features, np.memmap) and not list(
    (tmp_path / "temporary").iterdir()
  )
  assert np.shares_memory(one.features, same.features)
  assert not np.array_equal(one.labels, other_seed.labels)


@pytest.mark.parametrize(
  ("position", "class_specific", "splits"),
  [
    ("middle", False, ["validation", "novel"]),
    # Such a context knows no unseen class.
    ("front", True, ["validation"]),
  ],
)
def test_a_curve_is_of_its_cells_prompt(
  one_layer, tmp_path, monkeypatch, position, class_specific, splits
):
  """Features of the classes of each split, with the names where the cell has them."""
  own = {"data.n_classes": 12, "k": 8, "clip.model": one_layer, "ablate.curve_every": 2}
  own |= {"eval.images": 24, "prompt.class_specific": class_specific}
  config = config_for(f"prompt.position={position};prompt.m=3|2", **own)
  inputs_of_cells = SharedInputs(RunFolder(tmp_path), config.replace)
  run = inputs_of_cells.prepare(make_cells(config)[0])
  scored = mock.Mock(side_effect=shared_inputs.topk_accuracy)
  monkeypatch.setattr(shared_inputs, "topk_accuracy", scored)
  size = (12, 3, run.encoder.clip.text_width)[not class_specific :]
  rng = np.random.default_rng(0)
  contexts = {step: rng.normal(0, 0.02, size).astype(np.float32) for step in (2, 4)}
  found = inputs_of_cells.curve(run, contexts)
  assert list(found["top1"]) == list(found["images"]) == splits
  assert found["steps"] == [2, 4] and set(found["images"].values()) == {24}
  calls = iter(scored.mock_calls)
  for number, context in enumerate(contexts.values()):
    prompt = Prompt(context, run.encoder.clip.name, position)
    for split in splits:
      source = opening.open_source(run.data, split, n_images=24)
      classes = run.encoder.class_features(source.names, prompt)
      images = run.encoder.image_features(source.images(np.arange(24)))
      given = next(calls).args
      np.testing.assert_allclose(given[0], images, atol=1e-5)
      np.testing.assert_allclose(given[1], classes, atol=1e-5)
      np.testing.assert_array_equal(given[2], source.labels)
      right = (images @ classes.T).argmax(1) == source.labels
      assert found["top1"][split][number] == pytest.approx(right.mean())


def test_each_lane_has_its_own_bank(tmp_path, monkeypatch):
  features = PromptRun.class_features
  computed = mock.create_autospec(features, side_effect=features)
  monkeypatch.setattr(PromptRun, "class_features", computed)
  grid = "sampling.name=posterior;seed=0|1;optim.lr=0.05|0.1"
  # Under a CLIP of fewer layers rounding decides what is drawn.
  config = config_for(grid, steps=4, **{"sampling.renew": 8})
  run_job(config, tmp_path / "both")
  assert sorted(call.args[0].seed for call in computed.mock_calls) == [0, 1]
  for cell in make_cells(config)[2:]:
    context = trained(config.replace(cell.overrides), tmp_path / f"alone_{cell.key}")
    np.testing.assert_allclose(
      prompt_of(tmp_path / "both", cell).context, context, atol=2e-5
    )


def test_what_it_leaves(finished, curved):
  workdir, results = finished
  contexts = [prompt_of(workdir, cell).context for cell in make_cells(curved())]
  # Lanes differ.
  for one, other in itertools.combinations(contexts, 2):
    assert np.abs(one - other).max() > 1e-4
  rows = rows_of(workdir)
  assert [row["k"] for row in rows] == ["20"] * 4 + ["all"] * 2 + ["20"]
  for row, cell in zip(rows, results["cells"], strict=True):
    assert float(row["novel_top1"]) == cell["top1"]["novel"]
    assert float(row["seconds"]) == cell["seconds"] > 0
    assert float(row["memory_mib"]) == cell["memory_mib"] > 0
    novel = cell["curve"]["top1"]["novel"][-1]
    assert novel == pytest.approx(cell["top1"]["novel"], abs=1.01 / 64)
  plots = {path.name for path in (workdir / "plots").iterdir()}
  assert plots == {"sweep.png", "time_to_accuracy.png"}
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2 and "Time to accuracy" in page
  assert results["missing"] == []
  # Each kind is timed once.
  times = results["step_times"]
  kinds = [tuple(time["values"].values()) for time in times]
  assert kinds[:2] == [(20, "log", "uniform"), (20, "none", "uniform")]
  assert kinds[2:] == [("all", None, None), (20, "log", "posterior")]
  for time in times:
    assert 0 < time["least_seconds"] <= time["step_seconds"] < 60
    assert (time["first_bank_seconds"] > 0) == (
      time["values"]["sampling.name"] == "posterior"
    )


SCORE = {"top1": 0.5, "top5": 0.7, "images": 4, "top1_interval": [0.2, 0.8]}


@pytest.fixture
def synthetic(monkeypatch):
  """A function that replaces the training: contexts of zeros, and the losses that it is
  told.

  Nothing is compiled. Cells with values among `crashing` raise. Returns a list that
  gets the fields of each training.
  """
  monkeypatch.setattr(
    SharedInputs, "references", lambda *_: {"novel": {"hand_written": SCORE}}
  )
  monkeypatch.setattr(SharedInputs, "evaluate", lambda *_: {"novel": {"prompt": SCORE}})

  def install(losses_of=lambda fields: np.ones(3, np.float32), crashing=()):
    trained = []

    def train(runs, streams, *_):
      for run, fields in zip(runs, streams, strict=True):
        if any(values.items() <= fields.items() for values in crashing):
          raise MemoryError("no room")
        trained.append(fields)
        context = np.zeros(
          (run.module.n_vectors, run.encoder.clip.text_width), np.float32
        )
        yield Trained(context, losses_of(fields), 1.0, 1.0)

    monkeypatch.setattr(SharedInputs, "stream", lambda _, run: flatten(run.config))
    monkeypatch.setattr(ablate, "train_lanes", train)
    return trained

  return install


def test_cells_that_are_done_are_not_done_again(
  finished, curved, copy_of, synthetic, monkeypatch
):
  folder = copy_of(finished[0])
  monkeypatch.setattr(ablate, "_step_times", lambda *_: [])
  cells = make_cells(curved())
  files = [folder / "cells" / f"{cell.stem}.json" for cell in cells[1:]]
  times = [file.stat().st_mtime_ns for file in files]
  (folder / "cells" / f"{cells[0].stem}.json").unlink()
  trained = synthetic()
  again = run_job(curved(), folder)
  assert [fields["seed"] for fields in trained] == [cells[0].values["seed"]]
  assert again["cells"][1:] == finished[1]["cells"][1:]
  assert [file.stat().st_mtime_ns for file in files] == times
  # Nor without a curve, but for another one.
  trained.clear()
  grid = "k=20;correction=none;seed=0 & sampling.name=posterior;k=20;seed=0"
  run_job(curved(**{"ablate.grid": grid, "ablate.curve_every": 0}), folder)
  assert trained == []
  run_job(curved(**{"ablate.grid": grid, "ablate.curve_every": 3}), folder)
  assert len(trained) == 2


def test_a_cell_that_fails_is_marked_and_the_rest_goes_on(tmp_path, synthetic):
  """The loss of some cells is not finite; another one crashes, in whatever program
  it is."""
  config = config_for("k=20|21;optim.lr=0.05|0.06|1e30")
  losses = lambda fields: np.array(
    [1, np.nan if fields["optim.lr"] == 1e30 else 1, 1], "f"
  )
  synthetic(losses, [{"k": 21, "optim.lr": 0.06}])
  with pytest.raises(
    TrainingError, match=r"3 of 6 cells failed, the first, k=20, optim.lr=1e\+30"
  ):
    run_job(config, tmp_path)
  stored = json.loads((tmp_path / "results.json").read_text())["cells"]
  errors = [cell["error"] for cell in stored]
  not_finite = "BadLossError: loss is nan at step 2"
  assert errors == [None, None, not_finite, None, "MemoryError: no room", not_finite]
  rows = rows_of(tmp_path)
  assert [row["error"] or None for row in rows] == errors
  assert all((row["novel_top1"] == "") == (row["error"] != "") for row in rows)
  assert "MemoryError: no room" in (tmp_path / "report.html").read_text()
  synthetic(losses)
  with pytest.raises(TrainingError, match="2 of 6 cells failed"):
    run_job(config, tmp_path)


def test_a_cells_loss_is_the_mean_of_its_last_ten_steps(tmp_path, synthetic):
  losses = np.concatenate([np.full(15, 4.0), np.arange(10) / 10]).astype(np.float32)
  synthetic(lambda _: losses)
  (cell,) = run_job(config_for("seed=0"), tmp_path)["cells"]
  assert cell["loss"] == pytest.approx(0.45)
  assert cell["steps"] == 25


def test_parts_are_put_together_and_fail_for_their_own_cells_alone(tmp_path, synthetic):
  def part(number):
    return run_job(
      config_for("k=20|21;seed=0", **{"ablate.part": f"{number}/2"}), tmp_path
    )

  trained = synthetic(crashing=[{"k": 20, "seed": 0}])
  with pytest.raises(
    TrainingError, match="1 of 1 cells failed, the first, k=20, seed=0"
  ):
    part(1)
  results = part(2)
  assert [cell["error"] for cell in results["cells"]] == ["MemoryError: no room", None]
  assert [fields["k"] for fields in trained] == [21] and results["missing"] == []
  (tmp_path / "cells" / f"{make_cells_of('k=20|21;seed=0')[1].stem}.json").unlink()
  synthetic()
  assert part(1)["missing"] == ["k=21, seed=0"]
  assert len(part(2)["cells"]) == 2


def test_a_crash_of_a_cell_is_raised_where_processes_are_several(
  tmp_path, synthetic, monkeypatch
):
  """The others may be in the midst of the cell."""
  synthetic(crashing=[{"seed": 0}])
  monkeypatch.setattr(
    ablate, "_missing", lambda folder, cells, curve_every: list(cells)
  )
  monkeypatch.setattr(ablate.jax, "process_count", lambda: 2)
  config = config_for("seed=0")
  shared = SharedInputs(RunFolder(tmp_path), config.replace)
  with pytest.raises(MemoryError):
    ablate._run_group(shared, config.ablate, make_cells(config))


def test_which_cells_are_lanes():
  cells = make_cells_of("k=20|30;correction=log|log10|none;optim.lr=0.1|0.2;seed=0|1")
  groups = program_groups(cells)
  assert [len(group) for group in groups] == [12, 12]
  assert {cell.values["k"] for cell in groups[0]} == {20}
  assert len(program_groups(make_cells_of("prompt.m=2|4;seed=0|1"))) == 2
  assert [lanes_of_program(6, most) for most in (0, 1, 4, 100)] == [1, 1, 3, 6]


@pytest.mark.parametrize(
  ("grid", "changes", "line"),
  [
    (
      "k=20|301",
      {},
      r"cell k=301: config\.k: got 301, expected at most the number of classes",
    ),
    # Known once the CLIP's tokenizer is read.
    (
      "seed=0|1;prompt.init=red|a",
      {},
      r"cell seed=0, prompt\.init=red: .*expected words of promp",
    ),
    (
      "method=cocoop;seed=0",
      {},
      r"cell .*method: got 'cocoop', expected 'pomp'; job='base",
    ),
    ("kk=1|2", {}, r"unknown field config\.kk .did you mean config\.k\?"),
    (
      "seed=0",
      {"checkpoint.select": "best"},
      r"cell seed=0: config\.checkpoint\.select: .*no ch",
    ),
    ("k=16 & ", {}, r"config\.ablate\.grid: got ' ', expected fields separated by ';'"),
    ("k=16|16", {}, r"config\.ablate\.grid: got 'k=16\|16', .*no value twice"),
    ("k=16||64", {}, r"config\.ablate\.grid: got 'k=16\|\|64'"),
    ("k=16;k=64", {}, r"config\.ablate\.grid: got 'k', expected each field once"),
    ("k=many", {}, r"config\.k: got 'many', expected a value of type int"),
    ("correction=log|ln", {}, r"config\.correction: got 'ln', expected one of"),
    (
      "log.every=1|2",
      {},
      r"config\.ablate\.grid: got 'log\.every', expected a field that a train",
    ),
    ("seed=0", {"ablate.part": "3/2"}, r"config\.ablate\.part"),
    ("seed=0", {"ablate.part": "a/b"}, r"config\.ablate\.part"),
    (
      "seed=0",
      {"ablate.curve_every": 4},
      r"config\.ablate\.curve_every: got 4, expected 0 for",
    ),
  ],
)
def test_what_can_not_be_is_found_before_it_writes(
  tmp_path, monkeypatch, grid, changes, line
):
  monkeypatch.setattr(opening, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match=f"^{line}"):
    config = config_for(grid, **changes)
    validate(config)
    run_job(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_every_combination_is_a_cell():
  found = make_cells_of("k=16|64; correction=log|none; optim.lr=0.1|0.2|1e-3")
  expected = itertools.product((16, 64), ("log", "none"), (0.1, 0.2, 1e-3))
  assert [tuple(cell.values.values()) for cell in found] == list(expected)
  assert len({cell.key for cell in found}) == len({cell.stem for cell in found}) == 12
  for cell in found:
    training = config_for().replace(cell.overrides)
    assert cell.values.items() <= training.flat().items()
    assert (training.job, training.flat()["batch_size"]) == ("pretrain", 16)
  assert found[0].name == "k=16, correction=log, optim.lr=0.1"


def test_fields_that_a_sampler_does_not_read_make_no_cell():
  found = make_cells_of(
    "sampling.name=uniform|posterior;k=16|all;sampling.renew=0|8;seed=0"
  )
  assert [cell.name for cell in found] == [
    "sampling.name=uniform, k=16, sampling.renew=-, seed=0",
    "sampling.name=-, k=all, sampling.renew=-, seed=0",
    "sampling.name=posterior, k=16, sampling.renew=0, seed=0",
    "sampling.name=posterior, k=16, sampling.renew=8, seed=0",
  ]
  assert make_cells_of("k=all|16;correction=log|none")[0].name == "k=all, correction=-"
  # What a run reads follows from the sampler's row.
  grid = "sampling.name=posterior|hard|frequency;sampling.temperature=0.1|1;sampling.power=0.5|1"
  assert len(make_cells_of(grid)) == 1 + 2 + 2
  # Each field that nothing reads, and what reads it.
  for unread, reader in (
    ("sampling.exclude_threshold=0|1", {"sampling.exclude": "similar"}),
    ("sampling.renew=8|16", {"sampling.name": "posterior"}),
    ("epochs=2|3", {"steps": 0}),
    ("optim.warmup_lr=0.1|0.2", {"optim.warmup": 1.0}),
    ("optim.beta2=0.9|0.99", {"optim.name": "adamw"}),
    ("optim.epsilon=1e-8|1e-6", {"optim.name": "adamw"}),
    ("optim.average_decay=0.9|0.99", {"optim.average": "ema"}),
    ("optim.average_mean=1.0|2.0", {"optim.average": "gaussian"}),
    ("optim.average_sigma=1.0|2.0", {"optim.average": "gaussian"}),
    ("anchors={}.|ensemble", {"consistency_squared": 1.0}),
  ):
    assert len(make_cells_of(f"seed=0;{unread}", **{"optim.warmup": 0.0})) == 1, unread
    assert len(make_cells_of(f"seed=0;{unread}", **reader)) == 2, unread
  assert len(make_cells_of("seed=0;probe.iterations=10|20")) == 1
  assert (
    len(make_cells_of("consistency_l1=0|8;anchors=ensemble|{};epochs=2|3", steps=0))
    == 6
  )
  # The exclusion by similar text features reads a bank.
  similar = {"sampling.exclude": "similar"}
  assert len(make_cells_of("k=16|all;sampling.renew=0|8", **similar)) == 4


def test_several_grids_are_joined():
  found = make_cells_of("k=all;seed=0|1 & k=16;steps=5|6;seed=0 & k=16;seed=0")
  assert [cell.name for cell in found] == [
    "k=all, seed=0, steps=6",
    "k=all, seed=1, steps=6",
    "k=16, seed=0, steps=5",
    # The last grid's cell is this one.
    "k=16, seed=0, steps=6",
  ]
  # The negatives as a field of their own.
  found = make_cells_of("negatives=all|sampled;k=16|64")
  assert [cell.values["k"] for cell in found] == ["all", 16, 64]


def test_the_key_is_of_what_the_result_depends_on():
  key = make_cells_of("seed=0")[0].key
  same = {"log.every": 5, "checkpoint.every": 3, "data.threads": 1, "ablate.lanes": 2}
  assert make_cells_of("seed=0", **same)[0].key == key
  assert make_cells_of("seed=0|1")[0].key == key
  for other in (
    {"optim.momentum": 0.8},
    {"k": 21},
    {"data.images_per_class": 3},
    {"steps": 13},
  ):
    assert make_cells_of("seed=0", **other)[0].key != key
