"""Reports that compare methods or seeds, and a plot of their accuracies."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.axes import Axes
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
_TEXTS = ("hand_written", "class_name")  # prompts that do not depend on the seed


def baselines_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Reports methods side by side: accuracy, cost, intervals, failures."""
  methods = results["methods"]
  labels = dict(zip(methods, method_labels(list(methods)), strict=True))
  top1 = {labels[name]: row["top1"] for name, row in methods.items()}
  columns = _split_columns(top1)
  accuracy = []
  for name, row in methods.items():
    means = [_mean(row["top1"].get(split)) for split in columns]
    seconds = f"{row['seconds']['median']:.1f}"
    peak = cell(row["peak_mib"])
    accuracy.append([labels[name], str(row["n_runs"]), *means, seconds, peak])
  settings = []
  for label, values in results["settings"]:
    assignments = [f"{field}={value}" for field, value in values.items()]
    settings.append((label, ", ".join(assignments)))
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
  n_seeds = max((row["n_runs"] for row in methods.values()), default=0)
  title = counted(len(methods), "method")
  text = (
    f"{title}, {counted(n_seeds, 'seed')} each;"
    " one run where the seed does not change the result."
  )
  return Report(f"{title} side by side", text, sections)


def top1_of_prompts(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
  """Joins the figures of each prompt's top-1: prompt -> split -> figures.

  The figures are the summary over the seeds, the numbers of images and classes, and the
  interval over the images. A prompt that does not depend on the seed has one value, and
  no interval over seeds. `results` has `eval`, from `repeat.of_seeds`, and
  `eval_classes`.
  """
  top1: dict[str, dict[str, Any]] = {}
  for split, prompts in results["eval"].items():
    for name, scores in prompts.items():
      figures = {
        **scores["top1"],
        "images": scores["images"],
        "classes": results["eval_classes"][split],
        "interval": scores["top1_interval"],
      }
      if name in _TEXTS:
        figures["values"] = figures["values"][:1]
        figures["t_interval"] = None
      top1.setdefault(name, {})[split] = figures
  return top1


def seeds_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Reports the job `repeat`: mean and spread of each prompt, gain, and every seed."""
  gains = results["gain"]
  seeds = results["seeds"]
  top1 = {}
  for prompt, splits in top1_of_prompts(results).items():
    top1[method_label(prompt)] = splits
  columns = _split_columns(top1)
  means = []
  for label, splits in top1.items():
    means.append([label, *(_mean(splits.get(split)) for split in columns)])
  gain_rows = []
  for split, gain in gains.items():
    points = f"{100 * gain['gain']:+.1f}"
    over = method_label(gain["best_hand_written"])
    spread = f"{100 * gain['top1']['spread']:.1f}"
    gain_rows.append([columns[split], points, over, spread])
  runs = []
  for row, seed in enumerate(seeds):
    values = [percent(gain["top1"]["values"][row]) for gain in gains.values()]
    runs.append([str(seed), *values])
  seconds = [f"{value:.1f}" for value in results["seconds"]["values"]]
  training = {name: results[name] for name in ("method", "steps", "k", "correction")}
  training["training of a seed (s)"] = ", ".join(seconds)
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
        ("split", "gain (points)", "over", "best seed less worst (points)"), gain_rows
      ),
      brief=True,
    ),
    _intervals_section("prompt", top1, columns),
    Section(
      "Top-1 accuracy (%) of the learned prompt",
      table=Table(("seed", *(columns[split] for split in gains)), runs),
      links={f"report of seed {seed}": f"seed_{seed}/report.html" for seed in seeds},
    ),
    Section("Training", table=facts(training)),
  ]
  counts = f"{counted(len(seeds), 'seed')}, {counted(results['n_classes'], 'class')}"
  text = f"{method_label(results['method'])} on {counts}, CLIP {results['clip_model']}."
  return Report(f"Training: {counts}", text, sections)


def method_labels(names: Sequence[str]) -> list[str]:
  """Returns `method_label` of each name, or the names if two labels would be equal."""
  labels = [method_label(name) for name in names]
  if len(set(labels)) < len(set(names)):
    return list(names)
  return labels


def _split_columns(
  top1: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, str]:
  """Heading of each split that a row has, with the numbers of images and classes."""
  figures_of: dict[str, Mapping[str, Any]] = {}
  for splits in top1.values():
    # The numbers are equal for all methods: keep those that are already there.
    figures_of = {**splits, **figures_of}
  return {
    split: with_counts(split, figures["images"], figures.get("classes"))
    for split, figures in figures_of.items()
  }


def _intervals_section(
  corner: str,
  top1: Mapping[str, Mapping[str, Mapping[str, Any]]],
  columns: Mapping[str, str],
) -> Section:
  rows = []
  for name, splits in top1.items():
    rows.append([name, *(_intervals(splits.get(split)) for split in columns)])
  text = "Over the images: Wilson's, of the mean. Over the seeds: Student's, of several runs."
  table = Table((corner, *columns.values()), rows)
  return Section("95% intervals (%)", text, table, brief=True)


def _mean(figures: Mapping[str, Any] | None) -> str:
  """Mean over the seeds, with the standard deviation if there are several."""
  if figures is None:
    return cell(None)
  mean = percent(figures["mean"])
  if len(figures["values"]) == 1:
    return mean
  return f"{mean} ± {100 * figures['std']:.1f}"


def _intervals(figures: Mapping[str, Any] | None) -> str:
  """The intervals over images and over seeds, in percent; missing ones are left out."""
  if figures is None:
    return cell(None)
  intervals = {"images": figures["interval"], "seeds": figures.get("t_interval")}
  parts = []
  for kind, interval in intervals.items():
    if interval:
      low, high = interval
      parts.append(f"{kind} {100 * low:.1f} to {100 * high:.1f}")
  return "; ".join(parts)


def method_dots(
  path: str | os.PathLike, top1: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots top-1 of each method, a panel a split: mean and deviation over the seeds.

  A method with one run has a dotted bar, the 95% interval over the images, instead of
  the deviation. `top1[method][split]` has the fractions `mean`, `std`, `values` (one a
  seed) and `interval`, the number of `images`, and perhaps that of `classes`. A method
  may lack splits.
  """
  methods = list(top1)
  figures_of_splits: dict[str, dict[int, Mapping[str, Any]]] = {}
  for row, method in enumerate(methods):
    for split, figures in top1[method].items():
      figures_of_splits.setdefault(split, {})[row] = figures
  figure, panels = drawing.panels(
    len(figures_of_splits), 3.3, 1.0 + 0.24 * len(methods), _dots_title(top1)
  )
  for axes, (split, figures_of_rows) in zip(
    panels, figures_of_splits.items(), strict=True
  ):
    for row, figures in figures_of_rows.items():
      _draw_dot(axes, row, figures)
    axes.set_yticks(np.arange(len(methods)), [])
    axes.set_ylim(len(methods) - 0.4, -0.8)
    axes.margins(x=0.12)
    drawing.end_at(axes, "x", 0.0, 100.0)
    # All methods have the same numbers of images and classes: read the first method's.
    figures = next(iter(figures_of_rows.values()))
    heading = with_counts(
      drawing.name(split, 22), figures["images"], figures.get("classes")
    )
    drawing.label_panel(axes, heading, grid="both")
  panels[0].set_yticklabels(drawing.names(method_labels(methods)))
  drawing.save(path, figure)


def _dots_title(top1: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
  """Title of `method_dots`, which says what the bars are."""
  n_seeds = [
    len(figures["values"]) for splits in top1.values() for figures in splits.values()
  ]
  title = f"Top-1 accuracy (%), {counted(max(n_seeds), 'seed')}"
  if max(n_seeds) > 1:
    title += "\nbars: standard deviation over the seeds"
  if min(n_seeds) == 1:
    title += "\ndotted: 95% interval of one run"
  return title


def _draw_dot(axes: Axes, row: int, figures: Mapping[str, Any]) -> None:
  """Draws a method's mean with its bar and its number."""
  mean = 100 * figures["mean"]
  reach: Any  # length of the bar, or [[below], [above]] the mean
  if len(figures["values"]) > 1:
    reach = 100 * figures["std"]
  else:
    low, high = figures["interval"]
    reach = [[mean - 100 * low], [100 * high - mean]]
  bar = drawing.error_bars(axes, mean, row, row, xerr=reach, markersize=6)
  if len(figures["values"]) == 1:
    # The third item of Matplotlib's container holds the bars.
    bar.lines[2][0].set_linestyle(":")
  axes.annotate(
    f"{mean:.1f}",
    (mean, row),
    (0, 5),
    fontsize=7,
    textcoords="offset points",
    ha="center",
    path_effects=drawing.outline(),
  )
