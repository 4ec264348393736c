"""The jobs' reports: parsed, every figure found again, nothing fetched, names escaped.

One page for each job, rendered once.
"""

import re
import urllib.parse

from PIL import Image
import pytest

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.report.run_report import finish_run
from pomp_jax.report.set_accuracy import published
from pomp_jax.rooms.ablation.ablation_report import write_cells
from tests.rooms.ablation.test_plots import synthetic_cells
from tests.support.report_page import AWKWARD, Page
from tests.support.small_run import small_config

PATHS = ("/data/runs/one/prompt.npz", "/data/runs/two/prompt.npz")
PROMPTS = (*PATHS, AWKWARD)


def score(top1):
  found = {"images": 1000, "classes": 50, "top1": top1, "top5": 0.9, "macro_top1": 0.4}
  found |= {"top1_interval": [top1 - 0.03, top1 + 0.02], "ece": 0.05}
  return found | {"reliability": {"images": [1], "confidence": [0.5], "accuracy": [0.5]}}


def training_results():
  splits = {"base": 0.511, "novel": 0.622}
  found = {"method": "cocoop", "seed": 3, "clip_model": "world", "n_classes": 1000, "k": 64}
  found |= {"correction": "log", "steps": 240, "seconds": 12.5, "eval_seconds": 1.5}
  found |= {"images_per_second": 99.0, "eval_images": dict.fromkeys(splits, 1000)}
  found["eval_classes"] = dict.fromkeys(splits, 50)
  found["eval"] = {
    split: {"prompt": score(top1), "hand_written": score(top1 - 0.1)}
    for split, top1 in splits.items()
  }
  return found


def evaluation_results():
  top1 = {label: 0.511 + i / 10 for i, label in enumerate(PROMPTS)}
  steps = [{"label": label, "step": 80 if label == PATHS[0] else None} for label in PROMPTS]
  found = {"clip_model": "world", "prompts": steps, "published": {}}
  found["missing"] = {"<eurosat>": "no folder & no file"}
  found["accuracy"] = {"own": {"top1": {label: {"dtd": own} for label, own in top1.items()}}}
  found["intervals"] = {"own": {"top1": {label: {"dtd": [0.4, 0.9]} for label in PROMPTS}}}
  found |= {"images": {"own": {"top1": {"dtd": 1000}}}, "classes": {"own": {"top1": {"dtd": 50}}}}
  scores = {label: score(own) for label, own in top1.items()}
  found["splits"] = {}
  return found | {"sets": {"dtd": {"split": "test", "unreadable": 2, "prompts": scores}}}


def baselines_results():
  one = {"mean": 0.4, "std": 0.0, "values": [0.4], "images": 1000, "interval": [0.37, 0.43]}
  two = one | {"mean": 0.611, "std": 0.012, "values": [0.6, 0.62], "classes": 50}
  two |= {"t_interval": [0.5, 0.7]}
  cost = {"seconds": {"median": 7.25}, "peak_mib": None, "not_evaluated": []}
  methods = {
    "maple": cost | {"method": "maple", "n_runs": 2, "top1": {"base": two, "novel": two}},
    "linear_probe": cost | {"method": "linear_probe", "n_runs": 1, "top1": {"base": one}},
  }
  settings = [["maple", {"prompt.m": 2}], ["<own>", {}]]
  failed = {"<own>": "TrainingError: loss is nan & more"}
  return {"settings": settings, "methods": methods, "failed": failed}


def geometry_results():
  figures = {"alignment": 1.25, "uniformity": None, "top1": 0.511, "top1_interval": [0.4, 0.6]}
  vectors = {PATHS[0]: [{"tokens": ["<b>", "cat</w>"], "distances": [0.125, 0.5]}]}
  found = {"clip_model": "world", "prompts": [{"label": own, "step": None} for own in PROMPTS]}
  found["tokens"] = {"median_distance_between_tokens": 0.25, "vectors": vectors}
  novel = {"images": 1000, "classes": 50, "prompts": dict.fromkeys(PROMPTS, figures)}
  return found | {"sets": {"novel": novel}}


def seeds_results():
  of_split = {
    "prompt": {"mean": 0.611, "std": 0.012, "values": [0.6, 0.622], "t_interval": [0.5, 0.7]},
    "hand_written": {"mean": 0.4, "std": 0.0, "values": [0.4, 0.4], "t_interval": [0.4, 0.4]},
  }
  scores = {
    name: {"images": 1000, "top1": top1, "top1_interval": [0.37, 0.43]}
    for name, top1 in of_split.items()
  }
  gain = {"top1": of_split["prompt"] | {"spread": 0.022}, "gain": 0.211}
  found = {"method": "pomp", "clip_model": "world", "seeds": [3, 5], "steps": 240, "k": 64}
  found |= {"n_classes": 1000, "correction": None, "eval_classes": {"base": 50}}
  found |= {"seconds": {"values": [7.25, 8.5]}, "eval": {"base": scores}}
  return found | {"gain": {"base": gain | {"best_hand_written": "hand_written"}}}


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
    | {"hIoU": 0.25, "hIoU_plain": 0.5, "base": of_all, "novel": of_all | {"mIoU": 0.125}}
    | {"per_class": {"iou": iou, "accuracy": iou}}
    for label, iou in PAIR.items()
  }
  return _region_results("segment", figures) | {"pixels": [1000 + c for c in range(N)]}


