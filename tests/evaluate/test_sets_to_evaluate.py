"""Sets of an evaluation: which are opened and missing, on one host and others; names
and parts."""

import numpy as np
import pytest

from pomp_jax import hosts, world
from pomp_jax.data.class_lists import ClassList, VocabularyError
from pomp_jax.data.source import LabelledSet, SourceError
from pomp_jax.evaluate import sets_to_evaluate as module
from pomp_jax.evaluate.sets_to_evaluate import (
  EvaluationSet,
  open_each,
  sets_to_evaluate,
)
from tests.support.data_files import write_world
from tests.support.small_run import small_config

NAMES = world.class_names("base")[::2500]


def item(name, error=None):
  """A set that can be opened, or raises an error."""

  def opened():
    if error is not None:
      raise error
    return LabelledSet(world.source("novel", n_images=1), ClassList(("a",)), "test")

  return EvaluationSet(name, "own", name, "all", opened)


GOOD = item("good")
BAD, WORSE = (
  item("bad", SourceError("no folder")),
  item("worse", VocabularyError("no names")),
)


def test_one_missing_set_raises_its_own_reason_and_several_their_names():
  with pytest.raises(SourceError, match="^no folder$"):
    open_each([GOOD, BAD], skip_missing=False)
  with pytest.raises(
    SourceError, match="^2 of 3 sets .* opened: bad, worse; evaluate.skip_miss"
  ):
    open_each([BAD, GOOD, WORSE], skip_missing=False)


@pytest.mark.parametrize("missing", [[BAD], [BAD, WORSE]])
def test_missing_sets_are_skipped_if_another_is_left(missing):
  opened, reasons = open_each([*missing, GOOD], skip_missing=True)
  assert list(opened) == ["good"] and list(reasons) == [one.name for one in missing]
  assert reasons["bad"] == "no folder"
  # None is left, and to skip them is no way out.
  with pytest.raises(
    SourceError, match=f"{len(missing)} of {len(missing)} .*bad"
  ) as error:
    open_each(missing, skip_missing=True)
  assert "skip_missing" not in str(error.value)


def test_all_hosts_evaluate_the_sets_that_the_first_has(monkeypatch):
  """A set that another host has besides is not computed by that host alone."""
  monkeypatch.setattr(hosts, "from_first", lambda value, what: {"good": "no folder"})
  opened, missing = module.open_everywhere([GOOD, item("other")], True)
  assert list(opened) == ["other"] and missing == {"good": "no folder"}
  with pytest.raises(SourceError, match=r"no folder \(on the first host it is there\)"):
    module.open_everywhere([GOOD, BAD, item("other")], True)


def sets_of(root, **changes):
  fields = {
    "data.source": "folder",
    "data.root": str(root),
    "data.n_classes": 0,
  } | changes
  config = small_config(job="evaluate", **fields)
  return sets_to_evaluate(config.evaluate, config.data, config.eval)


def test_lists_of_classes_are_parts_of_one_set(tmp_path):
  """Of images that no training has seen where there are some, and of the split's
  name where not."""
  write_world(tmp_path / "a/train", "train", 3, NAMES)
  lists = {"base": NAMES[:5], "novel": NAMES[5:7]}
  for field, names in lists.items():
    (tmp_path / field).write_text("\n".join(names))
  changes = {f"data.{field}": str(tmp_path / field) for field in lists}
  base, novel = sets_of(tmp_path / "a", **changes)
  for one, part in ((base, "base"), (novel, "novel")):
    assert (one.name, one.group, one.column, one.part) == (
      f"a/{part}",
      "own",
      "a",
      part,
    )
    labelled = one.open()
    assert labelled.split == "test" and labelled.classes.names == lists[part]
  # A split that replaces the test images keeps its name.
  write_world(tmp_path / "a/val", "validation", 1, NAMES)
  module.opening.image_splits.forget_sources()
  base, novel = sets_of(tmp_path / "a", **changes)
  assert (base.part, novel.part) == ("base", "novel")
  assert (base.name, base.open().split) == ("a/validation/base", "validation")


def test_images_of_own_sets_are_turned_and_sampled_as_the_config_says(tmp_path):
  write_world(tmp_path / "a/train", "train", 3, NAMES)
  write_world(tmp_path / "a/test", "base", 2, NAMES)
  for upright in (True, False):
    (one,) = sets_of(tmp_path / "a", **{"data.upright": upright, "evaluate.images": 9})
    source = one.open().source
    assert source.upright == upright
    # Also of sets that no field of the data names.
    own = {"evaluate.own_sets": ({"name": "b", "root": str(tmp_path / "a/test")},)}
    config = small_config(job="evaluate", **{"data.upright": upright}).replace(own)
    (other,) = sets_to_evaluate(config.evaluate, config.data, config.eval)
    assert other.open().source.upright == upright
    assert np.bincount(source.labels).tolist() == [1] * len(NAMES)
  # What a training evaluates on does not limit the images of files.
  (one,) = sets_of(tmp_path / "a", **{"eval.images": 3})
  assert len(one.open().source) == 2 * len(NAMES)


def test_generated_images_are_as_many_as_the_evaluation_asks():
  """Of 300 classes; else as many as a training evaluates on."""
  for changes, count in (({"evaluate.images": 600}, 600), ({}, 900)):
    config = small_config(job="evaluate", **{"eval.images": 900} | changes)
    base, *_ = sets_to_evaluate(config.evaluate, config.data, config.eval)
    assert len(base.open().source) == count


def test_two_sets_never_have_one_file(tmp_path):
  """A part of a set is a file of its name with a hyphen."""
  for name in ("a", "a-base"):
    write_world(tmp_path / name / "test", "base", 1, NAMES)
  (tmp_path / "base.txt").write_text("\n".join(NAMES[:5]))
  own = (
    {"name": "a", "root": str(tmp_path / "a"), "base": str(tmp_path / "base.txt")},
    {"name": "a-base", "root": str(tmp_path / "a-base")},
  )
  config = small_config(job="evaluate").replace({"evaluate.own_sets": own})
  with pytest.raises(SourceError, match="two sets are named 'a-base'"):
    sets_to_evaluate(config.evaluate, config.data, config.eval)


def test_a_set_is_named_after_its_data_set_and_its_version(tmp_path, monkeypatch):
  monkeypatch.setattr(module.opening, "evaluation_splits", lambda data: ("test",))
  for source, dataset, name in (
    ("tfds", "dtd/3.*.*", "dtd-3.*.*"),
    ("folder", "", "root"),
  ):
    root = tmp_path / "root" / ""
    (one,) = sets_of(root, **{"data.source": source, "data.dataset": dataset})
    assert (one.name, one.column, one.reader) == (f"{name}/test", name, source)
