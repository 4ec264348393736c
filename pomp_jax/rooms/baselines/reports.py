"""Reports of methods and of seeds side by side, and their plot."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted, method_label, with_counts
from pomp_jax.report.report import (
  Report,
  Section,
  Table,
  cell,
  facts,
  failures,
  percent,
)

_SEEDS = "Mean ± sample standard deviation over the seeds."
_TEXTS = ("hand_written", "class_name")  # prompts that no seed changes


def baselines_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of methods side by side: accuracy, cost, intervals, failures."""
  methods = results["methods"]
  labels = dict(zip(methods, method_labels(list(methods)), strict=True))
  top1 = {labels[name]: row["top1"] for name, row in methods.items()}
  columns = _split_columns(top1)
  accuracy = []
  for name, row in methods.items():
    cost = [f"{row['seconds']['median']:.1f}", cell(row["peak_mib"])]
    means = [_mean(row["top1"].get(split)) for split in columns]
    accuracy.append([labels[name], str(row["n_runs"]), *means, *cost])
  settings = [
    (label, ", ".join(f"{field}={value}" for field, value in values.items()))
    for label, values in results["settings"]
  ]
  text = f"{_SEEDS} Seconds are the median of a run's training; the peak is that of its process."
  heads = ("method", "seeds", *columns.values(), "training (s)", "peak (MiB)")
  sections = [
    Section(
      "Top-1 accuracy (%) and cost of a run", text, Table(heads, accuracy), brief=True
    ),
    Section("Accuracy of each method", picture="accuracy.png"),
    _intervals_section("method", top1, columns),
    failures("Failed methods", "method", list(results["failed"].items())),
    Section("Settings", table=Table(("method", "fields"), settings)),
  ]
  seeds = max((row["n_runs"] for row in methods.values()), default=0)
  title = counted(len(methods), "method")
  text = (
    f"{title}, {counted(seeds, 'seed')} each;"
    " one run where the seed does not change the result."
  )
  return Report(f"{title} side by side", text, sections)


