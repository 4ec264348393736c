"""Bias and variance of the sampled gradient, by K, correction and sampler.

For the same images and the same prompt: the exact gradient, of the contrast over all
classes, and gradients of many draws. `cells/` has a file for each sampler and K. A
restart computes the cells that are missing.
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
from pomp_jax.data.source import FeatureSource, readable_images
from pomp_jax.data.unreadable import SkippedImages
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

# Version of a cell's file; a part of its key.
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
  contrast: ContrastSettings  # of another K and sampler
  features_BxE: Float[np.ndarray, "B E"]
  labels_B: Int[np.ndarray, " B"]
  seed: int

  def of_draws(
    self, k: int, sampling: SamplingSettings, corrections: Sequence[str], n_draws: int
  ) -> Float[np.ndarray, "R corrections P"]:
    """Computes R = `n_draws` independent draws of K classes under each correction."""
    lengths_N = np.asarray(self.frozen.tokens.lengths)
    contrast = dataclasses.replace(self.contrast, k=k, sampling=sampling)
    size = self.labels_B.size
    capacity = self.encoder.capacity(self.module)
    budget = step_token_budget(
      self.module, lengths_N, settings=contrast, group_size=size, capacity=capacity
    )
    n_prefix = 1 + self.module.n_vectors - self.module.n_own
    memory = memory_plan(self.clip, self.encoder, n_prefix, budget)
    tower = self.encoder.text_tower(budget, memory)
    learner = ContextLearner(self.module, tower, budget, capacity)
    images = jnp.asarray(self.features_BxE), jnp.asarray(self.labels_B)
    gradients = bias.gradient_function(learner, contrast, corrections)
    return bias.draws_of(
      gradients, (self.params, self.frozen, *images), n_draws, self.seed
    )


def check(config: GradientBiasConfig, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing. InputErrors of
  one line."""
  settings, n_classes = config.gradient_bias, opening.n_training_classes(config.data)
  k = settings.k
  fits = (
    k
    and all(type(n) is int and 2 <= n <= n_classes for n in k)
    and len(set(k)) == len(k)
  )
  takes = f"one or more different sizes from 2 to the number of classes, {n_classes}"
  require(fits, "gradient_bias.k", k, takes)
  unread = {"method": "pomp", "prompt.class_specific": False, "prompt.init": ""}
  values = config.flat()
  unread |= {field: 0.0 for field in values if field.startswith("consistency_")}
  for field, value in unread.items():
    found = values[field]
    require(found == value, field, found, f"{value!r} where job='gradient_bias'")
  source = opening.open_source(config.data, "train", n_images=settings.images)
  clip = opening.clip_config(config.clip.model, config.clip.image_tower)
  opening.check_features(source, config.clip.model, clip)
  n_images, there = settings.images, len(source)
  require(
    n_images <= there,
    "gradient_bias.images",
    n_images,
    f"at most {there}, the training's",
  )
  if settings.prompt:
    prompt, bank_NxE = _load(settings.prompt)
    if prompt.context.ndim != 2 or prompt.sentences is not None:
      raise ConfigError(
        "gradient_bias.prompt", settings.prompt, "a context that classes share"
      )
    if bank_NxE is not None and len(bank_NxE) != n_classes:
      found = f"{settings.prompt}, with a bank of {len(bank_NxE)} classes"
      raise ConfigError(
        "gradient_bias.prompt", found, f"one of the training's {n_classes} classes"
      )
    width = clip.text_config.hidden_size
    check_fits(prompt, width, config.clip.model, n_classes, settings.prompt)


