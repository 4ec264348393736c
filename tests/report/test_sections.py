"""The sections of reports, each figure at its place: whole tables against literals."""

import csv
import json

import pytest

from pomp_jax.report import report
from pomp_jax.report.evaluation_report import evaluation_report, remarks
from pomp_jax.report.labels import counted, prompt_labels, run_labels, with_counts
from pomp_jax.report.left_out import left_out_section
from pomp_jax.report.report import Report, Section, Table
from pomp_jax.report.run_report import training_report
from tests.report.test_reports import evaluation_results, training_results
from tests.support.report_page import page_of


def figures(**more):
  """Of one prompt on one set; each is another number."""
  found = {
    "images": 1234,
    "top1": 0.501,
    "top1_interval": [0.482, 0.523],
    "top5": 0.754,
  }
  found |= {"macro_top1": 0.445, "ece": 0.036}
  return found | more


TREE = {
  "errors": {"sibling": 0.217, "sibling_chance": 0.018, "mean_distance": 6.29},
  "hierarchy": {"top1": 0.61, "ancestor_height": 3.42},
}
DIFFERENCE = {
  "difference": {"top1": 0.051, "interval": [-0.012, 0.113], "p_value": 0.034}
}


def evaluation(**more):
  """Of two prompts on a set, and of one on another."""
  sets = {
    "dtd": {"split": "test", "unreadable": 0, "prompts": {"a {}.": figures()}},
    "mine": {
      "split": "train",
      "unreadable": 3,
      "prompts": {"a {}.": figures(images=10)},
    },
  }
  sets["dtd"]["prompts"]["b {}."] = figures(**TREE, **DIFFERENCE)
  labels = [{"label": label, "step": None} for label in ("a {}.", "b {}.")]
  tables = {"own": {"top1": {"a {}.": {"dtd": 0.501}}}}
  found = {"clip_model": "world", "prompts": labels, "missing": {}, "accuracy": tables}
  found |= {"images": {"own": {"top1": {"dtd": 1234}}}, "splits": {}, "published": {}}
  return found | {"sets": sets} | more


def section(found, title):
  (one,) = [one for one in found.sections if one.title.startswith(title)]
  return one


def test_each_figure_of_a_set_stands_below_its_heading():
  one = section(evaluation_report(evaluation(), {}), "Every figure")
  assert one.title == "Every figure (%; edges and heights in edges of WordNet's tree)"
  first = ["1,234", "50.1", "48.2", "52.3", "75.4", "44.5", "3.6"]
  columns = {
    "set: prompt": ["dtd: a {}.", "dtd: b {}.", "mine (train): a {}."],
    "images": ["1,234", "1,234", "10"],
    **{
      head: [value] * 3
      for head, value in zip(
        ("top-1", "95% from", "95% to", "top-5", "macro top-1", "ECE"),
        first[1:],
        strict=True,
      )
    },
    "errors on a sibling": ["-", "21.7", "-"],
    "by chance": ["-", "1.8", "-"],
    "edges of an error": ["-", "6.3", "-"],
    "hierarchical top-1": ["-", "61.0", "-"],
    "height of the common kind": ["-", "3.4", "-"],
    "difference": ["-", "5.1", "-"],
    "difference from": ["-", "-1.2", "-"],
    "difference to": ["-", "11.3", "-"],
    "p (%)": ["-", "3.4", "-"],
  }
  assert dict(
    zip(one.table.columns, map(list, zip(*one.table.rows, strict=True)), strict=True)
  ) == (columns)
  assert (
    "McNemar" in one.text
    and "(train): training images of the set. A prompt" in one.text
  )


def test_columns_without_a_figure_are_left_out():
  found = evaluation()
  del found["sets"]["dtd"]["prompts"]["b {}."], found["prompts"][1]
  one = section(evaluation_report(found, {}), "Every figure")
  assert one.title == "Every figure (%)" and "McNemar" not in one.text
  assert len(one.table.columns) == 8


@pytest.mark.parametrize("part", list(TREE))
def test_edges_of_the_tree_are_explained_where_a_column_has_them(part):
  found = evaluation()
  found["sets"]["dtd"]["prompts"]["b {}."] = figures(**{part: TREE[part]})
  one = section(evaluation_report(found, {}), "Every figure")
  assert one.title.endswith("in edges of WordNet's tree)")


