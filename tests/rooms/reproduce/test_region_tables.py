"""Tables of segmentation and detection on mocked data, from command to verdict."""

import json
import shutil

import numpy as np
import pytest

from pomp_jax.main import main
from pomp_jax.rooms.reproduce import region_cases, targets
from pomp_jax.rooms.reproduce.region_tables import (
  DETECTION,
  IMAGES,
  MOVED_BETWEEN_PUBLICATIONS,
  REGION_TABLES,
  SEGMENTATION,
)
from tests.rooms.reproduce import region_roots
from tests.support.report_page import Page


@pytest.fixture(scope="session")
def pixel_root(shared):
  """ADE20K and the 156 classes with the regions of all their rows, and the CLIP."""

  def fill(root):
    clip = region_roots.write_clip(root / "clip")
    region_roots.write_segmentation(root / "DATA", clip, "ade20k", "coco_stuff_156")

  return shared("reproduce_pixels", fill)


@pytest.fixture(scope="session")
def box_root(shared):
  """LVIS with masks and COCO without, and the CLIP."""

  def fill(root):
    clip = region_roots.write_clip(root / "clip")
    own = ("table6_detic", "table6_pomp")
    both = (*own, "table7_detic", "table7_pomp")
    region_roots.write_detection(root / "DATA", clip, "lvis", both, masks=True)
    region_roots.write_detection(root / "DATA", clip, "coco_65", own, masks=False)

  return shared("reproduce_boxes", fill)


@pytest.fixture
def few_images(monkeypatch):
  """The counts of the mocked data in place of the published ones."""
  counts = dict.fromkeys(IMAGES, region_roots.IMAGES)
  monkeypatch.setattr(region_cases, "IMAGES", counts)


def command(root, table, workdir, *more):
  return main(
    [
      f"--config=reproduce:table={table},root={root / 'DATA'},clip={root / 'clip'}",
      f"--workdir={workdir}",
      *more,
    ]
  )


def read(workdir):
  content = json.loads((workdir / "reproduction.json").read_text())
  status = {}
  for row in content["rows"]:
    status.setdefault((row["stage"], row["subject"]), set()).add(row["status"])
  return content, status


@pytest.mark.slow("compiles the towers")
def test_segmentation_from_command_to_verdict(
  pixel_root, few_images, tmp_path, capsys, monkeypatch
):
  more = ("--config.reproduce.recorded_by=a test",)
  assert command(pixel_root, "segmentation", tmp_path / "run", *more) == 1
  assert "error: NOT REPRODUCED: Controls, regions" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  for data in ("ade20k", "coco_stuff_156"):
    assert status["Inputs", data] == {"PASS", "NOT RUN"}
    assert "FAIL" in status["Controls", data]
    assert status["Published prompts", data] == {"NOT RUN"}
  assert status["Inputs", "voc_15"] == {"NOT RUN"}
  rows = {
    (row["quantity"], row["subject"]): row
    for row in content["rows"]
    if row["stage"] == "Controls" and row["got"] is not None
  }
  assert len(rows) == 3 + 3 + 2 * 4
  row = rows["mACC (%), single prompt, table 13, ADE20K", "ade20k"]
  assert (row["expected"], row["source"]) == (0.31, "table 13, single prompt")
  run = tmp_path / "run" / "cases" / "ade20k-table13-controls" / "results.json"
  figures = json.loads(run.read_text())["figures"]["a sculpture of a {}."]
  assert row["got"] == figures["mACC"]
  row = rows["unseen (%), ZSSeg, table 4, COCO Stuff", "coco_stuff_156"]
  run = tmp_path / "run" / "cases" / "coco_stuff_156-table4_zsseg-controls"
  (figures,) = json.loads((run / "results.json").read_text())["figures"].values()
  assert row["got"] == figures["novel"]["mIoU"]
  assert row["expected"] == 0.363
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0
  record = json.loads((tmp_path / "run" / "digests.json").read_text())
  assert record["sets"]["ade20k"].keys() == {
    "images",
    "labels",
    "table5_zsseg/regions",
    "table5_pomp/regions",
    "table13/regions",
  }


