"""What a run is made of: its scale, the loss it should reach, the context of a file,
its folder."""

import dataclasses
import functools
import json
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pomp_jax.clip.packed import AT_ONCE
from pomp_jax.clip.tokens import TokenizeError
from pomp_jax.config import ConfigError, defaults
from pomp_jax.data.loader import Loader, Readers
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.prompt_file import Prompt, PromptFileError, Sentences, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import pretrain, sampling_data, setup, training
from pomp_jax.train.resume import check_same_run
from pomp_jax.train.sampling_data import sampling_arrays
from pomp_jax.train.training import logit_bias_of
from tests.support.small_run import small_config


@pytest.fixture(scope="module")
def encoder():
  return opening.open_encoder(small_config().clip)


@pytest.fixture
def prompt(encoder):
  """A prompt that fits the small run."""
  value = np.random.default_rng(0).normal(0, 0.02, (4, encoder.clip.text_width))
  return Prompt(value.astype(np.float32), "world")


def start(encoder, folder, **changes):
  """The initial context of a run."""
  run = setup.prepare(small_config(**changes), RunFolder(folder), encoder=encoder)
  params = run.module.init(jax.random.key(0), method=lambda module: module.context)[
    "params"
  ]
  return np.asarray(params["context"])


@pytest.mark.parametrize(
  ("n_images", "n_views", "batch_size", "expected"),
  [
    (16, 1, 8, 2),
    (12, 1, 8, 1),
    (12, 2, 8, 3),
    (10, 4, 8, 5),
    (7, 1, 8, 1),
    (3, 1, 8, 1),
  ],
)
def test_an_epoch_has_all_whole_batches_of_views(
  n_images, n_views, batch_size, expected
):
  data = dataclasses.replace(defaults().data, views=n_views)
  source = mock.MagicMock(spec=Source)
  source.__len__.return_value = n_images
  for steps, epochs, total in ((0, 3, 3 * expected), (4, 3, 4)):
    loop = dataclasses.replace(
      defaults().loop, batch_size=batch_size, steps=steps, epochs=epochs
    )
    assert setup.length_of(loop, data, source) == (expected, total)


def test_loss_and_sampler_have_the_clips_own_scale(encoder, tmp_path):
  params = encoder.clip.params | {"logit_scale": np.float32(np.log(7.0))}
  other = Encoder(dataclasses.replace(encoder.clip, params=params), mesh=encoder.mesh)
  config = small_config(**{"sampling.name": "posterior", "sampling.mix": 0.3})
  contrast = setup.prepare(config, RunFolder(tmp_path), encoder=other).contrast_settings
  assert contrast.logit_scale == contrast.sampling.logit_scale == pytest.approx(7.0)
  assert (contrast.sampling.name, contrast.sampling.mix) == ("posterior", 0.3)


def test_a_class_specific_run_starts_from_one_context_or_one_a_class(
  encoder, prompt, tmp_path
):
  path = tmp_path / "prompt.npz"
  changes = {
    "prompt.init": str(path),
    "prompt.class_specific": True,
    "data.n_classes": 12,
    "k": 8,
  }
  save_prompt(path, prompt)
  found = start(encoder, tmp_path / "run", **changes)
  np.testing.assert_array_equal(
    found, np.broadcast_to(prompt.context, (12, *found.shape[1:]))
  )
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
    (
      {"prompt.position": "front"},
      None,
      ConfigError,
      r"config\.prompt\.position: .*prompt\.npz",
    ),
    (
      {"prompt.init": "WORDS"},
      None,
      ConfigError,
      r"config\.prompt\.init: .* a context; this file",
    ),
    ({}, 8, PromptFileError, "width 8"),
    ({}, 0, PromptFileError, r"prompt\.npz.*missing"),
  ],
)
def test_files_that_do_not_fit_are_refused(
  encoder, prompt, tmp_path, changes, width, error, found
):
  path = tmp_path / "prompt.npz"
  if width != 0:
    save_prompt(path, dataclasses.replace(prompt, context=prompt.context[:, :width]))
  if changes.get("prompt.init") == "WORDS":
    changes = {}
    save_prompt(path, dataclasses.replace(prompt, sentences=Sentences(("a {}.",), 0.5)))
  with pytest.raises(error, match=found):
    start(encoder, tmp_path / "run", **{"prompt.init": str(path)} | changes)
  assert not (tmp_path / "run").exists()


