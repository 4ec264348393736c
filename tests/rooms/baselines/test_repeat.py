"""The job repeat: what it sums up of the seeds, and that it resumes."""

import os
import signal
import statistics

import numpy as np
import pytest
import scipy.stats

from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.rooms.baselines import repeat, reports
from pomp_jax.train import loop
from tests.support.report_page import Page
from tests.support.small_run import small_config


@pytest.mark.parametrize("values", [[0.3, 0.5], [0.61, 0.58, 0.6, 0.62, 0.55]])
def test_the_interval_over_seeds_is_students(values):
  expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  assert repeat.summary(values)["t_interval"] == pytest.approx(list(expected))
  assert repeat.summary(values[:1])["t_interval"] is None
  summary = repeat.summary(values)
  assert summary["median"] == pytest.approx(statistics.median(values))
  assert summary["spread"] == pytest.approx(max(values) - min(values))


def test_the_gain_is_over_the_best_hand_written_prompt():
  """Not over what training has learned where its words were kept."""
  means = {
    "prompt": 0.5,
    "trained": 0.6,
    "hand_written": 0.3,
    "class_name": 0.4,
    "words": 0.2,
  }
  prompts = {name: {"top1": {"mean": mean}} for name, mean in means.items()}
  found = repeat.gain(prompts)
  assert found["best_hand_written"] == "class_name"
  assert found["gain"] == pytest.approx(0.1) and found["top1"] == {"mean": 0.5}


def score(top1, top5=0.9):
  return {"top1": top1, "top5": top5, "images": 200}


def test_each_split_and_prompt_that_all_seeds_have_is_summed_up():
  """Words were chosen under one seed alone."""
  first = {
    "novel": {"prompt": score(0.5, 0.8), "words": score(0.6)},
    "base": {"prompt": score(0.7)},
  }
  second = {"novel": {"prompt": score(0.4, 0.6)}, "base": {"prompt": score(0.9)}}
  found = repeat.of_seeds([{"eval": first}, {"eval": second}])
  assert {split: list(of) for split, of in found.items()} == dict.fromkeys(
    first, ["prompt"]
  )
  novel = found["novel"]["prompt"]
  assert novel["images"] == 200
  assert novel["top1"]["values"] == [0.5, 0.4] and novel["top5"]["values"] == [0.8, 0.6]
  assert novel["top1_interval"] == wilson_interval(novel["top1"]["mean"], 200)
  assert found["base"]["prompt"]["top1"]["mean"] == pytest.approx(0.8)


def test_bars_reach_from_the_low_to_the_high_end(tmp_path, drawn):
  """Of one run the interval over the images, dotted; of several the deviation over
  the seeds."""
  row = {"images": 30, "std": 0.02, "values": [0.9]}
  one = {"novel": row | {"mean": 0.9, "interval": [0.7, 0.95]}}
  one |= {"base": row | {"mean": 0.2, "interval": [0.1, 0.5]}}
  several = {
    "novel": row | {"mean": 0.6, "values": [0.58, 0.62], "interval": [0.3, 0.7]}
  }
  reports.method_dots(tmp_path / "plot.png", {"vpt_deep": one, "pomp": several})
  (figure,) = drawn
  novel, base = figure.axes
  expected = {novel: [(0, [70, 90, 95], ":"), (1, [58, 60, 62], "-")]}
  expected |= {base: [(0, [10, 20, 50], ":")]}
  for axes, rows in expected.items():
    for bars, (place, (low, mean, high), style) in zip(
      axes.containers, rows, strict=True
    ):
      dot, ends, (line,) = bars.lines
      assert dot.get_xydata().tolist() == [[pytest.approx(mean), place]]
      (segment,) = line.get_segments()
      np.testing.assert_allclose(segment, [[low, place], [high, place]])
      assert [end.get_xdata()[0] for end in ends] == pytest.approx([low, high])
      assert (
        line.get_linestyle()[0][1] is None
        if style == "-"
        else line.get_linestyle()[0][1]
      )
    labels = [text.get_text() for text in axes.texts]
    assert labels == [f"{mean:.1f}" for _, (_, mean, _), _ in rows]
  names = [tick.get_text() for tick in novel.get_yticklabels()]
  assert names == reports.method_labels(["vpt_deep", "pomp"])


@pytest.mark.parametrize(
  ("method", "seeds", "expected"),
  [("pomp", (3, 4), [3, 4]), ("pomp", (), [7]), ("zero_shot", (3, 4), [3])],
)
def test_each_seed_is_a_training_in_a_folder_of_its_own(method, seeds, expected):
  """One where the seed changes nothing, and the config's own without a list."""
  config = small_config(method=method, seed=7)
  found = repeat.runs_of_seeds(seeds, config.replace, "runs/x")
  assert {seed: folder for seed, (_, folder) in found.items()} == {
    seed: f"runs/x/seed_{seed}" for seed in expected
  }
  for seed, (training, _) in found.items():
    assert (training.seed, training.job) == (seed, "pretrain")


