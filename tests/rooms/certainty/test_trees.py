"""Trees above classes, their files and their sums, against NumPy in float64."""

import json
import pathlib

import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.rooms.certainty import depth
from pomp_jax.rooms.certainty import outputs as device
from pomp_jax.rooms.certainty.trees import TreeError, load_class_tree

NAMES = ("terrier", "beagle", "cat", "dog", "oak")
CSV = """all,kind,species,name
living,animal,dog,terrier
living,animal,dog,beagle
living,animal,cat,cat
living,animal,,dog
living,,,oak
"""
TOML = """
living = ["animal", "oak"]
animal = ["dog", "cat", "pet"]
pet = ["dog", "cat"]
dog = ["terrier", "beagle"]
"""


@pytest.fixture
def written(tmp_path):
  """A function: suffix, content -> the path of a file."""

  def write(suffix, content):
    path = tmp_path / f"tree{suffix}"
    path.write_text(content)
    return str(path)

  return write


def by_hand(tree, probabilities):
  """Sums over the descendants of each node by walking up from each class."""
  sums = np.zeros((len(probabilities), len(tree.tree)))
  for label, node in enumerate(tree.nodes.tolist()):
    above, todo = set(), [node]
    while todo:
      one = todo.pop()
      if one not in above:
        above.add(one)
        todo += tree.tree.parents[one].tolist()
    for one in above:
      sums[:, one] += probabilities[:, label]
  return sums


def test_a_class_counts_once_for_a_node_with_two_ways_up(written):
  tree = load_class_tree(written(".toml", TOML), NAMES, "")
  probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 7)
  found = np.asarray(tree.probabilities(probabilities.astype(np.float32)))
  np.testing.assert_allclose(found, by_hand(tree, probabilities), atol=1e-6)
  names = tree.tree.names
  below = dict(zip(names, tree.n_below.tolist(), strict=True))
  assert below == {
    **{"living": 5, "animal": 4, "pet": 4, "dog": 3},
    **dict.fromkeys(("cat", "oak", "terrier", "beagle"), 1),
  }
  assert tree.bits[names.index("dog")] == pytest.approx(np.log2(5 / 3))
  assert tree.bits[tree.tree.root] == 0


def test_sums_over_wordnet():
  classes = load_class_list("imagenet21k")
  tree = load_class_tree("wordnet", classes.names, "imagenet21k")
  rng = np.random.default_rng(1)
  probabilities = rng.dirichlet(np.full(len(classes), 0.01), 2)
  found = np.asarray(tree.probabilities(probabilities.astype(np.float32)))
  np.testing.assert_allclose(found, by_hand(tree, probabilities), atol=1e-5)
  assert found[:, load_tree().root] == pytest.approx(1, abs=1e-5)


def test_the_deepest_sure_node(written):
  tree = load_class_tree(written(".toml", TOML), NAMES, "")
  rows = np.array(
    [
      [0.5, 0.3, 0.1, 0.05, 0.05],  # dogs, of one kind or the other
      [0.96, 0.01, 0.01, 0.01, 0.01],  # a terrier
      [0.3, 0.1, 0.2, 0.1, 0.3],  # nothing is sure
    ],
    np.float32,
  )
  found = depth.answers(tree, rows, 0.8)
  names = [tree.tree.names[node] for node in found.nodes]
  assert names == ["dog", "terrier", "living"]
  assert found.probabilities == pytest.approx([0.85, 0.96, 1.0])
  sums = np.asarray(tree.probabilities(rows))
  texts = [
    depth.text_of(tree, int(node), row)
    for node, row in zip(found.nodes, sums, strict=True)
  ]
  # `animal` tells no more than `pet`
  assert texts[0] == "pet (0.95) > dog (0.85) > ?"
  assert texts[1].endswith("dog (0.98) > terrier (0.96)")
  assert texts[2] == "?"