def top1_of_prompts(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
  """Prompt -> split -> summary of top-1 over the seeds, images, classes, interval over
  the images.

  A text has one value, without a spread. `results` has `eval` of `repeat.of_seeds`, and
  `eval_classes`.
  """
  top1: dict[str, dict[str, Any]] = {}
  for split, prompts in results["eval"].items():
    for name, of_split in prompts.items():
      sizes = {"images": of_split["images"], "classes": results["eval_classes"][split]}
      found = of_split["top1"] | sizes | {"interval": of_split["top1_interval"]}
      if name in _TEXTS:
        found |= {"values": found["values"][:1], "t_interval": None}
      top1.setdefault(name, {})[split] = found
  return top1


def seeds_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `repeat`: mean and spread of each prompt, gain, and every
  seed."""
  gains, seeds = results["gain"], results["seeds"]
  top1 = {method_label(prompt): of for prompt, of in top1_of_prompts(results).items()}
  columns = _split_columns(top1)
  means = [
    [label, *(_mean(of.get(split)) for split in columns)] for label, of in top1.items()
  ]
  gained = []
  for split, gain in gains.items():
    over, spread = (
      method_label(gain["best_hand_written"]),
      f"{100 * gain['top1']['spread']:.1f}",
    )
    gained.append([columns[split], f"{100 * gain['gain']:+.1f}", over, spread])
  runs = [
    [str(seed), *(percent(gain["top1"]["values"][row]) for gain in gains.values())]
    for row, seed in enumerate(seeds)
  ]
  seconds = ", ".join(map("{:.1f}".format, results["seconds"]["values"]))
  training = {name: results[name] for name in ("method", "steps", "k", "correction")}
  sections = [
    Section(
      "Top-1 accuracy (%)",
      _SEEDS,
      Table(("prompt", *columns.values()), means),
      brief=True,
    ),
    Section("Accuracy", picture="accuracy.png"),
    Section(
      "Gain of the learned prompt",
      "Mean of the learned prompt less that of the best hand-written one.",
      Table(
        ("split", "gain (points)", "over", "best seed less worst (points)"), gained
      ),
      brief=True,
    ),
    _intervals_section("prompt", top1, columns),
    Section(
      "Top-1 accuracy (%) of the learned prompt",
      table=Table(("seed", *(columns[split] for split in gains)), runs),
      links={f"report of seed {seed}": f"seed_{seed}/report.html" for seed in seeds},
    ),
    Section("Training", table=facts(training | {"training of a seed (s)": seconds})),
  ]
  counts = f"{counted(len(seeds), 'seed')}, {counted(results['n_classes'], 'class')}"
  text = f"{method_label(results['method'])} on {counts}, CLIP {results['clip_model']}."
  return Report(f"Training: {counts}", text, sections)


def method_labels(names: Sequence[str]) -> list[str]:
  """Returns `method_label` of each, or the names themselves if two would become
  equal."""
  labels = list(map(method_label, names))
  return labels if len(set(labels)) == len(set(names)) else list(names)


def _split_columns(
  top1: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, str]:
  """Heading of each split that a method or prompt has, with numbers of images and
  classes."""
  splits: dict[str, Mapping[str, Any]] = {}
  for of_splits in top1.values():
    splits = {**of_splits, **splits}
  return {
    name: with_counts(name, found["images"], found.get("classes"))
    for name, found in splits.items()
  }


def _intervals_section(
  corner: str,
  top1: Mapping[str, Mapping[str, Mapping[str, Any]]],
  columns: Mapping[str, str],
) -> Section:
  rows = [
    [name, *(_intervals(of.get(split)) for split in columns)]
    for name, of in top1.items()
  ]
  text = "Over the images: Wilson's, of the mean. Over the seeds: Student's, of several runs."
  table = Table((corner, *columns.values()), rows)
  return Section("95% intervals (%)", text, table, brief=True)


def _mean(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return cell(None)
  spread = f" ± {100 * found['std']:.1f}" if len(found["values"]) > 1 else ""
  return percent(found["mean"]) + spread


def _intervals(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return cell(None)
  kinds = {"images": found["interval"], "seeds": found.get("t_interval")}
  parts = [
    f"{kind} {100 * e[0]:.1f} to {100 * e[1]:.1f}" for kind, e in kinds.items() if e
  ]
  return "; ".join(parts)


def method_dots(
  path: str | os.PathLike, top1: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots top-1 of each method, a panel a split: mean and standard deviation over the
  seeds.

  A method with one run has the 95% interval over the images instead, dotted.
  `top1[method][split]` has `mean`, `std`, `values` (one a seed) and `interval`,
  fractions, `images` and perhaps `classes`; a method may lack splits.
  """
  methods = list(top1)
  splits = list(dict.fromkeys(split for found in top1.values() for split in found))
  counts = [len(found["values"]) for of in top1.values() for found in of.values()]
  title = f"Top-1 accuracy (%), {counted(max(counts), 'seed')}"
  title += "\nbars: standard deviation over the seeds" if max(counts) > 1 else ""
  title += "\ndotted: 95% interval of one run" if min(counts) == 1 else ""
  figure, axes_of = drawing.panels(len(splits), 3.3, 1.0 + 0.24 * len(methods), title)
  for axes, split in zip(axes_of, splits, strict=True):
    own = {
      number: top1[name][split]
      for number, name in enumerate(methods)
      if split in top1[name]
    }
    for number, found in own.items():
      mean, low, high = (100 * value for value in (found["mean"], *found["interval"]))
      several = len(found["values"]) > 1
      reach = 100 * found["std"] if several else [[mean - low], [high - mean]]
      drawn = drawing.error_bars(axes, mean, number, number, xerr=reach, markersize=6)
      if not several:
        drawn.lines[2][0].set_linestyle(":")
      place: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
      place["path_effects"] = drawing.outline()
      axes.annotate(f"{mean:.1f}", (mean, number), (0, 5), fontsize=7, **place)
    axes.set_yticks(np.arange(len(methods)), [])
    axes.set_ylim(len(methods) - 0.4, -0.8)
    axes.margins(x=0.12)
    drawing.end_at(axes, "x", 0.0, 100.0)
    one = next(iter(own.values()))
    heading = with_counts(drawing.name(split, 22), one["images"], one.get("classes"))
    drawing.label_panel(axes, heading, grid="both")
  axes_of[0].set_yticklabels(drawing.names(method_labels(methods)))
  drawing.save(path, figure)
