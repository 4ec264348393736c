"""Runs on the page: what is listed and read, and that no link leads out of the folder."""

import json
import os

from PIL import Image
import pytest

from pomp_jax.analysis.tables import Row, Table, markdown
from pomp_jax.page import runs

EVAL = {
  split: {name: {"top1": top1, "images": 64} for name in ("prompt", "hand_written")}
  for split, top1 in (("base", 0.25), ("novel", 0.5))
}


def write_run(folder, job="pretrain", **results):
  (folder / "plots").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"job": job}))
  (folder / "results.json").write_text(json.dumps({"job": job, **results}))
  for name in ("accuracy", "training"):
    Image.new("RGB", (3, 2), "red").save(folder / "plots" / f"{name}.png")
  with open(folder / "metrics.jsonl", "w") as file:
    file.writelines(
      json.dumps({"step": n, "loss": 1 / (n + 1), "accuracy": 0.5}) + "\n" for n in range(9)
    )


@pytest.fixture
def root(tmp_path):
  (tmp_path / "outside").mkdir()
  write_run(tmp_path / "outside" / "secret")
  root = tmp_path / "runs"
  write_run(root / "demo", eval=EVAL, k=16, data={"root": "/home/me/pictures"})
  write_run(root / "seeds" / "seed 0", "segment")
  write_run(root / ".hidden")
  (root / "empty").mkdir()
  (root / "link").symlink_to(tmp_path / "outside" / "secret")
  return root


def test_the_list_has_the_runs_of_the_folder_alone(root):
  os.utime(root / "demo" / "results.json", (2e9, 2e9))
  found = runs.find_runs(root)
  assert list(found) == ["demo", "seeds/seed 0"]  # the newest first
  assert [run.job for run in found.values()] == ["pretrain", "segment"]
  assert all(run.finished and not run.report for run in found.values())
  assert list(runs.find_runs(root / "demo")) == ["demo"]
  assert runs.find_runs(None) == runs.find_runs(root / "nothing") == {}


def test_links_of_files_are_not_read(root, tmp_path):
  secret, demo = tmp_path / "outside" / "secret", root / "demo"
  for name in ("results.json", "metrics.jsonl", "plots/accuracy.png"):
    (demo / name).unlink()
    (demo / name).symlink_to(secret / name)
  (demo / "report.html").symlink_to(secret / "config.json")
  (demo / "results.md").symlink_to("/etc/passwd")
  run = runs.find_runs(root)["demo"]
  assert not run.finished and not run.report
  assert runs.tables(run) == [] and runs.curves(run) is None and runs.read_report(run) is None
  assert runs.plot_files(run) == ["training.png"]
  (demo / "plots").rename(demo / "old")
  (demo / "plots").symlink_to(secret / "plots")
  assert runs.plot_files(run) == [] and runs.read_plot(run, "accuracy.png") is None


@pytest.mark.parametrize(
  "name", ["../config.json", "..", "", "/etc/passwd", "a\0b", "none.png", "../plots/accuracy.png"]
)
def test_a_plot_is_one_of_the_list(root, name):
  run = runs.find_runs(root)["demo"]
  assert runs.plot_files(run) == ["accuracy.png"]  # the curves are drawn
  assert runs.read_plot(run, name) is None
  assert runs.read_plot(run, "accuracy.png") == (root / "demo/plots/accuracy.png").read_bytes()


def test_tables_and_curves_of_a_training(root):
  run = runs.find_runs(root)["demo"]
  accuracy, results = runs.tables(run)
  assert accuracy.columns == ("split", "prompt", "hand written", "images")
  assert accuracy.rows == [["base", "25.0", "25.0", "64"], ["novel", "50.0", "50.0", "64"]]
  assert {tuple(row) for row in results.rows} == {
    ("job", "pretrain"),
    ("k", "16"),
    ("data.root", "pictures"),
  }


def test_tables_are_folded_below_a_report(root):
  rows = (Row("{}.", (1.5,)),)
  (root / "demo" / "results.md").write_text(markdown([Table("Top-1", "prompt", ("base",), rows)]))
  folded = [[table.folded for table in runs.tables(runs.find_runs(root)["demo"])]]
  (root / "demo" / "report.html").write_text("<h1>demo</h1>")
  folded.append([table.folded for table in runs.tables(runs.find_runs(root)["demo"])])
  assert folded == [[False, False, True], [True, True, True]]


@pytest.mark.parametrize("content", ["", "[]", "[" * 10**5, '{"eval": 3, "images": []}'])
def test_damaged_results_show_what_is_left(root, content):
  (root / "demo" / "results.json").write_text(content)
  (root / "demo" / "metrics.jsonl").write_text(content)
  run = runs.find_runs(root)["demo"]
  assert all(
    isinstance(cell, str) for table in runs.tables(run) for row in table.rows for cell in row
  )
  assert runs.curves(run) is None
