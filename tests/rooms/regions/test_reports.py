"""The report of a segmentation: every figure is on its page."""

import pytest

from tests.support.report_page import AWKWARD, PATHS, Case, check_page, page_of

N = 20
# Class 0 gains most and class 19 loses most; the data lacks class 7.
FIRST = [None if c == 7 else 0.5 for c in range(N)]
LAST = [None if c == 7 else 0.5 + (10 - c) / 50 for c in range(N)]
PAIR = {AWKWARD: FIRST, PATHS[0]: LAST}


def _region_results(job, figures):
  found = {"job": job, "clip_model": "world", "images": 1234, "figures": figures}
  found["prompts"] = [{"label": label, "step": None} for label in figures]
  found["classes"] = [f"<i>{c}</i>" for c in range(N)]
  return found | {"groups": ["base"] * 15 + ["novel"] * 4 + ["-"]}


def segmentation_results():
  of_all = {"mIoU": 0.511, "mIoU_plain": 0.5, "fwIoU": 0.5, "mACC": 0.5, "pACC": 0.622}
  figures = {
    label: of_all
    | {
      "hIoU": 0.25,
      "hIoU_plain": 0.5,
      "base": of_all,
      "novel": of_all | {"mIoU": 0.125},
    }
    | {"per_class": {"iou": iou, "accuracy": iou}}
    for label, iou in PAIR.items()
  }
  return _region_results("segment", figures) | {"pixels": [1000 + c for c in range(N)]}


# Classes that gain or lose most, between the first and the last.
ROWS = "\n".join(f"<i>{c}</i>" for c in (*range(1, 7), 8, *range(12, 19)))
EXPECTED = f"""Segmentation: 1,234 images, 20 classes

prompt | hIoU | base mIoU | novel mIoU | mIoU
AWKWARD | 25.0 | 51.1 | 12.5 | 51.1
learned (one) | 25.0 | 51.1 | 12.5 | 51.1

class | group | pixels
<i>0</i> | base | 1,000 | 50.0 | 70.0 | +20.0
{ROWS}
<i>19</i> | - | 1,019 | 50.0 | 32.0 | -18.0"""
FACTS = {"classes": "20: 15 base, 4 novel", "pixels with a class": "20,190"}


def test_every_figure_is_on_the_page(tmp_path):
  plots = ("segmentation.png",)
  check_page(Case("segment", segmentation_results(), plots, EXPECTED, FACTS), tmp_path)


@pytest.mark.parametrize(
  ("changes", "expected", "absent"),
  [
    (
      {"regions.source": "truth"},
      {"regions.source": "truth", "regions.crop": "masked"},
      "null",
    ),
    (
      {
        "regions.source": "network",
        "propose.network": "runs/<net>",
        "regions.e_novel": 0.9,
      },
      {"regions.source": "network: runs/<net>", "regions.e_novel": "0.9"},
      "recipe",
    ),
    (
      {"segment.recipe": "sclip", "segment.pamr": 10},
      {"regions.source": "none: patches", "segment.pamr": "10"},
      "crop",
    ),
  ],
)
def test_the_page_says_where_regions_come_from(tmp_path, changes, expected, absent):
  parsed = page_of("segment", tmp_path, segmentation_results(), **changes)
  [found] = [dict(table) for table in parsed.tables if table[0][0] == "images"]
  assert expected.items() <= found.items()
  assert not any(absent in name for name in found)
