"""The baselines' configs against the values that were published, and docs/recipes.md against both.

A row: what was published under which key, our field, and why ours is another where it is.
`python tests/config/test_recipes.py` prints the tables of docs/recipes.md.
"""

import importlib
import json
import pathlib
from typing import Any, NamedTuple

import pytest

from pomp_jax.baselines import tip_adapter
from pomp_jax.config import Settings, unpack, validate
from pomp_jax.data.coop import COOP_SETS

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "recipes.md"
VIT_B16 = "openai/clip-vit-base-patch16"


class Row(NamedTuple):
  """One value: where it was published, and ours.

  Attributes:
    key: in the published config, code or paper.
    published: its value there.
    field: ours; empty where there is none.
    ours: its value, as published if None.
    why: it is written or is another; empty where the two are equal as they stand.
  """

  key: str
  published: Any
  field: str
  ours: Any = None
  why: str = ""

  @property
  def value(self) -> Any:
    return self.published if self.ours is None else self.ours


class Recipe(NamedTuple):
  """A config of ours and its published values."""

  config: str
  argument: str
  source: str
  rows: tuple[Row, ...]


SAME = "the same"
TRANSFORMS = "random_resized_crop, random_flip, normalize"


def dassl(prefix, *, batch, lr, epochs, classes, method, more):
  """What CoOp, CoCoOp, MaPLe and VPT have of Dassl, and what is their own."""
  return (
    Row("MODEL.BACKBONE.NAME", "ViT-B/16", "clip.model", VIT_B16, SAME),
    Row(f"{prefix}.PREC", "fp16", "clip.dtype", "float32", "more exact; `bfloat16` works too"),
    Row("INPUT.SIZE, .INTERPOLATION", "224, bicubic", "", None, "set by the CLIP: the same"),
    Row("INPUT.TRANSFORMS", TRANSFORMS, "data.augment", "crop_flip", SAME),
    Row("INPUT.RRCROP_SCALE (Dassl)", "0.08 to 1", "data.crop_area", 0.08, SAME),
    Row("DATASET.NUM_SHOTS (scripts)", 16, "data.shots"),
    Row("DATASET.SUBSAMPLE_CLASSES (scripts)", classes, "data.classes"),
    Row("DATALOADER.TRAIN_X.BATCH_SIZE", batch, "batch_size"),
    Row(
      "drop_last (Dassl)", True, "", None, "a batch that an epoch does not fill goes into the next"
    ),
    Row("OPTIM.NAME", "sgd", "", None, "the only one: the same"),
    Row("OPTIM.LR", lr, "optim.lr"),
    Row("OPTIM.MOMENTUM (Dassl)", 0.9, "optim.momentum"),
    Row("OPTIM.WEIGHT_DECAY (Dassl)", 5e-4, "optim.weight_decay"),
    Row("OPTIM.MAX_EPOCH", epochs, "epochs"),
    Row("OPTIM.LR_SCHEDULER", "cosine", "optim.schedule", "epoch", "Dassl's: the same"),
    Row("OPTIM.WARMUP_EPOCH", 1, "optim.warmup"),
    Row("OPTIM.WARMUP_CONS_LR", 1e-5, "optim.warmup_lr"),
    Row("TEST.FINAL_MODEL (Dassl)", "last_step", "", None, "the last step's: the same"),
    Row("test images", "all", "eval.images", 0, SAME),
    Row("trainer", method[0], "method", method[1], SAME),
    *more,
  )


COOP_SOURCE = "https://github.com/KaiyangZhou/CoOp (ff61507), configs/trainers/"
MAPLE_SOURCE = (
  "https://github.com/muzairkhattak/multimodal-prompt-learning (69bce21), configs/trainers/"
)
ALL_CLASSES = Row("loss over", "all classes", "negatives", "all", SAME)
COOP_MORE = (
  Row("TRAINER.COOP.N_CTX (scripts)", 16, "prompt.m"),
  Row("TRAINER.COOP.CTX_INIT", "", "prompt.init"),
  Row("TRAINER.COOP.CSC (scripts)", False, "prompt.class_specific"),
  Row("TRAINER.COOP.CLASS_TOKEN_POSITION (scripts)", "end", "prompt.position"),
  ALL_CLASSES,
)
MAPLE_WORDS = "M = 2 are learned, `of a` stays: the same"


def maple(depth):
  """MaPLe's own values."""
  return (
    Row("TRAINER.MAPLE.N_CTX", 2, "prompt.m"),
    Row("TRAINER.MAPLE.CTX_INIT", "a photo of a", "prompt.init", None, MAPLE_WORDS),
    Row("TRAINER.MAPLE.PROMPT_DEPTH", depth, "prompt.depth"),
    ALL_CLASSES,
  )


