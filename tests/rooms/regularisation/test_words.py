"""Words as a start and as candidates: what is chosen and saved, and a run that must beat them."""

import json
import logging
import re
import shutil

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Prompt as PromptFields
from pomp_jax.evaluate import inputs
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regularisation import words
from tests.support.checks import assert_close
from tests.support.small_run import run_job, small_config

MEAN, LONG, SHORT = "ensemble:imagenet_7", "a bad photo of the {}.", "art of the {}."
BEST = {"prompt.init": "best", "prompt.m": 0, "checkpoint.select": "best"}


@pytest.fixture(scope="module")
def encoder(one_layer):
  return inputs.open_encoder(small_config(**{"clip.model": one_layer}).clip)


def test_a_sentence_becomes_a_context_exactly(encoder):
  """Token by token, so that the class features are those of the sentence."""
  names = ["cat", "guinea pig", "Boeing 747-400", "o'clock"]
  for text in (LONG, "itap of a {}."):
    found = encoder.class_features(names, words._as_prompt(text, encoder.clip))
    assert_close(found, encoder.class_features(names, text), 1e-6)
  for other in ("{}.", "a {} in a video game.", "a photo of a {}", MEAN):
    assert words._as_prompt(other, encoder.clip) is None


def test_the_start_has_the_words_of_the_best_text_that_is_a_context(encoder):
  scores = {MEAN: 0.9, "{}.": 0.8, "a {} in a video game.": 0.7, LONG: 0.6, SHORT: 0.5}
  long, short = (
    (text, len(encoder.clip.tokenizer(text)["input_ids"]) - 2)
    for text in ("a bad photo of the", "art of the")
  )
  for m, start in ((0, long), (long[1], long), (short[1], short)):
    found = words.with_words(PromptFields(m=m, init="best"), scores, encoder.clip)
    assert (found.init, found.m) == start
  with pytest.raises(ConfigError, match=r"prompt\.candidates: .* text with 50 tokens before {}"):
    words.with_words(PromptFields(m=50, init="best"), scores, encoder.clip)


@pytest.mark.parametrize(
  ("top1", "saved", "remark"),
  [
    (0.71, "step 9", "training beat the words"),
    (0.7, "step 9", f"no training beat the words; .*'step 9', as '{MEAN}' is no context"),
    (0.6, SHORT, f"no training beat the words; .*'{SHORT}', as '{MEAN}' is no context"),
  ],
)
def test_of_equal_ones_the_words_are_better(encoder, top1, saved, remark):
  found = words.outcome({LONG: 0.5, MEAN: 0.7, SHORT: 0.6}, encoder.clip, 9, top1)
  assert found.facts["saved"] == saved
  assert (found.prompt is None) == (saved == "step 9")
  assert re.search(remark.replace("{}", r"\{\}"), found.facts["remark"])
  assert found.facts["best"] == MEAN


def test_a_run_that_can_not_beat_its_words_says_so(
  tmp_path, one_layer, encoder, caplog, monkeypatch
):
  """It learns nothing, so that step 0 is every step; a restart scores no words again."""
  caplog.set_level(logging.INFO)
  changes = {"optim.lr": 0.0, "consistency_squared": 8.0, "anchors": "best", "steps": 4}
  names = inputs.open_source(small_config().data, "train").names
  (sentences := tmp_path / "own.json").write_text(json.dumps({name: ["It."] for name in names}))
  changes |= {"prompt.candidates": f"{LONG};hand_written;{SHORT};{{}}.;{sentences}"}
  config = small_config(**{"clip.model": one_layer} | BEST | changes)
  results = run_job(config, tmp_path / "run")
  found = results["words"]
  scores = json.loads((tmp_path / "run/candidates.json").read_text())
  assert list(found["candidates"]) == [LONG, "a photo of a {}.", SHORT, "{}.", str(sentences)]
  assert scores.items() >= found["candidates"].items()
  single = {name: top1 for name, top1 in found["candidates"].items() if " {}." in name}
  saved = max(single, key=single.get)
  assert found["saved"] == saved
  assert results["evaluated_step"] == 0
  context = load_prompt(tmp_path / "run").context
  np.testing.assert_array_equal(context, words._as_prompt(saved, encoder.clip).context)
  np.testing.assert_array_equal(load_prompt(tmp_path / "run/prompt_best.npz").context, context)
  assert "no training beat the words" in found["remark"]
  assert found["remark"] in caplog.messages
  assert "no training beat the words" in (tmp_path / "run/report.html").read_text()
  # The term is 0 where the anchors are the start itself.
  terms = RunFolder(tmp_path / "run").scalars()["consistency"][1]
  assert (max(terms) < 1e-10) == (saved == found["best"])
  (tmp_path / "run/results.json").unlink()
  shutil.rmtree(tmp_path / "run/checkpoints")
  monkeypatch.delattr(words, "scores")
  assert run_job(config, tmp_path / "run")["words"] == found


@pytest.mark.parametrize(
  ("changes", "found"),
  [
    ({"prompt.init": "", "prompt.m": 0}, r"prompt\.m: got 0"),
    (
      {"consistency_squared": 1.0, "anchors": "best", "prompt.init": "", "prompt.m": 4},
      "anchors: got",
    ),
    ({"checkpoint.select": "last"}, r"checkpoint\.select: got 'last'"),
    ({"prompt.position": "front"}, r"prompt\.position"),
    ({"method": "cocoop"}, r"prompt\.init: got 'best'"),
    ({"prompt.candidates": "nowhere"}, r"prompt\.candidates: got 'nowhere'"),
    ({"consistency_squared": 1.0, "anchors": "nowhere"}, "anchors: got 'nowhere'"),
  ],
)
def test_fields_that_do_not_fit_are_one_line(tmp_path, changes, found):
  with pytest.raises(ConfigError, match=found):
    run_job(small_config(**BEST | changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_without_validation_images_there_is_no_best(tmp_path, monkeypatch):
  monkeypatch.setattr(inputs, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match=r"prompt\.init: got 'best', .*no validation images"):
    run_job(small_config(**BEST), tmp_path / "run")
