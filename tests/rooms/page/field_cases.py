"""Cases of the fields of `page`, see `tests/rooms/test_each_field.py`."""

from tests.support.recorded_calls import clip_case

CASES = {
  "the CLIP of page": clip_case("page", {}),
}

ELSEWHERE = {
  "page.": "tests/rooms/page/test_page.py::test_each_field_reaches_the_page",
}
