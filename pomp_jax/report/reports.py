"""Reports of trainings, of class features and of predictions; figures of any results."""

from collections.abc import Mapping
from typing import Any

from pomp_jax.report.evaluation_report import class_sections, remarks
from pomp_jax.report.labels import counted, method_label, with_counts
from pomp_jax.report.report import (
  INTERVAL,
  Report,
  Section,
  Table,
  facts,
  percent,
  pictures,
)

MOST_ROWS = 200  # of files or figures without a limit of their own


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


def predictions_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Names that `predict` has found in pictures, with a probability, share of pixels or score."""
  images = results["images"]
  weight = lambda one: next(one[key] for key in ("share", "score", "probability") if key in one)
  rows = [
    [file, ", ".join(f"{one['name']} {100 * weight(one):.1f}%" for one in found)]
    for file, found in list(images.items())[:MOST_ROWS]
  ]
  title = f"Predictions{first_of(len(images))}"
  text = f"{counted(len(images), 'picture')}."
  return Report(title, text, [Section(title, table=Table(("file", "names"), rows))])


def first_of(n: int) -> str:
  """End of the title of a table with `MOST_ROWS` rows at most, of n."""
  return f", the first {MOST_ROWS} of {n:,}" if n > MOST_ROWS else ""
