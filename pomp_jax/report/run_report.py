"""The report of a run: what all runs add to it, its files; reports of trainings and
predictions."""

from collections.abc import Mapping
import json
from typing import Any

from pomp_jax.config.settings import defaults, flatten
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import exists, read_bytes
from pomp_jax.files.run_folder import RunFolder, to_json, with_provenance, writing
from pomp_jax.hooks import BY_CLASS, LATEX
from pomp_jax.registry import JOBS, load
from pomp_jax.report import report
from pomp_jax.report.evaluation_report import remarks
from pomp_jax.report.labels import counted, method_label, run_labels, with_counts
from pomp_jax.report.left_out import left_out_section

_FILES = {  # that a report links to, with what they hold
  "results.json": "every figure",
  "results.md": "tables in Markdown",
  "results.tex": "tables in LaTeX",
  "cells.csv": "a line a cell",
  "results.csv": "a line a prompt and set",
  "classes.csv": "accuracy of each class",
  "confusions.csv": "names that were taken for others",
  "clip_benchmark.csv": "figures in CLIP_benchmark's form",
  "prompt.npz": "the prompt: learned, or words that training did not beat",
  "class_names.json": "names of the training's classes",
  "candidates.json": "validation accuracy of the words that it competes with",
  "prompt_last.npz": "that of the last checkpoint",
  "prompt_best.npz": "that of the checkpoint that is best on validation",
  "prompt_trained.npz": "what training has learned, where prompt.npz holds words or a mixture",
  "classifier.npz": "the classifier",
  "metrics.jsonl": "scalars of the training",
  "config.json": "every field of the config",
  "plots": "pictures",
  "sets": "figures of each class",
  "labels": "label images of each prompt",
  "detections": "detections of each prompt in COCO's form",
}


