"""Cases of the core's fields, see `tests/rooms/test_each_field.py`, and constants for
those of the rooms."""

from collections.abc import Mapping
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.support.data_files import write_set
from tests.support.recorded_calls import Case, clip_case
from tests.support.recorded_runs import (
  build_encoder,
  evaluate_sets,
  export_prompt,
  name_pictures,
  run_command_line,
  store_features,
  train,
)
from tests.train.test_wiring import CHANGES

WORLD = {
  "data.n_classes": 6,
  "data.images_per_class": 2,
  "eval.images": 6,
}
TRAINING = WORLD | {
  "k": 3,
  "batch_size": 4,
  "steps": 30,
  "checkpoint.every": 40,
  "optim.schedule": "step",
  "optim.warmup": 0.0,
}
EVALUATED = WORLD | {
  "job": "evaluate",
  "evaluate.prompts": ("{}.",),
}
EUROSAT = EVALUATED | {
  "evaluate.root": "ROOT/coop",
  "evaluate.sets": ("eurosat",),
}
PREDICTED = {
  "job": "predict",
  "predict.images": "ROOT/pictures/test/red star",
  "predict.names": "ROOT/names.txt",
  "predict.prompt": "{}.",
}
EXPORTED = {
  "job": "export",
  "export.prompt": "ROOT/a.npz",
}
# Prompts of an evaluation.
TEXTS = ("{}.", "the {}")
# Classes of the pictures.
NAMES = ("red star", "teal leaf")
BASE_TO_NEW = ["eurosat/base", "eurosat/new"]
WORLD_SETS = ("base", "novel", "shifted")