def run(config: GradientBiasConfig, workdir: str) -> dict[str, Any]:
  """Computes the cells that are missing; returns what `results.json` holds."""
  own, seed, start = config.gradient_bias, config.seed, time.monotonic()
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  names, features_BxE, labels_B = _images(config.data, encoder, own.images, seed)
  module, bank_NxE = _start(own.prompt, config.prompt, encoder.clip.text_width)
  params = module.init(jax.random.key(seed), method=lambda m: m.context)["params"]
  params = replicate(params, encoder.mesh)
  arrays = _arrays(config.sampling, config.data, own.samplers, names)
  # the exact gradient is the same under all corrections
  losses: tuple[str, ...] = ("log",)
  logit_bias = 0.0
  if "sigmoid" in own.corrections:
    sigmoid = dataclasses.replace(config.contrast, loss="sigmoid")
    losses, logit_bias = ("log", "sigmoid"), logit_bias_of(sigmoid, encoder)
  clip = config.clip
  parts: list[Any] = [
    f"{_VERSION} {seed} {module.position} {clip.text_tower} {clip.dtype}"
  ]
  parts += [repr(sorted(config.sampling.flat().items())), encoder.clip.settings]
  parts += [*jax.tree.leaves(encoder.clip.params), "\n".join(names)]
  parts += [np.asarray(params["context"]), features_BxE, labels_B]
  parts += [str(logit_bias)] * ("sigmoid" in own.corrections)
  parts += [np.asarray(array) for array in (bank_NxE, *arrays) if array is not None]
  key = fingerprint(parts)
  frozen = encoder.frozen(encoder.vocabulary(names, module.n_vectors))
  if bank_NxE is None:
    bank_NxE = encoder.features_of_classes(params, frozen, module.position)
  arrays = replicate(arrays._replace(bank=Bank(bank_NxE, len(names))), encoder.mesh)
  frozen = frozen._replace(sampling=arrays)
  n_classes, scale = len(names), encoder.clip.logit_scale
  sampling = sampling_of(config.sampling, scale)
  contrast = ContrastSettings(
    n_classes, n_classes, "log", scale, sampling, logit_bias=logit_bias
  )
  given = encoder, config.clip, module, params, frozen, contrast
  gradients = Gradients(*given, features_BxE, labels_B, seed)
  folder = RunFolder(workdir)
  folder.create()
  all_classes = gradients.of_draws(len(names), SamplingSettings(), losses, 1)[0]
  of_loss = dict(zip(losses, all_classes, strict=True))
  exact = {
    one: of_loss["sigmoid" if one == "sigmoid" else "log"] for one in own.corrections
  }
  norms = {
    one: float(np.linalg.norm(gradient_P)) for one, gradient_P in of_loss.items()
  }
  log.info("norms of the exact gradients over %d classes: %s", len(names), norms)
  cells = _cells(own, gradients, exact, folder, key)
  results = {
    "job": config.job,
    "n_classes": len(names),
    "images": labels_B.size,
    "prompt": own.prompt or "initial",
    "exact_norm": norms["log"],
    "cells": cells,
    "seconds": round(time.monotonic() - start, 1),
  }
  with writing(path := folder.plots / "gradient_bias.png"):
    bias.gradient_bias_panels(path, cells, images=labels_B.size, classes=len(names))
  finish_run(folder, config.to_dict(), results)
  return results


def _images(
  data: Data, encoder: Encoder, n_images: int, seed: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
  """Names of all classes; features [B,E] and labels [B] of readable training images."""
  source = encoder.sized(opening.open_source(data, "train", n_images=n_images))
  order = np.random.default_rng(seed).permutation(len(source))
  chosen = np.sort(order[:n_images])
  if isinstance(source, FeatureSource):
    split = split_features(encoder, source.subset(chosen), max_corrupt=data.max_corrupt)
    return split.names, split.features, split.labels
  features = []
  skipped = SkippedImages(source, data.max_corrupt)
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
  """The context of the prompt, or a random one; and its checkpoint's bank, if any."""
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
  own: GradientBias,
  gradients: Gradients,
  exact: Mapping[str, np.ndarray],
  folder: RunFolder,
  key: str,
) -> list[dict[str, Any]]:
  """Figures of each sampler, K and correction; `key` is that of all but these."""
  pairs = {f"{sampler}_{k}": (sampler, k) for sampler in own.samplers for k in own.k}
  # The text tower computes about as many rows for each K.
  n_draws = {k: int(np.clip(own.rows // (k + own.images), 8, 512)) for k in own.k}
  keys = {
    name: fingerprint([key, sampler, f"{k} {n_draws[k]}", *own.corrections])
    for name, (sampler, k) in pairs.items()
  }
  pieces = Pieces(folder.path / "cells", keys)
  missing = pieces.missing(pairs)
  cells = []
  for name, (sampler, k) in steps_of(list(pairs.items()), "gradient bias", "cells"):
    if name in missing:
      sampling = dataclasses.replace(gradients.contrast.sampling, name=sampler)
      drawn = gradients.of_draws(k, sampling, own.corrections, n_draws[k])
      computed = []
      for i, correction in enumerate(own.corrections):
        facts = {"sampler": sampler, "correction": correction, "k": k}
        computed.append(facts | bias.summarise(drawn[:, i], exact[correction]))
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