def test_a_harmonic_mean_of_one_set_has_the_legend_of_means():
  tables = {"own": {"harmonic": {"a {}.": {"dtd": 0.501}}}}
  found = evaluation(accuracy=tables, images={"own": {"harmonic": {"dtd": 9}}})
  found["splits"] = {"own": {"dtd": "test"}}
  assert (
    section(evaluation_report(found, {}), "Harmonic").text == report.INTERVAL_OF_MEANS
  )


def test_the_first_lines_of_an_evaluation_count_all_of_it():
  found = evaluation_report(evaluation(), {})
  assert found.title == "Evaluation on 2 data sets"
  assert found.text == (
    "2 prompts on 2 data sets, 1,244 images in all, CLIP world. 3 images could not be read and"
    " were skipped."
  )
  assert not [one for one in found.sections if one.title.startswith("Missing")]


def test_missing_sets_and_classes_are_counted():
  found = evaluation(missing={"eurosat": "no folder"})
  found["sets"]["dtd"] |= {"listed_classes": 47, "missing_classes": 5}
  found["sets"]["mine"] |= {"listed_classes": 9, "missing_classes": 0}
  one = section(evaluation_report(found, {}), "Missing sets and classes")
  assert list(one.notes) == [
    "1 sets are missing: eurosat",
    "dtd: 5 of the 47 classes in its list have no image",
  ]
  assert one.table.rows == [("eurosat", "no folder")]
  # Classes alone have no table.
  one = section(
    evaluation_report(found | {"missing": {}}, {}), "Missing sets and classes"
  )
  assert one.table is None and len(one.notes) == 1


def test_published_figures_have_the_number_of_their_source_and_means_their_own_legend():
  methods = {
    "A": {"source": "first", "figures": {"dtd": 60.0}},
    "B": {"source": "second", "figures": {"mean": 61.0}},
    "C": {"source": "first", "figures": {"dtd": 62.0, "mean": 63.0}},
  }
  rows = {"a {}.": {"dtd": 0.501, "mean": 0.4}, "b {}.": {"dtd": 0.6, "mean": 0.5}}
  found = evaluation(accuracy={"cross_dataset": {"top1": rows}})
  found["images"] = {"cross_dataset": {"top1": {"dtd": 1234}}}
  found["published"] = {"cross_dataset": {"top1": methods}}
  found["splits"] = {"cross_dataset": {"dtd": "test"}}
  one = section(evaluation_report(found, {}), "Top-1 accuracy (%)")
  assert one.table.rows[2:] == [
    ["A [1]", "60.0", "-"],
    ["B [2]", "-", "61.0"],
    ["C [1]", "62.0", "63.0"],
    ["images", "1,234", "-"],
  ]
  assert list(one.table.marks) == ["", "", *["published"] * 3, "images"]
  assert one.notes == ["[1] first", "[2] second"] and "ViT-B/16" in one.text
  assert (
    report.INTERVAL_OF_MEANS in one.text and "Bold: above the first prompt" in one.text
  )
  # Of single sets, under one prompt, without others.
  one = section(
    evaluation_report(evaluation(splits={"own": {"dtd": "test"}}), {}), "Top-1"
  )
  assert one.text == report.INTERVAL


def test_a_training_says_what_it_was():
  found = training_results() | {
    "margin": 0.5,
    "productive_share": 0.876,
    "roll_backs": 2,
    "unreadable_images": 1,
    "unreadable": {"train": ["a.png"], "novel": ["b.png", "c.png"]},
    "found": {"C": 0.5},
    "not_evaluated": ["base", "shifted"],
    "left_out": {"not_read": ["x.heic"]},
  }
  one = training_report(found, {})
  assert section(one, "Training").table.rows == [
    ("method", "CoCoOp"),
    ("classes of the training", "1,000"),
    ("K, classes of a step", "64"),
    ("correction", "log"),
    ("fixed margin", "0.5"),
    ("steps", "240"),
    ("training (s)", "12.5"),
    ("images a second", "99.0"),
    ("share of the wall clock in steps (%)", "87.6"),
    ("evaluation (s)", "1.5"),
    ("roll-backs", "2"),
    ("unreadable images", "1"),
    ("found: C", "0.5"),
    ("not evaluated (other classes)", "base, shifted"),
  ]
  assert section(one, "Images that can't be read").table.rows == [
    ("train", "a.png"),
    ("novel", "b.png"),
    ("novel", "c.png"),
  ]
  assert section(one, "Pictures and classes").table.rows == [
    ("HEIC, which is not read", "x.heic")
  ]
  pictures = [section.picture for section in one.sections if section.picture]
  assert pictures == ["accuracy.png", "training.png", "predictions.png", "mistakes.png"]
  accuracy = section(one, "Top-1 accuracy")
  assert (
    list(accuracy.table.marks) == ["best", ""] and "have seen them" not in accuracy.text
  )
  assert (
    one.title == "Training: CoCoOp on 1,000 classes" and ", seed 3. One run" in one.text
  )