TIP_SOURCE = "https://github.com/gaopengcuhk/Tip-Adapter (d0e2d6f), configs/, main.py and utils.py"
TIP_ROWS = (
  Row("backbone", "RN50", "clip.model", VIT_B16, "as the others here; a path to RN50.pt works too"),
  Row("shots", 16, "data.shots"),
  Row(
    "RandomResizedCrop and flip", "scale 0.5 to 1", "data.augment", "crop_flip", "see the next row"
  ),
  Row("scale", 0.5, "data.crop_area"),
  Row("augment_epoch", 10, "tip.views"),
  Row("train_epoch, init_alpha, search_scale", "by data set", "", None, "see the table below"),
  Row("init_beta", 1, "tip.beta"),
  Row("search_step", "200, 20", "tip.beta_steps", 200, SAME),
  Row("search_step", "200, 20", "tip.alpha_steps", 20, SAME),
  Row("batch_size", 256, "batch_size"),
  Row("lr, AdamW", 0.001, "optim.lr"),
  Row("eps, weight_decay", "1e-4, 0.01 (torch's)", "", None, "constants: the same"),
  Row("CosineAnnealingLR", "over all steps, to 0", "", None, SAME),
  Row("epoch that is kept", "best on test images", "", None, "best on validation images"),
  Row("accuracy", "the better of epoch and search", "", None, "the search's"),
  Row("search", "all validation images", "", None, "at most 4 a class, as CoOp's few shots have"),
  Row("scale of the logits", 100, "", None, "the CLIP's own: 100 for the released ones"),
  Row("test images", "all", "eval.images", 0, SAME),
)

RECIPES = {
  "CoOp": Recipe(
    "coop",
    "",
    COOP_SOURCE + "CoOp/vit_b16.yaml, scripts/coop/main.sh",
    dassl(
      "TRAINER.COOP",
      batch=32,
      lr=0.002,
      epochs=200,
      classes="all",
      method=("CoOp", "pomp"),
      more=COOP_MORE,
    ),
  ),
  "CoOp on ImageNet": Recipe(
    "coop",
    "imagenet",
    COOP_SOURCE + "CoOp/vit_b16_ep50.yaml, scripts/coop/main.sh",
    (
      Row("OPTIM.MAX_EPOCH", 50, "epochs"),
      Row("DATASET.NAME", "ImageNet", "data.dataset", "imagenet1k", SAME),
      Row("the others", "as above", "", None, "as above"),
    ),
  ),
  "CoCoOp": Recipe(
    "cocoop",
    "",
    COOP_SOURCE + "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml, scripts/cocoop/base2new_train.sh",
    dassl(
      "TRAINER.COCOOP",
      batch=1,
      lr=0.002,
      epochs=10,
      classes="base",
      method=("CoCoOp", "cocoop"),
      more=(
        Row("TRAINER.COCOOP.N_CTX", 4, "prompt.m"),
        Row("TRAINER.COCOOP.CTX_INIT", "a photo of a", "prompt.init"),
        ALL_CLASSES,
      ),
    ),
  ),
  "MaPLe": Recipe(
    "maple",
    "",
    MAPLE_SOURCE + "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml, scripts/maple/",
    dassl(
      "TRAINER.MAPLE",
      batch=4,
      lr=0.0035,
      epochs=5,
      classes="base",
      method=("MaPLe", "maple"),
      more=maple(9),
    ),
  ),
  "MaPLe for transfer": Recipe(
    "maple",
    "cross",
    MAPLE_SOURCE + "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets.yaml, scripts/maple/",
    dassl(
      "TRAINER.MAPLE",
      batch=4,
      lr=0.0026,
      epochs=2,
      classes="all",
      method=("MaPLe", "maple"),
      more=(*maple(3), Row("DATASET.NAME", "ImageNet", "data.dataset", "imagenet1k", SAME)),
    ),
  ),
  "VPT": Recipe(
    "vpt",
    "",
    MAPLE_SOURCE + "VPT/vit_b16_c2_ep5_batch4_4.yaml, scripts/vpt/",
    dassl(
      "TRAINER.VPT",
      batch=4,
      lr=0.0025,
      epochs=5,
      classes="base",
      method=("VPT", "vpt_deep"),
      more=(
        Row("TRAINER.VPT.N_CTX_VISION", 8, "prompt.visual_tokens"),
        Row("TRAINER.VPT.PROMPT_DEPTH_VISION", 12, "prompt.depth"),
        Row("TRAINER.VPT.CTX_INIT", "a photo of a", "eval.template", "a photo of a {}.", SAME),
        ALL_CLASSES,
      ),
    ),
  ),
  "Tip-Adapter": Recipe(
    "tip_adapter",
    "",
    TIP_SOURCE,
    (*TIP_ROWS, Row("method", "Tip-Adapter", "method", "tip_adapter", SAME)),
  ),
  "Tip-Adapter-F": Recipe(
    "tip_adapter",
    "tuned",
    TIP_SOURCE,
    (
      Row("method", "Tip-Adapter-F", "method", "tip_adapter_f", SAME),
      Row("the others", "as above", "", None, "as above"),
    ),
  ),
  "Linear probe": Recipe(
    "linear_probe",
    "",
    "Radford et al. (2021), appendix A.3; few shots as https://github.com/KaiyangZhou/CoOp"
    " (ff61507), lpclip/linear_probe.py",
    (
      Row("method", "linear probe", "method", "linear_probe", SAME),
      Row("max_iter, L-BFGS", 1000, "probe.iterations"),
      Row(
        "strengths tried first", "1e-6, 1e-4, .., 1e6", "", None, "`linear_probe.COARSE`: the same"
      ),
      Row("resolution of the search", "8 steps a decade", "", None, SAME),
      Row(
        "features", "before the projection (CoOp: behind it)", "", None, "behind it, unit vectors"
      ),
      Row("last fit", "with the validation images", "", None, "without, as CoOp's"),
      Row("shots (CoOp)", 16, "data.shots"),
      Row("augmentation", "none", "data.augment"),
      Row("test images", "all", "eval.images", 0, SAME),
    ),
  ),
  "Zero-shot CLIP": Recipe(
    "zero_shot",
    "",
    "https://github.com/KaiyangZhou/CoOp (ff61507), trainers/zsclip.py",
    (
      Row("method", "ZeroshotCLIP", "method", "zero_shot", SAME),
      Row("CUSTOM_TEMPLATES", "by data set", "", None, "the class lists' own `template`: the same"),
      Row("test images", "all", "eval.images", 0, SAME),
    ),
  ),
}