def test_the_position_of_other_codes_file_is_the_runs(encoder, prompt, tmp_path):
  """Such a file does not tell it, nor its CLIP."""
  path = tmp_path / "prompt.npz"
  save_prompt(path, dataclasses.replace(prompt, clip_model="unknown"))
  changes = {"prompt.init": str(path), "prompt.position": "front"}
  np.testing.assert_array_equal(
    start(encoder, tmp_path / "run", **changes), prompt.context
  )


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"k": 300}, None),
    ({"k": 301}, "k"),
    ({"k": 301, "negatives": "all"}, None),
    ({"data.n_classes": 1, "negatives": "all", "k": 1}, "negatives"),
    ({"batch_size": 15, "accumulate": 3}, None),
    ({"batch_size": 15, "accumulate": 2}, "batch_size"),
    ({"batch_size": 15, "data.augment": "recipe", "data.views": 2}, "batch_size"),
    ({"batch_size": 15, "data.augment": "recipe", "data.views": 5}, None),
  ],
)
def test_what_data_and_devices_allow_is_checked_before_weights_are_read(
  tmp_path, changes, field
):
  config = small_config(**changes)
  if field is None:
    pretrain.check(config, str(tmp_path / "run"))
    return
  with pytest.raises(ConfigError) as error:
    pretrain.check(config, str(tmp_path / "run"))
  assert error.value.field == field


def test_a_context_leaves_a_place_for_a_name_of_one_token(encoder, tmp_path):
  """As the tokenizer of the run finds, later."""
  most = next(m for m in range(100, 0, -1) if _has_place(encoder, m))
  pretrain.check(small_config(**{"prompt.m": most}), str(tmp_path / "run"))
  with pytest.raises(
    ConfigError, match=rf"config\.prompt\.m: .* at most {most} for this CLIP"
  ):
    pretrain.check(small_config(**{"prompt.m": most + 1}), str(tmp_path / "run"))


@pytest.mark.parametrize("given", [False, True])
def test_classes_have_room_for_the_vectors_that_the_best_words_choose(
  encoder, tmp_path, monkeypatch, given
):
  """Not for those of the config, which leaves their number to the words; also with
  given arrays."""
  most = next(m for m in range(100, 0, -1) if _has_place(encoder, m))
  automatic = lambda contrast, scale: contrast
  chosen = mock.Mock(with_automatic_weight=automatic, anchors=lambda *_: None)
  monkeypatch.setattr(setup, "WORDS", mock.Mock(open=lambda: chosen))
  config = small_config(
    **{"prompt.init": "best", "prompt.m": 0, "data.n_classes": 12, "k": 8}
  )
  shared = {"encoder": encoder}
  if given:
    source = opening.open_source(config.data, "train")
    shared["frozen"] = encoder.frozen(encoder.vocabulary(source.names, 0))

  def prepare(m):
    own = dataclasses.replace(config.prompt, m=m, init="")
    chosen.start = lambda *_: (own, {"a {}.": 0.5})
    return setup.prepare(config, RunFolder(tmp_path / "run"), **shared)

  longest = int(encoder.vocabulary(prepare(1).source.names, 1).lengths.max())
  fits = most + int(encoder.vocabulary(["star"], 1).lengths.max()) - longest
  run = prepare(fits)
  assert (run.prompt.m, run.module.n_vectors, run.candidates) == (
    fits,
    fits,
    {"a {}.": 0.5},
  )
  with pytest.raises(TokenizeError):
    prepare(fits + 1)


def _has_place(encoder, m):
  try:
    encoder.vocabulary(["star"], m)
  except TokenizeError:
    return False
  return True


def test_the_bias_of_a_sigmoid_is_the_configs_or_the_clips(encoder):
  contrast = small_config(loss="sigmoid").contrast
  with pytest.raises(ConfigError, match="logit_bias"):
    logit_bias_of(contrast, encoder)
  own = dataclasses.replace(contrast, logit_bias=-3.0)
  assert logit_bias_of(own, encoder) == -3.0
  params = encoder.clip.params | {"logit_bias": np.float32(-17.0)}
  other = mock.Mock(spec=Encoder, clip=dataclasses.replace(encoder.clip, params=params))
  assert logit_bias_of(contrast, other) == -17.0
  assert logit_bias_of(own, other) == -3.0
  assert logit_bias_of(small_config().contrast, other) == 0.0


@pytest.fixture(scope="module")
def run(encoder, tmp_path_factory):
  return setup.prepare(
    small_config(), RunFolder(tmp_path_factory.mktemp("run")), encoder=encoder
  )


@pytest.mark.parametrize(
  ("kind", "features", "decodes"),
  [
    (StoredImages, "online", True),
    (StoredImages, "stored", False),
    (Source, "online", False),
  ],
)
def test_readers_are_chosen_by_what_an_epoch_decodes(
  run, monkeypatch, kind, features, decodes
):
  """Of a process that takes half of each batch."""
  asked = mock.Mock(return_value=Readers(2, 0))
  monkeypatch.setattr(training, "choose_readers", asked)
  monkeypatch.setattr(training, "own_shard", lambda mesh: (1, 2))
  source = mock.MagicMock(spec=kind, names=("a",), labels=np.zeros(100, np.int32))
  source.__len__.return_value = 100
  data = dataclasses.replace(run.data, threads=3, workers=5, views=2, features=features)
  fetch = functools.partial(lambda indices, epochs, size: None, size=10)
  other = dataclasses.replace(run, data=data, source=source, fetch=fetch)
  assert other.readers == Readers(2, 0)
  # 100 images are 200 views in batches of 16; a view has 10 x 10 pixels.
  assert asked.call_args == mock.call(
    3, 5, decodes=decodes, n_batches=12, batch_bytes=8 * 300
  )