def test_a_training_that_is_tested_on_its_own_images_says_so():
  found = training_results()
  for key in ("eval", "eval_images", "eval_classes"):
    found[key] = {"train/base": found[key]["base"], "new": found[key]["novel"]}
  text = section(training_report(found, {}), "Top-1 accuracy").text
  assert "A prompt that was trained on them has seen them." in text


@pytest.mark.parametrize("reference", [None, "prompt"])
def test_differences_of_a_training_are_in_points(reference):
  found, of = training_results(), "hand_written" if reference else "prompt"
  difference = {"top1": 0.101, "interval": [-0.02, 0.213], "p_value": 0.00346}
  found["eval"]["novel"][of]["difference"] = difference
  found |= {"reference": reference} if reference else {}
  one = section(
    training_report(found | {"provenance": {"folder": "demo"}}, {}), "Difference to"
  )
  label = {"prompt": "learned (demo)", "hand_written": "hand-written prompt"}
  assert one.title == f"Difference to {label[reference or 'hand_written']}"
  assert one.table.rows == [["novel", label[of], "+10.1 (-2.0 to +21.3)", "0.0035"]]


def test_a_line_for_each_class_and_picture_that_is_left_out():
  left_out = {
    "classes_without_pictures": ["zebra"],
    "classes_without_test_pictures": {"test": ["cat"], "validation": ["dog", "cat"]},
    "duplicates": {"validation": {"v/1": "t/1"}, "test": {"e/1": "v/2"}},
    "not_read": ["x.heic"],
  }
  one = left_out_section(left_out)
  assert one.table.rows == [
    ("class without a picture", "zebra"),
    ("class without a picture in test", "cat"),
    ("class without a picture in validation", "dog"),
    ("class without a picture in validation", "cat"),
    ("validation: equals an earlier split's", "v/1 = t/1"),
    ("test: equals an earlier split's", "e/1 = v/2"),
    ("HEIC, which is not read", "x.heic"),
  ]
  assert one.notes == []
  for count, notes in ((200, []), (201, ["The first 200 of 201."])):
    one = left_out_section({"not_read": list(map(str, range(count)))})
    assert len(one.table.rows) == 200 and one.notes == notes


def test_prompts_and_failures_have_a_row_each():
  prompts = [
    {"label": "a", "step": None},
    {"label": "b", "step": 1234, "note": "words"},
  ]
  labels = {"a": "A", "b": "B"}
  one = report.prompts_section(prompts, labels)
  assert one.table.rows == [["A", "a", "-"], ["B", "b", "1,234"]]
  assert one.table.columns == ["called here", "prompt", "step of a checkpoint"]
  assert one.notes == ["words"]
  assert report.prompts_section(prompts[:1], labels).table == Table(
    ["called here", "prompt"], [["A", "a"]]
  )
  one = report.failures("Failed", "cell", [("k=3", "no"), ("k=4", "no")])
  assert one.table == Table(
    ("cell", "error"), [("k=3", "no"), ("k=4", "no")], ["failed"] * 2
  )
  assert report.failures("Failed", "cell", []) == Section("Failed", "None.")


def test_a_csv_file_has_a_field_for_each_cell(tmp_path):
  rows = [("a, b", 0.5), ('"c"\nd', None)]
  report.write_csv(tmp_path / "a.csv", ("name", "value"), rows)
  with open(tmp_path / "a.csv", newline="") as file:
    assert list(csv.reader(file)) == [
      ["name", "value"],
      ["a, b", "0.5"],
      ['"c"\nd', ""],
    ]


def test_sections_of_pictures_that_are_missing_are_dropped():
  table = Table(("a",), [["1"]])
  sections = [
    Section("text"),
    Section("there", picture="a.png"),
    Section("gone", picture="b.png"),
    Section("gone but for its table", picture="b.png", table=table),
  ]
  found = report.with_pictures(Report("t", "x", sections), {"a.png"})
  assert [(one.title, one.picture) for one in found.sections] == [
    ("text", ""),
    ("there", "a.png"),
    ("gone but for its table", ""),
  ]


