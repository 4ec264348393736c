"""Averages of the parameters against PromptSRC's and NumPy's, and in a run that is
resumed."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.checkpoints import read_checkpoint
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.optimizer import result_of, sgd
from pomp_jax.prompt.step import TrainState
from pomp_jax.rooms.regularisation.averaging import Averaged, averaging
from pomp_jax.train import setup
from pomp_jax.train.training import PromptRun
from tests.support.checks import assert_close
from tests.support.small_run import run_job, small_config

SPLIT = SplitFeatures(
  ("a", "b"), np.arange(2), np.eye(2, dtype=np.float32), np.arange(2)
)
EPOCHS, STEPS = 5, 3  # steps of an epoch
GAUSS = {"mean": 3.0, "sigma": 1.5, "decay": 0.8, "steps_per_epoch": STEPS}


def course(kind, schedule):
  """The parameters after each step, and the average of them after each step."""
  average = averaging(kind, schedule=schedule, **GAUSS)
  optimizer = optax.chain(sgd(lambda _: 0.3, 0.9, 0.01), average)
  params = {"context": jnp.ones((2, 3))}
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  own, averages = [], []
  for gradient in np.random.default_rng(0).normal(size=(EPOCHS * STEPS, 2, 3)):
    updates, state = update(
      {"context": jnp.asarray(gradient, jnp.float32)}, state, params
    )
    params = optax.apply_updates(params, updates)
    own.append(np.asarray(params["context"], np.float64))
    averages.append(np.asarray(result_of(params, state)["context"]))
  return np.array(own), np.array(averages)


def gauss(t):
  """`PromptSRC.get_gauss` of trainers/promptsrc.py in muzairkhattak/PromptSRC."""
  mu, sigma = GAUSS["mean"], GAUSS["sigma"]
  return (1 / (sigma * np.sqrt(2 * np.pi))) * np.exp(-0.5 * ((t - mu) / sigma) ** 2)


def test_the_average_over_ends_of_epochs_is_promptsrcs():
  """As its `__init__` and `forward_backward` weigh and add the state of each epoch."""
  own, averages = course("gaussian", "epoch")
  weights = np.array([gauss(epoch) for epoch in range(1, EPOCHS + 1)])
  weights /= weights.sum()
  expected = sum(w * own[STEPS * i + STEPS - 1] for i, w in enumerate(weights))
  assert_close(averages[-1], expected)
  # Before the first epoch's end it is the parameters, and within an epoch it stays.
  assert_close(averages[:STEPS], own[:STEPS])
  np.testing.assert_array_equal(averages[STEPS], averages[STEPS - 1])


@pytest.mark.parametrize("kind", ["gaussian", "ema"])
def test_the_average_over_steps_is_numpys(kind):
  own, averages = course(kind, "step")
  for last in (0, 4, EPOCHS * STEPS - 1):
    steps = np.arange(1, last + 2)
    weights = gauss(steps / STEPS) if kind == "gaussian" else 0.8 ** (last + 1 - steps)
    assert_close(averages[last], np.average(own[: last + 1], axis=0, weights=weights))


def test_weights_that_float32_lacks_are_relative(monkeypatch):
  """Of a mean far behind the last epoch the last steps count."""
  monkeypatch.setitem(GAUSS, "mean", 3000.0)
  own, averages = course("gaussian", "step")
  assert_close(averages[-1], own[-1])


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_the_least_and_largest_numbers_have_a_finite_average(monkeypatch, mean, sigma):
  monkeypatch.setitem(GAUSS, "mean", mean)
  monkeypatch.setitem(GAUSS, "sigma", sigma)
  own, averages = course("gaussian", "step")
  assert (averages >= own.min(0) - 1e-6).all() and (averages <= own.max(0) + 1e-6).all()
  if sigma == 1e6:
    assert_close(averages[-1], own.mean(0))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("optim.average_mean", 1e30),
    ("optim.average_mean", -1.0),
    ("optim.average_sigma", 0.0),
    ("optim.average_sigma", 1e-30),
  ],
)
def test_numbers_beyond_are_refused(field, value):
  with pytest.raises(ConfigError, match=f"config.{field}: got "):
    validate(small_config(**{"optim.average": "gaussian", field: value}))


def test_a_resumed_run_has_the_same_average_and_uses_it(tmp_path, one_layer):
  config = small_config(**{"clip.model": one_layer, "optim.average": "ema"})
  run_job(config, tmp_path / "run")
  again = shutil.copytree(tmp_path / "run", tmp_path / "again")
  for name in ("results.json", "prompt.npz", "checkpoints/12"):
    path = again / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  run_job(config, again)
  states = [
    read_checkpoint(folder / "checkpoints/12").state
    for folder in (again, tmp_path / "run")
  ]
  jax.tree.map(np.testing.assert_array_equal, *states)
  average = result_of(None, states[0]["opt_state"])["context"]
  assert np.abs(average - states[0]["params"]["context"]).max() > 0
  np.testing.assert_array_equal(load_prompt(again).context, average)
  stored = {
    named.step: named.prompt
    for named in read_prompts([f"{again}/checkpoints"], "prompts")
  }
  np.testing.assert_array_equal(stored[12].context, average)


@pytest.mark.parametrize("method", ["pomp", "vpt_shallow", "maple", "cocoop"])
def test_each_method_validates_the_average(tmp_path, one_layer, monkeypatch, method):
  """Also one that learns no prompt; nothing is trained."""
  config = small_config(
    method=method, **{"clip.model": one_layer, "optim.average": "ema"}
  )
  monkeypatch.setattr(setup.batches, "readable_features", lambda *_: SPLIT)
  seen = []

  def class_features(run, params):
    seen.append(params)
    return np.eye(2, dtype=np.float32)

  monkeypatch.setattr(PromptRun, "class_features", class_features)
  accuracy = lambda run: lambda params, split, source: seen.append(params)
  monkeypatch.setattr(PromptRun, "accuracy", accuracy)
  run = setup.prepare(config, RunFolder(tmp_path))
  last, mean = {"context": np.zeros(1)}, {"context": np.ones(1)}
  state = TrainState(
    step=4, params=last, opt_state=(Averaged(mean, 4, 0.0),), seed_key=None
  )
  run.validation()(state)
  assert seen == [mean]


def test_a_run_validates_the_average_that_it_keeps(tmp_path, one_layer, monkeypatch):
  """Not the last parameters, whose class features differ."""
  config = small_config(**{"clip.model": one_layer, "optim.average": "ema", "steps": 4})
  validated = []
  of_parameters = PromptRun.class_features

  def class_features(run, params):
    validated.append(np.asarray(params["context"]))
    return of_parameters(run, params)

  monkeypatch.setattr(PromptRun, "class_features", class_features)
  run_job(config, tmp_path / "run")
  state = read_checkpoint(tmp_path / "run/checkpoints/4").state
  average = result_of(None, state["opt_state"])["context"]
  np.testing.assert_array_equal(validated[-1], average)
  assert np.abs(average - state["params"]["context"]).max() > 0
