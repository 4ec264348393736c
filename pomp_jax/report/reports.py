"""Reports of trainings, of methods and seeds side by side, and of class features."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pomp_jax.report.class_tables import class_sections
from pomp_jax.report.evaluation_report import remarks
from pomp_jax.report.labels import counted, method_label, method_labels, with_counts
from pomp_jax.report.report import (
  INTERVAL,
  Report,
  Section,
  Table,
  cell,
  facts,
  percent,
  pictures,
  prompts_section,
  short_labels,
)

_SEEDS = "Mean ± sample standard deviation over the seeds."
_MOST_ROWS = 200  # of files or figures without a limit of their own


def training_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of a training: its accuracy beside hand-written prompts, its course, its predictions."""
  method, splits = method_label(results["method"]), results["eval"]
  images, classes = results["eval_images"], results["eval_classes"]
  columns = [with_counts(name, images[name], classes[name]) for name in splits]
  rows = []
  for name in dict.fromkeys(name for scores in splits.values() for name in scores):
    found = [scores.get(name, {}) for scores in splits.values()]
    shown = [percent(one.get("top1"), one.get("top1_interval")) for one in found]
    rows.append([method_label(name), *shown])
  remark = remarks("train" if name.split("/")[0] == "train" else "test" for name in splits)
  marks = ["best"] + [""] * (len(rows) - 1)  # the learned prompt
  skipped = results.get("unreadable", {}).items()
  unreadable = [(split, file) for split, files in skipped for file in files]
  summaries = {name: one for name, one in results.get("by_class", {}).items() if one}
  training = {
    "method": method,
    "classes of the training": f"{results['n_classes']:,}",
    "K, classes of a step": results.get("k"),
    "correction": results.get("correction"),
    "steps": results.get("steps"),
    "training (s)": results["seconds"],
    "images a second": results.get("images_per_second"),
    "evaluation (s)": results["eval_seconds"],
    "roll-backs": results.get("roll_backs"),
    "unreadable images": results.get("unreadable_images"),
    **{f"found: {name}": value for name, value in results.get("found", {}).items()},
    "not evaluated (other classes)": ", ".join(results.get("not_evaluated", ())),
  }
  table = Table(("prompt", *columns), rows, marks)
  sections = [
    Section("Top-1 accuracy (%)", " ".join((INTERVAL, *remark)), table),
    *_differences(splits),
    *pictures({"accuracy.png": "Accuracy", "training.png": "Course of the training"}),
    Section("Training", table=facts(training)),
    *pictures({"predictions.png": "Test images and the most probable classes"}),
    *class_sections(summaries, {"prompt": method_label("prompt")}),
  ]
  if unreadable:
    table = Table(("split", "image"), unreadable)
    sections.append(Section("Images that can't be read", table=table))
  title = f"{method} on {counted(results['n_classes'], 'class')}"
  text = (
    f"{title}, CLIP {results['clip_model']}, seed {results['seed']}. One run: the intervals say"
    " nothing of other seeds."
  )
  return Report(f"Training: {title}", text, sections)


def _differences(splits: Mapping[str, Mapping[str, Any]]) -> list[Section]:
  """Differences of each prompt to the hand-written one, where the job has computed them."""
  rows = []
  for name, scores in splits.items():
    for label, one in scores.items():
      if found := one.get("difference"):
        points, low, high = (100 * value for value in (found["top1"], *found["interval"]))
        shown = f"{points:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([name, method_label(label), shown, f"{found['p_value']:.2g}"])
  text = "On the same images, in points. In brackets: 95% interval. p: McNemar's exact test."
  table = Table(("split", "prompt", "difference", "p"), rows)
  return [Section("Difference to the hand-written prompt", text, table)] if rows else []


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
    Section("Top-1 accuracy (%) and cost of a run", text, Table(heads, accuracy), brief=True),
    *pictures({"accuracy.png": "Accuracy of each method"}),
    _intervals_section("method", top1, columns),
    failures("Failed methods", "method", list(results["failed"].items())),
    Section("Settings", table=Table(("method", "fields"), settings)),
  ]
  seeds = max((row["n_runs"] for row in methods.values()), default=0)
  title = counted(len(methods), "method")
  text = (
    f"{title}, {counted(seeds, 'seed')} each; one run where the seed does not change the result."
  )
  return Report(f"{title} side by side", text, sections)


def failures(title: str, corner: str, rows: Sequence[Sequence[str]]) -> Section:
  """A section with the errors of what has failed."""
  table = Table((corner, "error"), rows, ["failed"] * len(rows))
  return Section(title, table=table) if rows else Section(title, "None.")


