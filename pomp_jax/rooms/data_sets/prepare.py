"""A data set that TFDS lacks, as records: ImageNet-21K, FGVC-Aircraft, CoOp's fixed splits.

`config.prepare.input` is what `config.prepare.dataset` is made of, as distributed. `--workdir` is
TFDS's data_dir: the data set and its `report.json` are written to `WORKDIR/NAME/1.0.0`, and
`data.source='tfds'`, `data.root=WORKDIR` reads it. A restart resumes.
"""

import logging

from pomp_jax import hosts
from pomp_jax.config import Settings
from pomp_jax.config.declare import require
from pomp_jax.files.paths import exists, is_bucket
from pomp_jax.files.run_folder import RunFolder, RunFolderError
from pomp_jax.rooms.data_sets.archives import DATASETS, open_input
from pomp_jax.rooms.data_sets.build import Selection, build

log = logging.getLogger(__name__)


def check(config: Settings, workdir: str) -> None:
  """Checks the fields, and that the folder can be written; reads and writes nothing."""
  prepare = config.prepare
  for path in (prepare.input, workdir):
    if is_bucket(path):
      raise RunFolderError(f"{path}: job=prepare takes local paths; copy what it makes")
  require(exists(prepare.input), "prepare.input", prepare.input, "a file or folder that exists")
  expected = f"one of {', '.join(DATASETS)}"
  require(prepare.dataset in DATASETS, "prepare.dataset", prepare.dataset, expected)
  fits = not prepare.names or prepare.dataset == "imagenet21k"
  require(fits, "prepare.names", prepare.names, "'' for other sets than imagenet21k")
  # This job leaves no run's files: where there are some, they are another job's.
  RunFolder(workdir).check(config.job)


def run(config: Settings, workdir: str) -> dict:
  """Makes the data set, or the rest of it; returns `report.json`. Raises as its two steps do."""
  prepare = config.prepare
  size = prepare.shots and prepare.shots + prepare.held_out
  source = open_input(prepare.dataset, prepare.input, names=prepare.names, images_per_class=size)
  selection = Selection(prepare.shots, prepare.shots_seed, prepare.held_out)
  report = build(source, workdir, selection, prepare.workers or hosts.own_cores())
  for split, counts in report["splits"].items():
    log.info(
      "%s: %d images of %d classes in %d shards, %.2f GB",
      *(split, counts["images"], counts["classes"], counts["shards"], counts["bytes"] / 1e9),
    )
  log.info("%d unreadable images are listed in report.json", report["n_unreadable"])
  log.info("read it with data.source='tfds', data.dataset='%s'", report["dataset"])
  return report
