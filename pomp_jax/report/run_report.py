"""The report of a run, with the sections of all runs, and the report of trainings."""

from collections.abc import Mapping
import json
from typing import Any

from pomp_jax.config.every_job import defaults, flatten
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import exists, read_bytes
from pomp_jax.files.run_folder import RunFolder, to_json, with_provenance, writing
from pomp_jax.hooks import BY_CLASS, LATEX
from pomp_jax.registry import JOBS, load
from pomp_jax.report import report
from pomp_jax.report.evaluation_report import remarks
from pomp_jax.report.labels import counted, method_label, run_labels, with_counts
from pomp_jax.report.left_out import left_out_section

_FILES = {  # the files that a report links to, with what they hold
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

  Args:
    folder: folder of the run, with its plots.
    config: fields of config.json.
    results: results without provenance, which this function adds.
  """
  stored = with_provenance(results)
  stored["provenance"]["folder"] = folder.path.name
  report_of_job = load(JOBS[results["job"]].report)
  run_report = report_of_job(stored, flatten(config))
  pictures = {section.picture for section in run_report.sections} - {""}
  drawn = {name for name in pictures if exists(folder.plots / name)}
  run_report = report.with_pictures(run_report, drawn)
  with writing(folder.path):
    write_file(folder.path / "results.md", report.markdown(run_report))
    if LATEX:
      write_file(folder.path / "results.tex", LATEX.open()(run_report))
    # The page comes last, because it links to the other files that exist.
    page = _page(folder, config, run_report, stored["provenance"])
    write_file(folder.path / "report.html", page)
  folder.write_results(stored)


def _page(
  folder: RunFolder,
  config: Mapping[str, Any],
  run_report: report.Report,
  provenance: Mapping[str, Any],
) -> str:
  """Formats a report as HTML, with the facts, command, config and files of the run."""
  versions = {
    name: version or "-" for name, version in provenance.get("versions", {}).items()
  }
  release = ""
  if "pomp_jax" in versions:
    release = f"pomp_jax {versions['pomp_jax']}"
  run = _run_facts(config["job"], provenance, release)
  sections = [*run_report.sections, report.Section("Run", table=report.facts(run))]
  if "command" in provenance:
    sections.append(report.Section("Command", code=provenance["command"]))
  sections += [
    _changed_fields(config),
    report.Section("Config", code=json.dumps(config, indent=2), folded=True),
    report.Section("Files", links=_links(folder)),
    report.Section("Versions", table=report.facts(versions)),
  ]
  # The line below the title has room only for the start of the commit's hash.
  brief_run = dict(run)
  brief_run["commit"] = release
  if commit := provenance.get("commit"):
    brief_run["commit"] = f"commit {commit[:10]}"
  run_line = " \u00b7 ".join(filter(None, brief_run.values()))
  return report.html(
    run_report._replace(sections=sections),
    [run_line, run_report.text],
    read_picture=lambda name: read_bytes(folder.plots / name),
  )


def _links(folder: RunFolder) -> dict[str, str]:
  """Text of each link in a report -> name of the run's file."""
  links = {}
  for name, content in _FILES.items():
    # results.json does not exist yet: it is written after the report, so that a folder
    # with results is complete.
    if name == "results.json" or exists(folder.path / name):
      links[f"{name}: {content}"] = name
  return links


def _run_facts(job: str, provenance: Mapping[str, Any], release: str) -> dict[str, str]:
  """Job, date, commit and devices of a run; "" for what is unknown."""
  commit = provenance.get("commit")
  if not commit and release:
    commit = f"none; installed as {release}"
  date = provenance.get("date") or ""
  devices = ""
  if stored := provenance.get("devices"):
    devices = f"{stored['number']} x {stored['kind']}"
  return {
    "job": job,
    "date": date.replace("T", " ").replace("+00:00", " UTC"),
    "commit": commit or "",
    "devices": devices,
  }


def _changed_fields(config: Mapping[str, Any]) -> report.Section:
  """The fields of a config that differ from their defaults."""
  title = "Fields of the config that differ from their defaults"
  unchanged = defaults(config["job"]).flat() | {"job": defaults().job}
  rows = []
  for field, value in flatten(config).items():
    if value == unchanged[field]:
      continue
    if not isinstance(value, str):
      # `to_json` takes more types than `json`, but its text is indented.
      value = json.dumps(json.loads(to_json(value)))
    rows.append((field, value))
  if not rows:
    return report.Section(title, "None.")
  return report.Section(title, table=report.Table(("field", "value"), rows))


def training_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> report.Report:
  """Reports a training: accuracy beside other prompts, its course, predictions."""
  method = method_label(results["method"])
  labels = _labels(results)
  sections = [
    _top1_section(results, labels),
    *_differences(results, labels),
    report.Section("Accuracy", picture="accuracy.png"),
    report.Section("Course of the training", picture="training.png"),
    report.Section("Training", table=report.facts(_training_facts(results, method))),
    report.Section(
      "Test images and the most probable classes", picture="predictions.png"
    ),
    report.Section("Misclassified test images", picture="mistakes.png"),
  ]
  if BY_CLASS:
    summaries = {
      name: summary for name, summary in results.get("by_class", {}).items() if summary
    }
    sections += BY_CLASS.open().sections(summaries, labels)
  if left_out := results.get("left_out"):
    sections.append(left_out_section(left_out))
  unreadable = []
  for split, files in results.get("unreadable", {}).items():
    unreadable += [(split, file) for file in files]
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


def _top1_section(
  results: Mapping[str, Any], labels: Mapping[str, str]
) -> report.Section:
  """Top-1 of each prompt on each split, the learned prompt first."""
  splits = results["eval"]
  rows = []
  for name, label in labels.items():
    row = [label]
    for scores in splits.values():
      figures = scores.get(name, {})
      row.append(report.percent(figures.get("top1"), figures.get("top1_interval")))
    rows.append(row)
  columns = []
  for split in splits:
    n_images = results["eval_images"][split]
    n_classes = results["eval_classes"][split]
    columns.append(with_counts(split, n_images, n_classes))
  sentences = [report.INTERVAL]
  if any(split.split("/")[0] == "train" for split in splits):
    sentences += remarks(["train"])
  marks = ["best"] + [""] * (len(rows) - 1)  # the learned prompt
  table = report.Table(("prompt", *columns), rows, marks)
  return report.Section("Top-1 accuracy (%)", " ".join(sentences), table, brief=True)


def _training_facts(results: Mapping[str, Any], method: str) -> dict[str, Any]:
  """Names and values of the table on a training; None for what a job does not have."""
  return {
    "method": method,
    "classes of the training": f"{results['n_classes']:,}",
    "K, classes of a step": results.get("k"),
    "correction": results.get("correction"),
    "fixed margin": results.get("margin") or None,
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


def _labels(results: Mapping[str, Any]) -> dict[str, str]:
  """Key of each prompt in a training's results -> label; see `run_labels`."""
  names: dict[str, None] = {}  # an ordered set: a split may lack a prompt
  for scores in results["eval"].values():
    names |= dict.fromkeys(scores)
  folder = results.get("provenance", {}).get("folder", "")
  labels = run_labels(list(names), folder, results)
  return dict(zip(names, labels, strict=True))


def _differences(
  results: Mapping[str, Any], labels: Mapping[str, str]
) -> list[report.Section]:
  """Differences of each prompt from the run's reference; no section without any."""
  rows = []
  for split, scores in results["eval"].items():
    for name, figures in scores.items():
      difference = figures.get("difference")
      if not difference:
        continue
      low, high = difference["interval"]
      interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
      cell = f"{100 * difference['top1']:+.1f} ({interval})"
      rows.append([split, labels[name], cell, f"{difference['p_value']:.2g}"])
  if not rows:
    return []
  title = f"Difference to {labels[results.get('reference', 'hand_written')]}"
  text = (
    "On the same images, in points. In brackets: 95% interval. p: McNemar's exact test."
  )
  table = report.Table(("split", "prompt", "difference", "p"), rows)
  return [report.Section(title, text, table, brief=True)]
