"""Features of the training images, computed once: for runs with `data.features="cached"`.

See `train.feature_cache`.
"""

import logging

from pomp_jax import hosts, inputs
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.loader import name_of
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import batches
from pomp_jax.train.feature_cache import fill, local_mesh

log = logging.getLogger(__name__)


def check(config: Settings, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing.

  Raises:
    ConfigError, RunFolderError, SourceError: one line each.
  """
  RunFolder(workdir).check(config.job)
  inputs.n_training_classes(config.data)
  if config.data.features == "cached":
    takes = "'online' or 'once' where config.job='cache'"
    raise ConfigError("data.features", config.data.features, takes)


def run(config: Settings, workdir: str) -> dict:
  """Computes the blocks that are missing; returns what `results.json` holds.

  Raises:
    FeatureCacheError, DamagedBlockError, CorruptDataError, RunFolderWriteError: see `fill`.
  """
  encoder = inputs.open_encoder(config, local_mesh())
  source = inputs.open_training_source(config.data, encoder.clip.image_size)
  blocks = batches.open_features(config.data, source, encoder)
  filled = fill(config.data, blocks, source, encoder)
  results = {
    "job": config.job,
    "n_images": blocks.n_images,
    "n_versions": blocks.n_versions,
    "bytes": 4 * blocks.n_images * blocks.n_versions * blocks.width,
    "computed_features": filled.n_computed,
    "seconds": round(filled.seconds, 2),
    "features_per_second": round(filled.n_computed / filled.seconds, 1),
    "unreadable": [name_of(source, index) for index in filled.unreadable],
  }
  if hosts.is_first():
    folder = RunFolder(workdir)
    folder.create()
    folder.write_results(results)
    log.info(
      "%s: %d features of %d images (%.2f GB), %d of them computed now, %.0f a second",
      *(config.data.feature_cache, blocks.n_images * blocks.n_versions, blocks.n_images),
      *(results["bytes"] / 1e9, filled.n_computed, results["features_per_second"]),
    )
    log.info("train from them with data.features='cached'")
  return results