def ablation_results():
  by_hand = {split: {"hand_written": 0.25, "class_name": 0.22} for split in ("base", "novel")}
  cells = synthetic_cells()
  for cell in cells:
    cell |= {"name": f"k={cell['values']['k']}", "by_hand": by_hand}
  return {"cells": cells, "missing": []}


def page_of(job, path, results, **changes):
  """Page of a run, with the plots that are in its folder."""
  config = small_config(job=job, **changes)
  finish_run(RunFolder(path), config.to_dict(), {"job": job} | results, "results.md", "results.tex")
  return Page((path / "report.html").read_text())


# By job: its results, and the plots.
REPORTS = {
  "pretrain": (training_results, ("accuracy.png", "predictions.png")),
  "evaluate": (evaluation_results, ("accuracy_own_top1.png", "calibration.png")),
  "baselines": (baselines_results, ("accuracy.png",)),
  "analyse": (geometry_results, ("alignment_uniformity.png", "map_novel.png")),
  "repeat": (seeds_results, ("accuracy.png",)),
  "segment": (segmentation_results, ("segmentation.png",)),
  "ablate": (ablation_results, ("sweep.png",)),
}
# Classes that gain or lose most, between the first and the last.
ROWS = "\n".join(f"<i>{c}</i>" for c in (*range(1, 7), 8, *range(12, 19)))
# The heading, and tables: the first cells of the head and of each row. "..": number of other rows.
EXPECTED = {
  "pretrain": """CoCoOp.*1,000 classes

prompt | base, 1,000 images, 50 classes | novel, 1,000 images, 50 classes
learned prompt | 51.1 (48.1 to 53.1) | 62.2 (59.2 to 64.2)
hand-written prompt | 41.1 (38.1 to 43.1) | 52.2 (49.2 to 54.2)""",
  "evaluate": """Evaluation on 1 data set

prompt | dtd
learned, one | 51.1 (40.0 to 90.0)
learned, two | 61.1 (40.0 to 90.0)
AWKWARD | 71.1 (40.0 to 90.0)
images | 1,000

called here
learned, one | /data/runs/one/prompt.npz | 80
learned, two | /data/runs/two/prompt.npz
AWKWARD

set | reason
<eurosat> | no folder & no file""",
  "baselines": """2 methods side by side

method | seeds
MaPLe | 2 | 61.1 ± 1.2 | 61.1 ± 1.2
linear probe | 1 | 40.0 | -

method | error
<own> | TrainingError: loss is nan & more""",
  "analyse": """Class features under 3 prompts

prompt | novel
learned, one | 1.250
learned, two | 1.250
AWKWARD | 1.250
learned, one | -
learned, two | -
AWKWARD | -
learned, one | 51.1 (40.0 to 60.0)
learned, two | 51.1 (40.0 to 60.0)
AWKWARD | 51.1 (40.0 to 60.0)

vector
1 | <b> 0.125 | cat</w> 0.500

set | images | classes
novel | 1,000 | 50""",
  "repeat": """Training: 2 seeds, 1,000 classes

prompt | base, 1,000 images, 50 classes
learned prompt | 61.1 ± 1.2
hand-written prompt | 40.0 ± 0.0
learned prompt | images 37.0 to 43.0; seeds 50.0 to 70.0
hand-written prompt | images 37.0 to 43.0; seeds 40.0 to 40.0

split
base, 1,000 images, 50 classes | +21.1 | hand-written prompt | 2.2

seed | base, 1,000 images, 50 classes
3 | 60.0
5 | 62.2""",
  "segment": f"""Segmentation: 1,234 images, 20 classes

prompt | hIoU | base mIoU | novel mIoU | mIoU
AWKWARD | 25.0 | 51.1 | 12.5 | 51.1
learned, runs/one | 25.0 | 51.1 | 12.5 | 51.1

class | group | pixels
<i>0</i> | base | 1,000 | 50.0 | 70.0 | +20.0
{ROWS}
<i>19</i> | - | 1,019 | 50.0 | 32.0 | -18.0""",
  "ablate": """Ablation over k, correction, seed

k | correction | base top-1 (%)
16 | log | 24.2 ± 3.5 | 56.0 ± 2.9
16 | none | 25.6 ± 5.4 (1 failed) | 58.4 ± 0.3 (1 failed)
.. 3

k | correction | seed
16 | log | 0 | 26.4 | 52.7 | 1.0 | 10.0
.. 14

prompt | base | novel
hand-written prompt | 25.0 | 25.0
class name alone | 22.0 | 22.0

cell | error
k=16 | TrainingError: loss is nan at step 7""",
}
# Rows of two cells.
FACTS = {
  "repeat": {"training of a seed (s)": "7.2, 8.5", "steps": "240"},
  "segment": {"classes": "20: 15 base, 4 novel", "pixels with a class": "20,190"},
}