def test_batches_are_opened_as_the_run_says(run, monkeypatch):
  loader = mock.Mock(return_value=mock.Mock(spec=Loader))
  monkeypatch.setattr(training, "Loader", loader)
  monkeypatch.setattr(training, "own_shard", lambda mesh: (1, 2))
  data = dataclasses.replace(run.data, views=2, max_corrupt=0.25, threads=3, workers=0)
  dataclasses.replace(run, data=data, seed=9).open_batches(7, frozenset((3,)))
  expected = {"batch_size": 16, "seed": 9, "n_views": 2, "start": 7, "shard": (1, 2)}
  expected |= {
    "readers": Readers(3, 0),
    "max_corrupt": 0.25,
    "unreadable": frozenset((3,)),
  }
  assert loader.call_args == mock.call(run.source, run.fetch, **expected)


@pytest.mark.parametrize(
  ("method", "per_image", "n_times"),
  [
    ("pomp", False, 1),
    ("cocoop", True, 16),
    ("vpt_shallow", False, 2),
    ("maple", True, 32),
  ],
)
def test_towers_that_are_in_memory_together_share_it(
  run, monkeypatch, method, per_image, n_times
):
  """A tower of each image, and both towers of a method that trains on pixels."""
  plan = mock.Mock(return_value=AT_ONCE)
  monkeypatch.setattr(training, "memory_plan", plan)
  contrast = dataclasses.replace(run.contrast, method=method)
  own = dataclasses.replace(run.method)
  object.__setattr__(own, "per_image_text", per_image)
  assert dataclasses.replace(run, contrast=contrast, method=own).step_memory == AT_ONCE
  # SOS and four vectors are shared by all classes.
  expected = mock.call(run.clip, run.encoder, 5, run.token_budget, n_times)
  assert plan.call_args == expected


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"sampling.name": "hierarchical", "sampling.mix": 0.5}, {"groups", "group_sizes"}),
    ({"sampling.exclude": "kin"}, {"kin"}),
    ({"sampling.ancestors_weight": 0.2}, {"levels"}),
    ({"sampling.name": "posterior", "sampling.mix": 0.5}, set()),
  ],
)
def test_a_sampler_gets_the_relations_that_it_needs(monkeypatch, changes, parts):
  """Or the error of its field where classes have none."""
  config, names = small_config(**changes), ("a", "b")
  given = config.sampling, config.data, names, np.array([0, 1])
  found = types.SimpleNamespace(groups=1, group_sizes=2, kin=3, levels=4)
  hook = mock.Mock(open=lambda: lambda data, names: found)
  monkeypatch.setattr(sampling_data, "RELATIONS", hook)
  arrays = sampling_arrays(*given)
  assert {part for part in arrays._fields if getattr(arrays, part) is not None} == parts
  assert all(getattr(arrays, part) == getattr(found, part) for part in parts)
  hook = mock.Mock(open=lambda: lambda data, names: None)
  monkeypatch.setattr(sampling_data, "RELATIONS", hook)
  if not parts:
    assert sampling_arrays(*given) == arrays
    return
  with pytest.raises(ConfigError) as error:
    sampling_arrays(*given)
  assert error.value.field == next(iter(changes))


def test_the_config_of_another_version(tmp_path):
  """Fields that it has are errors where they matter to a training; those it lacks
  had defaults."""
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
  with pytest.raises(
    ConfigError, match=r"unknown field config\.clip\.keep in .*config\.json"
  ):
    check()


def test_frequencies_are_the_counts_to_a_power():
  config = small_config(**{"sampling.name": "frequency", "sampling.power": 0.5})
  arrays = sampling_arrays(
    config.sampling, config.data, ("a", "b", "c"), np.array([0, 0, 0, 0, 2])
  )
  np.testing.assert_allclose(arrays.frequency, [2 / 3, 0, 1 / 3], rtol=1e-6)
  assert arrays.groups is None


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "warmup_lr"])
def test_a_traced_number_is_used_like_the_fields_own(name, schedule):
  """As lanes of an ablation have them; two epochs of four steps, one of warm-up."""
  base = {"optim.warmup": 1.0, "optim.warmup_lr": 0.01, "optim.schedule": schedule}
  settings = small_config(**base).optim
  value = {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.1, "warmup_lr": 0.07}[name]
  changed = dataclasses.replace(settings, **{name: value})

  def trained(optim, traced):
    optimizer, rate = setup.optimizer_of(optim, 4, 8, traced)
    params = {"context": jnp.asarray([1.0, -2.0])}
    state = optimizer.init(params)
    values = []
    for step in range(8):
      gradients = {"context": params["context"] * (step + 1)}
      updates, state = optimizer.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
      values.append(np.append(params["context"], rate(step)))
    return np.array(values)

  traced = jax.jit(lambda number: jnp.asarray(0.0) + number)(value)
  found = trained(settings, {name: traced})
  np.testing.assert_allclose(found, trained(changed, None), rtol=1e-6)
  assert np.abs(found - trained(settings, None)).max() > 1e-4
