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
from pomp_jax.rooms.baselines import repeat
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
  means = {"prompt": 0.5, "trained": 0.6, "hand_written": 0.3, "class_name": 0.4, "words": 0.2}
  prompts = {name: {"top1": {"mean": mean}} for name, mean in means.items()}
  found = repeat.gain(prompts)
  assert found["best_hand_written"] == "class_name"
  assert found["gain"] == pytest.approx(0.1) and found["top1"] == {"mean": 0.5}


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
  runs = [RunFolder(tmp_path / f"seed_{seed}").read_results()["eval"] for seed in (3, 4)]
  values = [run["novel"]["prompt"]["top1"] for run in runs]
  novel = results["eval"]["novel"]
  summary, n_images = novel["prompt"]["top1"], novel["prompt"]["images"]
  assert summary["values"] == values
  assert summary["mean"] == pytest.approx(np.mean(values))
  assert summary["std"] == pytest.approx(np.std(values, ddof=1))
  assert n_images == runs[0]["novel"]["prompt"]["images"]
  expected = wilson_interval(summary["mean"], n_images)
  assert novel["prompt"]["top1_interval"] == pytest.approx(expected)
  by_hand = max(novel[prompt]["top1"]["mean"] for prompt in ("hand_written", "class_name"))
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
  assert [row[place] for row in seeds[1:]] == [percents("{}", value) for value in values]
  # A text is the same under all seeds.
  assert means[2][place] == percents("{}", novel["hand_written"]["top1"]["mean"])
  assert "seeds" not in intervals[2][place]
  for name in ("results.md", "results.tex"):
    assert percents("{}", by_hand) in (tmp_path / name).read_text()
  assert {"seed_3/report.html", "seed_4/report.html"} <= set(page.links)


def percents(text, *shares):
  return text.format(*(f"{100 * share:.1f}" for share in shares))
