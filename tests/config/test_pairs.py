"""Pairs of fields that can't be combined: each is refused, and each half of it alone is
not.

CONTRIBUTING.md says which pairs of features are tested together, and where.
"""

import pytest

from pomp_jax.config import METHODS, ConfigError, defaults, validate

# Another value of a feature, and fields that it needs itself.
FEATURES = {
  "class_specific": {"prompt.class_specific": True},
  "depth": {"prompt.depth": 2},
  "position": {"prompt.position": "front"},
  "init=best": {"prompt.init": "best", "checkpoint.select": "best"},
  "reference": {"clip.text_tower": "reference"},
  "hard": {"sampling.name": "hard"},
  "frequency": {"sampling.name": "frequency"},
  "similar": {"sampling.exclude": "similar"},
  "ancestors": {"sampling.ancestors_weight": 0.2},
  "l1": {"loss": "l1"},
  "sigmoid": {"loss": "sigmoid", "logit_bias": -10.0},
  "uncorrected": {"correction": "none"},
  "margin": {"correction": "none", "margin": 1.0},
  "squared": {"consistency_squared": 1.0},
  "consistency_l1": {"consistency_l1": 1.0},
  "kl": {"consistency_kl": 1.0},
  "images": {"consistency_images": 1.0},
  "average": {"optim.average": "ema"},
  "select": {"checkpoint.select": "best"},
  "augment": {"data.augment": "crop_flip"},
  "stored": {"data.features": "stored"},
  "dry_run": {"dry_run": True},
}
_NO_PROMPT = "class_specific init=best hard similar dry_run"
_TOKENS = f"{_NO_PROMPT} stored"
_DEEP_TEXT = "position reference"
# What each method refuses; it trains with each other feature, or has no use for it.
REFUSED_BY = {
  "pomp": "depth images",
  "cocoop": f"{_NO_PROMPT} depth images",
  "vpt_shallow": f"{_TOKENS} depth squared consistency_l1",
  "vpt_deep": f"{_TOKENS} squared consistency_l1",
  "maple": f"{_TOKENS} {_DEEP_TEXT}",
  "ivlp": f"{_TOKENS} {_DEEP_TEXT}",
  "protext": f"{_NO_PROMPT} {_DEEP_TEXT} images",
  "kdpl": "depth images l1 sigmoid uncorrected margin ancestors dry_run",
  "zero_shot": f"{_NO_PROMPT} depth images augment",
  "linear_probe": f"{_NO_PROMPT} depth images augment",
  "tip_adapter": f"{_NO_PROMPT} depth images",
  "tip_adapter_f": f"{_NO_PROMPT} depth images",
}


def refused_field(changes, job="pretrain"):
  """The field that is refused; '' if none is."""
  try:
    validate(defaults(job).replace(changes))
  except ConfigError as error:
    return error.field
  return ""


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_the_features_that_it_can_not_have(method):
  found = {
    name: refused_field(changes | {"method": method})
    for name, changes in FEATURES.items()
  }
  assert {name for name, field in found.items() if field} == set(
    REFUSED_BY[method].split()
  )
  assert all(field in FEATURES[name] for name, field in found.items() if field)


DRAWN = {"data.augment": "crop_flip"}
ADAMW, EPOCH = {"optim.name": "adamw"}, {"optim.schedule": "epoch"}
SIGMOID = {"loss": "sigmoid"}
UNCORRECTED = {"correction": "none"}
BEST = {"prompt.init": "best", "checkpoint.select": "best"}
# The field that is refused, what it has, and beside what; a neighbour that is accepted
# there.
REFUSED = [
  ("correction", "log10", SIGMOID, "log"),
  ("correction", "log10", SIGMOID, "none"),
  ("margin", 1.0, {}, 0.0),
  ("margin", 1.0, UNCORRECTED | SIGMOID, 0.0),
  ("margin", 1.0, UNCORRECTED | {"negatives": "all"}, 0.0),
  ("margin", 2e3, UNCORRECTED, -1.0),
  ("sampling.ancestors_weight", 0.1, SIGMOID, 0.0),
  ("sampling.ancestors_weight", 0.1, {"loss": "l1"}, 0.0),
  ("optim.momentum", 1.0, ADAMW, 0.999),
  ("optim.momentum", 1.5, ADAMW, 0.0),
  ("optim.warmup", 0.5, EPOCH, 2.0),
  ("data.views", 2, {}, 1),
  ("batch_size", 255, DRAWN | {"data.views": 2}, 254),
  ("data.features", "stored", DRAWN, "online"),
  ("data.features", "file", {}, "stored"),
  ("eval.images", 0, {}, 1),
  ("prompt.m", 0, {}, 1),
  ("anchors", "best", {"consistency_squared": 1.0}, "a photo of a {}."),
  ("prompt.position", "middle", BEST, "end"),
  ("prompt.candidates", (), BEST, ("{}.",)),
  ("checkpoint.select", "last", {"prompt.init": "best"}, "best"),
]
# What is beside it, another value of which lifts the refusal.
LIFTED = [
  ("correction", SIGMOID | {"correction": "log10"}, {"loss": "softmax"}),
  ("margin", {"margin": 1.0}, UNCORRECTED),
  (
    "sampling.ancestors_weight",
    {"loss": "l1", "sampling.ancestors_weight": 0.1},
    {"loss": "softmax"},
  ),
  ("optim.momentum", ADAMW | {"optim.momentum": 1.0}, {"optim.name": "sgd"}),
  ("optim.warmup", EPOCH | {"optim.warmup": 0.5}, {"optim.schedule": "step"}),
  ("data.views", {"data.views": 2}, DRAWN),
  ("batch_size", DRAWN | {"data.views": 2, "batch_size": 255}, {"data.views": 3}),
  ("data.features", DRAWN | {"data.features": "stored"}, {"data.view_epochs": 1}),
  ("prompt.m", {"prompt.m": 0}, BEST),
  (
    "anchors",
    {"anchors": "best", "consistency_squared": 1.0},
    {"consistency_squared": 0.0},
  ),
  ("anchors", {"anchors": "best", "consistency_squared": 1.0}, BEST),
  ("prompt.position", BEST | {"prompt.position": "front"}, {"prompt.init": ""}),
  (
    "prompt.candidates",
    BEST | {"prompt.candidates": ()},
    {"prompt.init": "a photo of a"},
  ),
]


def test_a_pair_of_fields_is_refused_and_its_neighbour_is_not():
  for field, value, beside, neighbour in REFUSED:
    assert refused_field(beside | {field: value}) == field, (field, value)
    assert refused_field(beside | {field: neighbour}) == "", (field, neighbour)
  for field, changes, other in LIFTED:
    assert refused_field(changes) == field, (field, changes)
    assert refused_field(changes | other) == "", (field, other)
