"""What a run is made of: its scale, the loss it should reach, the context of a file, its folder."""

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest

from pomp_jax.config import ConfigError, defaults
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import setup
from pomp_jax.train.resume import check_same_run
from pomp_jax.train.sampling_data import sampling_arrays
from tests.support.small_run import small_config


@pytest.fixture(scope="module")
def encoder():
  return inputs.open_encoder(small_config().clip)


@pytest.fixture
def prompt(encoder):
  """A prompt that fits the small run."""
  value = np.random.default_rng(0).normal(0, 0.02, (4, encoder.clip.text_width))
  return Prompt(value.astype(np.float32), "world")


def start(encoder, folder, **changes):
  """The initial context of a run."""
  run = setup.prepare(small_config(**changes), RunFolder(folder), encoder=encoder)
  params = run.module.init(jax.random.key(0), method=lambda module: module.context)["params"]
  return np.asarray(params["context"])


@pytest.mark.parametrize(
  ("n_images", "n_views", "batch_size", "expected"),
  [(16, 1, 8, 2), (12, 1, 8, 1), (12, 2, 8, 3), (10, 4, 8, 5), (7, 1, 8, 1), (3, 1, 8, 1)],
)
def test_an_epoch_has_all_whole_batches_of_views(n_images, n_views, batch_size, expected):
  data = dataclasses.replace(defaults().data, views=n_views)
  source = mock.MagicMock(spec=Source)
  source.__len__.return_value = n_images
  for steps, epochs, total in ((0, 3, 3 * expected), (4, 3, 4)):
    loop = dataclasses.replace(defaults().loop, batch_size=batch_size, steps=steps, epochs=epochs)
    assert setup.length_of(loop, data, source) == (expected, total)


def test_loss_and_sampler_have_the_clips_own_scale(encoder, tmp_path):
  params = encoder.clip.params | {"logit_scale": np.float32(np.log(7.0))}
  other = Encoder(dataclasses.replace(encoder.clip, params=params), mesh=encoder.mesh)
  config = small_config(**{"sampling.name": "posterior", "sampling.mix": 0.3})
  contrast = setup.prepare(config, RunFolder(tmp_path), encoder=other).loss
  assert contrast.logit_scale == contrast.sampling.logit_scale == pytest.approx(7.0)
  assert (contrast.sampling.name, contrast.sampling.mix) == ("posterior", 0.3)


def test_a_class_specific_run_starts_from_one_context_or_one_a_class(encoder, prompt, tmp_path):
  path = tmp_path / "prompt.npz"
  changes = {"prompt.init": str(path), "prompt.class_specific": True, "data.n_classes": 12, "k": 8}
  save_prompt(path, prompt)
  found = start(encoder, tmp_path / "run", **changes)
  np.testing.assert_array_equal(found, np.broadcast_to(prompt.context, (12, *found.shape[1:])))
  own = prompt.context * np.arange(1, 13, dtype=np.float32)[:, None, None]
  save_prompt(path, dataclasses.replace(prompt, context=own))
  np.testing.assert_array_equal(start(encoder, tmp_path / "run", **changes), own)
  with pytest.raises(ConfigError, match=r"prompt\.class_specific.*prompt\.npz"):
    start(encoder, tmp_path / "run", **changes | {"prompt.class_specific": False})
  with pytest.raises(PromptFileError, match="12"):
    start(encoder, tmp_path / "run", **changes | {"data.n_classes": 14})


@pytest.mark.parametrize(
  ("changes", "width", "error", "found"),
  [
    ({"prompt.m": 3}, None, ConfigError, r"config\.prompt\.m: .*prompt\.npz"),
    ({"prompt.position": "front"}, None, ConfigError, r"config\.prompt\.position: .*prompt\.npz"),
    ({}, 8, PromptFileError, "width 8"),
    ({}, 0, PromptFileError, r"prompt\.npz.*missing"),
  ],
)
def test_files_that_do_not_fit_are_refused(encoder, prompt, tmp_path, changes, width, error, found):
  path = tmp_path / "prompt.npz"
  if width != 0:
    save_prompt(path, dataclasses.replace(prompt, context=prompt.context[:, :width]))
  with pytest.raises(error, match=found):
    start(encoder, tmp_path / "run", **{"prompt.init": str(path)} | changes)
  assert not (tmp_path / "run").exists()


def test_the_config_of_another_version(tmp_path):
  """Fields that it has are errors where they matter to a training; those it lacks had defaults."""
  folder, stored = RunFolder(tmp_path), defaults().to_dict()

  def check(**changes):
    folder.config.write_text(json.dumps(stored))
    check_same_run(defaults().flat() | changes, folder)

  stored["distill"] = {"weight": 1.0}
  with pytest.raises(ConfigError, match=r"unknown field config\.distill\.weight in "):
    check()
  del stored["distill"]
  share = stored["data"].pop("test_share")
  check()
  with pytest.raises(ConfigError, match=r"data\.test_share"):
    check(**{"data.test_share": 0.3})
  stored["data"]["test_share"], stored["clip"]["keep"] = share, "activations"
  with pytest.raises(ConfigError, match=r"unknown field config\.clip\.keep in .*config\.json"):
    check()


def test_frequencies_are_the_counts_to_a_power():
  config = small_config(**{"sampling.name": "frequency", "sampling.power": 0.5})
  arrays = sampling_arrays(config.sampling, config.data, ("a", "b", "c"), np.array([0, 0, 0, 0, 2]))
  np.testing.assert_allclose(arrays.frequency, [2 / 3, 0, 1 / 3], rtol=1e-6)
  assert arrays.groups is None
