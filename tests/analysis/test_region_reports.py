"""Reports of `segment` and `detect`: every figure found again, what it is of, single classes."""

import pytest

from pomp_jax.analysis.html_report import write_run_report
from pomp_jax.analysis.region_reports import regions_report
from pomp_jax.files.run_folder import RunFolder, with_provenance
from tests.support.report_page import AWKWARD, Page
from tests.support.small_run import small_config

PATH = "/data/runs/one/prompt.npz"
N = 20
# Class 0 gains most and class 19 loses most; the data lacks class 7.
FIRST = [None if c == 7 else 0.5 for c in range(N)]
LAST = [None if c == 7 else 0.5 + (10 - c) / 50 for c in range(N)]
NAMES = [f"<i>{c}</i>" for c in range(N)]
GROUPS = ["base"] * 15 + ["novel"] * 4 + ["-"]
PAIR = {AWKWARD: FIRST, PATH: LAST}


def _results(job, figures):
  return {
    "job": job,
    "clip_model": "world",
    "prompts": [{"label": label, "step": None} for label in figures],
    "images": 1234,
    "classes": NAMES,
    "groups": GROUPS,
    "figures": figures,
  }


def segmentation_results(of_classes=PAIR):
  """Of prompts with these IoU of each class."""
  of_all = {"mIoU": 0.511, "mIoU_plain": 0.5, "fwIoU": 0.5, "mACC": 0.5, "pACC": 0.622}
  figures = {
    label: of_all
    | {"hIoU": 0.25, "hIoU_plain": 0.5, "base": of_all, "novel": of_all | {"mIoU": 0.125}}
    | {"per_class": {"iou": iou, "accuracy": iou}}
    for label, iou in of_classes.items()
  }
  return _results("segment", figures) | {"pixels": [1000 + c for c in range(N)]}


def detection_results():
  ap = {"AP": 0.411, "AP50": 0.5, "AP75": None}
  figures = {
    label: {
      "top1": {"all": {"top1": 0.75}, "base": {"top1": 0.875}},
      "box": ap | {"base": ap, "per_class": of_classes},
    }
    for label, of_classes in PAIR.items()
  }
  return _results("detect", figures) | {"objects": 4321}


def page(results, path, **changes):
  """The page of a run, without its pictures."""
  config = small_config(job=results["job"], **changes)
  folder, stored = RunFolder(path), with_provenance(results)
  write_run_report(folder, config, stored, regions_report(folder, config, stored))
  return Page((path / "report.html").read_text())


def facts(parsed):
  [found] = [table for table in parsed.tables if table[0][0] == "images"]
  return dict(found)


def test_figures_of_a_segmentation(tmp_path):
  parsed = page(segmentation_results(), tmp_path)
  assert parsed.headings[0] == "Segmentation: 1,234 images, 20 classes"
  columns = ("prompt", "hIoU", "base mIoU", "novel mIoU", "mIoU")
  assert [row[:5] for row in parsed.table(*columns)] == [
    [AWKWARD, "25.0", "51.1", "12.5", "51.1"],
    ["learned, runs/one", "25.0", "51.1", "12.5", "51.1"],
  ]
  assert facts(parsed)["classes"] == "20: 15 base, 4 novel"
  assert facts(parsed)["pixels with a class"] == "20,190"
  assert parsed.table("called here")[1][1] == PATH


def test_figures_of_a_detection(tmp_path):
  parsed = page(detection_results(), tmp_path)
  assert parsed.headings[0] == "Detection: 1,234 images, 20 classes"
  assert parsed.table("prompt", "all") == [
    [AWKWARD, "75.0", "87.5"],
    ["learned, runs/one", "75.0", "87.5"],
  ]
  assert parsed.table("prompt", "AP")[0] == [AWKWARD, "41.1", "50.0", "41.1", "50.0"]
  assert facts(parsed)["objects"] == "4,321"
  # No pixels are counted.
  assert parsed.table("class", "group", AWKWARD)[0] == ["<i>0</i>", "base", "50.0", "70.0", "+20.0"]


def test_classes_at_both_ends_of_the_difference(tmp_path):
  rows = page(segmentation_results(), tmp_path).table("class", "group", "pixels")
  assert [row[0] for row in rows] == [f"<i>{c}</i>" for c in (*range(7), 8, *range(12, 20))]
  assert rows[0] == ["<i>0</i>", "base", "1,000", "50.0", "70.0", "+20.0"]
  assert rows[-1] == ["<i>19</i>", "-", "1,019", "50.0", "32.0", "-18.0"]


def test_classes_of_one_prompt_have_no_difference(tmp_path):
  parsed = page(segmentation_results({PATH: LAST}), tmp_path)
  rows = parsed.table("class", "group", "pixels", "learned, runs/one")
  assert rows[0] == ["<i>0</i>", "base", "1,000", "70.0"]
  assert rows[-1] == ["<i>19</i>", "-", "1,019", "32.0"]


def test_scores_alone_are_not_compared_with_fused_ones(tmp_path):
  """With `regions.alone` each prompt has three rows, the fused one first."""
  of_classes = {
    f"{prompt}, {share}": [value if share == "fused" else 0.0] * N
    for prompt, value in (("{}!", 0.25), ("{}.", 0.75))
    for share in ("fused", "network alone", "CLIP alone")
  }
  changes = {"regions.source": "file", "regions.path": "<found>", "regions.alone": True}
  parsed = page(segmentation_results(of_classes), tmp_path, **changes)
  rows = parsed.table("class", "group", "pixels", "{}!, fused", "{}., fused")
  assert all(row[3:] == ["25.0", "75.0", "+50.0"] for row in rows)


def test_images_without_labels_have_no_figures(tmp_path):
  results = segmentation_results({PATH: [None] * N})
  [figures] = results["figures"].values()
  results["figures"] = {PATH: dict.fromkeys(figures) | {"per_class": figures["per_class"]}}
  del results["figures"][PATH]["base"], results["figures"][PATH]["novel"]
  results["groups"] = ["-"] * N
  parsed = page(results, tmp_path)
  assert not any("mIoU" in table[0] or "class" in table[0] for table in parsed.tables)
  assert facts(parsed)["classes"] == "20"


@pytest.mark.parametrize(
  ("changes", "expected", "absent"),
  [
    ({"regions.source": "truth"}, {"regions.source": "truth", "regions.crop": "masked"}, "null"),
    (
      {
        "regions.source": "network",
        "propose.network": "runs/<net>",
        "regions.crop": "context",
        "regions.expand": 1.4,
        "regions.e_novel": 0.9,
      },
      {
        "regions.source": "network: runs/<net>",
        "regions.crop": "context, 1.4 times the box's longer side",
        "regions.e_base, CLIP's exponent for trained classes": "0.2",
        "regions.e_novel, for other classes": "0.9",
        "regions.null": "drop",
      },
      "recipe",
    ),
    (
      {"segment.recipe": "sclip", "segment.pamr": 10},
      {
        "regions.source": "none: patches",
        "segment.recipe": "sclip",
        "segment.size, window, stride (pixels)": "336, 224, 112",
        "segment.pamr (steps)": "10",
      },
      "crop",
    ),
  ],
)
def test_the_page_says_where_regions_come_from(tmp_path, changes, expected, absent):
  found = facts(page(segmentation_results(), tmp_path, **changes))
  assert expected.items() <= found.items()
  assert not any(absent in name for name in found)
