"""Bias and variance of the sampled gradient, by K, correction and sampler.

For the same images and the same prompt: the exact gradient, of the contrast over all classes, and
gradients of many draws. `cells/` has a file for each sampler and K. A restart computes the cells
that are missing.
"""

from collections.abc import Callable, Sequence
import dataclasses
import logging
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.loader import SkippedImages
from pomp_jax.data.source import StoredImages, readable_images
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import prompt_of_checkpoint
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
from pomp_jax.prompt.sampling import SAMPLERS, SamplingArrays, SamplingSettings
from pomp_jax.prompt.step import step_token_budget
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.analysis.bias import (
  draws_of,
  gradient_bias_panels,
  gradient_function,
  summarise,
)
from pomp_jax.train.memory import memory_plan
from pomp_jax.train.sampling_data import sampling_arrays, sampling_of

log = logging.getLogger(__name__)

# Version of a cell's file; a part of its key.
_VERSION = "1"
# Images that are decoded and encoded at a time.
_IMAGES = 1024


class _Setting(NamedTuple):
  """Shared by all gradients."""

  key: str  # fingerprint of it all
  n_images: int
  params: Any
  frozen: Frozen
  sampling: SamplingSettings
  # (K, sampling, corrections, n draws) -> gradients [n, corrections, P]
  gradients: Callable[[int, SamplingSettings, Sequence[str], int], np.ndarray]


