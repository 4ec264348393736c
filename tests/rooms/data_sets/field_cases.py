"""Runs and cases of the fields of sources and of `prepare`, see
`tests/rooms/test_each_field.py`."""

from collections.abc import Mapping
import pathlib
import types

from pomp_jax.config import Config
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.rooms.data_sets import coop, feature_folder, prepare, tfds
from tests.support.field_cases import NAMES
from tests.support.recorded_calls import Calls, Case, Recorded, check_and_run
from tests.support.recorded_runs import open_training_images

PREPARED = {
  "job": "prepare",
  "prepare.input": "ROOT/coop",
  "prepare.dataset": "coop_eurosat",
}


def open_stored_images(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The training images of a source that another program has written."""
  header = types.SimpleNamespace(splits=())
  images = StoredImages(("a", "b"), (0, 1), ("0.png", "1.png"), Files("images"))
  calls.note(coop, "_open_all", lambda *args: {"train": images})
  calls.note(tfds, "tfds_splits", lambda *args: ())
  calls.note(tfds, "open_tfds", Recorded)
  calls.note(feature_folder, "read_header", lambda root: header)
  calls.note(feature_folder, "_open", Recorded)
  open_training_images(calls, config, folder)


def prepare_data_set(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job prepare, which reads and writes no image."""
  report = {"splits": {}, "n_unreadable": 0, "dataset": ""}
  calls.note(prepare, "open_input", lambda *args, **kwargs: None)
  calls.note(prepare, "build", lambda *args: report)
  check_and_run(config, folder)
  for name, value in vars(calls.seen["build.selection"]).items():
    calls.seen[f"selection.{name}"] = value


CASES = {
  "images of TFDS": Case(
    run=open_stored_images,
    fields={"data.source": "tfds"},
    rows={
      "data.root": ("ROOT/tfds", "open_tfds.root"),
      "data.dataset": ("food101", "open_tfds.dataset"),
      "data.names": ("dtd", "open_tfds.classes", load_class_list("dtd")),
      "data.cache": ("ROOT/cache", "open_tfds.cache"),
    },
  ),
  "splits of TFDS": Case(
    run=open_stored_images,
    fields={"data.source": "tfds"},
    rows={
      "data.root": ("ROOT/tfds", "tfds_splits.root"),
      "data.dataset": ("food101", "tfds_splits.dataset"),
    },
  ),
  "images in CoOp's layout": Case(
    run=open_stored_images,
    fields={"data.source": "coop"},
    rows={
      "data.root": ("ROOT/coop", "_open_all.root*", ["ROOT/coop", "ROOT/coop"]),
      "data.dataset": ("eurosat", "_open_all.name*", ["eurosat", "eurosat"]),
      "data.shots": (2, "_open_all.shots*", [2, 2]),
      "data.shots_seed": (3, "_open_all.seed*", [3, 3]),
      "data.names": ("ROOT/two.txt", "names", NAMES),
    },
  ),
  "features of a file": Case(
    run=open_stored_images,
    fields={"data.source": "features"},
    rows={
      "data.root": ("ROOT/features", "read_header.root"),
      "data.names": ("dtd", "_open.classes", load_class_list("dtd")),
    },
  ),
  "a data set from its files": Case(
    run=prepare_data_set,
    fields=PREPARED,
    rows={
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
    run=prepare_data_set,
    fields=PREPARED,
    rows={
      "prepare.shots": (5, "open_input.images_per_class", 7),
      "prepare.held_out": (2, "open_input.images_per_class", 7),
    },
  ),
}


def write_files(folders: Mapping[str, pathlib.Path]) -> None:
  """Writes the names of the classes that are in CoOp's layout."""
  (folders["ROOT"] / "two.txt").write_text("\n".join(NAMES))
