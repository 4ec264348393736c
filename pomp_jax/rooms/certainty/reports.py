"""The report of the job calibrate, and the summary of a picture for `predict`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.report import report
from pomp_jax.report.report import Section, Table
from pomp_jax.rooms.certainty.unknown import LABELS

# What conformal prediction does not promise.
_NOT_PROMISED = (
  "The promises hold on average over the choice of the validation images, for images"
  " drawn like these. They say nothing of another camera, rendering or mix of classes,"
  " nor of images of no class in the list."
)


def calibration_report(
  results: Mapping[str, Any], config: Mapping[str, Any]
) -> report.Report:
  """Report of the job `calibrate`: calibration, floor, sets, unknown classes."""
  sections = [_calibration(results)]
  sections.append(Section("Reliability", picture="calibration.png"))
  sections.append(_promises(results))
  if "unknown" in results:
    sections.append(_unknown(results["unknown"]))
  before = report.percent(results["before"]["ece"])
  after = report.percent(results["after"]["ece"])
  text = (
    f"Temperature {results['temperature']:.3g} from"
    f" {results['images_of_temperature']:,} validation images;"
    f" {results['images_of_promises']:,} others fix floor and sets. ECE {before}%"
    f" before, {after}% after, over {results['classes']:,} classes."
  )
  return report.Report(f"Calibration of {results['prompt']}", text, sections)


def _calibration(results: Mapping[str, Any]) -> Section:
  rows = []
  measured = {"validation, second half": results}
  if "test" in results:
    measured[results["test"]["split"]] = results["test"]
  for name, of_set in measured.items():
    for label in ("before", "after"):
      figures = of_set[label]
      rows.append(
        [
          f"{name}, {label}",
          report.cell(figures["images"]),
          report.percent(figures["top1"], figures["top1_interval"]),
          report.percent(figures["mean_confidence"]),
          report.percent(figures["ece"]),
        ]
      )
  columns = ("images", "number", "top-1 (%)", "mean confidence (%)", "ECE (%)")
  return Section("Calibration", report.INTERVAL, Table(columns, rows), brief=True)


def _promises(results: Mapping[str, Any]) -> Section:
  test = results.get("test", {})
  floor = test.get("floor", {})
  sets = test.get("sets", {})
  rows = []
  if results["floor"] is None:
    rows.append(["floor", "none: too few right answers", "-"])
  else:
    stated = f"{report.percent(results['error'])}% of right answers at most"
    rows.append(["floor", f"probability {results['floor']:.4f}", stated])
    for key, label in (
      ("refused_right", "right answers refused (%)"),
      ("refused_wrong", "wrong answers refused (%)"),
      ("top1_of_answered", "top-1 of those answered (%)"),
    ):
      if key in floor:
        rows.append([label, _share(floor[key]), ""])
  if results["sets"] is None:
    rows.append(["sets", "none: too few images", "-"])
  else:
    stated = f"{report.percent(results['coverage'])}% of images at least"
    rows.append([f"sets, {results['sets']['kind']}", "", stated])
  if sets:
    rows.append(["sets with the right name (%)", _share(sets["covered"]), ""])
    size = f"{sets['mean_size']:.1f} (median {sets['median_size']:.0f})"
    rows.append(["names in a set", size, ""])
  columns = ("what", "found", "promised")
  title = "Floor and sets"
  return Section(
    title, report.INTERVAL, Table(columns, rows), notes=[_NOT_PROMISED], brief=True
  )


def _unknown(of_split: Mapping[str, Any]) -> Section:
  rows = [
    [LABELS[name], f"{figures['auroc']:.3f}", report.percent(figures["fpr95"])]
    for name, figures in of_split["scores"].items()
  ]
  text = (
    f"{of_split['known_images']:,} images of known classes against"
    f" {of_split['unknown_images']:,} of the split {of_split['split']}."
  )
  if "refused" in of_split:
    text += f" The floor refuses {_share(of_split['refused'])}% of the unknown ones."
  columns = ("score", "AUROC", "unknown accepted at 95% of known (%)")
  return Section("Known or unknown", text, Table(columns, rows), brief=True)


def _share(figures: Mapping[str, Any]) -> str:
  return report.percent(figures["share"], figures["interval"])


def picture_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Summarises a picture: the answer, and how many of its names are in the set.

  Args:
    rows: rows that `predict_task` writes for the picture, one per likeliest name.

  Returns:
    Texts by column header; without sets only the answer.
  """
  summary = {"answer": rows[0]["answer"]}
  if rows[0]["in_set"] is None:
    return summary
  n_inside = sum(row["in_set"] for row in rows)
  # If every listed name is in the set, the set may also have names that are not listed.
  is_cut = n_inside == len(rows)
  summary["names in the set"] = f"{n_inside} or more" if is_cut else str(n_inside)
  return summary