CASES = {
  "the CLIP of pretrain": clip_case("pretrain", {}),
  "the CLIP of evaluate": clip_case("evaluate", {}),
  "the CLIP of predict": clip_case("predict", {"predict.names": "ROOT/names.txt"}),
  "the CLIP": Case(
    run=build_encoder,
    fields={},
    rows={
      "clip.model": ("ROOT/clip", "load_clip.source"),
      "clip.activation": ("gelu", "load_clip.activation"),
      "clip.image_tower": (False, "load_clip.image_tower"),
      "clip.text_tower": ("reference", "Encoder.tower"),
      "clip.dtype": ("bfloat16", "Encoder.dtype"),
      "clip.image_chunk": (3, "Encoder.image_chunk"),
      "mesh.class_size": (2, "make_mesh.class_size"),
      "data.feature_store": ("ROOT/store", "ArrayCache.folder", "ROOT/store/classes"),
    },
  ),
  "the command line": Case(
    run=run_command_line,
    fields={},
    rows={
      "job": ("evaluate", "load_job.name"),
      "compilation_cache": ("ROOT/programs", "use_compilation_cache.folder"),
      "mesh.class_size": (2, "describe.class_size"),
      "clip.dtype": ("bfloat16", "describe.dtype"),
    },
  ),
  "a dry run": Case(
    run=run_command_line,
    fields={},
    rows={
      "dry_run": ("here", "load_job.name", "dry_run"),
    },
  ),
  "a training": Case(
    run=train,
    fields=TRAINING,
    rows={
      "checkpoint.every": (7, "save.step*", [7, 14, 21, 28, 30]),
      "checkpoint.keep": (5, "Checkpoints.keep"),
      "checkpoint.on_failure": ("retry", "Checkpoints.retry", True),
      "eval.images": (12, {"check_readable.n_images": 12, "open_splits.n_images": 12}),
      "eval.template": ("my {}.", "evaluate.prompts.hand_written"),
      "checkpoint.select": ("best", "evaluated_step", 7),
      "k": (4, "results.k"),
      "correction": ("none", "results.correction"),
      "log.tracker": ("wandb", "open_tracker.log.tracker"),
      "profile_steps": ((2, 3), "Profiler.steps"),
      "data.threads": (3, "choose_readers.threads"),
      "data.workers": (0, "choose_readers.workers"),
      "data.max_corrupt": (0.5, "Loader.max_corrupt"),
      "clip.memory_gib": (5.0, "plan_memory.limit_bytes", 5 * 2**30),
    },
  ),
  "views of a training": Case(
    run=train,
    fields=TRAINING | {"data.augment": "crop_flip"},
    rows={
      # 6 views of 40 x 40 pixels; two of each of 12 images.
      "batch_size": (
        6,
        {"choose_readers.batch_bytes": 6 * 3 * 40**2, "_train_from.run.group_size": 6},
      ),
      "data.views": (2, "choose_readers.n_batches", 2 * 12 // 6),
    },
  ),
  "scalars": Case(
    run=train,
    fields=TRAINING,
    rows={
      "log.every": (12, "write.step*", [12, 30, 30, 30]),
    },
  ),
  "a training whose loss rises": Case(
    run=train,
    fields=TRAINING,
    rows={
      "roll_backs": (5, {"attempts": 6, "LossMonitor.spike": 5.0}),
    },
  ),
  "features of a training": Case(
    run=store_features,
    fields=WORLD | {"data.features": "stored"},
    rows={
      "data.feature_store": ("ROOT/store", "features", "ROOT/store/training"),
      "data.threads": (3, "choose_readers.threads"),
      "data.workers": (0, "choose_readers.workers"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "images or their features": Case(
    run=store_features,
    fields=WORLD,
    rows={
      "data.features": ("stored", "Features.shape", (12, 1, 128)),
    },
  ),
  "features of validation images": Case(
    run=store_features,
    fields=WORLD,
    rows={
      "data.feature_store": (
        "ROOT/store",
        "split_features.store",
        "ROOT/store/evaluation",
      ),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "named sets": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={
      "evaluate.sets": (("eurosat",), "sets", BASE_TO_NEW),
      "evaluate.suite": (
        "base_to_new",
        {"sets": BASE_TO_NEW, "suite": "base_to_new"},
      ),
      "evaluate.root": ("ROOT/coop", "sets", BASE_TO_NEW),
    },
  ),
  "a named set in folders": Case(
    run=evaluate_sets,
    fields=EUROSAT | {"evaluate.root": "ROOT/folders"},
    rows={
      "evaluate.source": ("folder", "sets", ["eurosat"]),
    },
  ),
  "images of a named set": Case(
    run=evaluate_sets,
    fields=EUROSAT,
    rows={
      "evaluate.images": (
        3,
        {"images": {"eurosat": 3}, "_count_classes.sampled": True},
      ),
      "evaluate.batch_size": (7, "tally.batch_size"),
      "evaluate.prompts": (TEXTS, "prompts", list(TEXTS)),
      "clip.text_tower": ("reference", "key", ("reference", "bfloat16")),
      "clip.dtype": ("bfloat16", "key", ("reference", "bfloat16")),
      "data.upright": (True, "upright", {True}),
      "data.threads": (3, "tally.threads"),
      "data.max_corrupt": (0.5, "tally.max_corrupt"),
    },
  ),
  "own sets of a file": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={
      "evaluate.sets_file": ("ROOT/sets.toml", "sets", ["mine"]),
      "evaluate.skip_missing": (True, "sets", ["mine"]),
    },
  ),
  "own sets": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={
      "evaluate.own_sets": (
        ({"name": "own", "root": "ROOT/pictures"},),
        "sets",
        ["own"],
      )
    },
  ),
  "the sets of the images": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={
      "data.source": ("folder", "sets", ["pictures/test"]),
      "data.root": ("ROOT/pictures", "sets", ["pictures/test"]),
      "eval.template": ("my {}.", "templates", {"my {}."}),
    },
  ),
  "the world's sets": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={
      "eval.images": (12, "images", dict.fromkeys(WORLD_SETS, 12)),
      "data.n_classes": (4, "classes", dict.fromkeys(WORLD_SETS, 4)),
    },
  ),
  "images of the world's sets": Case(
    run=evaluate_sets,
    fields=EVALUATED,
    rows={"evaluate.images": (12, "images", dict.fromkeys(WORLD_SETS, 12))},
  ),
  "names of pictures": Case(
    run=name_pictures,
    fields=PREDICTED,
    rows={
      "predict.images": (
        "ROOT/pictures/train",
        {
          "pictures": ["red star/0.png", "teal leaf/0.png"],
          "find_images.path*": ["ROOT/pictures/train", "ROOT/pictures/train"],
        },
      ),
      "predict.names": ("ROOT/other.txt", {"names": "ROOT/other.txt"}),
      "predict.prompt": (
        "the {}",
        {
          "Classifier.prompt": "the {}",
          "check_prompt.named.prompt": "the {}",
          "prompt": "the {}",
        },
      ),
      "predict.top": (
        1,
        {"answers": {2}, "printable.text": "teal leaf/0.png: red star 50.0%"},
      ),
      "predict.calibration": ("never", "Classifier.calibration"),
      "data.upright": (True, {"read_image.upright": True, "upright": True}),
    },
  ),
  "a prompt for others": Case(
    run=export_prompt,
    fields=EXPORTED,
    rows={
      "export.prompt": ("ROOT/b.npz", {"shape": (3, 64), "prompt": "ROOT/b.npz"}),
      "export.format": ("safetensors", "format"),
      "export.output": (
        "own.safetensors",
        {"output": "own.safetensors", "encode.path": "own.safetensors"},
      ),
    },
  ),
}

# Fields, or groups of fields, whose rows are in the table of another test.
ELSEWHERE = dict.fromkeys(
  CHANGES,
  "tests/train/test_wiring.py::test_a_field_that_matters_changes_its_pieces_alone",
)


def write_files(folders: Mapping[str, pathlib.Path]) -> None:
  """Writes what cases of several files read in ROOT."""
  root = folders["ROOT"]
  for name in ("eurosat", "dtd"):
    write_set(root / "coop", name, np.zeros((8, 8, 8, 3), np.uint8), np.arange(8))
  for name in NAMES:
    _write_picture(root / "pictures" / "train" / name, red=0)
    _write_picture(root / "pictures" / "test" / name, red=200)
  for name in load_class_list("eurosat").names:
    _write_picture(root / "folders" / "eurosat" / name, red=0)
  sets = [("mine", "pictures"), ("gone", "nowhere")]
  tables = [f'[[set]]\nname = "{name}"\nroot = "{folder}"\n' for name, folder in sets]
  (root / "sets.toml").write_text("".join(tables))
  (root / "names.txt").write_text("\n".join((*NAMES, "blue ring")))
  (root / "other.txt").write_text("\n".join((*NAMES, "a cat")))
  _write_prompt(root / "a.npz", n_vectors=2, position="end")
  _write_prompt(root / "b.npz", n_vectors=3, position="front")


def _write_picture(folder: pathlib.Path, red: int) -> None:
  folder.mkdir(parents=True)
  Image.new("RGB", (8, 8), (red, 0, 0)).save(folder / "0.png")


def _write_prompt(path: pathlib.Path, n_vectors: int, position: str) -> None:
  context = np.zeros((n_vectors, 64), np.float32)
  save_prompt(path, Prompt(context, "world", position))