def test_parts_of_a_page():
  """Folded sections, code, links of names that a URL escapes, marks and kinds of
  cells."""
  table = Table(
    ("name", "top_1"), [["a" * 37, "-1.5"], ["b", "-"], ["c", "3"]], ["best", "", ""]
  )
  one = Section(
    "t",
    table=table,
    notes=["n <1>"],
    code="x < y",
    links={"a file": "a b/c?.md"},
    folded=True,
  )
  text = report.html_section(one, lambda name: "")
  assert text.startswith("<h2>t</h2>\n<details><summary>show</summary>\n")
  assert "<p>n &lt;1&gt;</p>" in text and "<pre>x &lt; y</pre>" in text
  assert '<li><a href="a%20b/c%3F.md">a file</a></li>' in text
  assert '<th class="words">name</th><th class="figure">top_<wbr>1</th>' in text
  assert (
    f'<tr class="best"><td class="text">{"a" * 37}</td><td class="figure">-1.5</td>'
    in text
  )
  assert '<tr class=""><td class="words">b</td><td class="figure">-</td></tr>' in text
  # A column of figures has as many dashes at most.
  kinds = [
    report.is_words(Table(("a",), rows), 0)
    for rows in ([["1"], ["-"]], [["1"], ["-"]] * 2)
  ]
  assert kinds == [False, False] and report.is_words(
    Table(("a",), [["1"], ["-"], ["-"]]), 0
  )
  plain = report.html_section(Section("t", "x"), lambda name: "")
  assert plain == "<h2>t</h2>\n<p>x</p>\n"


@pytest.mark.parametrize(
  ("n", "noun", "text"),
  [(1, "class", "1 class"), (1234, "class", "1,234 classes"), (2, "box", "2 boxes")]
  + [(0, "image", "0 images"), (1, "step", "1 step")],
)
def test_a_number_has_its_noun(n, noun, text):
  assert counted(n, noun) == text


def test_counts_that_are_not_known_are_left_out():
  assert with_counts("dtd", 1, 47) == "dtd, 1 image, 47 classes"
  assert (
    with_counts("dtd", None, 0) == "dtd, 0 classes"
    and with_counts("dtd", None, None) == "dtd"
  )


def test_labels_of_rows_that_a_run_has_chosen():
  stated = {"words": {"labels": {"prompt": "mixture", "words": "a photo of a {}."}}}
  names = ["prompt", "words", "hand_written", "cocoop_k_16"]
  found = run_labels(names, "demo", stated)
  assert found == ["mixture", "a photo of a {}.", "hand-written prompt", "CoCoOp k 16"]
  assert run_labels(["zero_shot_ensemble"], "demo") == ["zero-shot ensemble of prompts"]


def test_labels_of_other_prompts():
  names = ["waffle:3", "w/birds.json", "0.5*runs/a + 0.5*ensemble", "class_name"]
  assert prompt_labels(names) == [
    "waffle:3",
    "descriptions (birds.json)",
    "0.5*runs/a + 0.5*ensemble",
    "class name alone",
  ]


def test_remarks_are_of_each_kind_of_split_once():
  assert remarks(["test", "validation"]) == []
  found = remarks(["train", "all", "train"])
  assert [text.partition(":")[0] for text in found] == ["(train)", "(all)"]


def test_the_page_of_a_run_lists_its_files_and_the_fields_that_differ(tmp_path):
  for name in ("prompt.npz", "classes.csv", "metrics.jsonl"):
    (tmp_path / name).write_text("")
  (tmp_path / "plots").mkdir()
  parsed = page_of(
    "pretrain", tmp_path, training_results(), **{"prompt.candidates": "a {}.;b {}."}
  )
  expected = ["results.json", "results.md", "results.tex", "classes.csv", "prompt.npz"]
  assert parsed.links == [*expected, "metrics.jsonl", "plots"]
  rows = {row[0]: row[1] for row in parsed.table("field", "value")}
  assert json.loads(rows["prompt.candidates"]) == ["a {}.", "b {}."]
  assert rows["k"] == "20" and "checkpoint.keep" not in rows and "job" not in rows
  parsed = page_of("evaluate", tmp_path, evaluation_results())
  assert ["job", "evaluate"] in parsed.table("field", "value")