def finish_run(
  folder: RunFolder, config: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
  """Writes a run's report and, last, its results: a folder with results is a finished
  run.

  The plots are in the folder already. `config` is that of config.json; `results` are
  without their provenance, which gets the name of the folder.
  """
  stored = with_provenance(results)
  stored["provenance"]["folder"] = folder.path.name
  found = load(JOBS[results["job"]].report)(stored, flatten(config))
  drawn = {section.picture for section in found.sections} - {""}
  found = report.with_pictures(
    found, {name for name in drawn if exists(folder.plots / name)}
  )
  with writing(folder.path):
    write_file(folder.path / "results.md", report.markdown(found))
    if LATEX:
      write_file(folder.path / "results.tex", LATEX.open()(found))
    # links to the files above
    page = _page(folder, config, found, stored["provenance"])
    write_file(folder.path / "report.html", page)
  folder.write_results(stored)


def _page(
  folder: RunFolder,
  config: Mapping[str, Any],
  found: report.Report,
  origin: Mapping[str, Any],
) -> str:
  """The report as HTML, with what every run says: origin, command, config, files,
  versions."""
  devices, commit = origin.get("devices"), origin.get("commit") or ""
  versions = {name: text or "-" for name, text in origin.get("versions", {}).items()}
  release = f"pomp_jax {versions['pomp_jax']}" if "pomp_jax" in versions else ""
  run = {
    "job": config["job"],
    "date": (origin.get("date") or "").replace("T", " ").replace("+00:00", " UTC"),
    "commit": commit or (release and f"none; installed as {release}"),
    "devices": f"{devices['number']} x {devices['kind']}" if devices else "",
  }
  short = run | {"commit": f"commit {commit[:10]}" if commit else release}
  unchanged = defaults(config["job"]).flat() | {"job": defaults().job}
  changed = [
    (field, value if isinstance(value, str) else json.dumps(json.loads(to_json(value))))
    for field, value in flatten(config).items()
    if value != unchanged[field]
  ]
  # results.json is written after the report, so that a folder with results is complete.
  files = [
    name for name in _FILES if name == "results.json" or exists(folder.path / name)
  ]
  sections = [
    *found.sections,
    report.Section("Run", table=report.facts(run)),
    *(
      [report.Section("Command", code=origin["command"])] if "command" in origin else []
    ),
    report.Section(
      "Fields of the config that differ from their defaults",
      "" if changed else "None.",
      report.Table(("field", "value"), changed) if changed else None,
    ),
    report.Section("Config", code=json.dumps(config, indent=2), folded=True),
    report.Section("Files", links={f"{name}: {_FILES[name]}": name for name in files}),
    report.Section("Versions", table=report.facts(versions)),
  ]
  lines = " \u00b7 ".join(filter(None, short.values())), found.text
  whole = found._replace(sections=sections)
  return report.html(whole, lines, lambda name: read_bytes(folder.plots / name))


def training_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> report.Report:
  """Report of a training: its accuracy beside hand-written prompts, its course, its
  predictions."""
  method, splits = method_label(results["method"]), results["eval"]
  images, classes = results["eval_images"], results["eval_classes"]
  columns = [with_counts(name, images[name], classes[name]) for name in splits]
  rows, labels = [], _labels(results)
  for name, label in labels.items():
    found = [scores.get(name, {}) for scores in splits.values()]
    shown = [report.percent(one.get("top1"), one.get("top1_interval")) for one in found]
    rows.append([label, *shown])
  remark = remarks(
    "train" if name.split("/")[0] == "train" else "test" for name in splits
  )
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
    "share of the wall clock in steps (%)": report.percent(
      results.get("productive_share")
    ),
    "evaluation (s)": results["eval_seconds"],
    "roll-backs": results.get("roll_backs"),
    "unreadable images": results.get("unreadable_images"),
    **{f"found: {name}": value for name, value in results.get("found", {}).items()},
    "not evaluated (other classes)": ", ".join(results.get("not_evaluated", ())),
  }
  table = report.Table(("prompt", *columns), rows, marks)
  sections = [
    report.Section(
      "Top-1 accuracy (%)", " ".join((report.INTERVAL, *remark)), table, brief=True
    ),
    *_differences(results, labels),
    report.Section("Accuracy", picture="accuracy.png"),
    report.Section("Course of the training", picture="training.png"),
    report.Section("Training", table=report.facts(training)),
    report.Section(
      "Test images and the most probable classes", picture="predictions.png"
    ),
    report.Section("Misclassified test images", picture="mistakes.png"),
    *(BY_CLASS.open().sections(summaries, labels) if BY_CLASS else ()),
  ]
  if left_out := results.get("left_out"):
    sections.append(left_out_section(left_out))
  if unreadable:
    table = report.Table(("split", "image"), unreadable)
    sections.append(report.Section("Images that can't be read", table=table))
  title = f"{method} on {counted(results['n_classes'], 'class')}"
  text = (
    f"{title}, CLIP {results['clip_model']}, seed {results['seed']}. One run: the intervals say"
    " nothing of other seeds."
  )
  if words := results.get("words"):
    text = f"{text} {words['remark']}."
  return report.Report(f"Training: {title}", text, sections)


def _labels(results: Mapping[str, Any]) -> dict[str, str]:
  """Label of each prompt of a training's results, the learned one by the name of the
  folder."""
  names = list(
    dict.fromkeys(name for scores in results["eval"].values() for name in scores)
  )
  folder = results.get("provenance", {}).get("folder", "")
  return dict(zip(names, run_labels(names, folder, results), strict=True))


def _differences(
  results: Mapping[str, Any], labels: Mapping[str, str]
) -> list[report.Section]:
  """Differences of each prompt from the run's reference, where the job has computed
  them."""
  rows = []
  for name, scores in results["eval"].items():
    for label, one in scores.items():
      if found := one.get("difference"):
        points, low, high = (
          100 * value for value in (found["top1"], *found["interval"])
        )
        shown = f"{points:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([name, labels[label], shown, f"{found['p_value']:.2g}"])
  text = (
    "On the same images, in points. In brackets: 95% interval. p: McNemar's exact test."
  )
  table = report.Table(("split", "prompt", "difference", "p"), rows)
  title = (
    f"Difference to {labels[results.get('reference', 'hand_written')]}" if rows else ""
  )
  return [report.Section(title, text, table, brief=True)] if rows else []
