"""Runs on the page: what is listed and read, and that no link leads out of the
folder."""

import contextlib
import json
import os
import re
from unittest import mock

from PIL import Image
import pytest

from pomp_jax.files.run_folder import noting_failure
from pomp_jax.rooms.page import fields, runs, server
from pomp_jax.rooms.page.comparison import Comparison
from tests.report.test_reports import training_results
from tests.support.report_page import Page

# Enough for the pages of runs.
NO_CLIP = mock.Mock(spec=Comparison, prompts=[], regions=None)
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
      json.dumps({"step": n, "loss": 1 / (n + 1), "accuracy": 0.5}) + "\n"
      for n in range(9)
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
  assert all(run.state == "finished" and not run.report for run in found.values())
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
  assert run.state == "not finished" and not run.report
  assert runs.read_file(demo, "report.html") is None and runs.plot_files(run) == [
    "training.png"
  ]
  shown, problems = runs.show(run, str)
  assert "<td" not in shown and shown.count("<img") == 1 and problems == []
  (demo / "plots").rename(demo / "old")
  (demo / "plots").symlink_to(secret / "plots")
  assert runs.plot_files(run) == [] and runs.read_plot(run, "accuracy.png") is None


def test_a_training_is_shown_as_its_report(root):
  """The same tables from its results, its curves as far as they are, and its plots
  once."""
  write_run(root / "whole", **training_results())
  run = runs.find_runs(root)["whole"]
  text, problems = runs.show(run, "/plots/{}".format)
  page = Page(text)
  assert problems == [] and page.open == []
  assert [
    "learned prompt",
    "51.1 (48.1 to 53.1)",
    "62.2 (59.2 to 64.2)",
  ] in page.tables[0]
  sources = [image["src"] for image in page.images]
  assert sources == ["/plots/accuracy.png", "/plots/training.png"]
  drawn = runs.read_plot(run, "training.png")
  assert drawn == (root / "whole/plots/training.png").read_bytes() != runs.curves(run)
  (root / "whole" / "metrics.jsonl").unlink()
  assert runs.curves(run) == drawn
  assert (
    runs.read_plot(run, "../plots/accuracy.png") is runs.read_plot(run, "a\0b") is None
  )


def test_results_of_another_version_are_a_list_of_figures(root):
  run = runs.find_runs(root)["demo"]
  text, problems = runs.show(run, str)
  assert len(problems) == 1 and "results.json can't be shown (KeyError" in problems[0]
  found = {tuple(row) for row in Page(text).tables[0]}
  assert {
    ("k", "16"),
    ("data.root", "pictures"),
    ("eval.base.prompt.top1", "0.25"),
  } <= found


def test_names_of_predicted_files(root):
  best = [{"name": "star", "probability": 0.75}, {"name": "leaf", "share": 0.125}]
  images = {"a.png": best, "b.png": [{"name": "fox", "score": 0.5}]}
  write_run(root / "predicted", job="predict", images=images)
  text, _ = runs.show(runs.find_runs(root)["predicted"], str)
  rows = [["a.png", "star 75.0%, leaf 12.5%"], ["b.png", "fox 50.0%"]]
  assert rows == Page(text).tables[0][1:]


def test_the_state_of_a_run_and_why_it_failed(root):
  demo, state = root / "demo", lambda: runs.find_runs(root)["demo"][3:5]
  with contextlib.suppress(OSError), noting_failure(demo):
    raise OSError("no space left on /home/me/disk")
  # no folder of the server
  assert state() == ("failed", "OSError: no space left on disk")
  (demo / "config.json").unlink()
  (demo / "results.json").unlink()
  assert state()[0] == "failed"
  with noting_failure(demo):
    pass
  assert "demo" not in runs.find_runs(root)  # an empty folder is none
  (demo / "config.json").write_text('{"job": "pretrain"}')
  assert state()[0] == "not finished"
  assert runs._run("demo", demo, 1e18).state == "unreadable"  # a time that is none


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_the_list_reads_little_of_large_files(root, name, monkeypatch):
  """A line of their run; each page has the list, so 31 MB of each run would stop it."""
  demo, parsed = root / "demo", []
  (demo / "config.json").unlink()
  text = '{"job": "' + 31 * 2**20 * "x" + '"}'
  (demo / name).write_text(text)
  parse = runs.parse_json
  monkeypatch.setattr(
    runs,
    "parse_json",
    lambda content, file: parsed.append(len(content)) or parse(content, file),
  )
  run = runs.find_runs(root)["demo"]
  assert max(parsed) < 2**20
  assert run.state == "unreadable" and run.problem.startswith(f"{name}: ")
  _, problems = runs.show(run, str)
  assert all(len(line) < 1000 for line in problems)


# Of each field of each file: values of other types, and texts that are no JSON object.
_VALUES = (
  None,
  True,
  10**400,
  float("nan"),
  1e308,
  "\ud800",
  "x\0\n" * 99,
  [],
  {},
  [[]],
)
_TEXTS = (
  "",
  "[]",
  "\xff",
  '{"job": 1e999}',
  "9" * 5000,
  '{"eval":' * 900 + "1" + "}" * 900,
)
_FILES = {
  "config.json": {"job": "pretrain"},
  "results.json": {"eval": {"base": {"prompt": {"top1": 0.5, "images": 3}}}},
  "metrics.jsonl": {"step": 3, "loss": 1.0, "validation_top1": 0.5},
}


def _hostile(value):
  """The value with each of its parts replaced by each of `_VALUES`."""
  yield from _VALUES
  for key in value if isinstance(value, dict) else ():
    yield from (value | {key: part} for part in _hostile(value[key]))


@pytest.mark.parametrize("name", _FILES)
def test_a_damaged_file_is_a_line_of_its_run_alone(root, name):
  client = server.make_app(
    NO_CLIP, fields.Page(runs=str(root)), server.Turns()
  ).test_client()
  whole, lines = (root / "demo" / name).exists(), 0
  for text in (*_TEXTS, *map(json.dumps, _hostile(_FILES[name]))):
    (root / "demo" / name).write_bytes(text.encode("latin-1"))
    listed, shown = client.get("/runs"), client.get("/runs/demo")
    assert (listed.status_code, shown.status_code) == (200, 200), text[:80]
    assert "seeds/seed 0" in listed.data.decode()
    lines += (
      found := re.findall('role="alert">([^\n]+)</p>', shown.data.decode())
    ) != []
    assert all(str(root) not in line for line in found)
    if name == "metrics.jsonl":
      assert client.get("/plots/demo/training.png").status_code in (200, 404), text[:80]
  assert whole or lines
  assert lines >= {"config.json": 6, "results.json": 12}.get(name, 0)
