"""Runs pretrain once per seed, each in a folder `seed_<s>`, and reports mean and
spread."""

from collections.abc import Callable, Mapping, Sequence
import logging
import os
from typing import Any

import numpy as np
import scipy.special

from pomp_jax import hosts
from pomp_jax.config import METHODS
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.evaluate.metrics import Accuracy, wilson_interval
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.baselines.fields import RepeatConfig
from pomp_jax.rooms.baselines.reports import method_dots, top1_of_prompts
from pomp_jax.train import pretrain

log = logging.getLogger(__name__)

# Maps values, by field, to the config with these values.
Replace = Callable[[Mapping[str, Any]], Any]
# Seed -> config and folder of its training.
Runs = dict[int, tuple[TrainingConfig, str]]
# Results that all seeds share.
_SHARED = (
  "method",
  "clip_model",
  "steps",
  "n_classes",
  "k",
  "correction",
  "eval_classes",
)


def check(config: RepeatConfig, workdir: str) -> None:
  """Checks each seed as the pretrain job does."""
  trainings = runs_of_seeds(config.repeat.seeds, config.replace, workdir)
  for training, folder in trainings.values():
    pretrain.check(training, folder)


def run(config: RepeatConfig, workdir: str) -> dict[str, Any]:
  """Runs the seeds that have not finished, and writes their mean and spread.

  Args:
    config: config of the job.
    workdir: folder of the job, with a folder for each seed.

  Returns:
    The content of `results.json`.
  """
  trainings = runs_of_seeds(config.repeat.seeds, config.replace, workdir)
  runs = []
  items = trainings.items()
  for seed, (training, folder) in steps_of(items, "seeds", "seeds", len(items)):
    log.info("seed %d of %s", seed, list(trainings))
    runs.append(pretrain.run(training, folder))

  results: dict[str, Any] = {"job": config.job, "seeds": list(config.repeat.seeds)}
  for field in _SHARED:
    results[field] = runs[0][field]
  results["seconds"] = summary([run["seconds"] for run in runs])
  results["eval"] = of_seeds(runs)
  results["gain"] = {}
  for split, prompts in results["eval"].items():
    results["gain"][split] = gain(prompts)
  if hosts.is_first():
    _write(RunFolder(workdir), config.to_dict(), results)
    _log_gains(results, n_seeds=len(runs))
  return results


def _write(
  folder: RunFolder, config: Mapping[str, Any], results: dict[str, Any]
) -> None:
  """Writes the job's files.

  Args:
    folder: folder of the job, which is created.
    config: all fields of the job's config, as JSON.
    results: content of `results.json`.
  """
  folder.create()
  with writing(folder.plots):
    method_dots(folder.plots / "accuracy.png", top1_of_prompts(results))
  finish_run(folder, config, results)


def _log_gains(results: Mapping[str, Any], n_seeds: int) -> None:
  """Logs the accuracy on each split, and the gain over the best hand-written prompt."""
  for split, split_gain in results["gain"].items():
    top1 = split_gain["top1"]
    log.info(
      "%s: top-1 %.2f%% +- %.2f over %d seeds on %d images, %+.2f points beside the best"
      " hand-written prompt (%s), spread %.2f",
      split,
      100 * top1["mean"],
      100 * top1["std"],
      n_seeds,
      results["eval"][split]["prompt"]["images"],
      100 * split_gain["gain"],
      split_gain["best_hand_written"],
      100 * top1["spread"],
    )


def runs_of_seeds(seeds: Sequence[int], replace: Replace, workdir: str) -> Runs:
  """Makes a training for each seed; only the first if seeds do not change the result.

  Args:
    seeds: seeds; empty: the seed of the config.
    replace: copies the config of the trainings with other values.
    workdir: folder that gets a folder for each seed.
  """
  training = replace({"job": "pretrain"})
  seeds = tuple(seeds) or (training.seed,)
  if not METHODS[training.method].seeded:
    seeds = seeds[:1]
  runs = {}
  for seed in seeds:
    folder = os.path.join(workdir, f"seed_{seed}")
    runs[seed] = (training.replace({"seed": seed}), folder)
  return runs


def summary(values: list[float]) -> dict:
  """Summarises a figure that has one value a seed.

  `std` is the sample standard deviation, 0 for one seed. `t_interval` is Student's 95%
  interval of the mean over seeds, None for one seed. `spread` is the highest value less
  the lowest.
  """
  n_seeds = len(values)
  mean = float(np.mean(values))
  std = 0.0
  t_interval = None
  if n_seeds > 1:
    std = float(np.std(values, ddof=1))
    quantile = float(scipy.special.stdtrit(n_seeds - 1, 0.975))
    reach = quantile * std / n_seeds**0.5
    t_interval = [mean - reach, mean + reach]
  return {
    "mean": mean,
    "median": float(np.median(values)),
    "std": std,
    "t_interval": t_interval,
    "spread": float(np.ptp(values)),
    "values": list(values),
  }


def gain(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Compares the learned prompt with the best hand-written one.

  `prompts` has the summaries by prompt. Besides the learned "prompt", "trained" is not
  hand-written: the context that training learned in a run that kept words instead.
  """
  mean_of = {}
  for name, scores in prompts.items():
    if name not in ("prompt", "trained"):
      mean_of[name] = scores["top1"]["mean"]
  best = max(mean_of, key=mean_of.__getitem__)
  learned = prompts["prompt"]["top1"]
  return {
    "top1": learned,
    "best_hand_written": best,
    "gain": learned["mean"] - mean_of[best],
  }


def of_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Summarises each split and prompt over the results of several seeds.

  The images are the same for all seeds. `top1_interval` covers the choice of the
  images, `top1["t_interval"]` the spread over the seeds. Prompts that a seed lacks are
  left out.
  """
  summaries: dict[str, dict[str, Any]] = {}
  for split, scores_of_first in runs[0]["eval"].items():
    summaries[split] = {}
    for prompt in scores_of_first:
      scores = []
      for run in runs:
        if prompt in run["eval"][split]:
          scores.append(run["eval"][split][prompt])
      if len(scores) == len(runs):
        summaries[split][prompt] = _summary_of_scores(scores)
  return summaries


def _summary_of_scores(scores: Sequence[Accuracy]) -> dict[str, Any]:
  """Summarises a prompt's accuracies, one a seed."""
  n_images = scores[0]["images"]
  top1 = summary([accuracy["top1"] for accuracy in scores])
  return {
    "images": n_images,
    "top1": top1,
    "top5": summary([accuracy["top5"] for accuracy in scores]),
    "top1_interval": wilson_interval(top1["mean"], n_images),
  }
