"""Cases of the fields of `calibrate`, `near_names` and certain answers, see
`tests/rooms/test_each_field.py`."""

from tests.support.recorded_calls import clip_case

_FOLDER = "tests/rooms/certainty"
_CHANGES = "test_each_field_changes_what_it_names"
_DEPTHS = f"{_FOLDER}/test_predict_task.py::test_answers_as_deep_as_they_are_sure"
_SUBSET = f"{_FOLDER}/test_predict_task.py::test_a_subset_is_renormalised_and_said"
_ROWS = f"{_FOLDER}/test_predict_task.py::test_int8_rows_say_so"
_FILE = f"{_FOLDER}/test_classifier_export.py"

CASES = {
  "the CLIP of calibrate": clip_case("calibrate", {"calibrate.prompt": "{}."}),
  "the CLIP of near_names": clip_case(
    "near_names", {"near_names.names": "ROOT/names.txt"}
  ),
}

ELSEWHERE = {
  "calibrate.": f"{_FOLDER}/test_calibrate.py::{_CHANGES}",
  "near_names.": f"{_FOLDER}/test_near_names.py::{_CHANGES}",
  "certain.tree": _DEPTHS,
  "certain.least": _DEPTHS,
  "certain.subset": _SUBSET,
  "certain.rows": _ROWS,
  "classifier.extend": f"{_FILE}::test_new_names_leave_the_other_rows_bit_for_bit",
  "classifier.images": f"{_FILE}::test_answers_that_change_with_new_names",
  "classifier.image_tower": f"{_FILE}::test_a_stablehlo_tower_without_this_package",
}
