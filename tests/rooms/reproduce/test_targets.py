"""The paper's tables: their arithmetic, and the counts of the sets."""

import statistics

import pytest

from pomp_jax.data.class_lists import FOUR, TEN
from pomp_jax.rooms.reproduce import targets
from pomp_jax.rooms.reproduce.tables import ACCURACIES

TABLES = targets.tables()
# Half of the last printed digit.
HALF = 0.05
# Of 14 means of table 2 and four harmonic means of table 4, those that do not round to
# what is printed, and the difference of the printed one from that of the printed parts.
DIFFERENT = {
  ("4", "ZSSeg", "COCO Stuff hIoU"): 0.06,
  ("4", "ZSSeg", "VOC hIoU"): -0.11,
  ("4", "POMP", "COCO Stuff hIoU"): 0.07,
}


# The only one that no parts which round to the printed ones have.
IMPOSSIBLE = [("4", "ZSSeg", "VOC hIoU")]


def figure(table, method, column):
  content = TABLES[table]
  return content["rows"][method][content["columns"].index(column)]


def derived():
  """Table, row and column of each printed figure that follows from others, the kind of
  mean, and these."""
  for method in TABLES["2"]["rows"]:
    for column, sets in (("mean of 10", TEN), ("mean of 4", FOUR)):
      parts = [figure("2", method, name) for name in sets]
      yield ("2", method, column), statistics.fmean, parts
  for method in TABLES["4"]["rows"]:
    for name in ("COCO Stuff", "VOC"):
      parts = [figure("4", method, f"{name} {part}") for part in ("seen", "unseen")]
      yield ("4", method, f"{name} hIoU"), statistics.harmonic_mean, parts


def test_means_are_those_of_their_rows():
  found = {}
  impossible = []
  for place, mean, parts in derived():
    printed = figure(*place)
    difference = printed - mean(parts)
    if abs(difference) > HALF + 1e-9:
      found[place] = round(difference, 2)
    # The parts are rounded too, and both means grow with each part.
    lowest = mean([part - HALF for part in parts])
    highest = mean([part + HALF for part in parts])
    if not lowest - HALF <= printed <= highest + HALF:
      impossible.append(place)
  assert found == DIFFERENT
  assert impossible == IMPOSSIBLE
  assert len(list(derived())) == 18


@pytest.mark.parametrize(
  ("first", "second"),
  [
    (("8 and 9", "K = 1000", "imagenet21k"), ("1", "POMP", "ViT-B/16")),
    (("8 and 9", "K = 1000", "mean of 10"), ("2", "POMP", "mean of 10")),
    (("8 and 9", "K = 1000", "mean of 4"), ("2", "POMP", "mean of 4")),
    (("12", "m = 0", "K = 1000"), ("8 and 9", "K = 1000, no correction", "mean of 10")),
    (("12", "m = 1", "K = 1000"), ("2", "POMP", "mean of 10")),
  ],
)
def test_a_figure_that_two_tables_print(first, second):
  assert figure(*first) == figure(*second)


def test_each_row_has_a_figure_a_column():
  for number, content in TABLES.items():
    for method, row in content["rows"].items():
      assert len(row) == len(content["columns"]), (number, method)


def test_a_target_names_its_table():
  found = targets.target("2", "hard prompt", "dtd")
  assert found == targets.Target(44.3, "table 2", "hard prompt")
  assert targets.target("1", "CoOp", "ViT-B/16") == (20.8, "table 1", "CoOp")
  assert targets.target("1", "VPT", "ResNet50") is None
  assert targets.target("2", "POMP", "imagenet1k") is None


def test_the_columns_are_the_sets_and_their_means():
  table = ACCURACIES["cross_dataset"]
  columns = [*table.means["mean of 10"], "mean of 10"]
  assert TABLES["2"]["columns"] == [*columns, *table.means["mean of 4"], "mean of 4"]
  assert table.released(4, "mean of 10") == (
    66.7,
    "released weights",
    "M = 4, 5 epochs",
  )
  assert table.released(16, "dtd") is None
  alone = ACCURACIES["imagenet21k"]
  assert alone.target(alone.paper, "imagenet21k_p_w21").value == 25.3
  assert alone.released(4, "imagenet21k_p_w21").value == 24.9


def test_the_fourteen_have_the_images_that_the_docs_say():
  counts = [targets.TEST_IMAGES[name] for name in (*TEN, *FOUR)]
  assert sum(counts) == 182_085