@pytest.fixture(scope="module", params=list(REPORTS))
def page(request, tmp_path_factory):
  """The name of a job, its parsed page, and the folder."""
  job = request.param
  results, plots = REPORTS[job]
  path = tmp_path_factory.mktemp(job)
  (path / "plots").mkdir()
  if job == "ablate":
    write_cells(RunFolder(path), results())
  else:
    for name in plots:
      Image.new("RGB", (3, 2), "red").save(path / "plots" / name)
  return job, page_of(job, path, results(), **{"eval.template": AWKWARD}), path


def test_every_figure_is_on_the_page(page):
  job, parsed, _ = page
  heading, *tables = EXPECTED[job].replace("AWKWARD", AWKWARD).split("\n\n")
  assert re.search(heading, parsed.headings[0])
  lines_of = [[" | ".join([*row, ""]) for row in table] for table in parsed.tables]
  for head, *expected in map(str.splitlines, tables):
    found = [row for lines in lines_of if lines[0].startswith(f"{head} | ") for row in lines[1:]]
    if expected[-1].startswith(".."):
      n_others = int(expected.pop().removeprefix(".. "))
      assert len(found) == len(expected) + n_others
      del found[len(expected) :]
    for row, own in zip(found, expected, strict=True):
      assert row.startswith(f"{own} | ")
  pairs = {tuple(row) for table in parsed.tables for row in table}
  assert set(FACTS.get(job, {}).items()) <= pairs
  assert ("2 images could not be read" in parsed.text) == (job == "evaluate")
  if job == "repeat":
    assert {"seed_3/report.html", "seed_5/report.html"} <= set(parsed.links)


def test_the_page_is_whole_and_fetches_nothing(page):
  job, parsed, path = page
  text = (path / "report.html").read_text()
  assert parsed.open == []
  assert not parsed.tags & {"script", "link", "iframe", "b"}
  assert len(parsed.images) == len(REPORTS[job][1])
  for image in parsed.images:
    assert image["src"].startswith("data:image/png;base64,") and image["alt"]
  assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
  assert not any(urllib.parse.urlparse(link).scheme for link in parsed.links)
  assert "results.json" in parsed.links
  rows = {row[0]: row[1] for table in parsed.tables for row in table if len(row) == 2}
  assert rows["job"] == job
  assert rows["date"].endswith("UTC")
  assert rows["data.n_classes"] == "300"
  assert rows.get("eval.template", AWKWARD) == AWKWARD  # segment reads none
  assert "Command" in parsed.headings and "Config" in parsed.headings


@pytest.mark.parametrize(
  ("changes", "expected", "absent"),
  [
    ({"regions.source": "truth"}, {"regions.source": "truth", "regions.crop": "masked"}, "null"),
    (
      {"regions.source": "network", "propose.network": "runs/<net>", "regions.e_novel": 0.9},
      {"regions.source": "network: runs/<net>", "regions.e_novel, for other classes": "0.9"},
      "recipe",
    ),
    (
      {"segment.recipe": "sclip", "segment.pamr": 10},
      {"regions.source": "none: patches", "segment.pamr (steps)": "10"},
      "crop",
    ),
  ],
)
def test_the_page_says_where_regions_come_from(tmp_path, changes, expected, absent):
  parsed = page_of("segment", tmp_path, segmentation_results(), **changes)
  [found] = [dict(table) for table in parsed.tables if table[0][0] == "images"]
  assert expected.items() <= found.items()
  assert not any(absent in name for name in found)


def test_markdown_and_latex_have_the_figures_of_the_page(tmp_path):
  """Published figures with their source beside ours, of which the highest is bold."""
  found = evaluation_results()
  top1 = {label: {"dtd": 0.511 + i / 10, "mean": 0.4} for i, label in enumerate(PROMPTS)}
  found["accuracy"] = {"cross_dataset": {"top1": top1}}
  found["images"] = {"cross_dataset": {"top1": {"dtd": 1234}}}
  found["published"] = {"cross_dataset": {"top1": published("cross_dataset", "top1", top1)}}
  found["splits"] = {"cross_dataset": {"dtd": "all"}}
  page_of("evaluate", tmp_path, found)
  text = (tmp_path / "results.md").read_text()
  lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
  assert ["prompt", "dtd (all)", "mean"] in lines and ["images", "1,234", "-"] in lines
  assert ["POMP, paper \\[1]", "-", "67.0"] in lines and "\n[1] Ren et al." in text
  ours = [line[1:] for line in lines if len(line) == 3 and line[2] == "**40.0**"]
  assert ours == [["51.1", "**40.0**"], ["61.1", "**40.0**"], ["**71.1**", "**40.0**"]]
  assert "(all): all images of a folder" in text and "1 sets are missing" in text
  assert "a \\<b>&" in text  # escaped
  assert "## Prompts" in text and "## Calibration" not in text  # brief
  text = (tmp_path / "results.tex").read_text()
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 3
  body = "".join(line for line in text.splitlines() if not line.startswith("%"))
  assert not re.search(r"(?<!\\)[%_#]", body)
  assert r"\textbf{71.1}" in body and "POMP, paper [1]" in body and r"of a \{\}." in body
