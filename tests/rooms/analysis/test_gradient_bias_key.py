"""What the finished cells of `gradient_bias` belong to: each part of their keys
alone."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import defaults
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.prompt.sampling.samplers import SamplingArrays
from pomp_jax.rooms.analysis import gradient_bias
from pomp_jax.rooms.analysis.fields import GradientBias
from tests.support.clips import with_kernel
from tests.support.small_run import changed

CONFIG = changed(
  defaults(), {"job": "gradient_bias", "gradient_bias.corrections": "log"}
)
ARRAY = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def key_of(clip_and_torch, monkeypatch):
  """A function: changes -> the key of all cells. Nothing is computed but the
  context."""
  mesh = make_mesh()

  class Computed(Exception):
    """The key is known."""

  def key(clip=clip_and_torch[0], arrays=None, **given):
    context = given.pop("context", ARRAY)
    found = {"names": ("a", "b"), "features": ARRAY, "labels": np.array([0, 1, 0])}
    found |= {"bank": None, "position": "end", "logit_bias": -17.0}
    found |= {name: given.pop(name) for name in list(given) if name in found}
    encoder = mock.Mock(spec=Encoder, clip=clip, mesh=mesh)
    encoder.vocabulary.side_effect = Computed
    module = PromptContext(
      len(context), context.shape[1], found["position"], init_value=context
    )
    images = found["names"], found["features"], found["labels"]
    keys = mock.Mock(wraps=gradient_bias.fingerprint)
    for name, value in {
      "_images": lambda *_: images,
      "_start": lambda *_: (module, found["bank"]),
      "_arrays": lambda *_: arrays or SamplingArrays(),
      "logit_bias_of": lambda *_: found["logit_bias"],
      "fingerprint": keys,
    }.items():
      monkeypatch.setattr(gradient_bias, name, value)
    monkeypatch.setattr(opening, "open_encoder", lambda *_: encoder)
    with pytest.raises(Computed):
      gradient_bias.run(changed(CONFIG, given), "nowhere")
    [(parts,)] = [call.args for call in keys.call_args_list]
    return gradient_bias.fingerprint(parts)

  return key


def test_each_part_of_the_key_of_all_cells(key_of, clip_and_torch, monkeypatch):
  clip = clip_and_torch[0]
  other_tower = with_kernel(clip, "text_projection", np.ones((32, 24), np.float32))
  sigmoid = {"gradient_bias.corrections": "log;sigmoid"}
  first = key_of()
  assert key_of() == first == key_of(logit_bias=-5.0)
  found = [
    first,
    key_of(seed=1),
    key_of(position="middle"),
    key_of(context=ARRAY + 1),
    key_of(names=("a", "c")),
    key_of(features=ARRAY + 1),
    key_of(labels=np.array([0, 1, 1])),
    key_of(bank=ARRAY),
    key_of(arrays=SamplingArrays(frequency=ARRAY[0])),
    key_of(clip=other_tower),
    key_of(clip=dataclasses.replace(clip, squash=True)),
    key_of(**{"clip.text_tower": "reference"}),
    key_of(**{"clip.dtype": "bfloat16"}),
    key_of(**{"sampling.mix": 0.25}),
    key_of(**{"sampling.exclude": "similar"}),
    key_of(**sigmoid),
    key_of(**sigmoid, logit_bias=-5.0),
  ]
  monkeypatch.setattr(gradient_bias, "_VERSION", "another")
  found.append(key_of())
  assert len({*found}) == len(found), [found.index(one) for one in found]


def keys_of_cells(tmp_path, key="all", **changes):
  """Keys of the cells by name."""
  own = GradientBias(
    k=(8, 50), samplers=("uniform", "hard"), corrections=("log", "none")
  )
  own = dataclasses.replace(own, **{"images": 12, "rows": 8000} | changes)
  gradients = mock.Mock(spec=gradient_bias.Gradients)
  stopped = mock.patch.object(gradient_bias, "Pieces", side_effect=KeyboardInterrupt)
  with stopped as pieces, pytest.raises(KeyboardInterrupt):
    gradient_bias._cells(own, gradients, {}, RunFolder(tmp_path), key)
  folder, keys = pieces.call_args.args
  assert folder == tmp_path / "cells"
  return keys


def test_a_cell_has_its_sampler_size_draws_and_corrections(tmp_path):
  keys = keys_of_cells(tmp_path)
  names = ["uniform_8", "uniform_50", "hard_8", "hard_50"]
  assert list(keys) == names and len({*keys.values()}) == 4
  for changes in (
    {"key": "another"},
    {"corrections": ("none", "log")},
    {"corrections": ("log",)},
  ):
    other = keys_of_cells(tmp_path, **changes)
    assert not {*keys.values()} & {*other.values()}, changes
  # Of 8,000 rows there are 400 draws of 8 classes and 12 images, and 129 of 50; 512 at
  # most.
  more = keys_of_cells(tmp_path, rows=8064)
  assert [more[name] == keys[name] for name in names] == [False, False, False, False]
  few = keys_of_cells(tmp_path, rows=8010)
  assert [few[name] == keys[name] for name in names] == [True] * 4
  # Sizes of as many draws.
  most = keys_of_cells(tmp_path, rows=10**6)
  assert len({*most.values()}) == 4
  # The other samplers and sizes of a run are not in it.
  alone = keys_of_cells(tmp_path, samplers=("hard",), k=(50,))
  assert alone == {"hard_50": keys["hard_50"]}
