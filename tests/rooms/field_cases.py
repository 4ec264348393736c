"""Cases of `test_each_field`: runs of jobs, other values of their fields, and what
these change."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.files.prompt_file import Prompt, save_prompt
from tests.rooms.regions.region_jobs import TEXTS as TEXTS_OF_OBJECTS
from tests.support.data_files import write_set
from tests.train.test_wiring import CHANGES

# Value of a field, the record that it changes, and what this becomes, the value if not
# said; or all records that it changes. ROOT is the folder of `write_files`, REGIONS
# that of the region set.
Row = tuple[Any, str] | tuple[Any, str, Any] | tuple[Any, dict[str, Any]]


class Case(NamedTuple):
  """Fields of a run that both of its kinds have, and rows of others."""

  run: str  # one of RUNS
  beside: dict[str, Any]
  rows: dict[str, Row]


WORLD = {"data.n_classes": 6, "data.images_per_class": 2, "eval.images": 6}
TRAINING = WORLD | {"k": 3, "batch_size": 4, "steps": 30, "checkpoint.every": 40}
TRAINING |= {"optim.schedule": "step", "optim.warmup": 0.0}
EVALUATED = WORLD | {"job": "evaluate", "evaluate.prompts": ("{}.",)}
EUROSAT = EVALUATED | {"evaluate.root": "ROOT/coop", "evaluate.sets": ("eurosat",)}
TEXTS = ("{}.", "the {}")
LABELS = {"data.source": "regions", "data.annotations": "REGIONS/labels"}
LABELS |= {"data.root": "REGIONS/images", "data.names": "REGIONS/names.txt"}
FITTED = WORLD | {"method": "tip_adapter_f", "data.augment": "crop_flip"}
FOLDERS = [("seed_3", 3), ("seed_4", 4)]
SEEDS_3_4 = {"run.seeds": FOLDERS, "check.seeds": FOLDERS, "seeds": [3, 4]}
METHODS = (("one", {"k": "8"}),)
SEEDS = {"job": "repeat", "repeat.seeds": (5,)}
CELLS = TRAINING | {"job": "ablate", "ablate.grid": "batch_size=4|6|8;seed=0|1"}
GRADIENTS = WORLD | {
  "job": "gradient_bias",
  "gradient_bias.k": (3,),
  "gradient_bias.images": 6,
}
GRADIENTS |= {
  "gradient_bias.samplers": ("uniform",),
  "gradient_bias.corrections": ("log",),
}
DTYPES = ("text_tower.dtype", "measure_in_turn.dtype")
MEASURED = [("reference", 11, 21841, None)]
TINY = {
  "job": "benchmark",
  "benchmark.model": "tiny",
  "benchmark.k": "12",
  "benchmark.steps": "",
}
TINY |= {"benchmark.bank_steps": "", "benchmark.baseline_k": "", "benchmark.chunk": 5}
PREDICTED = {"job": "predict", "predict.images": "ROOT/pictures/test/red star"}
PREDICTED |= {"predict.names": "ROOT/names.txt", "predict.prompt": "{}."}
EXPORTED = {"job": "export", "export.prompt": "ROOT/a.npz"}
EXPORTED_FEATURES = {
  "job": "export",
  "export.format": "open_clip",
  "export.prompt": "{}.",
}
EXPORTED_FEATURES |= {"export.names": "ROOT/names.txt"}
UPLOADED = EXPORTED | {"export.hub": "hf:me/a", "export.license": "mit"}
DETECTED = {"job": "detect", "clip.model": "REGIONS/clip", "regions.source": "truth"}
DETECTED |= {"detect.source": "coco", "detect.annotations": "REGIONS/objects.json"}
DETECTED |= {"detect.images": "REGIONS/images"}
OBJECTS = tuple(names[0] for names in TEXTS_OF_OBJECTS)
SCENES = {"job": "detect", "regions.source": "truth", "regions.crop": "context"}
SCENES |= {"detect.n_images": 2}
NETWORK = {"clip.model": "REGIONS/clip", "propose.network": "REGIONS/net.pth"}
MASKS = {
  "job": "train_masks",
  "clip.model": "REGIONS/clip",
  "train_masks.source": "folder",
}
MASKS |= {
  "train_masks.images": "REGIONS/images",
  "train_masks.labels": "REGIONS/labels",
}
MASKS |= {"train_masks.names": "REGIONS/names.txt", "train_masks.network": "small"}
MASKS |= {"train_masks.targets": 4, "batch_size": 1}
# Jobs with a CLIP, and what they need up to there.
OPENED = {
  "pretrain": {},
  "pretrain without steps": {"method": "zero_shot"},
  "evaluate": {},
  "predict": {"predict.names": "ROOT/names.txt"},
  "export": EXPORTED_FEATURES,
  "analyse": {},
  "ablate": CELLS,
  "gradient_bias": {},
  "page": {},
  "detect": SCENES,
  "segment": {"segment.n_images": 1},
  "propose": {"propose.network": "REGIONS/net.pth"},
  "train_masks": {},
  "calibrate": {"calibrate.prompt": "{}."},
  "near_names": {"near_names.names": "ROOT/names.txt"},
}

_WIRING = (
  "tests/train/test_wiring.py::test_a_field_that_matters_changes_its_pieces_alone"
)
_CERTAINTY = "tests/rooms/certainty"
_REGIONS = (
  "tests/rooms/regions/test_region_fields.py::test_a_field_changes_what_it_names"
)

CASES = {
  **{
    f"the CLIP of {job}": Case(
      "open",
      {"job": job.partition(" ")[0]} | beside,
      {
        "clip.model": ("REGIONS/clip", "open_encoder.settings.model"),
        "clip.activation": ("gelu", "open_encoder.settings.activation"),
        "clip.text_tower": ("reference", "open_encoder.settings.text_tower"),
        "clip.dtype": ("bfloat16", "open_encoder.settings.dtype"),
        "clip.image_chunk": (3, "open_encoder.settings.image_chunk"),
        "mesh.class_size": (2, "open_encoder.class_size"),
        "data.feature_store": ("ROOT/store", "open_encoder.feature_store"),
      },
    )
    for job, beside in OPENED.items()
  },
  "the CLIP": Case(
    "encoder",
    {},
    {
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
    "main",
    {},
    {
      "job": ("evaluate", "load_job.name"),
      "compilation_cache": ("ROOT/programs", "use_compilation_cache.folder"),
      "mesh.class_size": (2, "describe.class_size"),
      "clip.dtype": ("bfloat16", "describe.dtype"),
    },
  ),
  "a dry run": Case("main", {}, {"dry_run": ("here", "load_job.name", "dry_run")}),
  "images of TFDS": Case(
    "source",
    {"data.source": "tfds"},
    {
      "data.root": ("ROOT/tfds", "open_tfds.root"),
      "data.dataset": ("food101", "open_tfds.dataset"),
      "data.names": ("dtd", "open_tfds.classes", load_class_list("dtd")),
      "data.cache": ("ROOT/cache", "open_tfds.cache"),
    },
  ),
  "splits of TFDS": Case(
    "source",
    {"data.source": "tfds"},
    {
      "data.root": ("ROOT/tfds", "tfds_splits.root"),
      "data.dataset": ("food101", "tfds_splits.dataset"),
    },
  ),
  "images in CoOp's layout": Case(
    "source",
    {"data.source": "coop"},
    {
      "data.root": ("ROOT/coop", "_open_all.root*", ["ROOT/coop", "ROOT/coop"]),
      "data.dataset": ("eurosat", "_open_all.name*", ["eurosat", "eurosat"]),
      "data.shots": (2, "_open_all.shots*", [2, 2]),
      "data.shots_seed": (3, "_open_all.seed*", [3, 3]),
      "data.names": ("ROOT/two.txt", "names", ("red star", "teal leaf")),
    },
  ),
  "features of a file": Case(
    "source",
    {"data.source": "features"},
    {
      "data.root": ("ROOT/features", "read_header.root"),
      "data.names": ("dtd", "_open.classes", load_class_list("dtd")),
    },
  ),
  "regions of label images": Case(
    "source",
    LABELS,
    {
      "data.annotations": ("REGIONS/other/labels", "open_pixels.labels"),
      "data.root": ("REGIONS/other/images", "_Crops.root"),
      "data.names": (
        "REGIONS/other/names.txt",
        "names",
        ("tree", "road", "lake", "star"),
      ),
      "data.cache": ("ROOT/cache", "ArrayCache.folder"),
    },
  ),
  "synthetic images": Case(
    "source",
    {"data.source": "synthetic", "data.names": "dtd"},
    {
      "data.names": ("eurosat", "names", load_class_list("eurosat").names),
      "data.images_per_class": (3, "images", 30),
    },
  ),
  "a training": Case(
    "training",
    TRAINING,
    {
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
    "training",
    TRAINING | {"data.augment": "crop_flip"},
    {
      # 6 views of 40 x 40 pixels; two of each of 12 images.
      "batch_size": (
        6,
        {"choose_readers.batch_bytes": 6 * 3 * 40**2, "_train_from.run.group_size": 6},
      ),
      "data.views": (2, "choose_readers.n_batches", 2 * 12 // 6),
    },
  ),
  "a training of several towers": Case(
    "training", TRAINING, {"method": ("cocoop", "memory_plan.n_times", 4)}
  ),
  "a training of two towers": Case(
    "training", TRAINING, {"method": ("vpt_shallow", "memory_plan.n_times", 2)}
  ),
  "a dry run of a training": Case(
    "dry_run",
    TRAINING | {"dry_run": True},
    {
      # Ten images take a second, and all classes of one of the six validations.
      "eval.images": (12, "validation_seconds", 1.2 + 6),
      "checkpoint.every": (10, "validation_seconds", 1.2 + 6),
      "checkpoint.keep": (5, "disk_bytes", 7 * 100 + 7),
      "steps": (60, "training_seconds", 60),
    },
  ),
  "a dry run for another machine": Case(
    "absent",
    TRAINING | {"dry_run": "v5e:2x2"},
    {
      "dry_run_rate": (2.5, "figures_of.rate"),
      "clip.memory_gib": (3.0, "job.clip.memory_gib"),
    },
  ),
  "a dry run without its images": Case(
    "dry_run",
    {"dry_run": True, "k": 3, "data.source": "tfds", "eval.images": 6},
    {
      "data.dataset": ("eurosat", "prepare.config.data.names"),
      "data.shots": (2, "prepare.config.data.images_per_class"),
    },
  ),
  "scalars": Case(
    "training", TRAINING, {"log.every": (12, "write.step*", [12, 30, 30, 30])}
  ),
  "a training whose loss rises": Case(
    "training", TRAINING, {"roll_backs": (5, {"attempts": 6, "LossMonitor.spike": 5.0})}
  ),
  "a training with the best words": Case(
    "training",
    TRAINING | {"prompt.init": "best", "prompt.m": 0, "checkpoint.select": "best"},
    {
      "prompt.candidates": (
        ("a photo of a {}.", "{}!"),
        "prompts",
        {"a photo of a {}.", "{}!"},
      ),
      "eval.images": (12, "open_source.n_images*", [0, 12, 12]),
    },
  ),
  "a teacher": Case(
    "taught",
    WORLD | {"method": "kdpl"},
    {
      "kdpl.teacher": ("REGIONS/clip", "open_encoder.settings.model"),
      "eval.template": ("my {}.", "features_under.classes.template"),
      "data.feature_store": (
        "ROOT/store",
        "open_encoder.feature_store*",
        2 * ["ROOT/store"],
      ),
    },
  ),
  "the prompt of a teacher": Case(
    "taught",
    WORLD | {"method": "kdpl"},
    {"kdpl.prompt": ("the {}", "features_under.prompt")},
  ),
  "tokens of an image tower": Case(
    "images_learner",
    WORLD | {"method": "vpt_shallow"},
    {
      "clip.dtype": ("bfloat16", "prompted_image_tower.dtype"),
      "clip.image_chunk": (3, "prompted_image_tower.chunk"),
      "clip.memory_gib": (5.0, "prompted_image_tower.limit_bytes", 2.5 * 2**30),
      "eval.template": ("my {}.", "class_features.prompt*", ["my {}.", "my {}."]),
      "data.threads": (3, "image_batches.threads"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "features of a training": Case(
    "stored_features",
    WORLD | {"data.features": "stored"},
    {
      "data.feature_store": ("ROOT/store", "features", "ROOT/store/training"),
      "data.threads": (3, "choose_readers.threads"),
      "data.workers": (0, "choose_readers.workers"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "images or their features": Case(
    "stored_features",
    WORLD,
    {"data.features": ("stored", "Features.shape", (12, 1, 128))},
  ),
  "features of validation images": Case(
    "stored_features",
    WORLD,
    {
      "data.feature_store": (
        "ROOT/store",
        "split_features.store",
        "ROOT/store/evaluation",
      ),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "a linear probe": Case(
    "classifier",
    WORLD | {"method": "linear_probe"},
    {
      "probe.iterations": (7, "fit.iterations"),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
      "log.tracker": ("wandb", "open_tracker.log.tracker"),
      "eval.images": (
        12,
        {"open_splits.n_images": 12, "open_source.n_images*": [0, 12]},
      ),
      "seed": (9, "seed"),
    },
  ),
  "Tip-Adapter": Case(
    "classifier",
    FITTED,
    {
      "tip.views": (3, "view_features.n_epochs", 5),
      "tip.epochs": (2, {"tune.n_epochs": 2, "epochs": 2}),
      "tip.alpha": (5.0, "tune.adapter.alpha"),
      "tip.beta": (6.0, "tune.adapter.beta"),
      "tip.alpha_max": (8.1, "searched.alphas", [0.1, 2.1, 4.1, 6.1]),
      "tip.alpha_steps": (4, "searched.alphas", [0.1, 2.1, 4.1, 6.1]),
      "tip.beta_max": (6.1, "searched.betas", [0.1, 3.1]),
      "tip.beta_steps": (2, "searched.betas", [0.1, 3.1]),
      "batch_size": (5, "tune.batch_size"),
      "optim.lr": (0.3, "tune.rate"),
      "seed": (9, "tune.seed"),
      "data.threads": (3, "read_ahead.data.threads"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "trainings of seeds": Case(
    "seeds",
    SEEDS,
    {"repeat.seeds": ((3, 4), SEEDS_3_4)},
  ),
  "trainings of methods": Case(
    "seeds",
    {"job": "baselines", "baselines.methods": (("one", {"k": "7"}),)},
    {
      "repeat.seeds": ((3, 4), SEEDS_3_4),
      "baselines.methods": (METHODS, {"run.config.k": 8, "settings": METHODS}),
    },
  ),
  "cells": Case(
    "ablate",
    CELLS,
    {
      "ablate.grid": (
        "batch_size=10|12;seed=0|1",
        {"batches": [12, 12], "grid": "batch_size=10|12;seed=0|1"},
      ),
      "ablate.part": ((2, 2), "batches", [12, 12]),
      "ablate.lanes": (1, "train_lanes.size"),
      "ablate.curve_every": (4, {"train_lanes.curve_every": 4, "_step_times.every": 4}),
    },
  ),
  "the end of cells": Case(
    "ablate",
    CELLS,
    {
      "eval.images": (12, "images", {12}),
      "eval.template": ("my {}.", "templates", {"my {}.", "{}."}),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "lanes of cells": Case(
    "ablate", CELLS, {"clip.memory_gib": (1e-4, "train_lanes.size", 1)}
  ),
  "named sets": Case(
    "evaluate",
    EVALUATED,
    {
      "evaluate.sets": (("eurosat",), "sets", ["eurosat/base", "eurosat/new"]),
      "evaluate.suite": (
        "base_to_new",
        {"sets": ["eurosat/base", "eurosat/new"], "suite": "base_to_new"},
      ),
      "evaluate.root": ("ROOT/coop", "sets", ["eurosat/base", "eurosat/new"]),
    },
  ),
  "a named set in folders": Case(
    "evaluate",
    EUROSAT | {"evaluate.root": "ROOT/folders"},
    {"evaluate.source": ("folder", "sets", ["eurosat"])},
  ),
  "images of a named set": Case(
    "evaluate",
    EUROSAT,
    {
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
    "evaluate",
    EVALUATED,
    {
      "evaluate.sets_file": ("ROOT/sets.toml", "sets", ["mine"]),
      "evaluate.skip_missing": (True, "sets", ["mine"]),
    },
  ),
  "own sets": Case(
    "evaluate",
    EVALUATED,
    {
      "evaluate.own_sets": (
        ({"name": "own", "root": "ROOT/pictures"},),
        "sets",
        ["own"],
      )
    },
  ),
  "the sets of the images": Case(
    "evaluate",
    EVALUATED,
    {
      "data.source": ("folder", "sets", ["pictures/test"]),
      "data.root": ("ROOT/pictures", "sets", ["pictures/test"]),
      "eval.template": ("my {}.", "templates", {"my {}."}),
    },
  ),
  "the world's sets": Case(
    "evaluate",
    EVALUATED,
    {
      "eval.images": (12, "images", dict.fromkeys(("base", "novel", "shifted"), 12)),
      "data.n_classes": (4, "classes", dict.fromkeys(("base", "novel", "shifted"), 4)),
    },
  ),
  "images of the world's sets": Case(
    "evaluate",
    EVALUATED,
    {
      "evaluate.images": (12, "images", dict.fromkeys(("base", "novel", "shifted"), 12))
    },
  ),
  "a mixture of prompts": Case(
    "evaluate",
    EVALUATED | {"evaluate.prompts": ("{}. + the {}",)},
    {
      "eval.images": (12, "validation", 12),
      "eval.template": ("my {}.", "features_under.classes.template"),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "an analysis": Case(
    "analyse",
    EUROSAT | {"job": "analyse", "analyse.prompts": ("ROOT/a.npz",)},
    {
      "analyse.prompts": (
        ("ROOT/b.npz", "{}."),
        {
          "prompts": ["ROOT/b.npz", "{}."],
          "check_prompts.names": ("ROOT/b.npz", "{}."),
        },
      ),
      "analyse.top": (2, "nearest_tokens.top"),
      "evaluate.sets": (("dtd",), "sets", ["dtd"]),
      "evaluate.images": (2, "images", [2]),
      "data.upright": (True, "split_features.source.upright"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "an analysis of the sets that are there": Case(
    "analyse",
    {"job": "analyse", "evaluate.sets_file": "ROOT/sets.toml"},
    {"evaluate.skip_missing": (True, "sets", ["mine"])},
  ),
  "names of pictures": Case(
    "predict",
    PREDICTED,
    {
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
  "names of pixels": Case(
    "predict",
    PREDICTED,
    {
      "predict.task": ("segment", "DenseSegmenter.segment.size", 336),
      "segment.pamr": (3, "DenseSegmenter.segment.pamr"),
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
    },
  ),
  "names of pixels in regions": Case(
    "predict",
    PREDICTED | {"predict.task": "segment", "propose.network": "REGIONS/net.pth"},
    {
      "segment.logit_scale": (7.0, "RegionScorer.logit_scale"),
      "regions.expand": (1.7, "RegionScorer.regions.expand"),
      "propose.size": (64, "open_region_source.propose.size"),
    },
  ),
  "names of objects": Case(
    "predict",
    PREDICTED | {"predict.task": "detect", "propose.network": "REGIONS/net.pth"},
    {"detect.logit_scale": (7.0, "RegionScorer.logit_scale")},
  ),
  "a prompt for others": Case(
    "export",
    EXPORTED,
    {
      "export.prompt": ("ROOT/b.npz", {"shape": (3, 64), "prompt": "ROOT/b.npz"}),
      "export.format": ("safetensors", "format"),
      "export.output": (
        "own.safetensors",
        {"output": "own.safetensors", "encode.path": "own.safetensors"},
      ),
    },
  ),
  "features for others": Case(
    "export",
    EXPORTED_FEATURES,
    {
      "export.names": (
        "ROOT/synonyms.json",
        {"categories": ["red star", "teal leaf"], "names": "ROOT/synonyms.json"},
      ),
      "export.synonyms": (
        True,
        {
          "category_features.synonyms": True,
          "check_prompt.synonyms": [
            ("red star", "a red star"),
            ("teal leaf", "a teal leaf"),
          ],
        },
      ),
      "export.prompt": (
        "the {}",
        {
          "category_features.prompt": "the {}",
          "check_prompt.named.prompt": "the {}",
          "pictures_upright.prompt": "the {}",
          "prompt": "the {}",
        },
      ),
      "export.format": (
        "detic",
        {"output": "class_features.npy", "category_features.unit": False},
      ),
    },
  ),
  "an upload": Case(
    "export",
    UPLOADED,
    {
      "export.prompt": (
        "ROOT/b.npz",
        {
          "push_prompt.prompt.context.shape": (3, 64),
          "results_of.path*": ["ROOT/b.npz", "ROOT/b.npz"],
        },
      ),
      "export.hub": ("hf:me/b", "push_prompt.name"),
      "export.license": ("apache-2.0", "push_prompt.license"),
      "export.private": (True, "push_prompt.private"),
    },
  ),
  "the check of an upload": Case(
    "export",
    UPLOADED,
    {
      "export.hub": ("hf:me/b", "check_upload.name"),
      "export.private": (True, "check_upload.private"),
    },
  ),
  "a data set from its files": Case(
    "prepare",
    {"job": "prepare", "prepare.input": "ROOT/coop", "prepare.dataset": "coop_eurosat"},
    {
      "prepare.dataset": ("imagenet21k", "open_input.dataset"),
      "prepare.input": ("ROOT/pictures", "open_input.path"),
      "prepare.names": ("imagenet21k_p", "open_input.names"),
      "prepare.shots": (5, "selection.shots"),
      "prepare.shots_seed": (7, "selection.seed"),
      "prepare.held_out": (2, "selection.held_out"),
      "prepare.workers": (3, "build.workers"),
    },
  ),
  "stored images of a class": Case(
    "prepare",
    {"job": "prepare", "prepare.input": "ROOT/coop", "prepare.dataset": "coop_eurosat"},
    {
      "prepare.shots": (5, "open_input.images_per_class", 7),
      "prepare.held_out": (2, "open_input.images_per_class", 7),
    },
  ),
  "gradients": Case(
    "gradient_bias",
    GRADIENTS,
    {
      "gradient_bias.k": ((3, 4), "draws", [("hard", 3), ("hard", 4)]),
      "gradient_bias.samplers": (
        ("hard",),
        {"draws": [("hard", 3), ("hard", 4)], "sampling_arrays.sampling.name": "hard"},
      ),
      "gradient_bias.corrections": (
        ("none", "sigmoid"),
        {
          "gradient_function.corrections": ("none", "sigmoid"),
          "cell": ["hard", "4 27", "none", "sigmoid"],
        },
      ),
      "gradient_bias.images": (8, "images"),
      "gradient_bias.rows": (330, "n_draws", [30, 27]),
      "logit_bias": (-9.0, "logit_bias"),
      "seed": (9, "draws_of.seed"),
      "prompt.m": (3, "PromptContext.n_vectors"),
      "prompt.position": ("front", "PromptContext.position"),
      "sampling.mix": (0.7, "sampling.mix"),
      "sampling.temperature": (0.7, "sampling.temperature"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
      "data.n_classes": (7, "n_classes"),
      "clip.memory_gib": (5.0, "memory_plan.clip.memory_gib"),
      "clip.text_tower": ("reference", "key", "1 9 front reference bfloat16"),
      "clip.dtype": ("bfloat16", "key", "1 9 front reference bfloat16"),
    },
  ),
  "gradients of a prompt": Case(
    "gradient_bias",
    GRADIENTS,
    {
      "gradient_bias.prompt": (
        "ROOT/b.npz",
        {"PromptContext.position": "front", "prompt": "ROOT/b.npz"},
      ),
    },
  ),
  "a benchmark": Case(
    "benchmark",
    TINY,
    {
      "benchmark.k": ("11+13", "rows", MEASURED),
      "benchmark.baseline_k": ("11", "rows", MEASURED),
      "benchmark.implementations": ("reference", "rows", MEASURED),
      "benchmark.rows_at_a_time": (3, "rows_at_a_time", {"reference": 3}),
      "benchmark.m": (5, "random_inputs.m"),
      "benchmark.seed": (9, "seeds", {9}),
      "benchmark.repeats": (2, "measure_in_turn.repeats"),
      "benchmark.seconds": (7, "measure_in_turn.seconds"),
    },
  ),
  "a benchmark of our tower": Case(
    "benchmark",
    TINY,
    {
      "benchmark.chunk": (3, "text_tower.memory.n_chunks", 4),
      "benchmark.dtype": ("bfloat16", dict.fromkeys(DTYPES, "bfloat16")),
      "benchmark.m": (5, "random_inputs.m"),
      "benchmark.seed": (9, "seeds", {9}),
    },
  ),
  "whole steps": Case(
    "benchmark",
    TINY | {"benchmark.k": ""},
    {
      "benchmark.steps": (
        "16/300",
        "rows",
        [("train_step", 16, 300, None), ("train_step", 16, 200, 24)],
      ),
      "benchmark.bank_steps": (
        "16/200/24",
        "rows",
        [("train_step", 16, 300, None), ("train_step", 16, 200, 24)],
      ),
      "benchmark.bank_dtype": ("bfloat16", "place_rows.dtype"),
      "benchmark.dtype": ("bfloat16", dict.fromkeys(DTYPES, "bfloat16")),
      "benchmark.m": (
        5,
        {"random_inputs.m": 5, "PromptContext.n_vectors": 5, "plan_memory.n_prefix": 6},
      ),
      "benchmark.seed": (9, "seeds", {9}),
      "benchmark.model": ("vit_l_14", "text_tower.config.hidden_size", 768),
    },
  ),
  "objects": Case(
    "detect",
    DETECTED,
    {
      "detect.annotations": ("REGIONS/other/objects.json", "read_annotations.path"),
      "detect.images": ("REGIONS/other/images", "root"),
      "detect.names": ("ROOT/classes.txt", "classes", (*OBJECTS, "tree")),
      "detect.n_images": (2, "images", 2),
      "detect.prompts": (TEXTS, "prompts", list(TEXTS)),
      "detect.output": (True, "files", ["0.json", "1.json"]),
      "detect.logit_scale": (7.0, "RegionScorer.logit_scale"),
      "clip.text_tower": ("reference", "key"),
    },
  ),
  "objects of several names": Case(
    "detect",
    DETECTED | {"detect.annotations": "ROOT/lvis.json"},
    {
      "detect.synonyms": (
        True,
        "synonyms",
        tuple((name, f"a {name}") for name in OBJECTS),
      )
    },
  ),
  "objects of scenes": Case(
    "detect", SCENES, {"detect.scene_classes": (480, "Scenes.n_classes")}
  ),
  "annotated objects": Case(
    "detect",
    DETECTED | {"detect.source": "world", "detect.n_images": 2},
    {"detect.source": ("coco", "classes", OBJECTS)},
  ),
  "patches": Case(
    "segment",
    {"job": "segment", "segment.n_images": 1, "segment.scene_classes": 48},
    {
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
      "segment.recipe": ("clip", "DenseSegmenter.segment.recipe"),
    },
  ),
  "a network": Case(
    "propose",
    NETWORK | {"job": "propose", "segment.n_images": 1, "segment.scene_classes": 48},
    {
      "clip.dtype": (
        "bfloat16",
        {"mask_predictor.dtype": "bfloat16", "network_key_parts.dtype": "bfloat16"},
      ),
      "clip.text_tower": ("reference", "key"),
      "propose.size": (64, "resized_image.size"),
      "propose.stride": (1, "resized_image.multiple"),
      "propose.batch_size": (3, "batch"),
    },
  ),
  "masks of a network": Case(
    "propose",
    NETWORK | {"job": "propose", "segment.n_images": 1, "segment.scene_classes": 48},
    {"regions.mask_threshold": (0.8, "Proposer.threshold*", [0.8, 0.5])},
  ),
  "a training of masks": Case(
    "train_masks",
    MASKS,
    {
      "seed": (9, "train.run.seed"),
      "batch_size": (2, "train.run.total_steps", 6),
      "epochs": (3, "train.run.total_steps", 6),
      "log.every": (7, "train.run.log_every"),
      "checkpoint.keep": (7, "train.run.checkpoint.keep"),
      "data.max_corrupt": (0.5, "train.run.data.max_corrupt"),
      "clip.dtype": ("bfloat16", "precision_of.dtype"),
    },
  ),
  "seeds of masks": Case("train_masks", MASKS, {"seed": (9, "MaskViews.seed")}),
  "seeds of scenes": Case(
    "train_masks",
    MASKS | {"train_masks.source": "world", "train_masks.n_images": 1},
    {"seed": (9, "open_mask_set.seed")},
  ),
  "regions on the page": Case(
    "page",
    {"job": "page", "propose.network": "a network", "regions.crop": "context"},
    {
      "regions.max_regions": (2, "top.k"),
      "regions.mask_threshold": (0.8, "open_network.mask_threshold"),
      "regions.expand": (1.7, "RegionEncoder.regions.expand"),
      "segment.logit_scale": (7.0, "RegionScorer.logit_scale*", [7.0, 9.0, 9.0]),
      "detect.logit_scale": (9.0, "RegionScorer.logit_scale*", [7.0, 9.0, 9.0]),
      "detect.min_score": (0.1, "select_detections.min_score"),
      "detect.nms": (0.1, "select_detections.max_iou"),
      "propose.size": (64, "open_network.propose.size"),
      "propose.network": ("another", "open_network.propose.network"),
    },
  ),
  "patches on the page": Case(
    "page",
    {"job": "page", "regions.crop": "context"},
    {
      "segment.recipe": ("clip", "DenseSegmenter.segment.recipe"),
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
    },
  ),
}


# Fields, or groups of fields, whose rows are in the table of another test.
ELSEWHERE = {
  **dict.fromkeys(CHANGES, _WIRING),
  "page.": "tests/rooms/page/test_page.py::test_each_field_reaches_the_page",
  "segment.": _REGIONS,
  "reproduce.": "tests/rooms/reproduce/test_reproduce_fields.py::test_each_field_reaches_the_run",
  "regions.": _REGIONS,
  **dict.fromkeys(("detect.min_score", "detect.nms", "detect.top"), _REGIONS),
  "propose.": "tests/rooms/regions/test_propose.py::test_each_field_reaches_the_network",
  "train_masks.": "tests/rooms/regions/test_train_masks.py::test_a_field_changes_what_it_names",
  "calibrate.": f"{_CERTAINTY}/test_calibrate.py::test_each_field_changes_what_it_names",
  "near_names.": f"{_CERTAINTY}/test_near_names.py::test_each_field_changes_what_it_names",
  "certain.tree": f"{_CERTAINTY}/test_predict_task.py::test_answers_as_deep_as_they_are_sure",
  "certain.least": f"{_CERTAINTY}/test_predict_task.py::test_answers_as_deep_as_they_are_sure",
  "certain.subset": f"{_CERTAINTY}/test_predict_task.py::test_a_subset_is_renormalised_and_said",
  "certain.rows": f"{_CERTAINTY}/test_predict_task.py::test_int8_rows_say_so",
  "classifier.extend": f"{_CERTAINTY}/test_classifier_file.py"
  "::test_new_names_leave_the_other_rows_bit_for_bit",
  "classifier.images": f"{_CERTAINTY}/test_classifier_file.py"
  "::test_answers_that_change_with_new_names",
  "classifier.image_tower": f"{_CERTAINTY}/test_classifier_file.py"
  "::test_a_stablehlo_tower_without_this_package",
}


def write_files(root: pathlib.Path, region_set: pathlib.Path) -> None:
  """Writes what is in ROOT."""
  for name in ("eurosat", "dtd"):
    write_set(root / "coop", name, np.zeros((8, 8, 8, 3), np.uint8), np.arange(8))
  names = ("red star", "teal leaf")
  for split, red in (("train", 0), ("test", 200)):
    for name in names:
      (root / "pictures" / split / name).mkdir(parents=True)
      Image.new("RGB", (8, 8), (red, 0, 0)).save(
        root / "pictures" / split / name / "0.png"
      )
  for name in load_class_list("eurosat").names:
    (root / "folders" / "eurosat" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "folders" / "eurosat" / name / "0.png")
  sets = [("mine", "pictures"), ("gone", "nowhere")]
  lines = (f'[[set]]\nname = "{name}"\nroot = "{folder}"\n' for name, folder in sets)
  (root / "sets.toml").write_text("".join(lines))
  (root / "names.txt").write_text("\n".join((*names, "blue ring")))
  (root / "two.txt").write_text("\n".join(names))
  (root / "other.txt").write_text("\n".join((*names, "a cat")))
  rows = [
    {"id": i + 1, "name": name, "synonyms": [name, f"a {name}"]}
    for i, name in enumerate(names)
  ]
  (root / "synonyms.json").write_text(json.dumps({"categories": rows}))
  objects = json.loads((region_set / "objects.json").read_text())
  for row in objects["categories"]:
    row["synonyms"] = [row["name"], f"a {row['name']}"]
  (root / "lvis.json").write_text(json.dumps(objects))
  (root / "classes.txt").write_text(
    "\n".join(f"{name}\tbase" for name in (*OBJECTS, "tree"))
  )
  for name, m, position in (("a", 2, "end"), ("b", 3, "front")):
    save_prompt(
      root / f"{name}.npz", Prompt(np.zeros((m, 64), np.float32), "world", position)
    )
