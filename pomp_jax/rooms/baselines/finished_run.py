"""Classifies any names with a finished run of a method that learns no prompt.

The parameters come from the run's checkpoint. The method's own learner computes the
features of the names that are asked for. Two kinds of methods have no class vectors for
the frozen image tower: a method with tokens in the image tower encodes the images
itself, and CoCoOp's class features depend on the image.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import METHODS, defaults, fields
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import OtherPrompt
from pomp_jax.evaluate.ranking import Scorer
from pomp_jax.files.checkpoints import CheckpointError, Restored
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.optimizer import result_of
from pomp_jax.rooms.baselines.learner_accuracy import CompiledLearner
from pomp_jax.train.methods import method_of


class FinishedRun(OtherPrompt):
  """Checkpoint of a method that learns no prompt, as an entry of `evaluate.prompts`."""

  def __init__(self, checkpoint: Restored, path: str | os.PathLike):
    """Reads the learned parameters, and the fields of the config that the method needs.

    Args:
      checkpoint: last checkpoint of the run.
      path: path of the run, for messages.

    Raises:
      CheckpointError: the checkpoint has no config of a method, or no parameters.
    """
    self._path = path
    try:
      config: Mapping[str, Any] = checkpoint.meta["config"]
      self._name: str = config["method"]
      self._model: str = config["clip"]["model"]
      self._prompt = defaults().prompt.changed(config["prompt"])
      self._clip = fields.Clip().changed(config["clip"])
      self._template: str = config["eval"]["template"]
      # Runs of earlier versions lack this field.
      self.upright = config["data"].get("upright")
      params = checkpoint.state["params"]
      opt_state = checkpoint.state.get("opt_state")
      self._params = result_of(params, opt_state)
    except (KeyError, TypeError) as error:
      raise CheckpointError(
        f"{path}: is of no method that this version knows ({error})"
      ) from error
    self._method = method_of(self._name)
    self.needs_pixels = METHODS[self._name].pixels

  def check(
    self,
    label: str,
    synonyms: Sequence[Sequence[str]],
    clip_config: ClipConfig,
    clip_model: str,
  ) -> None:
    """Checks that the run's parameters fit a CLIP, without the CLIP's weights.

    The shape of a context tells whether it fits. The shapes of other parameters do not,
    so the CLIP must have the same name as the CLIP of the training.

    Args:
      label: name of the run, for messages.
      synonyms: names of the classes, not read: any names can be classified.
      clip_config: architecture of the CLIP.
      clip_model: name of the CLIP.

    Raises:
      InputError: the run was trained with a CLIP of another shape or name.
    """
    self._method.check(self._prompt, clip_config)
    if "context" in self._params:
      prompt = Prompt(self._params["context"], self._model, self._prompt.position)
      width = clip_config.text_config.hidden_size
      check_fits(prompt, width, clip_model, path=label)
    elif clip_model != self._model:
      raise InputError(
        f"{label}: learned with the CLIP {self._model!r}; got config.clip.model={clip_model!r}"
      )

  def describe(self, classes: ClassList) -> list[Any]:
    """Cache key of the class features: method, fields and parameters."""
    settings = [self._name, self._prompt.flat(), self._template]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._params)]
    return [json.dumps(settings, default=str), *leaves]

  def features(self, encoder: Encoder, classes: ClassList) -> np.ndarray:
    """Unit class features [N,E] for the frozen image tower.

    Raises InputError for a method that has none, see the module's docstring.
    """
    classifier = self.classifier(encoder, classes)
    if callable(classifier):
      raise InputError(
        f"{self._path}: the method {self._name} has no class vectors for the frozen image tower;"
        " `evaluate` and `predict` take it"
      )
    return classifier

  def classifier(self, encoder: Encoder, classes: ClassList) -> np.ndarray | Scorer:
    """Unit class features [N,E]; for a method without them a function that scores."""
    method = self._method
    prompt = self._prompt
    module = PromptContext(prompt.m, encoder.clip.text_width, prompt.position)
    plain = ContextLearner(
      module, encoder.text_tower(), token_budget=None, capacity=encoder.capacity(module)
    )
    learner = method.make_learner(plain, encoder, prompt, self._clip)
    frozen = method.frozen_arrays(prompt, self._template, encoder, classes.names)
    params = replicate(self._params, encoder.mesh)
    compiled = CompiledLearner(learner, encoder.mesh)
    ids_N = np.arange(len(classes), dtype=np.int32)
    if method.per_image_text:
      return lambda features_BxE, images_B: compiled.cosines(
        params, frozen, ids_N, features_BxE
      )
    of_ids = functools.partial(compiled.classes, params, frozen)
    classes_NxE = encoder.in_chunks(of_ids, ids_N, "features")
    if not learner.learns_images:
      return classes_NxE
    placed_NxE = replicate(classes_NxE, encoder.mesh)
    # Ignore the features of the frozen tower: the method encodes the pixels itself.
    return lambda features_BxE, images_B: _cosines(
      compiled.images(params, frozen, images_B), placed_NxE
    )


@jax.jit
def _cosines(features_BxE: jax.Array, classes_NxE: jax.Array) -> jax.Array:
  # HIGHEST: accelerators would round the product to bfloat16, which is too coarse for
  # thousands of similar classes.
  return jnp.matmul(features_BxE, classes_NxE.T, precision=jax.lax.Precision.HIGHEST)