@pytest.mark.slow("compiles the towers")
def test_detection_from_command_to_verdict(box_root, few_images, tmp_path, capsys):
  assert command(box_root, "detection", tmp_path / "run") == 1
  assert "error: NOT REPRODUCED: Controls" in capsys.readouterr().err
  content, status = read(tmp_path / "run")
  assert "FAIL" in status["Controls", "lvis"]
  assert status["Published prompts", "lvis"] == {"NOT RUN"}
  rows = {row["quantity"]: row for row in content["rows"] if row["stage"] == "Controls"}
  assert rows["APr (%), Detic, table 7, masks"]["expected"] == 0.249
  assert rows["APr (%), Detic, table 7, masks"]["got"] is not None
  # Objects of 144 pixels are small.
  why = rows["APl (%), Detic, table 6, COCO"]["why"]
  assert why.startswith("the run has no box APl")
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.fixture
def as_printed(monkeypatch):
  """Jobs that find what the tables print, but for `wrong`: figure -> value."""
  wrong = {}

  class Job:
    def check(self, config, workdir):
      pass

    def run(self, config, workdir):
      (own,) = (one for one in REGION_TABLES.values() if one.job == config.job)
      figures = {}
      for case in own.cases:
        if case.run != workdir.rsplit("/", 1)[1]:
          continue
        prompts = getattr(config, own.job).prompts
        label = case.text or next(p for p in prompts if p.startswith("/"))
        for column, place in case.figures.items():
          found = targets.target(case.table, case.row, f"{case.prefix} {column}")
          into = figures.setdefault(label, {})
          for key in place[:-1]:
            into = into.setdefault(key, {})
          value = found.value / 100 if found else 0.5
          into[place[-1]] = wrong.get((case.row, case.prefix, column), value)
      results = {"images": 4, "figures": figures}
      (region_cases.pathlib.Path(workdir)).mkdir(parents=True)
      file = region_cases.pathlib.Path(workdir) / "results.json"
      file.write_text(json.dumps(results))
      return results

  monkeypatch.setattr(region_cases, "load_job", lambda name: Job())
  return wrong