# configs/*.yaml of Tip-Adapter: init_alpha, search_scale (alpha, then beta) and train_epoch.
TIP_SETS = {
  "caltech101": (3, 5, 12, 20),
  "dtd": (2, 13, 13, 20),
  "eurosat": (2, 10, 12, 100),
  "fgvc_aircraft": (5, 30, 30, 20),
  "flowers102": (10, 50, 50, 20),
  "food101": (1.17, 10, 10, 20),
  "imagenet1k": (1.17, 3, 7, 20),
  "oxford_pets": (1.17, 3, 7, 20),
  "stanford_cars": (3, 10, 20, 20),
  "sun397": (1.17, 10, 12, 20),
  "ucf101": (3, 3, 7, 20),
}


def config_of(recipe):
  """Our config, as the recipe's command has it."""
  return unpack(
    importlib.import_module(f"pomp_jax.configs.{recipe.config}").get_config(recipe.argument)
  )


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one_or_explained(name):
  recipe = RECIPES[name]
  ours = config_of(recipe).flat()
  for row in recipe.rows:
    if row.field:
      assert ours[row.field] == row.value, row
    assert row.why or row.value == row.published, row


@pytest.mark.parametrize("name", RECIPES)
def test_no_field_differs_from_the_default_without_a_row(name):
  """What a config changes and no row tells would be a difference that nobody sees."""
  recipe = RECIPES[name]
  told = {row.field for row in recipe.rows}
  if any(row.key == "the others" for row in recipe.rows):
    told |= {row.field for row in RECIPES[name.split(" on ")[0].removesuffix("-F")].rows}
  defaults = Settings().flat()
  changed = {field for field, value in config_of(recipe).flat().items() if value != defaults[field]}
  # Which data set is the user's choice, in CoOp's layout.
  assert changed - told <= {"data.source", "clip.model", "data.shots"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_where_the_data_is(name, tmp_path):
  config = config_of(RECIPES[name])
  dataset = config.data.dataset or "dtd"
  validate(config.replace({"data.root": str(tmp_path), "data.dataset": dataset}))


def test_tip_adapters_settings_by_data_set():
  for name, (alpha, alpha_max, beta_max, epochs) in TIP_SETS.items():
    text = "ensemble:imagenet_7" if name == "imagenet1k" else "hand_written"
    expected = tip_adapter.Published(alpha, alpha_max, beta_max, epochs, text)
    assert name in COOP_SETS and tip_adapter.published(name) == expected
  assert tip_adapter.published("imagenet_v2") is None
  stored = json.loads(pathlib.Path(tip_adapter.__file__).with_suffix(".json").read_text())
  assert set(stored["sets"]) == set(TIP_SETS)


def test_the_documented_tables_are_these():
  text = DOCS.read_text()
  for name, table in tables().items():
    assert table in text, f"{name}: docs/recipes.md has another table; {__doc__.splitlines()[-1]}"


def tables():
  """Markdown of each recipe, by name."""
  found = {name: _table(recipe) for name, recipe in RECIPES.items()}
  lines = ["| data set | alpha | alpha to | beta to | epochs |", "| --- | --- | --- | --- | --- |"]
  lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in TIP_SETS.items()]
  return found | {"Tip-Adapter by data set": "\n".join(lines)}


def _table(recipe):
  argument = f":{recipe.argument}" if recipe.argument else ""
  lines = [
    f"`configs/{recipe.config}.py{argument}`; published: {recipe.source}.",
    "",
    "| published | value | field | ours | |",
    "| --- | --- | --- | --- | --- |",
  ]
  for row in recipe.rows:
    field, ours = (f"`{row.field}`", _shown(row.value)) if row.field else ("", "")
    lines.append(
      f"| {row.key} | {_shown(row.published)} | {field} | {ours} | {row.why or 'equal'} |"
    )
  return "\n".join(lines)


def _shown(value):
  return '""' if value == "" else str(value)


if __name__ == "__main__":
  for name, table in tables().items():
    print(f"### {name}\n\n{table}\n")
