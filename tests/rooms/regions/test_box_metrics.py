"""Average precision against pycocotools and lvis, on random detections."""

import json

import numpy as np
import pytest

from pomp_jax.rooms.regions import box_metrics
from pomp_jax.rooms.regions.annotations import annotations_of
from pomp_jax.rooms.regions.box_metrics import MAX_DETECTIONS, average_precision
from tests.support import detection_cases


@pytest.fixture(scope="module", autouse=True)
def numpy_of_2020():
  """lvis 0.5.3 names np.float, which NumPy has dropped."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(np, "float", float, raising=False)
    yield


def measured(precision):
  precision = precision[precision > -1]
  return precision.mean() if precision.size else None


def assert_equal(figures, expected):
  for name, value in expected.items():
    if value is None or value == -1:
      assert figures[name] is None, name
    else:
      assert figures[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed, kind):
  value = detection_cases.random_annotations(seed)
  results = detection_cases.random_detections(value, seed + 100)
  annotations = annotations_of(value)
  groups = {"base": np.array([0, 1, 4]), "novel": np.array([3, 5])}
  figures = average_precision(annotations, results, kind, groups)
  expected, precision, ids = detection_cases.pycoco(value, results, kind)
  assert 0.05 < expected["AP"] < 0.95
  assert_equal(figures, expected)
  for name, classes in groups.items():
    rows = [list(ids).index(annotations.category_ids[c]) for c in classes]
    own = {
      "AP": measured(precision[:, :, rows]),
      "AP50": measured(precision[0][:, rows]),
    }
    assert_equal(figures[name], own)
  for c, number in enumerate(annotations.category_ids):
    own = measured(precision[:, :, list(ids).index(number)])
    assert_equal({"AP": figures["per_class"][c]}, {"AP": own})


def test_more_detections_of_a_class_than_count():
  value = detection_cases.random_annotations(0, n_images=2, n_classes=2)
  results = detection_cases.random_detections(value, 0, n_random=300)
  figures = average_precision(annotations_of(value), results)
  assert_equal(figures, detection_cases.pycoco(value, results, "box")[0])


def lvis(tmp_path, value, results, kind):
  """lvis's own evaluation."""
  reason = "lvis needs OpenCV, and that needs the system's libGL"
  api = pytest.importorskip("lvis", reason=reason, exc_type=ImportError)
  path = tmp_path / "lvis.json"
  path.write_text(json.dumps(value))
  truth = api.LVIS(str(path))
  evaluation = api.LVISEval(
    truth,
    api.LVISResults(truth, detection_cases.only(results, kind)),
    detection_cases.IOU_TYPES[kind],
  )
  evaluation.run()
  names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
  return {name: evaluation.get_results()[name] for name in names}


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_lvis(tmp_path, seed, kind):
  value = detection_cases.random_annotations(seed, lvis=True)
  results = detection_cases.random_detections(value, seed + 100)
  figures = average_precision(annotations_of(value), results, kind)
  assert_equal(figures, lvis(tmp_path, value, results, kind))


def test_only_300_detections_of_an_image_count_in_lvis(tmp_path, monkeypatch):
  value = detection_cases.random_annotations(1, n_images=2, lvis=True)
  results = detection_cases.random_detections(value, 1, n_random=600)
  figures = average_precision(annotations_of(value), results)
  assert_equal(figures, lvis(tmp_path, value, results, "box"))
  monkeypatch.setitem(MAX_DETECTIONS, "lvis", 10_000)
  assert average_precision(annotations_of(value), results)["AP"] > figures["AP"]


@pytest.mark.parametrize("lvis", [True, False])
def test_categories_are_evaluated_some_at_a_time(monkeypatch, lvis):
  value = detection_cases.random_annotations(4, lvis=lvis)
  results = detection_cases.random_detections(value, 4)
  figures = average_precision(annotations_of(value), results)
  monkeypatch.setattr(box_metrics, "_CATEGORIES", 4)
  assert average_precision(annotations_of(value), results) == figures


@pytest.mark.parametrize("at_a_time", [100, 2])
@pytest.mark.parametrize("lvis", [True, False])
def test_classes_in_the_order_of_a_list(monkeypatch, lvis, at_a_time):
  """Not in that of the ids; a class of the list may have no category."""
  value = detection_cases.random_annotations(3, lvis=lvis)
  results = detection_cases.random_detections(value, 103)
  by_id = annotations_of(value)
  groups = {"base": np.array([0, 1, 4]), "novel": np.array([3, 5])}
  expected = average_precision(by_id, results, groups=groups)
  order = [4, 0, 5, 2, 1, 3]
  names = [by_id.names[c] for c in order]
  names.insert(2, "dog")
  listed = annotations_of(value, names=names)
  assert listed.category_ids.tolist() != sorted(listed.category_ids)
  place = [names.index(name) for name in by_id.names]
  groups = {name: np.array([place[c] for c in own]) for name, own in groups.items()}
  groups["novel"] = np.append(groups["novel"], 2)
  monkeypatch.setattr(box_metrics, "_CATEGORIES", at_a_time)
  figures = average_precision(listed, results, groups=groups)
  assert figures["per_class"].pop(2) is None
  per_class = expected.pop("per_class")
  assert len(set(per_class)) == 6
  assert figures.pop("per_class") == [per_class[c] for c in order]
  assert len(set(figures)) == 5 + len(groups) + 1 + 3 * lvis
  for name, figure in expected.items():
    assert figures[name] == pytest.approx(figure), name


def test_nothing_to_measure():
  value = detection_cases.random_annotations(0)
  assert average_precision(annotations_of(value), [])["AP"] == 0
  value["annotations"] = []
  figures = average_precision(annotations_of(value), [])
  assert figures["AP"] is None and figures["per_class"] == [None] * 6
