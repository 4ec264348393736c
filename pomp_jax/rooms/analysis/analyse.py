"""Analyses class features under prompts: alignment, uniformity, nearest tokens.

`config.evaluate` names the data sets. The job writes `results.json`, `results.md`,
`report.html` and plots into the run's folder. All processes compute, and the first one
writes.
"""

from collections.abc import Mapping, Sequence
import logging
from typing import Any

from jax.sharding import Mesh
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.text import token_table
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.evaluate import check_prompts
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt, read_prompts
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.sets_to_evaluate import open_everywhere, sets_to_evaluate
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.report import cell
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.analysis import geometry
from pomp_jax.rooms.analysis.fields import AnalyseConfig
from pomp_jax.train.resume import MAY_CHANGE, check_same_run

log = logging.getLogger(__name__)

_FIELD = "analyse.prompts"


def check(config: AnalyseConfig, workdir: str) -> None:
  """Opens every set and every prompt; writes nothing."""
  folder = RunFolder(workdir)
  if folder.results.exists():
    # Here `data.root` may not change: another folder may have other images.
    check_same_run(config.flat(), folder, MAY_CHANGE - {"data.root"})
  check_prompts(
    config.analyse.prompts,
    _FIELD,
    config.clip,
    config.evaluate,
    config.data,
    config.eval,
  )


def run(config: AnalyseConfig, workdir: str) -> dict[str, Any]:
  """Analyses every prompt on every set.

  Raises:
    CorruptDataError: too many images can't be read.
    EvaluationError: features are not finite.
  """
  folder = RunFolder(workdir)
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  prompts = read_prompts(config.analyse.prompts, _FIELD)
  if hosts.is_first():
    folder.create(config.to_dict())
  requested = sets_to_evaluate(config.evaluate, config.data, config.eval)
  opened, _ = open_everywhere(requested, config.evaluate.skip_missing)
  sets = {}
  for name, (source, classes, _) in steps_of(list(opened.items()), "analysis", "sets"):
    images = split_features(encoder, source, max_corrupt=config.data.max_corrupt)
    features = {}
    for label, prompt, _ in prompts:
      features[label] = features_under(encoder, classes, prompt)
    for label, features_NxE in features.items():
      check_finite(features_NxE, f"classes under {label!r}")
    figures = {}
    for label, features_NxE in features.items():
      figures[label] = _figures(images, features_NxE, encoder.mesh)
    sets[name] = {
      "images": len(images.labels),
      "unreadable": len(source) - len(images.labels),
      "classes": len(classes),
      "prompts": figures,
      "similarity_of_prompts": geometry.prompt_similarity(list(features.values())),
    }
    if hosts.is_first():
      _log_set(name, sets[name])
  results = {
    "job": config.job,
    "clip_model": encoder.clip.name,
    "prompts": [{"label": label, "step": step} for label, _, step in prompts],
    "tokens": _tokens(encoder, prompts, config.analyse.top),
    "sets": sets,
  }
  if hosts.is_first():
    with writing(folder.plots):
      geometry.alignment_uniformity(folder.plots / "alignment_uniformity.png", sets)
    finish_run(folder, config.to_dict(), results)
    log.info("tables, plots and every figure are in %s", folder.path)
  return results


def _figures(
  images: SplitFeatures, features_NxE: np.ndarray, mesh: Mesh
) -> dict[str, Any]:
  """Figures of a prompt's class features on a set of images."""
  uniformity = None
  # Uniformity is over pairs of classes, and a single class has no pair.
  if len(features_NxE) > 1:
    uniformity = geometry.uniformity(features_NxE)
  top1 = topk_accuracy(images.features, features_NxE, images.labels, ks=(1,), mesh=mesh)
  return {
    "alignment": geometry.alignment(images.features, features_NxE, images.labels),
    "uniformity": uniformity,
    **top1,
  }


def _tokens(
  encoder: Encoder, prompts: Sequence[NamedPrompt], top: int
) -> dict[str, Any]:
  """Finds the tokens nearest to the vectors of each prompt that all classes share."""
  embeddings_VxD = token_table(encoder.clip.params)
  name_of_ids = encoder.clip.tokenizer.convert_ids_to_tokens
  vectors = {}
  for label, prompt, _ in prompts:
    if not isinstance(prompt, Prompt):
      continue
    # Skip a context with other vectors for each class, and sentences without vectors.
    if prompt.context.ndim != 2 or not prompt.context.size:
      continue
    ids_MxT, distances_MxT = geometry.nearest_tokens(
      prompt.context, embeddings_VxD, top
    )
    vectors[label] = [
      {"tokens": name_of_ids(ids), "distances": distances}
      for ids, distances in zip(ids_MxT.tolist(), distances_MxT, strict=True)
    ]
  return {
    "median_distance_between_tokens": geometry.token_spacing(embeddings_VxD),
    "vectors": vectors,
  }


def _log_set(name: str, results_of_set: Mapping[str, Any]) -> None:
  """Logs the figures of each prompt on a data set, a line each."""
  n_images = results_of_set["images"]
  n_classes = results_of_set["classes"]
  for label, figures in results_of_set["prompts"].items():
    # The uniformity is None if there is one class.
    uniformity = cell(figures["uniformity"], 3)
    log.info(
      "%s: %s: alignment %.3f, uniformity %s, top-1 %.1f%% (%d images, %d classes)",
      name,
      label,
      figures["alignment"],
      uniformity,
      100 * figures["top1"],
      n_images,
      n_classes,
    )
