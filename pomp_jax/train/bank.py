"""The bank of class features that samplers compare: made anew every so many steps, as the prompt is
then.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from pomp_jax.prompt.learner import Frozen
from pomp_jax.prompt.step import TrainState, replicate


class Bank:
  """Keeps `frozen.sampling.bank` up to date between steps.

  The parameters that it was made of are part of the state, so a run that goes on from any
  checkpoint has the same bank as one that was never stopped.
  """

  def __init__(
    self, every: int, mesh: Mesh, class_features: Callable[[Any], np.ndarray], *, needed: bool
  ):
    """Computes nothing yet.

    Args:
      every: steps between two banks.
      mesh: the devices.
      class_features: parameters -> unit features of all N classes [N,E].
      needed: whether any sampler of the run reads it.
    """
    self._every, self._mesh, self._class_features = every, mesh, class_features
    self._needed = needed

  def start(self, state: TrainState) -> TrainState:
    """The state of step 0, with a place for the bank's parameters."""
    return state.replace(bank_params=_copy(state.params)) if self._needed else state

  def refresh(self, steps: int, state: TrainState, frozen: Frozen) -> tuple[TrainState, Frozen]:
    """The bank for the next step.

    Args:
      steps: how many were taken.
      state: after these.
      frozen: with the bank before, or with none.
    """
    due = steps % self._every == 0
    if not self._needed or not (due or frozen.sampling.bank is None):
      return state, frozen
    if due:
      # A copy: the step may write into what it is given.
      state = state.replace(bank_params=_copy(state.params))
    bank_NxE = replicate(self._class_features(state.bank_params), self._mesh)
    return state, frozen._replace(sampling=frozen.sampling._replace(bank=bank_NxE))


def _copy(params: Any) -> Any:
  return jax.tree.map(jnp.copy, params)
