"""The jobs' reports: parsed, every figure found again, nothing fetched, names escaped."""

import re
import urllib.parse

from PIL import Image
import pytest

from pomp_jax.analysis.gradient_bias import gradient_bias_report
from pomp_jax.analysis.html_report import write_run_report
from pomp_jax.analysis.region_reports import regions_report
from pomp_jax.analysis.reports import (
  baselines_report,
  evaluation_report,
  geometry_report,
  seeds_report,
  training_report,
)
from pomp_jax.files.run_folder import RunFolder, with_provenance
from tests.analysis.test_region_reports import detection_results, segmentation_results
from tests.support.report_page import AWKWARD, Page
from tests.support.small_run import small_config

PATHS = ("/data/runs/one/prompt.npz", "/data/runs/two/prompt.npz")


def score(top1, n=1000, classes=50):
  return {
    "images": n,
    "classes": classes,
    "top1": top1,
    "top5": 0.9,
    "top1_interval": [top1 - 0.03, top1 + 0.02],
    "macro_top1": 0.4,
    "ece": 0.05,
    "reliability": {"images": [1], "confidence": [0.5], "accuracy": [0.5]},
  }


def training_results():
  splits = {"base": 0.511, "novel": 0.622}
  return {
    "method": "cocoop",
    "seed": 3,
    "clip_model": "world",
    "n_classes": 1000,
    "k": 64,
    "correction": "log",
    "steps": 240,
    "seconds": 12.5,
    "eval_seconds": 1.5,
    "images_per_second": 99.0,
    "eval_images": dict.fromkeys(splits, 1000),
    "eval_classes": dict.fromkeys(splits, 50),
    "eval": {
      split: {"prompt": score(top1), "hand_written": score(top1 - 0.1)}
      for split, top1 in splits.items()
    },
  }


def evaluation_results():
  prompts = (*PATHS, AWKWARD)
  accuracy = {label: {"dtd": 0.511 + i / 10} for i, label in enumerate(prompts)}
  return {
    "clip_model": "world",
    "prompts": [{"label": label, "step": 80 if label == PATHS[0] else None} for label in prompts],
    "missing": {"<eurosat>": "no folder & no file"},
    "accuracy": {"own": {"top1": accuracy}},
    "intervals": {
      "own": {"top1": {label: {"dtd": [0.4, 0.9]} for label in prompts}},
    },
    "images": {"own": {"top1": {"dtd": 1000}}},
    "classes": {"own": {"top1": {"dtd": 50}}},
    "published": {},
    "sets": {
      "dtd": {
        "split": "test",
        "unreadable": 2,
        "prompts": {label: score(0.511 + i / 10) for i, label in enumerate(prompts)},
      }
    },
  }


def baselines_results():
  one = {"mean": 0.4, "std": 0.0, "values": [0.4], "images": 1000, "interval": [0.37, 0.43]}
  two = one | {"mean": 0.611, "std": 0.012, "values": [0.6, 0.62], "classes": 50}
  two |= {"t_interval": [0.5, 0.7]}
  cost = {"seconds": {"median": 7.25}, "peak_mib": None, "not_evaluated": []}
  return {
    "settings": [["maple", {"prompt.m": 2}], ["<own>", {}]],
    "methods": {
      "maple": cost | {"method": "maple", "n_runs": 2, "top1": {"base": two, "novel": two}},
      "linear_probe": cost | {"method": "linear_probe", "n_runs": 1, "top1": {"base": one}},
    },
    "failed": {"<own>": "TrainingError: loss is nan & more"},
  }


def geometry_results():
  prompts = (*PATHS, AWKWARD)
  figures = {"alignment": 1.25, "uniformity": None, "top1": 0.511, "top1_interval": [0.4, 0.6]}
  return {
    "clip_model": "world",
    "prompts": [{"label": label, "step": None} for label in prompts],
    "tokens": {
      "median_distance_between_tokens": 0.25,
      "vectors": {PATHS[0]: [{"tokens": ["<b>", "cat</w>"], "distances": [0.125, 0.5]}]},
    },
    "sets": {"novel": {"images": 1000, "classes": 50, "prompts": dict.fromkeys(prompts, figures)}},
  }