def test_curves_are_those_of_all_nodes_compared_one_by_one(written, monkeypatch):
  tree = load_class_tree(written(".toml", TOML), NAMES, "")
  monkeypatch.setattr(device, "_SCORES", 64)  # several blocks
  rng = np.random.default_rng(2)
  probabilities = rng.dirichlet(np.ones(5), 60)
  labels = np.array([rng.choice(5, p=row) for row in probabilities])
  leasts, weights = (0.3, 0.6, 0.95), (0.0, 1.0, 5.0)
  found = depth.curves(tree, probabilities.astype(np.float32), labels, leasts, weights)
  sums = by_hand(tree, probabilities)
  above = by_hand(tree, np.eye(5)) > 0
  for kind, points in found.items():
    for point in points:
      right, bits = [], []
      for row, label in zip(sums, labels, strict=True):
        if kind == "threshold":
          sure = [node for node in range(len(row)) if row[node] >= point.setting]
          node = max(sure, key=lambda one: (round(tree.bits[one], 9), row[one], -one))
        else:
          node = int(np.argmax((tree.bits + point.setting) * row))
        right.append(above[label, node])
        bits.append(tree.bits[node] * above[label, node])
      assert point.accuracy == pytest.approx(np.mean(right)), (kind, point)
      assert point.bits == pytest.approx(np.mean(bits), abs=1e-6)


def test_lines_may_end_as_each_system_ends_them(written):
  unix = load_class_tree(written(".csv", CSV), NAMES, "")
  for end in ("\r", "\r\n"):
    path = pathlib.Path(written(".csv", ""))
    path.write_bytes(CSV.replace("\n", end).encode())
    tree = load_class_tree(str(path), NAMES, "")
    assert tree.tree.names == unix.tree.names


def test_the_classes_below_a_node(written):
  tree = load_class_tree(written(".csv", CSV), NAMES, "")
  assert tree.below("living", "here").tolist() == [0, 1, 2, 3, 4]
  assert tree.below("species\tdog", "here").tolist() == [0, 1]
  assert tree.below("animal", "here").tolist() == [0, 1, 2, 3]
  with pytest.raises(TreeError, match="no node is named 'fern'"):
    tree.below("fern", "here")
  with pytest.raises(TreeError, match="2 nodes with classes are named 'dog'"):
    tree.below("dog", "here")


def test_supercategories(written):
  categories = [
    {"id": 1, "name": "cat", "supercategory": "animal"},
    {"id": 2, "name": "traffic_light", "supercategory": "outdoor"},
  ]
  path = written(".json", json.dumps({"categories": categories}))
  tree = load_class_tree(path, ("traffic light", "cat"), "")
  assert tree.tree.names[tree.tree.root] == "anything"
  assert tree.below("outdoor", "").tolist() == [0]


@pytest.mark.parametrize(
  ("suffix", "text", "line"),
  [
    (".toml", 'a = ["b"]\nb = ["c"]\nc = ["a", "cat"]\n', "a cycle: 'a' > 'b'"),
    (".toml", 'a = ["cat"]\nb = ["dog"]\n', "2 roots, 'a', 'b'; expected one"),
    (".csv", "kind,name\nanimal,cat\nplant,oak\n", "2 roots, 'animal', 'plant'"),
    (".csv", "all,kind,name\nx,a,cat\ny,a,dog\n", "line 3: 'a' is below 'y'"),
    (".csv", "kind,name\nanimal\n", "line 2 has 1 cells; expected 2"),
    (".csv", "kind,name\n", "no rows"),
    (".toml", 'a = "cat"', "'a' is no list of names"),
    (".toml", "a = [", "not TOML"),
    (".toml", f"a = {'1' * 5000}", "not TOML"),
    (".toml", f"a = {'[' * 5000}", "not TOML"),
    (".csv", f"kind,name\nanimal,{'a' * 200_000}\n", "not CSV"),
    (".json", "{}", "no categories"),
    (".toml", 'all = ["cat"]', "1 of 2 names are not in the tree, such as 'dog'"),
    (".txt", "", "not a tree"),
  ],
)
def test_a_tree_that_can_not_be_used_is_one_line(written, suffix, text, line):
  path = written(suffix, text)
  names = ("cat",) if "not in the tree" not in line else ("cat", "dog")
  if "roots" in line:
    names = ("cat", "dog") if suffix == ".toml" else ("cat", "oak")
  with pytest.raises(TreeError) as refused:
    load_class_tree(path, names, "")
  assert line in str(refused.value) and path in str(refused.value)
  assert "\n" not in str(refused.value)


def test_wordnet_takes_synsets(written):
  path = written(".txt", "cat\n")
  with pytest.raises(TreeError, match="no synsets"):
    load_class_tree("wordnet", ("cat",), path)
