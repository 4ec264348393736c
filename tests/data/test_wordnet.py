"""The tree against NetworkX; names that are made of WordNet's lemmas."""

import importlib.metadata
import pathlib

import networkx as nx
import numpy as np
import pytest

from docs.generators import write_class_names
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import VocabularyError, load_class_list
from pomp_jax.data.wordnet import load_tree
from tests.support.oracles import tree_graph


@pytest.fixture(scope="module")
def tree():
  return load_tree()


def test_size_and_root(tree):
  assert len(tree) == 23_547
  assert (tree.ids[tree.root], tree.names[tree.root]) == ("n00001740", "entity")
  every = {"n04399382", *load_class_list("imagenet21k").synsets}  # ImageNet-1K's teddy bear
  assert all(tree.root in tree.ancestors[node] for node in tree.nodes(sorted(every)))


def test_depths_and_ancestors_are_networkxs(tree):
  graph = tree_graph(tree)
  shortest = nx.single_source_shortest_path_length(graph, tree.root)
  np.testing.assert_array_equal(tree.depth, [shortest[node] for node in range(len(tree))])
  backward = graph.reverse()
  for node in np.random.default_rng(0).choice(len(tree), 300):
    ways = nx.single_source_shortest_path_length(backward, node)
    assert tree.ancestors[node].tolist() == sorted(ways)


def test_an_unknown_synset(tree):
  with pytest.raises(VocabularyError, match="synset n99999999 is unknown"):
    tree.nodes(["n02084071", "n99999999"])


WORDNET = pathlib.Path("/usr/share/wordnet/data.noun")
without_wordnet = pytest.mark.skipif(not WORDNET.exists(), reason="wordnet-base is not installed")


@pytest.mark.parametrize("which", ["ten", pytest.param("imagenet", marks=without_wordnet)])
def test_the_packaged_names_are_stored_as_made(which):
  make = write_class_names
  try:
    ten = which == "ten"
    files = make.make_downstream() if ten else make.make_imagenet(make.read_nouns(str(WORDNET)))
  except importlib.metadata.PackageNotFoundError as error:
    pytest.skip(str(error))
  folder = pathlib.Path(class_lists.__file__).parent / "class_names"
  for path, content in files.items():
    assert (folder / path).read_text(encoding="utf-8") == content, path
