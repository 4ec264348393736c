"""Bias and variance of the sampled gradient, by K, correction and sampler.

For the same images and the same prompt: the exact gradient, of the contrast over all classes, and
gradients of many draws. Leaves `results.json` and `plots/gradient_bias.png` in the run's folder.
"""

from collections.abc import Sequence
import dataclasses
import logging
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from pomp_jax.analysis.gradient_bias import draws_of, gradient_function, summarise
from pomp_jax.analysis.gradient_plots import gradient_bias_panels
from pomp_jax.clip.memory import plan_memory
from pomp_jax.config import ConfigError, fields
from pomp_jax.data.source import StoredImages
from pomp_jax.files.prompt_file import check_fits, load_prompt
from pomp_jax.files.run_folder import RunFolder, write_json
from pomp_jax.jobs import inputs
from pomp_jax.jobs.class_relations import sampling_arrays, sampling_of
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.contrast import CORRECTIONS
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.sampling import SAMPLERS, Sampling, SamplingArrays
from pomp_jax.prompt.train_step import ContrastSettings, replicate, step_token_budget
from pomp_jax.transfer import Encoder

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Setting:
  """What all gradients have in common."""

  encoder: Encoder
  module: PromptContext
  params: dict
  frozen: Frozen
  features: jax.Array
  labels: jax.Array
  n_classes: int
  seed: int

  def gradients(self, k: int, sampling: Sampling, corrections: tuple[str, ...], n_draws: int):
    """Of n draws [n, corrections, P]."""
    scale = self.encoder.clip.logit_scale
    settings = ContrastSettings(k, self.n_classes, "log", scale, sampling)
    budget = step_token_budget(
      self.module,
      np.asarray(self.frozen.tokens.lengths),
      settings=settings,
      group_size=self.labels.size,
    )
    n_prefix = 1 + self.module.n_vectors - self.module.n_own
    memory = plan_memory(self.encoder.clip.config.text_config, n_prefix, budget, 2.0**29)
    learner = ContextLearner(self.module, self.encoder.text_tower(budget, memory), budget)
    arguments = (self.params, self.frozen, self.features, self.labels)
    return draws_of(
      gradient_function(learner, settings, corrections), arguments, n_draws, self.seed
    )


