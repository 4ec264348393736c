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

# From field -> value to the config with these values.
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
  for one in runs_of_seeds(config.repeat.seeds, config.replace, workdir).values():
    pretrain.check(*one)


def run(config: RepeatConfig, workdir: str) -> dict:
  """Runs the seeds that have not finished, and returns the contents of
  `results.json`."""
  runs, trainings = [], runs_of_seeds(config.repeat.seeds, config.replace, workdir)
  for seed, one in steps_of(trainings.items(), "seeds", "seeds", len(trainings)):
    log.info("seed %d of %s", seed, list(trainings))
    runs.append(pretrain.run(*one))
  results = {
    "job": config.job,
    "seeds": list(config.repeat.seeds),
    **{field: runs[0][field] for field in _SHARED},
    "seconds": summary([run["seconds"] for run in runs]),
    "eval": of_seeds(runs),
  }
  results["gain"] = {split: gain(prompts) for split, prompts in results["eval"].items()}
  if not hosts.is_first():
    return results
  folder = RunFolder(workdir)
  folder.create()
  with writing(folder.plots):
    method_dots(folder.plots / "accuracy.png", top1_of_prompts(results))
  finish_run(folder, config.to_dict(), results)
  for split, of_split in results["gain"].items():
    log.info(
      "%s: top-1 %.2f%% +- %.2f over %d seeds on %d images, %+.2f points beside the best"
      " hand-written prompt (%s), spread %.2f",
      split,
      100 * of_split["top1"]["mean"],
      100 * of_split["top1"]["std"],
      len(runs),
      results["eval"][split]["prompt"]["images"],
      100 * of_split["gain"],
      of_split["best_hand_written"],
      100 * of_split["top1"]["spread"],
    )
  return results


def runs_of_seeds(seeds: Sequence[int], replace: Replace, workdir: str) -> Runs:
  """The trainings with these seeds; with one where the seed does not change the result.

  `replace` is that of a config, which has all other fields; without seeds its own
  counts.
  """
  training = replace({"job": "pretrain"})
  seeds = tuple(seeds) or (training.seed,)
  return {
    seed: (training.replace({"seed": seed}), os.path.join(workdir, f"seed_{seed}"))
    for seed in (seeds if METHODS[training.method].seeded else seeds[:1])
  }


def summary(values: list[float]) -> dict:
  """Figures of one value a seed.

  `std` is the sample standard deviation, 0 for one seed; `t_interval` Student's 95%
  interval of the mean over seeds, None for one seed; `spread` the highest value less
  the lowest.
  """
  n, mean = len(values), float(np.mean(values))
  std = float(np.std(values, ddof=1)) if n > 1 else 0.0
  reach = float(scipy.special.stdtrit(n - 1, 0.975)) * std / n**0.5 if n > 1 else None
  return {
    "mean": mean,
    "median": float(np.median(values)),
    "std": std,
    "t_interval": None if reach is None else [mean - reach, mean + reach],
    "spread": float(np.ptp(values)),
    "values": list(values),
  }


def gain(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """How much more the learned prompt has than the best hand-written one, of summaries
  by prompt.

  What training has learned where words were kept ("trained") is not hand-written
  either.
  """
  means = {
    name: scores["top1"]["mean"]
    for name, scores in prompts.items()
    if name != "trained"
  }
  learned = means.pop("prompt")
  best = max(means, key=means.__getitem__)
  return {
    "top1": prompts["prompt"]["top1"],
    "best_hand_written": best,
    "gain": learned - means[best],
  }


def of_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Summaries of each split and prompt over the results of several seeds on the same
  images.

  `top1_interval` covers the choice of the images, `top1["t_interval"]` the spread over
  the seeds. Prompts are those that all seeds have.
  """

  def of(scores: list[Accuracy]) -> dict[str, Any]:
    top1, top5 = (
      summary([one[metric] for one in scores]) for metric in ("top1", "top5")
    )
    images = scores[0]["images"]
    interval = wilson_interval(top1["mean"], images)
    return {"images": images, "top1": top1, "top5": top5, "top1_interval": interval}

  summaries: dict[str, dict[str, Any]] = {}
  for split, scores_of_first in runs[0]["eval"].items():
    summaries[split] = {}
    for prompt in scores_of_first:
      scores = [
        run["eval"][split][prompt] for run in runs if prompt in run["eval"][split]
      ]
      if len(scores) == len(runs):
        summaries[split][prompt] = of(scores)
  return summaries
