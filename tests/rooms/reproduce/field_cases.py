"""Where the cases of the fields of `reproduce` are, see
`tests/rooms/test_each_field.py`."""

ELSEWHERE = {
  "reproduce.": (
    "tests/rooms/reproduce/test_reproduce_fields.py::test_each_field_reaches_the_run"
  ),
}