def check(config: Settings, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing. InputErrors of one line."""
  RunFolder(workdir).check(config.job)
  settings, n_classes = config.gradient_bias, inputs.n_training_classes(config.data)
  k = settings.k
  if not k or not all(type(n) is int and 2 <= n <= n_classes for n in k) or len(set(k)) < len(k):
    takes = f"one or more different sizes from 2 to the number of classes, {n_classes}"
    raise ConfigError("gradient_bias.k", k, takes)
  unread = {"method": "pomp", "prompt.class_specific": False, "prompt.init": ""}
  for field, value in unread.items():
    if (found := config.flat()[field]) != value:
      raise ConfigError(field, found, f"{value!r} where job='gradient_bias'")
  there = len(inputs.open_source(config.data, "train", n_images=settings.images))
  if settings.images > there:
    raise ConfigError("gradient_bias.images", settings.images, f"at most {there}, the training's")
  if settings.prompt:
    prompt, bank_NxE = _load(settings.prompt)
    if prompt.context.ndim != 2:
      raise ConfigError("gradient_bias.prompt", settings.prompt, "a context that classes share")
    if bank_NxE is not None and len(bank_NxE) != n_classes:
      found = f"{settings.prompt}, with a bank of {len(bank_NxE)} classes"
      raise ConfigError("gradient_bias.prompt", found, f"one of the training's {n_classes} classes")
    width = inputs.clip_config(config.clip.model).text_config.hidden_size
    check_fits(prompt, width, config.clip.model, n_classes, settings.prompt)


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Computes the cells that are missing; returns what `results.json` holds."""
  settings, start = config.gradient_bias, time.monotonic()
  setting = _open(config)
  folder = RunFolder(workdir)
  folder.create()
  n_classes = len(setting.frozen.tokens.lengths)
  exact_P = setting.gradients(n_classes, SamplingSettings(), ("log",), 1)[0, 0]
  log.info("exact gradient over %d classes: norm %.4g", n_classes, np.linalg.norm(exact_P))
  cells, pairs = [], {f"{s}_{k}": (s, k) for s in settings.samplers for k in settings.k}
  # The text tower computes about as many rows for each K.
  n_draws = {k: int(np.clip(settings.rows // (k + settings.images), 8, 512)) for k in settings.k}
  keys = {
    name: fingerprint([setting.key, sampler, f"{k} {n_draws[k]}", *settings.corrections])
    for name, (sampler, k) in pairs.items()
  }
  pieces = Pieces(folder.path / "cells", keys)
  todo = pieces.missing(pairs)
  for name, (sampler, k) in steps_of(list(pairs.items()), "gradient bias", "cells"):
    if name in todo:
      sampling = dataclasses.replace(setting.sampling, name=sampler)
      drawn = setting.gradients(k, sampling, settings.corrections, n_draws[k])
      found = [
        {"sampler": sampler, "correction": correction, "k": k} | summarise(drawn[:, i], exact_P)
        for i, correction in enumerate(settings.corrections)
      ]
      pieces.save(name, {"cells": found})
    cells += pieces.read(name).facts["cells"]
    for cell in cells[-len(settings.corrections) :]:
      log.info(
        "%(sampler)s, %(correction)s, K = %(k)d: bias %(relative_bias).3f (%(bias_low).3f to"
        " %(bias_high).3f), deviation %(relative_deviation).3f, cosine of a draw %(draw_cosine).3f",
        cell,
      )
  results = {
    "job": config.job,
    "n_classes": n_classes,
    "images": setting.n_images,
    "prompt": settings.prompt or "initial",
    "exact_norm": float(np.linalg.norm(exact_P)),
    "cells": cells,
    "seconds": round(time.monotonic() - start, 1),
  }
  with writing(path := folder.plots / "gradient_bias.png"):
    gradient_bias_panels(path, cells, images=setting.n_images, classes=n_classes)
  finish_run(folder, config.to_dict(), results)
  return results


def _load(path: str) -> tuple[Prompt, np.ndarray | None]:
  """Loads a prompt, and the bank of the checkpoint that holds it, if there is one."""
  if is_prompt_file(path) or not is_dir(path):
    return load_prompt(path), None
  checkpoint = read_checkpoint(path)
  return prompt_of_checkpoint(checkpoint, path), checkpoint.state.get("bank")


def _open(config: Settings) -> _Setting:
  settings = config.gradient_bias
  encoder = inputs.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)
  source = inputs.open_source(config.data, "train", n_images=settings.images)
  if isinstance(source, StoredImages):
    source = source.replace(image_size=encoder.clip.image_size)
  chosen = np.sort(np.random.default_rng(config.seed).permutation(len(source))[: settings.images])
  context, position, bank_NxE = None, config.prompt.position, None
  if settings.prompt:
    prompt, bank_NxE = _load(settings.prompt)
    context, position = prompt.context, prompt.position
  m = config.prompt.m if context is None else len(context)
  module = PromptContext(m, encoder.clip.text_width, position, init_value=context)
  params = module.init(jax.random.key(config.seed), method=lambda m: m.context)["params"]
  params = replicate(params, encoder.mesh)
  frozen = encoder.frozen(encoder.vocabulary(source.names, m))
  arrays = _arrays(config, source.names, encoder.clip.image_size)
  stale = () if bank_NxE is None else (bank_NxE,)
  if bank_NxE is None:
    bank_NxE = encoder.features_of_tokens(params, frozen.tokens, position)
  bank = Bank(bank_NxE, len(source.names))
  sampling = replicate(arrays._replace(bank=bank), encoder.mesh)
  features, skipped = [], SkippedImages(source, config.data.max_corrupt)
  for part in np.array_split(chosen, -(-len(chosen) // _IMAGES)):
    images, reasons = readable_images(source, part)
    skipped.add(reasons)
    features.append(encoder.image_features(images)[~np.isin(part, list(reasons))])
  skipped.gather()
  features_BxE = np.concatenate(features)
  labels_B = source.labels[np.setdiff1d(chosen, list(skipped.reasons))]
  parts = [f"{_VERSION} {config.seed} {position} {config.clip.text_tower} {config.clip.dtype}"]
  parts += [repr(sorted(vars(config.sampling).items())), encoder.clip.settings]
  parts += [*jax.tree.leaves(encoder.clip.params), "\n".join(source.names)]
  parts += [np.asarray(params["context"]), features_BxE, labels_B, *stale]
  parts += [np.asarray(array) for array in arrays if array is not None]
  frozen = frozen._replace(sampling=sampling)
  arguments = (params, frozen, jax.numpy.asarray(features_BxE), jax.numpy.asarray(labels_B))
  lengths_N, scale = np.asarray(frozen.tokens.lengths), encoder.clip.logit_scale

  def gradients(k, sampling, corrections, n_draws):
    contrast = ContrastSettings(k, len(source.names), "log", scale, sampling)
    budget = step_token_budget(module, lengths_N, settings=contrast, group_size=labels_B.size)
    n_prefix = 1 + module.n_vectors - module.n_own
    memory = memory_plan(config.clip, encoder.clip.config.text_config, n_prefix, budget)
    learner = ContextLearner(module, encoder.text_tower(budget, memory), budget)
    drawn = gradient_function(learner, contrast, corrections)
    return draws_of(drawn, arguments, n_draws, config.seed)

  drawing = sampling_of(config.sampling, scale)
  return _Setting(fingerprint(parts), labels_B.size, params, frozen, drawing, gradients)


def _arrays(config: Settings, names: Sequence[str], image_size: int) -> SamplingArrays:
  """Builds the arrays that the samplers read; class counts are those of a training."""
  samplers = config.gradient_bias.samplers
  arrays, labels_n = SamplingArrays(), np.zeros(0, np.int32)
  if any("frequency" in SAMPLERS[name].needs for name in samplers):
    labels_n = inputs.open_training_source(config.data, image_size).labels
  for sampler in samplers:
    try:
      sampling = dataclasses.replace(config.sampling, name=sampler)
      more = sampling_arrays(sampling, config.data, names, labels_n)
    except ConfigError as error:
      if error.field != "sampling.name":
        raise
      takes = f"samplers that need no relations between classes, or others than {sampler!r}"
      raise ConfigError("gradient_bias.samplers", samplers, takes) from error
    arrays = arrays._replace(**{f: a for f, a in more._asdict().items() if a is not None})
  return arrays
