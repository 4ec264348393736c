"""Bias and variance of the sampled gradient, by K, correction and sampler.

The job computes, for the same images and the same prompt, the exact gradient of the
contrast over all classes, and the gradients of many draws. `cells/` has a file for each
sampler and K. A restart computes the cells that are missing.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.config import ConfigError, fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Clip, Data
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import FeatureSource, readable_images
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import prompt_of_checkpoint
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.checkpoints import read_checkpoint
from pomp_jax.files.paths import is_dir
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.files.prompt_file import Prompt, check_fits, is_prompt_file, load_prompt
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.bank import Bank
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.sampling.samplers import SAMPLERS, SamplingArrays, SamplingSettings
from pomp_jax.prompt.step import step_token_budget
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.analysis import bias
from pomp_jax.rooms.analysis.fields import GradientBias, GradientBiasConfig
from pomp_jax.train.memory import memory_plan
from pomp_jax.train.sampling_data import sampling_arrays, sampling_of
from pomp_jax.train.training import logit_bias_of

log = logging.getLogger(__name__)

# Version of a cell's file, a part of the cell's key.
_VERSION = "1"
# Images that are decoded and encoded at a time.
_IMAGES = 1024


class Gradients(NamedTuple):
  """Gradients of the contrast at one prompt for the same images."""

  encoder: Encoder
  clip: Clip
  module: PromptContext
  params: Any
  frozen: Frozen  # with the arrays of all samplers
  contrast: ContrastSettings  # `of_draws` replaces K and the sampler
  features_BxE: Float[np.ndarray, "B E"]
  labels_B: Int[np.ndarray, " B"]
  seed: int

  def of_draws(
    self, k: int, sampling: SamplingSettings, corrections: Sequence[str], n_draws: int
  ) -> Float[np.ndarray, "R corrections P"]:
    """Computes the gradients of independent draws under each correction.

    Args:
      k: classes of a draw, K.
      sampling: sampler and its settings.
      corrections: corrections of the loss.
      n_draws: number of draws, R.
    """
    contrast = dataclasses.replace(self.contrast, k=k, sampling=sampling)
    capacity = self.encoder.capacity(self.module)
    budget = step_token_budget(
      self.module,
      np.asarray(self.frozen.tokens.lengths),
      settings=contrast,
      group_size=self.labels_B.size,
      capacity=capacity,
    )
    # The start token, and the context vectors before the name.
    n_prefix = 1 + self.module.n_vectors - self.module.n_own
    memory = memory_plan(self.clip, self.encoder, n_prefix, budget)
    tower = self.encoder.text_tower(budget, memory)
    learner = ContextLearner(self.module, tower, budget, capacity)
    gradients = bias.gradient_function(learner, contrast, corrections)
    arguments = (
      self.params,
      self.frozen,
      jnp.asarray(self.features_BxE),
      jnp.asarray(self.labels_B),
    )
    return bias.draws_of(gradients, arguments, n_draws, self.seed)


def check(config: GradientBiasConfig, workdir: str) -> None:
  """Checks fields, data and prompt before weights are read; writes nothing.

  Raises:
    InputError: a field does not fit the job or the data, or the prompt is unusable.
  """
  settings = config.gradient_bias
  n_classes = opening.n_training_classes(config.data)
  _check_sizes(settings.k, n_classes)
  _check_fixed_fields(config.flat())
  source = opening.open_source(config.data, "train", n_images=settings.images)
  clip = opening.clip_config(config.clip.model, config.clip.image_tower)
  opening.check_features(source, config.clip.model, clip)
  accepted = f"at most {len(source)}, the training's"
  is_enough = settings.images <= len(source)
  require(is_enough, "gradient_bias.images", settings.images, accepted)
  if not settings.prompt:
    return
  field = "gradient_bias.prompt"
  prompt, bank_NxE = _load(settings.prompt)
  if prompt.context.ndim != 2 or prompt.sentences is not None:
    raise ConfigError(field, settings.prompt, "a context that classes share")
  if bank_NxE is not None and len(bank_NxE) != n_classes:
    found = f"{settings.prompt}, with a bank of {len(bank_NxE)} classes"
    raise ConfigError(field, found, f"one of the training's {n_classes} classes")
  width = clip.text_config.hidden_size
  check_fits(prompt, width, config.clip.model, n_classes, settings.prompt)


def _check_sizes(k: Sequence[Any], n_classes: int) -> None:
  """Raises ConfigError unless the values of K differ and fit the number of classes."""
  are_sizes = all(type(size) is int and 2 <= size <= n_classes for size in k)
  are_distinct = are_sizes and len(set(k)) == len(k)
  accepted = f"one or more different sizes from 2 to the number of classes, {n_classes}"
  require(bool(k) and are_distinct, "gradient_bias.k", k, accepted)


def _check_fixed_fields(values: Mapping[str, Any]) -> None:
  """Raises ConfigError if a field of the training that the job does not read is set."""
  fixed: dict[str, Any] = {
    "method": "pomp",
    "prompt.class_specific": False,
    "prompt.init": "",
  }
  for field in values:
    if field.startswith("consistency_"):
      fixed[field] = 0.0
  for field, value in fixed.items():
    accepted = f"{value!r} where job='gradient_bias'"
    require(values[field] == value, field, values[field], accepted)


def run(config: GradientBiasConfig, workdir: str) -> dict[str, Any]:
  """Computes the cells that are missing; returns the content of `results.json`."""
  start = time.monotonic()
  settings = config.gradient_bias
  clip = config.clip
  encoder = opening.open_encoder(
    clip, config.mesh.class_size, config.data.feature_store
  )
  names, features_BxE, labels_B = _images(
    config.data, encoder, settings.images, config.seed
  )
  module, bank_NxE = _start(settings.prompt, config.prompt, encoder.clip.text_width)
  variables = module.init(jax.random.key(config.seed), method=lambda m: m.context)
  params = replicate(variables["params"], encoder.mesh)
  arrays = _arrays(config.sampling, config.data, settings.samplers, names)
  # `sigmoid` is a loss of its own among the values of `corrections`; all others correct
  # the softmax. A draw of all classes needs no correction, so `log` stands for them.
  losses: tuple[str, ...] = ("log",)
  logit_bias = 0.0
  if "sigmoid" in settings.corrections:
    losses = ("log", "sigmoid")
    sigmoid = dataclasses.replace(config.contrast, loss="sigmoid")
    logit_bias = logit_bias_of(sigmoid, encoder)
  parts: list[Any] = [
    f"{_VERSION} {config.seed} {module.position} {clip.text_tower} {clip.dtype}",
    repr(sorted(config.sampling.flat().items())),
    encoder.clip.settings,
    *jax.tree.leaves(encoder.clip.params),
    "\n".join(names),
    np.asarray(params["context"]),
    features_BxE,
    labels_B,
  ]
  if "sigmoid" in settings.corrections:
    parts.append(str(logit_bias))
  for array in (bank_NxE, *arrays):
    if array is not None:
      parts.append(np.asarray(array))
  key = fingerprint(parts)
  frozen = encoder.frozen(encoder.vocabulary(names, module.n_vectors))
  if bank_NxE is None:
    bank_NxE = encoder.features_of_classes(params, frozen, module.position)
  arrays = arrays._replace(bank=Bank(bank_NxE, len(names)))
  frozen = frozen._replace(sampling=replicate(arrays, encoder.mesh))
  scale = encoder.clip.logit_scale
  gradients = Gradients(
    encoder=encoder,
    clip=clip,
    module=module,
    params=params,
    frozen=frozen,
    contrast=ContrastSettings(
      k=len(names),
      n_classes=len(names),
      correction="log",
      logit_scale=scale,
      sampling=sampling_of(config.sampling, scale),
      logit_bias=logit_bias,
    ),
    features_BxE=features_BxE,
    labels_B=labels_B,
    seed=config.seed,
  )
  folder = RunFolder(workdir)
  folder.create()
  # A draw of all classes has the exact gradient, whichever the sampler.
  (exact_gradients,) = gradients.of_draws(
    k=len(names), sampling=SamplingSettings(), corrections=losses, n_draws=1
  )
  exact_of_loss = dict(zip(losses, exact_gradients, strict=True))
  exact = {}
  for correction in settings.corrections:
    exact[correction] = exact_of_loss["sigmoid" if correction == "sigmoid" else "log"]
  norms = {loss: float(np.linalg.norm(g_P)) for loss, g_P in exact_of_loss.items()}
  log.info("norms of the exact gradients over %d classes: %s", len(names), norms)
  cells = _cells(settings, gradients, exact, folder, key)
  results = {
    "job": config.job,
    "n_classes": len(names),
    "images": labels_B.size,
    "prompt": settings.prompt or "initial",
    "exact_norm": norms["log"],
    "cells": cells,
    "seconds": round(time.monotonic() - start, 1),
  }
  path = folder.plots / "gradient_bias.png"
  with writing(path):
    bias.gradient_bias_panels(path, cells, images=labels_B.size, classes=len(names))
  finish_run(folder, config.to_dict(), results)
  return results


def _images(
  data: Data, encoder: Encoder, n_images: int, seed: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
  """Reads the names of all classes, and features [B,E] and labels [B] of images.

  Training images that can't be read are left out.
  """
  source = encoder.sized(opening.open_source(data, "train", n_images=n_images))
  order = np.random.default_rng(seed).permutation(len(source))
  chosen = np.sort(order[:n_images])
  if isinstance(source, FeatureSource):
    split = split_features(encoder, source.subset(chosen), max_corrupt=data.max_corrupt)
    return split.names, split.features, split.labels
  features = []
  skipped = SkippedImages(source, data.max_corrupt)
  # Round up: a part has at most _IMAGES images.
  n_parts = -(-len(chosen) // _IMAGES)
  for part in np.array_split(chosen, n_parts):
    images, reasons = readable_images(source, part)
    skipped.add(reasons)
    is_readable = ~np.isin(part, list(reasons))
    features.append(encoder.image_features(images)[is_readable])
  skipped.gather()
  readable = np.setdiff1d(chosen, list(skipped.reasons))
  return tuple(source.names), np.concatenate(features), source.labels[readable]


def _start(
  path: str, prompt: fields.Prompt, width: int
) -> tuple[PromptContext, np.ndarray | None]:
  """Opens the prompt's context and its checkpoint's bank, if it has one.

  Without a path the context is random.
  """
  if not path:
    return PromptContext(prompt.m, width, prompt.position), None
  stored, bank_NxE = _load(path)
  context = PromptContext(
    len(stored.context), width, stored.position, init_value=stored.context
  )
  return context, bank_NxE


def _load(path: str) -> tuple[Prompt, np.ndarray | None]:
  """Loads a prompt, and the bank of the checkpoint that holds it, if there is one."""
  if is_prompt_file(path) or not is_dir(path):
    return load_prompt(path), None
  checkpoint = read_checkpoint(path)
  return prompt_of_checkpoint(checkpoint, path), checkpoint.state.get("bank")


def _arrays(
  sampling: fields.Sampling, data: Data, samplers: Sequence[str], names: Sequence[str]
) -> SamplingArrays:
  """Builds the arrays that the samplers read; class counts are those of a training."""
  labels_n = np.zeros(0, np.int32)
  if any("frequency" in SAMPLERS[name].needs for name in samplers):
    labels_n = opening.open_source(data, "train").labels
  arrays = SamplingArrays()
  for name in samplers:
    settings = dataclasses.replace(sampling, name=name)
    try:
      of_sampler = sampling_arrays(settings, data, names, labels_n)
    except ConfigError as error:
      # Blame the field of this job that names the sampler.
      if error.field != "sampling.name":
        raise
      accepted = (
        f"samplers that need no relations between classes, or others than {name!r}"
      )
      raise ConfigError("gradient_bias.samplers", samplers, accepted) from error
    for field, array in of_sampler._asdict().items():
      if array is not None:
        arrays = arrays._replace(**{field: array})
  return arrays


def _cells(
  settings: GradientBias,
  gradients: Gradients,
  exact: Mapping[str, np.ndarray],
  folder: RunFolder,
  key: str,
) -> list[dict[str, Any]]:
  """Computes the missing figures of each sampler, K and correction, and returns all.

  `key` is the cache key of everything but sampler, K and correction.
  """
  # A larger K gets fewer draws, so that each K costs about as many rows.
  n_draws = {
    k: int(np.clip(settings.rows // (k + settings.images), 8, 512)) for k in settings.k
  }
  pairs = {}
  keys = {}
  for sampler in settings.samplers:
    for k in settings.k:
      name = f"{sampler}_{k}"
      pairs[name] = (sampler, k)
      parts = [key, sampler, f"{k} {n_draws[k]}", *settings.corrections]
      keys[name] = fingerprint(parts)
  pieces = Pieces(folder.path / "cells", keys)
  missing = pieces.missing(pairs)
  cells = []
  for name, (sampler, k) in steps_of(list(pairs.items()), "gradient bias", "cells"):
    if name in missing:
      sampling = dataclasses.replace(gradients.contrast.sampling, name=sampler)
      draws = gradients.of_draws(k, sampling, settings.corrections, n_draws[k])
      computed = []
      for row, correction in enumerate(settings.corrections):
        facts = {"sampler": sampler, "correction": correction, "k": k}
        figures = bias.summarise(draws[:, row], exact[correction])
        computed.append(facts | figures)
      pieces.save(name, {"cells": computed})
    finished = pieces.read(name).facts["cells"]
    cells += finished
    for cell in finished:
      log.info(
        "%(sampler)s, %(correction)s, K = %(k)d: bias %(relative_bias).3f (%(bias_low).3f to"
        " %(bias_high).3f), deviation %(relative_deviation).3f, cosine of a draw %(draw_cosine).3f",
        cell,
      )
  return cells
