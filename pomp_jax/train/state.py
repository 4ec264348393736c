"""The state of a run: at step 0, as checkpoints store it, and on the devices.

A bank, the features of all classes, is sharded on the devices, and whole in a checkpoint.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from pomp_jax.prompt.bank import place_rows
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.step import TrainState, create_state
from pomp_jax.train.setup import PromptRun, Run


def first_state(run: Run) -> TrainState:
  """State of step 0, on the devices; with a bank, this computes the features of all classes."""
  state = blank_state(run)
  if isinstance(run, PromptRun) and run.needs_bank:
    state = place_bank(run, state.replace(bank=run.class_features(state.params)))
  return state


def blank_state(run: Run) -> TrainState:
  """State of step 0 as it is stored, but for the bank's rows, which are zero."""
  state = replicate(create_state(run.learner(), run.optimizer, run.seed), run.encoder.mesh)
  if isinstance(run, PromptRun) and run.needs_bank:
    shape = (len(run.source.names), run.encoder.clip.config.projection_dim)
    state = state.replace(bank=np.zeros(shape, np.float32))
  return state


def place_bank(run: Run, state: TrainState) -> TrainState:
  """Shards the bank of a stored state, [N,E] on every host, over the mesh."""
  if isinstance(run, PromptRun) and run.needs_bank:
    rows = place_rows(np.asarray(state.bank), run.encoder.mesh, run.sampling.bank_dtype)
    state = state.replace(bank=rows)
  return state


def gather_bank(run: Run, state: TrainState) -> TrainState:
  """State as it is stored, for any mesh: the bank whole, float32 [N,E], on every host."""
  if state.bank is None:
    return state
  n_classes = len(run.source.names)
  whole = jax.jit(
    lambda rows: rows[:n_classes].astype(jnp.float32),
    out_shardings=NamedSharding(run.encoder.mesh, PartitionSpec()),
  )
  return state.replace(bank=whole(state.bank))
