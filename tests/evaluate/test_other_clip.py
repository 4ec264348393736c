"""A prompt that is read on another CLIP than its own says so; one on its own does not."""

import dataclasses

import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.clip.text import token_table
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import Classifier, other_clip
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.files.prompt_file import UNKNOWN_CLIP, Prompt, load_prompt, save_prompt
from pomp_jax.world import source
from tests.support.clips import words_as_prompt


@pytest.fixture(scope="module")
def encoder():
  return Encoder(load_clip("world"))


@pytest.fixture(scope="module")
def classes():
  return ClassList(source("base", n_images=40, n_classes=40).names)


@pytest.fixture(scope="module")
def learned(encoder):
  """Words that move this CLIP's class vectors apart, as a training does."""
  prompt = words_as_prompt(encoder.clip, "a video game")
  return dataclasses.replace(prompt, clip_model=UNKNOWN_CLIP)


def foreign(prompt: Prompt, seed: int = 0) -> Prompt:
  """A prompt of an equally good CLIP, whose D numbers have another order."""
  order = np.random.default_rng(seed).permutation(prompt.context.shape[1])
  context = np.ascontiguousarray(prompt.context[:, order])
  return dataclasses.replace(prompt, context=context)


def test_signs_are_those_of_float64(encoder, classes, learned):
  rows = features_under(encoder, classes, learned).astype(np.float64)
  plain = encoder.class_features(classes.names, "{}.").astype(np.float64)
  table = np.asarray(token_table(encoder.clip.params), np.float64)
  signs = other_clip.signs_of(learned.context, table, rows, plain)
  pairs = ~np.eye(len(rows), dtype=bool)
  apart = [np.mean(1 - (own @ own.T)[pairs]) for own in (rows, plain)]
  assert signs.distance == pytest.approx(apart[0] / apart[1], rel=1e-5)
  assert signs.cosine == pytest.approx(np.mean(np.diag(rows @ plain.T)), rel=1e-5)
  norms = [np.sqrt((own**2).sum(1)).mean() for own in (learned.context, table)]
  assert signs.norm == pytest.approx(norms[0] / norms[1], rel=1e-5)


@pytest.mark.parametrize("suffix", ["npz", "pth.tar"])
def test_the_wrong_clip_says_so(encoder, classes, learned, tmp_path, caplog, suffix):
  if suffix != "npz":
    pytest.importorskip("torch")
  own, other = tmp_path / f"own.{suffix}", tmp_path / f"other.{suffix}"
  save_prompt(own, learned)
  save_prompt(other, foreign(learned))
  Classifier(encoder, own, classes.names)
  assert not caplog.records
  Classifier(encoder, other, classes.names)
  (record,) = caplog.records
  message = record.getMessage()
  assert str(other) in message and "times as far apart" in message
  assert "\n" not in message


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_norms_far_from_the_tables(encoder, classes, learned, scale, caplog):
  context = np.float32(scale) * learned.context
  scaled = dataclasses.replace(learned, context=context, file=f"scaled {scale}")
  features_under(encoder, classes, scaled)
  (record,) = caplog.records
  assert record.args[0] == scaled.file
  assert not other_clip.LEAST_NORM <= record.args[6] <= other_clip.MOST_NORM


def test_a_file_that_names_the_clip_is_not_compared(encoder, classes, learned, caplog):
  named = dataclasses.replace(foreign(learned), clip_model=encoder.clip.name)
  features_under(encoder, classes, named)
  few = ClassList(classes.names[:3])
  features_under(encoder, few, foreign(learned))  # too few names to say anything
  assert not caplog.records


def test_rounded_tokens_are_known_and_others_are_not(encoder):
  table = np.asarray(token_table(encoder.clip.params), np.float32)
  rows = table[[0, 5, len(table) - 1]].astype(np.float16).astype(np.float32)
  assert other_clip.unknown_tokens(rows, table) == 0
  rows[1] = rows[1, ::-1]
  assert other_clip.unknown_tokens(rows, table) == 1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("its_own", [True, False])
def test_dassls_buffers_name_the_clip(
  encoder, classes, learned, tmp_path, caplog, its_own, half
):
  """Views of one tensor [N,77,D], as CoOp's `PromptLearner` registers them."""
  torch = pytest.importorskip("torch")
  table = np.asarray(token_table(encoder.clip.params), np.float32)
  ids = np.arange(3 * 77).reshape(3, 77) % len(table)
  embeddings = torch.tensor(table[ids] if its_own else table[ids][..., ::-1].copy())
  embeddings = embeddings.half() if half else embeddings
  n_before = 1 + len(learned.context)
  state = {
    "token_prefix": embeddings[:, :1, :],
    "ctx": torch.tensor(foreign(learned).context),
    "token_suffix": embeddings[:, n_before:, :],
  }
  path = tmp_path / "model.pth.tar-50"
  torch.save({"state_dict": state, "epoch": 50}, path)
  prompt = load_prompt(path)
  kept = np.r_[0, n_before:77]
  expected = embeddings[0].float().numpy()[kept]
  np.testing.assert_array_equal(prompt.class_tokens, expected)
  features_under(encoder, classes, prompt)
  if its_own:
    assert not caplog.records  # although the vectors are as under plain words
  else:
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert record.args[2:] == (len(kept), 0)
