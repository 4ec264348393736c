"""Cases of the fields of words as a start, see `tests/rooms/test_each_field.py`."""

from tests.support.field_cases import TRAINING
from tests.support.recorded_calls import Case
from tests.support.recorded_runs import train

BEST = TRAINING | {
  "prompt.init": "best",
  "prompt.m": 0,
  "checkpoint.select": "best",
}

CASES = {
  "a training with the best words": Case(
    run=train,
    fields=BEST,
    rows={
      "prompt.candidates": (
        ("a photo of a {}.", "{}!"),
        "prompts",
        {"a photo of a {}.", "{}!"},
      ),
      "eval.images": (12, "open_source.n_images*", [0, 12, 12]),
    },
  ),
}