def seeds_results():
  of_split = {
    "prompt": {"mean": 0.611, "std": 0.012, "values": [0.6, 0.622], "t_interval": [0.5, 0.7]},
    "hand_written": {"mean": 0.4, "std": 0.0, "values": [0.4, 0.4], "t_interval": [0.4, 0.4]},
  }
  scores = {
    name: {"images": 1000, "top1": top1, "top1_interval": [0.37, 0.43]}
    for name, top1 in of_split.items()
  }
  gain = {"top1": of_split["prompt"] | {"spread": 0.022}, "gain": 0.211}
  return {
    "method": "pomp",
    "clip_model": "world",
    "seeds": [3, 5],
    "steps": 240,
    "n_classes": 1000,
    "k": 64,
    "correction": None,
    "eval_classes": {"base": 50},
    "seconds": {"values": [7.25, 8.5]},
    "eval": {"base": scores},
    "gain": {"base": gain | {"best_hand_written": "hand_written"}},
  }


def gradient_bias_results():
  cell = {"sampler": "<hard>", "correction": "log", "k": 1000, "draws": 512}
  cell |= {"relative_bias": 0.5, "bias_low": 0.25, "bias_high": 0.75, "relative_deviation": 2.5}
  cell |= {"cosine": 0.75, "draw_cosine": 0.125, "draw_cosine_error": 0.0125}
  return {
    "images": 64,
    "n_classes": 2000,
    "prompt": AWKWARD,
    "exact_norm": 0.123456,
    "cells": [cell],
    "seconds": 12.5,
  }


def _regions(folder, results):
  return regions_report(folder, small_config(), results)


REPORTS = {
  "pretrain": (training_report, training_results, ("accuracy.png", "predictions.png")),
  "evaluate": (evaluation_report, evaluation_results, ("accuracy_own_top1.png", "calibration.png")),
  "baselines": (baselines_report, baselines_results, ("accuracy.png",)),
  "analyse": (geometry_report, geometry_results, ("alignment_uniformity.png", "map_novel.png")),
  "repeat": (seeds_report, seeds_results, ("accuracy.png",)),
  "gradient_bias": (gradient_bias_report, gradient_bias_results, ("gradient_bias.png",)),
  "segment": (_regions, segmentation_results, ("segmentation.png",)),
  "detect": (_regions, detection_results, ("detections.png",)),
}


@pytest.fixture(scope="module", params=list(REPORTS))
def page(request, tmp_path_factory):
  """The name of a job, its parsed page, the page's text, and the folder."""
  report, results, plots = REPORTS[request.param]
  folder = RunFolder(tmp_path_factory.mktemp(request.param))
  folder.create()
  folder.plots.mkdir()
  for name in plots:
    Image.new("RGB", (3, 2), "red").save(folder.plots / name)
  stored = with_provenance(results())
  config = small_config(job=request.param, **{"eval.template": AWKWARD})
  write_run_report(folder, config, stored, report(folder, stored))
  text = (folder.path / "report.html").read_text()
  return request.param, Page(text), text, folder


def test_the_page_is_whole_and_fetches_nothing(page):
  job, parsed, text, folder = page
  assert parsed.open == []
  assert not parsed.tags & {"script", "link", "iframe", "b"}
  assert len(parsed.images) == len(REPORTS[job][2])
  for image in parsed.images:
    assert image["src"].startswith("data:image/png;base64,") and image["alt"]
  assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
  assert not any(urllib.parse.urlparse(link).scheme for link in parsed.links)
  assert "results.json" in parsed.links
  assert 'name="viewport"' in text


def test_the_page_says_where_it_comes_from(page):
  job, parsed, _, folder = page
  rows = {row[0]: row[1] for table in parsed.tables for row in table if len(row) == 2}
  assert rows["job"] == job
  assert rows["date"].endswith("UTC")
  assert rows["data.n_classes"] == "300"
  assert rows["eval.template"] == AWKWARD
  assert {"jax", "numpy", "python"} <= set(rows)
  assert "Command" in parsed.headings and "Config" in parsed.headings


def parse(job, path):
  """The page of a job, without plots."""
  report, results, _ = REPORTS[job]
  folder = RunFolder(path)
  stored = with_provenance(results())
  write_run_report(folder, small_config(job=job), stored, report(folder, stored))
  return Page((path / "report.html").read_text())