def check(config: ConfigDict, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing.

  Raises:
    ConfigError, PromptFileError, RunFolderError: one line each.
  """
  RunFolder(workdir).check(config.job)
  settings, n_classes = config.gradient_bias, inputs.n_training_classes(config.data)
  k = settings.k
  if not k or not all(type(n) is int and 2 <= n <= n_classes for n in k) or len(set(k)) < len(k):
    takes = f"one or more different sizes from 2 to the number of classes, {n_classes}"
    raise ConfigError("gradient_bias.k", k, takes)
  unread = {"method": "pomp", "prompt.class_specific": False, "prompt.init": ""}
  for field, value in unread.items():
    if (found := dict(fields(config))[field]) != value:
      raise ConfigError(field, found, f"{value!r} where job='gradient_bias'")
  _names(settings, "samplers", SAMPLERS)
  _names(settings, "corrections", CORRECTIONS)
  if settings.prompt:
    prompt = load_prompt(settings.prompt)
    if prompt.context.ndim != 2:
      raise ConfigError("gradient_bias.prompt", settings.prompt, "a context that classes share")
    width = inputs.clip_config(config.clip.model).text_config.hidden_size
    check_fits(prompt, width, config.clip.model, n_classes, settings.prompt)


def run(config: ConfigDict, workdir: str) -> dict:
  """Computes all cells; returns what `results.json` holds."""
  settings, start = config.gradient_bias, time.monotonic()
  samplers = _names(settings, "samplers", SAMPLERS)
  corrections = _names(settings, "corrections", CORRECTIONS)
  setting = _open(config, samplers)
  plain = Sampling()
  exact_P = setting.gradients(setting.n_classes, plain, ("log",), 1)[0, 0]
  log.info("exact gradient over %d classes: norm %.4g", setting.n_classes, np.linalg.norm(exact_P))
  cells = []
  for sampler in samplers:
    sampling = dataclasses.replace(sampling_of(config.sampling), name=sampler)
    for k in settings.k:
      # About as many rows of the text tower for each K.
      n_draws = int(np.clip(settings.rows // (k + settings.images), 8, 512))
      gradients = setting.gradients(k, sampling, corrections, n_draws)
      for i, correction in enumerate(corrections):
        figures = summarise(gradients[:, i], exact_P)
        cells.append({"sampler": sampler, "correction": correction, "k": k} | figures)
        log.info(
          "%s, %s, K = %d: bias %.3f (%.3f to %.3f), deviation %.3f, cosine of a draw %.3f",
          *(sampler, correction, k, figures["relative_bias"], figures["bias_low"]),
          *(figures["bias_high"], figures["relative_deviation"], figures["draw_cosine"]),
        )
  results = {
    "job": config.job,
    "n_classes": setting.n_classes,
    "images": int(setting.labels.size),
    "prompt": settings.prompt or "initial",
    "exact_norm": float(np.linalg.norm(exact_P)),
    "cells": cells,
    "seconds": round(time.monotonic() - start, 1),
  }
  folder = RunFolder(workdir)
  folder.create()
  gradient_bias_panels(folder.plots / "gradient_bias.png", cells)
  write_json(folder.results, results)
  return results


def _open(config: ConfigDict, samplers: tuple[str, ...]) -> _Setting:
  settings = config.gradient_bias
  encoder = inputs.open_encoder(config)
  source = inputs.open_source(config.data, "train", n_images=settings.images)
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  chosen = np.sort(np.random.default_rng(config.seed).permutation(len(source))[: settings.images])
  context, position = None, config.prompt.position
  if settings.prompt:
    prompt = load_prompt(settings.prompt)
    context, position = prompt.context, prompt.position
  m = config.prompt.m if context is None else len(context)
  module = PromptContext(m, encoder.clip.text_width, position, init_value=context)
  key = jax.random.key(config.seed)
  params = replicate(module.init(key, method=lambda m: m.context)["params"], encoder.mesh)
  frozen = encoder.frozen(encoder.vocabulary(source.names, m))
  arrays = _arrays(config, samplers, source.names, encoder.clip.image_size)
  bank_NxE = encoder.features_of_tokens(params, frozen.tokens, position)
  sampling = replicate(arrays._replace(bank=bank_NxE), encoder.mesh)
  return _Setting(
    encoder,
    module,
    params,
    frozen._replace(sampling=sampling),
    jax.numpy.asarray(encoder.image_features(source.images(chosen))),
    jax.numpy.asarray(source.labels[chosen]),
    len(source.names),
    config.seed,
  )


def _arrays(
  config: ConfigDict, samplers: tuple[str, ...], names: Sequence[str], image_size: int
) -> SamplingArrays:
  """What any of the samplers knows of the classes; counts are those of a training."""
  labels_n = inputs.open_training_source(config.data, image_size).labels
  arrays = sampling_arrays(config, names, labels_n)
  for sampler in samplers:
    wanted = config.copy_and_resolve_references()
    wanted.sampling.name = sampler
    try:
      more = sampling_arrays(wanted, names, labels_n)
    except ConfigError as error:
      if error.field != "sampling.name":
        raise
      takes = f"samplers that need no relations between classes, or others than {sampler!r}"
      raise ConfigError("gradient_bias.samplers", config.gradient_bias.samplers, takes) from error
    arrays = arrays._replace(**{f: a for f, a in more._asdict().items() if a is not None})
  return arrays


def _names(settings: ConfigDict, field: str, accepted: tuple[str, ...]) -> tuple[str, ...]:
  found = tuple(part.strip() for part in settings[field].split(";"))
  if not set(found) <= set(accepted) or len(set(found)) < len(found):
    takes = f"some of {', '.join(accepted)}, separated by ';', none twice"
    raise ConfigError(f"gradient_bias.{field}", settings[field], takes)
  return found