def test_figures_as_printed_pass(pixel_root, few_images, as_printed, tmp_path):
  assert command(pixel_root, "segmentation", tmp_path / "run") == 0
  content, status = read(tmp_path / "run")
  assert content["verdict"].startswith("REPRODUCED IN PART; not run: ")
  assert "ViLD's list of texts is not packaged" in content["verdict"]
  for stage in ("Controls", "Published prompts"):
    assert status[stage, "ade20k"] == {"PASS"}
  assert main([f"--config=reproduce:verify={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
  ("figure", "stage", "kind"),
  [
    (("single prompt", "ADE20K", "mIoU"), "Controls", "templates"),
    (("POMP", "ADE20K", "pACC"), "Published prompts", "prompt"),
  ],
)
def test_a_figure_that_is_off_is_named(
  figure, stage, kind, pixel_root, few_images, as_printed, tmp_path
):
  as_printed[figure] = 0.30
  assert command(pixel_root, "segmentation", tmp_path / "run") == 1
  content, status = read(tmp_path / "run")
  (found,) = content["findings"]
  assert (found["stage"], found["kind"], found["subject"]) == (stage, kind, "ade20k")
  assert "30.0 where" in found["sentence"]
  assert status[stage, "coco_stuff_156"] == {"PASS"}


def test_the_released_figures_stand_beside(box_root, few_images, as_printed, tmp_path):
  as_printed["POMP", "COCO", "AP50"] = 0.58
  assert command(box_root, "detection", tmp_path / "run") == 0
  content, _ = read(tmp_path / "run")
  (row,) = (
    row for row in content["rows"] if row["quantity"] == "AP50 (%), POMP, table 6, COCO"
  )
  assert (row["status"], row["expected"], row["beside"]) == ("PASS", 0.579, 0.58)


def test_an_edited_figure_is_found(pixel_root, few_images, as_printed, tmp_path):
  from pomp_jax.rooms.reproduce import verify
  from pomp_jax.rooms.reproduce.rows import from_dict

  assert command(pixel_root, "segmentation", tmp_path / "run") == 0
  content, _ = read(tmp_path / "run")
  rows = [from_dict(one) for one in content["rows"]]
  assert verify._figures(tmp_path / "run", content, rows) == []
  moved = [
    row if row.got is None or row.stage == "Inputs" else row._replace(got=0.123)
    for row in rows
  ]
  problems = verify._figures(tmp_path / "run", content, moved)
  assert len(problems) == len(content["figures"]) > 20


def test_the_published_number_of_images(pixel_root, as_printed, tmp_path):
  assert command(pixel_root, "segmentation", tmp_path / "run") == 1
  content, status = read(tmp_path / "run")
  first = content["findings"][0]
  assert (first["stage"], first["kind"]) == ("Inputs", "split")
  assert first["subject"] == "coco_stuff_156, ade20k"
  assert "coco_stuff_156: 4 images, and 5,000 are published" in first["sentence"]
  assert status["Controls", "ade20k"] == {"NOT RUN"}


def test_other_files_than_the_records(
  pixel_root, few_images, as_printed, tmp_path, monkeypatch
):
  more = ("--config.reproduce.recorded_by=a test",)
  assert command(pixel_root, "segmentation", tmp_path / "first", *more) == 0
  record = json.loads((tmp_path / "first" / "digests.json").read_text())
  root = tmp_path / "copy"
  shutil.copytree(pixel_root, root)
  label = root / "DATA" / "ade20k" / "labels" / "0.png"
  label.write_bytes((root / "DATA" / "ade20k" / "labels" / "1.png").read_bytes())
  monkeypatch.setattr(
    "pomp_jax.rooms.reproduce.reproduce.packaged_record", lambda table: record
  )
  assert command(root, "segmentation", tmp_path / "second") == 1
  content, status = read(tmp_path / "second")
  (found,) = content["findings"]
  assert found["sentence"] == "labels are other files than those of the record"
  assert (found["kind"], found["subject"]) == ("images", "ade20k")
  assert status["Published prompts", "coco_stuff_156"] == {"PASS"}


@pytest.mark.parametrize(
  ("field", "value"),
  [("prompts", "m4.npz"), ("train", 3), ("quick", "true"), ("runs", ".")],
)
def test_fields_that_tables_of_regions_do_not_read(
  field, value, pixel_root, tmp_path, capsys
):
  more = f"--config.reproduce.{field}={value}"
  assert command(pixel_root, "segmentation", tmp_path / "run", more) == 2
  assert f"config.reproduce.{field}" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_a_root_without_any_row(tmp_path, pixel_root, capsys):
  (tmp_path / "DATA").mkdir()
  (tmp_path / "clip").symlink_to(pixel_root / "clip")
  assert command(tmp_path, "detection", tmp_path / "run") == 2
  error = capsys.readouterr().err
  assert "config.reproduce.root" in error and "lvis/annotations.json" in error


@pytest.mark.parametrize("table", REGION_TABLES.values(), ids=REGION_TABLES)
def test_each_figure_of_the_tables_is_a_case(table):
  """But those that are named as not computed."""
  numbers = {case.table for case in table.cases}
  assert numbers == ({"4", "5", "13"} if table is SEGMENTATION else {"6", "7"})
  for number in numbers:
    content = targets.tables()[number]
    covered = {
      (case.row, f"{case.prefix} {column}")
      for case in table.cases
      if case.table == number
      for column in case.figures
    }
    printed = {
      (row, column) for row in content["rows"] for column in content["columns"]
    }
    left = printed - covered
    assert covered <= printed
    assert all(
      row == "ViLD prompts" or (column.startswith("COCO Stuff") and number != "4")
      for row, column in left
    )


def test_what_the_readme_prints_is_within_the_tolerance():
  """The tolerance is the largest difference of two publications."""
  released = targets.tables()["released detection"]
  differences = []
  for column, value in zip(released["columns"], released["rows"]["POMP"], strict=True):
    printed = targets.target("6", "POMP", column)
    differences.append(abs(value - printed.value) / 100)
  assert max(differences) == pytest.approx(MOVED_BETWEEN_PUBLICATIONS)
  assert len(DETECTION.cases) == 10
  np.testing.assert_allclose(sorted(differences), [0.001, 0.005])


def test_the_report_says_what_failed_and_leaves_out_empty_columns(
  pixel_root, few_images, as_printed, tmp_path
):
  as_printed["single prompt", "ADE20K", "mIoU"] = 0.30
  assert command(pixel_root, "segmentation", tmp_path / "run") == 1
  page = Page((tmp_path / "run" / "report.html").read_text())
  assert "1 of 11 figures are off" in page.text
  columns = ("subject", "what", "expected", "got", "n", "tolerance", "status")
  shown = [
    rows for rows in page.tables if tuple(rows[0]) == (*columns, "why", "target")
  ]
  assert len(shown) == 2  # of the controls and of the published prompts
  (failed,) = (row for row in shown[0] if "FAIL" in row)
  what = "mIoU (%), single prompt, table 13, ADE20K"
  assert failed[:7] == ["ade20k", what, "17.80", "30.00", "4", "0.55", "FAIL"]
  assert failed[-1] == "table 13, single prompt"
  assert "hand-written prompts; in percent" in page.text