def test_figures_of_a_training(tmp_path):
  parsed = parse("pretrain", tmp_path)
  assert "CoCoOp" in parsed.headings[0] and "1,000 classes" in parsed.headings[0]
  columns = ("base, 1,000 images, 50 classes", "novel, 1,000 images, 50 classes")
  assert parsed.table("prompt", *columns) == [
    ["learned prompt", "51.1 (48.1 to 53.1)", "62.2 (59.2 to 64.2)"],
    ["hand-written prompt", "41.1 (38.1 to 43.1)", "52.2 (49.2 to 54.2)"],
  ]


def test_figures_of_an_evaluation(tmp_path):
  parsed = parse("evaluate", tmp_path)
  assert parsed.table("prompt", "dtd") == [
    ["learned, one", "51.1 (40.0 to 90.0)"],
    ["learned, two", "61.1 (40.0 to 90.0)"],
    [AWKWARD, "71.1 (40.0 to 90.0)"],
    ["images", "1,000"],
  ]
  # What the short labels stand for.
  assert parsed.table("called here")[0] == ["learned, one", PATHS[0], "80"]
  assert parsed.table("set", "reason") == [["<eurosat>", "no folder & no file"]]
  assert [row[0] for row in parsed.table("set: prompt")][0] == "dtd: learned, one"
  assert "2 images could not be read" in parsed.text


def test_figures_of_methods(tmp_path):
  parsed = parse("baselines", tmp_path)
  assert [row[:4] for row in parsed.table("method", "seeds")] == [
    ["MaPLe", "2", "61.1 ± 1.2", "61.1 ± 1.2"],
    ["linear probe", "1", "40.0", "-"],
  ]
  assert parsed.table("method", "base, 1,000 images, 50 classes") == [
    ["MaPLe", *["images 37.0 to 43.0; seeds 50.0 to 70.0"] * 2],
    ["linear probe", "images 37.0 to 43.0", "-"],
  ]
  assert parsed.table("method", "error") == [["<own>", "TrainingError: loss is nan & more"]]


def test_figures_of_an_analysis(tmp_path):
  parsed = parse("analyse", tmp_path)
  tables = [table for table in parsed.tables if table[0] == ["prompt", "novel"]]
  labels = ["learned, one", "learned, two", AWKWARD]
  for table, value in zip(tables, ("1.250", "-", "51.1 (40.0 to 60.0)"), strict=True):
    assert table[1:] == [[label, value] for label in labels]
  assert parsed.table("vector") == [["1", "<b> 0.125", "cat</w> 0.500"]]
  assert parsed.table("set", "images", "classes") == [["novel", "1,000", "50"]]


def test_figures_of_seeds(tmp_path):
  parsed = parse("repeat", tmp_path)
  split = "base, 1,000 images, 50 classes"
  means, intervals = (table[1:] for table in parsed.tables if table[0] == ["prompt", split])
  assert means == [["learned prompt", "61.1 ± 1.2"], ["hand-written prompt", "40.0 ± 0.0"]]
  assert intervals[0] == ["learned prompt", "images 37.0 to 43.0; seeds 50.0 to 70.0"]
  assert parsed.table("split") == [[split, "+21.1", "hand-written prompt", "2.2"]]
  assert parsed.table("seed", split) == [["3", "60.0"], ["5", "62.2"]]
  assert {"seed_3/report.html", "seed_5/report.html"} <= set(parsed.links)
  facts = [row for table in parsed.tables for row in table if len(row) == 2]
  assert ["training of a seed (s)", "7.2, 8.5"] in facts and ["steps", "240"] in facts


def test_figures_of_a_gradient(tmp_path):
  parsed = parse("gradient_bias", tmp_path)
  assert parsed.headings[0] == "Bias of the sampled gradient: 64 images, 2,000 classes"
  [row] = parsed.table("sampler", "correction", "K")
  assert row[:4] == ["<hard>", "log", "1,000", "512"]
  assert row[4:] == ["0.500 (0.250 to 0.750)", "2.500", "0.125 ± 0.025", "0.750"]