def seeds_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `repeat`: mean and spread of each prompt, gain, and every seed."""
  gains, seeds = results["gain"], results["seeds"]
  top1: dict[str, dict[str, Any]] = {}
  for split, prompts in results["eval"].items():
    for name, of_split in prompts.items():
      counts = {"images": of_split["images"], "classes": results["eval_classes"][split]}
      found = of_split["top1"] | counts | {"interval": of_split["top1_interval"]}
      top1.setdefault(method_label(name), {})[split] = found
  columns = _split_columns(top1)
  means = [[label, *(_mean(of.get(split)) for split in columns)] for label, of in top1.items()]
  gained = []
  for split, gain in gains.items():
    over, spread = method_label(gain["best_hand_written"]), f"{100 * gain['top1']['spread']:.1f}"
    gained.append([columns[split], f"{100 * gain['gain']:+.1f}", over, spread])
  runs = [
    [str(seed), *(percent(gain["top1"]["values"][row]) for gain in gains.values())]
    for row, seed in enumerate(seeds)
  ]
  seconds = ", ".join(map("{:.1f}".format, results["seconds"]["values"]))
  training = {name: results[name] for name in ("method", "steps", "k", "correction")}
  sections = [
    Section("Top-1 accuracy (%)", _SEEDS, Table(("prompt", *columns.values()), means)),
    *pictures({"accuracy.png": "Accuracy"}),
    Section(
      "Gain of the learned prompt",
      "Mean of the learned prompt less that of the best hand-written one.",
      Table(("split", "gain (points)", "over", "best seed less worst (points)"), gained),
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


def _split_columns(top1: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, str]:
  """Heading of each split that a method or prompt has, with numbers of images and classes."""
  splits: dict[str, Mapping[str, Any]] = {}
  for of_splits in top1.values():
    splits = {**of_splits, **splits}
  return {
    name: with_counts(name, found["images"], found.get("classes")) for name, found in splits.items()
  }


def _intervals_section(
  corner: str, top1: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Mapping[str, str]
) -> Section:
  rows = [[name, *(_intervals(of.get(split)) for split in columns)] for name, of in top1.items()]
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
  parts = [f"{kind} {100 * e[0]:.1f} to {100 * e[1]:.1f}" for kind, e in kinds.items() if e]
  return "; ".join(parts)


def geometry_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `analyse`: figures, maps and similarities of each set, nearest tokens."""
  labels, sets = short_labels(results["prompts"]), results["sets"]
  counts = [(name, f"{of['images']:,}", f"{of['classes']:,}") for name, of in sets.items()]
  sections = [
    prompts_section(results["prompts"], labels),
    Section("Data sets", table=Table(("set", "images", "classes"), counts)),
    *pictures({"alignment_uniformity.png": "Alignment and uniformity"}),
  ]
  for title, text, shown in (
    ("Alignment (lower is better)", "", lambda of: cell(of["alignment"], 3)),
    ("Uniformity (lower is better)", "", lambda of: cell(of["uniformity"], 3)),
    ("Top-1 accuracy (%)", INTERVAL, lambda of: percent(of["top1"], of.get("top1_interval"))),
  ):
    rows = [
      [short, *(shown(of_set["prompts"][label]) for of_set in sets.values())]
      for label, short in labels.items()
    ]
    sections.append(Section(title, text, Table(("prompt", *sets), rows), brief=True))
  for name in sets:
    file = name.replace("/", "-")
    sections += pictures({f"map_{file}.png": f"Class features of {name}"})
    sections += pictures({f"similarity_{file}.png": f"Cosines of classes of {name}"})
  text = (
    "Euclidean distances; half of the vocabulary's tokens have another within"
    f" {results['tokens']['median_distance_between_tokens']:.3f}."
  )
  for label, vectors in results["tokens"]["vectors"].items():
    rows = []
    for number, one in enumerate(vectors, 1):
      near = zip(one["tokens"], one["distances"], strict=True)
      rows.append([str(number), *(f"{token} {distance:.3f}" for token, distance in near)])
    table = Table(("vector", *(f"token {i}" for i in range(1, len(rows[0])))), rows)
    sections.append(Section(f"Nearest tokens: {labels[label]}", text, table, brief=True))
  prompts = counted(len(labels), "prompt")
  text = f"{prompts} on {counted(len(sets), 'data set')}, CLIP {results['clip_model']}."
  return Report(f"Class features under {prompts}", text, sections)


def predictions_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Names that `predict` has found in pictures, with a probability, share of pixels or score."""
  images = results["images"]
  weight = lambda one: next(one[key] for key in ("share", "score", "probability") if key in one)
  rows = [
    [file, ", ".join(f"{one['name']} {100 * weight(one):.1f}%" for one in found)]
    for file, found in list(images.items())[:_MOST_ROWS]
  ]
  title = f"Predictions{_first_of(len(images))}"
  text = f"{counted(len(images), 'picture')}."
  return Report(title, text, [Section(title, table=Table(("file", "names"), rows))])


def figures_report(results: Mapping[str, Any]) -> Report:
  """Numbers and short texts of any results, by dotted names."""
  rows = list(_figures(results))
  section = Section(f"All figures{_first_of(len(rows))}", table=Table((), rows[:_MOST_ROWS]))
  return Report(str(results.get("job")), "", [section] if rows else [])


def _first_of(n: int) -> str:
  return f", the first {_MOST_ROWS} of {n:,}" if n > _MOST_ROWS else ""


def _figures(value: Any, name: str = "") -> Iterator[list[str]]:
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from _figures(item, f"{name}.{key}".lstrip("."))
  elif isinstance(value, float):
    yield [name, f"{value:.5g}"]
  elif isinstance(value, int | str) and len(str(value)) < 200:
    yield [name, str(value)]
