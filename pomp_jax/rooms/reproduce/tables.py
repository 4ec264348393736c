"""Definitions of the paper's tables: sets, controls, and targets of each stage."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from pomp_jax.data.class_lists import FOUR, TEN
from pomp_jax.rooms.reproduce.fields import WORLD_TABLE
from pomp_jax.rooms.reproduce.orders_stage import Order, order
from pomp_jax.rooms.reproduce.targets import Target, target

IMAGENET21K = "imagenet21k_p_w21"
HARD_PROMPT = ("2", "hard prompt")  # table and row
# Table 2 has no column of ImageNet-21K, so take table 1: table, row and column.
_HARD_PROMPT_OF_21K = ("1", "zero-shot CLIP", "ViT-B/16")
# number of vectors M of a released prompt -> row of its figures
RELEASED = {4: "M = 4, 5 epochs", 16: "M = 16, 20 epochs"}


@dataclasses.dataclass(frozen=True)
class Method:
  """A method whose trainings are compared with a row of a table."""

  name: str  # name of the row
  recipe: str = ""  # packaged config; "" if there is no trainer of the method here
  # changed fields of the packaged config
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Fields of the packaged config that the table does not state.
  unstated: Sequence[str] = ()


# Trained on ImageNet-1K with 16 images a class, as table 2 says of its rows.
_ON_IMAGENET = {"data.dataset": "imagenet1k", "data.classes": "all"}
METHODS = (
  Method("CoOp", "coop:imagenet", unstated=("prompt.m",)),
  Method("CoCoOp", "cocoop", _ON_IMAGENET),
  Method("LASP"),
  Method("VPT", "vpt", _ON_IMAGENET),
  Method("MaPLe", "maple:cross"),
)


# Arms of tables 8, 9 and 12 -> fields that differ from the recipe. "similarity" in the
# paper draws the classes whose features are most similar, which is `hard` here.
ARMS: Mapping[str, Mapping[str, Any]] = {
  "K = 100": {"k": 100},
  "K = 500": {"k": 500},
  "K = 1000": {},
  "K = 1000, no correction": {"correction": "none"},
  "frequency": {"sampling.name": "frequency"},
  "similarity": {"sampling.name": "hard"},
  "K = 319, no correction": {"k": 319, "correction": "none"},
  **{
    f"K = {k}, m = {m:g}": {"k": k, "correction": "none", "margin": m}
    for k in (319, 1000)
    for m in (0.5, 1.0, 1.5)
  },
}
# set or mean of sets -> column of tables 8 and 9
_SUBJECTS = {
  IMAGENET21K: "imagenet21k",
  "mean of 10": "mean of 10",
  "mean of 4": "mean of 4",
}


def _margin_order(k: int, better: str, worse: str) -> Order:
  """An order of two rows of table 12; m = 0 stands for no correction."""
  column = f"K = {k}"
  arms = [
    f"{column}, no correction" if m == "0" else f"{column}, m = {m}"
    for m in (better, worse)
  ]
  rows = (f"m = {better}", f"m = {worse}")
  return order("12", arms[0], arms[1], {"mean of 10": column}, rows)


_ORDERS = (
  order("8 and 9", "K = 500", "K = 100", _SUBJECTS),
  order("8 and 9", "K = 1000", "K = 500", _SUBJECTS),
  order("8 and 9", "K = 1000", "K = 1000, no correction", _SUBJECTS),
  order("8 and 9", "K = 1000", "frequency", _SUBJECTS),
  order("8 and 9", "K = 1000", "similarity", _SUBJECTS),
  _margin_order(319, "0.5", "0"),
  _margin_order(319, "1", "0.5"),
  _margin_order(319, "1.5", "1"),
  _margin_order(1000, "0.5", "0"),
  _margin_order(1000, "1", "0.5"),
  _margin_order(1000, "1", "1.5"),
)


def arm_of(fields: Mapping[str, Any]) -> str | None:
  """The arm of a training, by the fields in which arms differ; None if it is no arm.

  Args:
    fields: fields of the training, by dotted name.
  """
  # Any correction counts as log10: arms differ in whether there is a correction.
  found = {name: fields.get(name) for name in ("k", "sampling.name")}
  found["correction"] = "none" if fields.get("correction") == "none" else "log10"
  # Trainings of earlier versions have no field `margin`.
  found["margin"] = fields.get("margin", 0.0)
  for name, changes in ARMS.items():
    if found == {**_PLAIN_ARM, **changes}:
      return name
  return None


_PLAIN_ARM = {
  "k": 1000,
  "sampling.name": "uniform",
  "correction": "log10",
  "margin": 0.0,
}


def method_name(fields: Mapping[str, Any]) -> str:
  """The name that papers give to the method of a training.

  Args:
    fields: fields of the training, by dotted name.
  """
  name = str(fields.get("method"))
  if name != "pomp":
    return _NAMES.get(name, name)
  if fields.get("data.source") == "features" and fields.get("loss") == "l2":
    return "ProText"
  if fields.get("consistency_squared"):
    return "KgCoOp"
  if fields.get("consistency_l1"):
    return "PromptSRC"
  return "CoOp" if fields.get("negatives") == "all" else "POMP"


_NAMES = {
  "cocoop": "CoCoOp",
  "vpt_shallow": "VPT",
  "vpt_deep": "VPT",
  "maple": "MaPLe",
  "ivlp": "PromptSRC",
  "protext": "ProText",
  "kdpl": "KDPL",
}


@dataclasses.dataclass(frozen=True)
class Accuracies:
  """A table of accuracies: sets, their means, and where the targets are printed."""

  name: str  # value of `reproduce.table`
  suite: str  # value of `evaluate.suite`; "" if this package makes the sets
  # name of a mean over sets -> the sets
  means: Mapping[str, Sequence[str]]
  # label of a control, a prompt of `evaluate.prompts` -> table and row of its target
  controls: Mapping[str, tuple[str, str]]
  paper: tuple[str, str] | None  # table and row of the paper's own prompt
  column: str = ""  # column of the only set; "" if each set has a column of its name
  recipe: str = ""  # packaged config of trainings here; "" if none is trained here
  recipe_of_runs: str = ""  # packaged config of finished trainings that users hand over
  # rows that trainings are compared with, if the table has several
  methods: Sequence[Method] = ()
  # arm of an ablation -> fields that differ from the recipe
  arms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  orders: Sequence[Order] = ()  # orders of the arms
  # `reproduce` field of another folder -> value of `evaluate.suite` for that folder
  other_suites: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # why there is no released prompt
  no_prompts: str = "no released prompt was handed over: reproduce.prompts"

  def target(self, of: tuple[str, str] | None, subject: str) -> Target | None:
    """The figure of a set or a mean in a row of a table; None if not printed."""
    if of is None:
      return None
    if subject == IMAGENET21K and of == HARD_PROMPT:
      return target(*_HARD_PROMPT_OF_21K)
    return target(*of, self.column or subject)

  def released(self, n_vectors: int, subject: str) -> Target | None:
    """The figure of a released prompt; None if not printed, as for most single sets."""
    column = "imagenet21k" if subject == IMAGENET21K else subject
    return target("released weights", RELEASED[n_vectors], column)


ACCURACIES = {
  WORLD_TABLE: Accuracies(
    WORLD_TABLE,
    suite="",
    means={"mean of 4": ("known", "other_known", "novel", "shifted")},
    controls=dict.fromkeys(("hand_written", "ensemble", "{}."), ("", "")),
    paper=None,
    recipe=WORLD_TABLE,
  ),
  "cross_dataset": Accuracies(
    "cross_dataset",
    suite="fourteen",
    means={"mean of 10": TEN, "mean of 4": FOUR},
    controls={"hand_written": HARD_PROMPT},
    paper=("2", "POMP"),
  ),
  "baselines": Accuracies(
    "baselines",
    suite="fourteen",
    means={"mean of 10": TEN, "mean of 4": FOUR},
    controls={"hand_written": HARD_PROMPT},
    paper=None,
    methods=METHODS,
    no_prompts="the methods of other papers have no prompt that this table is of",
  ),
  "ablation": Accuracies(
    "ablation",
    suite="imagenet21k",
    other_suites={"data": "fourteen"},
    means={"mean of 10": TEN, "mean of 4": FOUR},
    controls={"hand_written": HARD_PROMPT},
    paper=None,
    recipe_of_runs="imagenet21k_vit_b16:m=4",
    arms=ARMS,
    orders=_ORDERS,
    no_prompts="of the trainings of an ablation no prompt was released",
  ),
  "imagenet21k": Accuracies(
    "imagenet21k",
    suite="imagenet21k",
    means={},
    controls={
      "hand_written": ("1", "zero-shot CLIP"),
      "ensemble": ("1", "prompt ensemble"),
    },
    paper=("1", "POMP"),
    column="ViT-B/16",
    recipe="imagenet21k_vit_b16",
  ),
}

# Recipe of the rehearsal. The world's targets were trained with this recipe.
WORLD_RECIPE: Mapping[str, Any] = {
  "data.n_classes": 400,
  "data.images_per_class": 4,
  "k": 100,
  "batch_size": 32,
  "steps": 100,
  "optim.lr": 0.1,
  "optim.schedule": "step",
  "optim.warmup": 0.0,
  "eval.images": 64,
  "checkpoint.every": 100,
}

# Kind of finding -> fields of a training that decide what is learned. Each field gets a
# row that compares it with the recipe.
RECIPE_FIELDS = {
  "optimizer": (
    "optim.name",
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "optim.schedule",
    "optim.warmup",
    "batch_size",
    "steps",
    "epochs",
  ),
  "correction": ("correction",),
  "sampling": ("negatives", "k", "sampling.name", "loss", "method"),
  "prompt": ("prompt.m", "prompt.position", "prompt.class_specific"),
  "precision": ("clip.dtype",),
  "training data": (
    "data.source",
    "data.dataset",
    "data.names",
    "data.shots",
    "data.n_classes",
    "data.images_per_class",
    "data.augment",
    "data.views",
  ),
}

# Kind of finding -> further fields that decide what is learned. A field gets a row only
# if it differs from the recipe.
OTHER_RECIPE_FIELDS = {
  "optimizer": (
    "optim.beta2",
    "optim.epsilon",
    "optim.clip_norm",
    "optim.warmup_lr",
    "optim.average",
    "optim.average_decay",
    "optim.average_mean",
    "optim.average_sigma",
    "checkpoint.select",
  ),
  "correction": ("logit_bias", "margin"),
  "sampling": (
    "sampling.power",
    "sampling.temperature",
    "sampling.mix",
    "sampling.anchors",
    "sampling.ancestors_weight",
    "sampling.batch_positives",
    "sampling.exclude",
    "sampling.exclude_threshold",
    "sampling.renew",
    "anchors",
    "consistency_images",
    "consistency_kl",
    "consistency_l1",
    "consistency_squared",
  ),
  "prompt": (
    "prompt.init",
    "prompt.depth",
    "prompt.visual_tokens",
    "prompt.candidates",
  ),
  "training data": (
    "data.base",
    "data.classes",
    "data.crop_area",
    "data.duplicates",
    "data.test_share",
    "data.upright",
    "data.validation_share",
    "data.view_epochs",
  ),
}