def test_the_report_of_seeds_has_each_figure():
  runs = [
    {
      "eval": {
        "base": {
          "prompt": score(base),
          "hand_written": score(0.5),
          "class_name": score(0.6),
        },
        "novel": {
          "prompt": score(novel),
          "hand_written": score(0.4),
          "class_name": score(0.1),
        },
      }
    }
    for base, novel in ((0.71, 0.52), (0.75, 0.58))
  ]
  results = {
    "method": "cocoop",
    "clip_model": "world",
    "steps": 24,
    "n_classes": 300,
    "k": 20,
  }
  results |= {
    "correction": "log",
    "eval_classes": {"base": 10, "novel": 1},
    "seeds": [3, 5],
  }
  results |= {"seconds": repeat.summary([12.34, 11.0]), "eval": repeat.of_seeds(runs)}
  results["gain"] = {
    split: repeat.gain(prompts) for split, prompts in results["eval"].items()
  }
  found = reports.seeds_report(results, {})
  tables = {
    section.title: section.table.rows for section in found.sections if section.table
  }
  heads = ["base, 200 images, 10 classes", "novel, 200 images, 1 class"]
  # The sample's deviation of two values is their distance by the square root of 2.
  assert tables["Top-1 accuracy (%)"] == [
    ["learned prompt", "73.0 ± 2.8", "55.0 ± 4.2"],
    ["hand-written prompt", "50.0", "40.0"],
    ["class name alone", "60.0", "10.0"],
  ]
  assert tables["Gain of the learned prompt"] == [
    [heads[0], "+13.0", "class name alone", "4.0"],
    [heads[1], "+15.0", "hand-written prompt", "6.0"],
  ]
  assert tables["Top-1 accuracy (%) of the learned prompt"] == [
    ["3", "71.0", "52.0"],
    ["5", "75.0", "58.0"],
  ]
  assert tables["Training"] == [
    ("method", "cocoop"),
    ("steps", "24"),
    ("k", "20"),
    ("correction", "log"),
    ("training of a seed (s)", "12.3, 11.0"),
  ]
  assert found.text == "CoCoOp on 2 seeds, 300 classes, CLIP world."
  one, *_ = found.sections
  assert list(one.table.columns) == ["prompt", *heads]


def test_repeat_sums_the_seeds_up(one_layer, tmp_path, monkeypatch):
  fields = {"repeat.seeds": (3, 4), "clip.model": one_layer}
  config, starts = small_config(job="repeat", steps=2, **fields), []
  repeat.check(config, str(tmp_path))

  def step(watch, number, metrics, real=loop.Watch.step):
    starts.append(number)
    if starts == [1, 2, 1]:
      os.kill(os.getpid(), signal.SIGTERM)
    real(watch, number, metrics)

  monkeypatch.setattr(loop.Watch, "step", step)
  with pytest.raises(Preempted, match="everything is saved at step 1 of 2"):
    repeat.run(config, str(tmp_path))
  assert not (tmp_path / "seed_4" / "results.json").exists()
  results = repeat.run(config, str(tmp_path))
  # What had finished, and the step that was saved, are not done again.
  assert starts == [1, 2, 1, 2]
  runs = [
    RunFolder(tmp_path / f"seed_{seed}").read_results()["eval"] for seed in (3, 4)
  ]
  values = [run["novel"]["prompt"]["top1"] for run in runs]
  novel = results["eval"]["novel"]
  summary, n_images = novel["prompt"]["top1"], novel["prompt"]["images"]
  assert summary["values"] == values
  shared = {
    "method": "pomp",
    "clip_model": one_layer,
    "steps": 2,
    "n_classes": 300,
    "k": 20,
  }
  shared |= {"correction": "log", "seeds": [3, 4], "job": "repeat"}
  assert results.items() >= shared.items()
  assert summary["mean"] == pytest.approx(np.mean(values))
  assert summary["std"] == pytest.approx(np.std(values, ddof=1))
  assert n_images == runs[0]["novel"]["prompt"]["images"]
  expected = wilson_interval(summary["mean"], n_images)
  assert novel["prompt"]["top1_interval"] == pytest.approx(expected)
  by_hand = max(
    novel[prompt]["top1"]["mean"] for prompt in ("hand_written", "class_name")
  )
  assert results["gain"]["novel"]["gain"] == pytest.approx(summary["mean"] - by_hand)
  best = results["gain"]["novel"]["best_hand_written"]
  assert best != "prompt" and novel[best]["top1"]["mean"] == by_hand
  page = Page((tmp_path / "report.html").read_text())
  place = 1 + list(results["eval"]).index("novel")
  means, gains, intervals, seeds = page.tables[:4]
  (low, high), t_interval = novel["prompt"]["top1_interval"], summary["t_interval"]
  assert means[1][place] == percents("{} ± {}", summary["mean"], summary["std"])
  assert gains[place][1] == f"{100 * (summary['mean'] - by_hand):+.1f}"
  expected = percents("images {} to {}; seeds {} to {}", low, high, *t_interval)
  assert intervals[1][place] == expected
  assert [row[place] for row in seeds[1:]] == [
    percents("{}", value) for value in values
  ]
  # A text is the same under all seeds.
  assert means[2][place] == percents("{}", novel["hand_written"]["top1"]["mean"])
  assert "seeds" not in intervals[2][place]
  for name in ("results.md", "results.tex"):
    assert percents("{}", by_hand) in (tmp_path / name).read_text()
  assert {"seed_3/report.html", "seed_4/report.html"} <= set(page.links)


def percents(text, *shares):
  return text.format(*(f"{100 * share:.1f}" for share in shares))
