"""Runs and cases of the fields that mixtures of prompts read, see
`tests/rooms/test_each_field.py`."""

import pathlib

from pomp_jax.config import Config
from pomp_jax.rooms.mixtures import weights
from tests.support.field_cases import EVALUATED
from tests.support.recorded_calls import Calls, Case
from tests.support.recorded_runs import evaluate_sets


def evaluate_mixtures(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job evaluate, after the weights of the mixtures among its prompts."""
  accuracy = {"macro_top1": 0.5}
  calls.note_split(weights, "split_features")
  calls.note(weights, "topk_accuracy", lambda *args, **kwargs: accuracy)
  calls.note(weights, "features_under")
  evaluate_sets(calls, config, folder)
  calls.seen["validation"] = len(calls.seen["split_features.source"])


CASES = {
  "a mixture of prompts": Case(
    run=evaluate_mixtures,
    fields=EVALUATED | {"evaluate.prompts": ("{}. + the {}",)},
    rows={
      "eval.images": (12, "validation", 12),
      "eval.template": ("my {}.", "features_under.classes.template"),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
}
