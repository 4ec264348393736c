"""What the jobs' HTML reports say, from the contents of `results.json` and the plots beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.analysis.class_tables import class_sections
from pomp_jax.analysis.html_report import Grid, Report, Section, pictures
from pomp_jax.analysis.labels import counted, method_label, method_labels, prompt_labels
from pomp_jax.analysis.tables import (
  Row,
  Table,
  cell,
  evaluation_tables,
  percents,
  remark,
  row_cells,
)
from pomp_jax.files.paths import exists
from pomp_jax.files.run_folder import RunFolder

_INTERVAL = "In brackets: 95% interval (Wilson) over the images."
_SEEDS = "Mean ± sample standard deviation over the seeds."
_GAIN = "Mean of the learned prompt less that of the best hand-written one."


def _percent(value: float, ends: Sequence[float] | None = None) -> str:
  """A fraction as a percentage, with the ends of its interval where there is one."""
  text = f"{100 * value:.1f}"
  return text if ends is None else f"{text} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def _counted_split(name: str, images: int, classes: int | None) -> str:
  parts = [name, counted(images, "image")]
  return ", ".join(parts if classes is None else [*parts, counted(classes, "class")])


def training_report(folder: RunFolder, results: Mapping[str, Any]) -> Report:
  """Report of a training: its accuracy beside hand-written prompts, its course, its predictions."""
  method = method_label(results["method"])
  splits = results["eval"]
  prompts = list(dict.fromkeys(name for scores in splits.values() for name in scores))
  rows = [
    [
      method_label(name),
      *(
        _percent(scores[name]["top1"], scores[name].get("top1_interval"))
        if name in scores
        else cell(None)
        for scores in splits.values()
      ),
    ]
    for name in prompts
  ]
  of_images = {name: "train" if name.split("/")[0] == "train" else "test" for name in splits}
  columns = [
    _counted_split(name, results["eval_images"][name], results["eval_classes"][name])
    for name in splits
  ]
  differences = [
    [
      name,
      method_label(label),
      _difference(one["difference"]),
      f"{one['difference']['p_value']:.2g}",
    ]
    for name, scores in splits.items()
    for label, one in scores.items()
    if "difference" in one
  ]
  summaries = {name: one for name, one in results.get("by_class", {}).items() if one}
  marks = ["best"] + [""] * (len(rows) - 1)  # of the learned prompt
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
    "not evaluated (other classes)": ", ".join(results.get("not_evaluated", ())) or None,
  }
  sections = [
    Section(
      "Top-1 accuracy (%)",
      " ".join(filter(None, (_INTERVAL, remark(of_images.values())))),
      Grid(("prompt", *columns), rows, marks),
    ),
    *([_differences_section(differences)] if differences else []),
    *pictures(folder, {"accuracy.png": "Accuracy", "training.png": "Course of the training"}),
    Section(
      "Training",
      table=Grid((), [(name, str(value)) for name, value in training.items() if value is not None]),
    ),
    *pictures(folder, {"predictions.png": "Test images and the most probable classes"}),
    *class_sections(folder, summaries, {"prompt": method_label("prompt")}),
    *_unreadable_section(results),
  ]
  text = (
    f"{method} on {counted(results['n_classes'], 'class')}, CLIP {results['clip_model']}, seed"
    f" {results['seed']}. One run: the intervals say nothing of other seeds."
  )
  title = f"Training: {method} on {counted(results['n_classes'], 'class')}"
  return Report(title, text, sections)


def _difference(found: Mapping[str, Any]) -> str:
  low, high = found["interval"]
  return f"{100 * found['top1']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _differences_section(rows: Sequence[Sequence[str]]) -> Section:
  text = "On the same images, in points. In brackets: 95% interval. p: McNemar's exact test."
  columns = ("split", "prompt", "difference", "p")
  return Section("Difference to the hand-written prompt", text, Grid(columns, rows))


def _unreadable_section(results: Mapping[str, Any]) -> list[Section]:
  """Names the images that were skipped, if there were any."""
  rows = [(split, file) for split, files in results.get("unreadable", {}).items() for file in files]
  return (
    [Section("Images that can't be read", table=Grid(("split", "image"), rows))] if rows else []
  )


def evaluation_report(folder: RunFolder, results: Mapping[str, Any]) -> Report:
  """Report of an evaluation: a table and a plot for each group of sets, and every figure."""
  names = [prompt["label"] for prompt in results["prompts"]]
  labels = dict(zip(names, prompt_labels(names), strict=True))
  *tables, details = evaluation_tables(results)
  pairs = [(group, kind) for group, kinds in results["accuracy"].items() for kind in kinds]
  sections = [prompts_section(results["prompts"], labels)]
  for (group, kind), table in zip(pairs, tables, strict=True):
    notes = " ".join(f"[{i}] {note}." for i, note in enumerate(table.notes, 1))
    published = f" Published figures are with ViT-B/16: {notes}" if notes else ""
    picture = folder.plots / f"accuracy_{group}_{kind}.png"
    sections.append(
      Section(
        table.title,
        " ".join(filter(None, (_INTERVAL + published, *table.remarks))),
        grid_of(table, labels),
        picture if exists(picture) else None,
        table.title,
      )
    )
  if results["missing"]:
    rows = list(results["missing"].items())
    sections.append(Section("Missing sets", table=Grid(("set", "reason"), rows)))
  sections += pictures(folder, {"calibration.png": "Calibration"})
  sets = results["sets"]
  summaries = {name: of["by_class"] for name, of in sets.items() if of.get("by_class")}
  sections += class_sections(folder, summaries, labels)
  text = " ".join(details.remarks)
  sections.append(Section(details.title, text, grid_of(details, labels), folded=True))
  images = sum(next(iter(of["prompts"].values()))["images"] for of in sets.values())
  unreadable = sum(of["unreadable"] for of in sets.values())
  text = (
    f"{counted(len(names), 'prompt')} on {counted(len(sets), 'data set')},"
    f" {counted(images, 'image')} in all, CLIP {results['clip_model']}."
  )
  if unreadable:
    text += f" {counted(unreadable, 'image')} could not be read and were skipped."
  return Report(f"Evaluation on {counted(len(sets), 'data set')}", text, sections)


def prompts_section(prompts: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Section:
  """Says which prompt each short label stands for, and the step of checkpoints.

  Args:
    prompts: `label` and `step` of each, as in `results.json`.
    labels: label -> short label.
  """
  rows = [(labels[one["label"]], one["label"]) for one in prompts]
  columns = ("called here", "prompt")
  if any(one["step"] is not None for one in prompts):
    rows = [(*row, cell(one["step"])) for row, one in zip(rows, prompts, strict=True)]
    columns = (*columns, "step of a checkpoint")
  return Section("Prompts", table=Grid(columns, rows))


def grid_of(
  table: Table,
  labels: Mapping[str, str],
) -> Grid:
  """A table's cells as text, with short labels, intervals and numbers of images.

  Args:
    table: table of a job.
    labels: label -> short label of the rows.
  """
  rows = [[_labelled(row, labels), *row_cells(row, table.digits)] for row in table.rows]
  if table.images:
    rows.append(["images", *(cell(n) if n is None else f"{n:,}" for n in table.images)])
  return Grid((table.corner, *table.columns), rows)


def _labelled(row: Row, labels: Mapping[str, str]) -> str:
  """A row's label; of "set: prompt" the prompt's alone is shortened."""
  source = f" [{row.source}]" if row.source else ""
  of_set, separator, prompt = row.label.partition(": ")
  if row.label not in labels and separator and prompt in labels:
    return f"{of_set}: {labels[prompt]}"
  return labels.get(row.label, row.label) + source


def baselines_report(folder: RunFolder, results: Mapping[str, Any]) -> Report:
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
  seeds = max((row["n_runs"] for row in methods.values()), default=0)
  failed = list(results["failed"].items())
  sections = [
    Section(
      "Top-1 accuracy (%) and cost of a run",
      f"{_SEEDS} Seconds are the median of a run's training; the peak is that of a process of its"
      " own.",
      Grid(("method", "seeds", *columns.values(), "training (s)", "peak (MiB)"), accuracy),
    ),
    *pictures(folder, {"accuracy.png": "Accuracy of each method"}),
    _intervals_section("method", top1, columns),
    Section(
      "Failed methods",
      "" if failed else "None.",
      Grid(("method", "error"), failed, ["failed"] * len(failed)) if failed else None,
    ),
    Section("Settings", table=Grid(("method", "fields"), _settings(results["settings"]))),
  ]
  text = (
    f"{counted(len(methods), 'method')}, {counted(seeds, 'seed')} each; one run where the seed does"
    " not change the result."
  )
  return Report(f"{counted(len(methods), 'method')} side by side", text, sections)


def seeds_report(folder: RunFolder, results: Mapping[str, Any]) -> Report:
  """Report of the job `repeat`: mean and spread of each prompt, gain, and every seed."""
  evaluated, gains, seeds = results["eval"], results["gain"], results["seeds"]
  top1: dict[str, dict[str, Any]] = {}
  for split, prompts in evaluated.items():
    for name, of_split in prompts.items():
      counts = {"images": of_split["images"], "classes": results["eval_classes"][split]}
      found = of_split["top1"] | counts | {"interval": of_split["top1_interval"]}
      top1.setdefault(method_label(name), {})[split] = found
  columns = _split_columns(top1)
  means = [[label, *(_mean(of.get(split)) for split in columns)] for label, of in top1.items()]
  gained = [
    (
      columns[split],
      f"{100 * gain['gain']:+.1f}",
      method_label(gain["best_hand_written"]),
      f"{100 * gain['top1']['spread']:.1f}",
    )
    for split, gain in gains.items()
  ]
  runs = [
    [str(seed), *(_percent(gain["top1"]["values"][row]) for gain in gains.values())]
    for row, seed in enumerate(seeds)
  ]
  fields = {name: results[name] for name in ("method", "steps", "k", "correction")}
  training = [(name, str(value)) for name, value in fields.items() if value is not None]
  training.append(
    ("training of a seed (s)", ", ".join(map("{:.1f}".format, results["seconds"]["values"])))
  )
  best = ("gain (points)", "over", "best seed less worst (points)")
  sections = [
    Section("Top-1 accuracy (%)", _SEEDS, Grid(("prompt", *columns.values()), means)),
    *pictures(folder, {"accuracy.png": "Accuracy"}),
    Section("Gain of the learned prompt", _GAIN, Grid(("split", *best), gained)),
    _intervals_section("prompt", top1, columns),
    Section(
      "Top-1 accuracy (%) of the learned prompt",
      table=Grid(("seed", *(columns[split] for split in gains)), runs),
      links={f"report of seed {seed}": f"seed_{seed}/report.html" for seed in seeds},
    ),
    Section("Training", table=Grid((), training)),
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
    name: _counted_split(name, found["images"], found.get("classes"))
    for name, found in splits.items()
  }


def _intervals_section(
  corner: str, top1: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Mapping[str, str]
) -> Section:
  rows = [[name, *(_intervals(of.get(split)) for split in columns)] for name, of in top1.items()]
  text = "Over the images: Wilson's, of the mean. Over the seeds: Student's, of several runs."
  return Section("95% intervals (%)", text, Grid((corner, *columns.values()), rows))


def _mean(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return cell(None)
  spread = f" ± {100 * found['std']:.1f}" if len(found["values"]) > 1 else ""
  return _percent(found["mean"]) + spread


def _intervals(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return cell(None)
  kinds = {"images": found["interval"], "seeds": found.get("t_interval")}
  parts = [f"{kind} {100 * e[0]:.1f} to {100 * e[1]:.1f}" for kind, e in kinds.items() if e]
  return "; ".join(parts)


def _settings(settings: Sequence[Sequence[Any]]) -> list[tuple[str, str]]:
  return [
    (label, ", ".join(f"{field}={value}" for field, value in values.items()))
    for label, values in settings
  ]


def geometry_tables(results: Mapping[str, Any]) -> list[Table]:
  """Builds the tables of the job `analyse`: alignment, uniformity and top-1, a column a set."""
  tables = []
  for figure, title, factor, digits in (
    ("alignment", "Alignment (lower is better)", 1.0, 3),
    ("uniformity", "Uniformity (lower is better)", 1.0, 3),
    ("top1", "Top-1 accuracy (%)", 100.0, 1),
  ):
    rows = []
    for label in (prompt["label"] for prompt in results["prompts"]):
      found = [of_set["prompts"][label] for of_set in results["sets"].values()]
      values = tuple(None if of[figure] is None else factor * of[figure] for of in found)
      ends = [of.get("top1_interval") for of in found] if figure == "top1" else []
      rows.append(Row(label, values, ends=percents(ends)))
    columns = tuple(results["sets"])
    tables.append(Table(title, "prompt", columns, tuple(rows), best=False, digits=digits))
  return tables


def geometry_report(folder: RunFolder, results: Mapping[str, Any]) -> Report:
  """Report of the job `analyse`: figures, maps and similarities of each set, nearest tokens."""
  names = [prompt["label"] for prompt in results["prompts"]]
  labels = dict(zip(names, prompt_labels(names), strict=True))
  sets = results["sets"]
  counts = [(name, f"{of['images']:,}", f"{of['classes']:,}") for name, of in sets.items()]
  sections = [
    prompts_section(results["prompts"], labels),
    Section("Data sets", table=Grid(("set", "images", "classes"), counts)),
    *pictures(folder, {"alignment_uniformity.png": "Alignment and uniformity"}),
  ]
  for table in geometry_tables(results):
    text = _INTERVAL if table.rows[0].ends else ""
    sections.append(Section(table.title, text, grid_of(table, labels)))
  for name in sets:
    file = name.replace("/", "-")
    captions = {
      f"map_{file}.png": f"Class features of {name}",
      f"similarity_{file}.png": f"Cosines of classes of {name}",
    }
    sections += pictures(folder, captions)
  sections += _nearest_tokens(results["tokens"], labels)
  text = (
    f"{counted(len(names), 'prompt')} on {counted(len(sets), 'data set')}, CLIP"
    f" {results['clip_model']}."
  )
  return Report(f"Class features under {counted(len(names), 'prompt')}", text, sections)


def _nearest_tokens(tokens: Mapping[str, Any], labels: Mapping[str, str]) -> list[Section]:
  """A table for each learned prompt: its vectors, and the tokens that are nearest."""
  text = (
    "Euclidean distances; half of the vocabulary's tokens have another within"
    f" {tokens['median_distance_between_tokens']:.3f}."
  )
  sections = []
  for label, vectors in tokens["vectors"].items():
    rows = []
    for number, one in enumerate(vectors, 1):
      near = zip(one["tokens"], one["distances"], strict=True)
      rows.append([str(number), *(f"{token} {distance:.3f}" for token, distance in near)])
    n_near = len(rows[0]) - 1 if rows else 0
    columns = ("vector", *(f"token {i}" for i in range(1, n_near + 1)))
    sections.append(Section(f"Nearest tokens: {labels[label]}", text, Grid(columns, rows)))
  return sections
