"""Words as a start and as candidates: what is chosen and saved, and a run that must
beat them."""

import html
import json
import logging
import shutil
import types
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Prompt as PromptFields
from pomp_jax.data.class_lists import ClassList, load_templates
from pomp_jax.evaluate import Classifier, opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import paired_difference_over_classes
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.regularisation import contest, words
from pomp_jax.rooms.regularisation.fields import Consistency
from pomp_jax.train import setup
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.training import PromptRun
from tests.support.checks import assert_close
from tests.support.clips import with_logit_scale
from tests.support.small_run import run_job, small_config

MEAN, LONG, SHORT = "ensemble:imagenet_7", "a bad photo of the {}.", "art of the {}."
BEST = {"prompt.init": "best", "prompt.m": 0, "checkpoint.select": "best"}


@pytest.fixture(scope="module")
def encoder(one_layer):
  return opening.open_encoder(small_config(**{"clip.model": one_layer}).clip)


CLASSES = ClassList(("cat", "guinea pig", "Boeing 747-400", "o'clock"))


def test_a_sentence_becomes_a_context_exactly(encoder):
  """Token by token, so that the class features are those of the sentence."""
  for text in (LONG, "itap of a {}."):
    prompt = words.as_prompt(text, encoder.clip, CLASSES)
    assert prompt.sentences is None
    features = encoder.class_features(CLASSES.names, prompt)
    assert_close(features, encoder.class_features(CLASSES.names, text), 1e-6)


@pytest.mark.parametrize(
  "text", ["{}.", "a {} in a video game.", "a photo of a {}", MEAN]
)
def test_other_sentences_are_held_by_a_prompt_file_too(encoder, tmp_path, text):
  """Class features, in Python and of the file, are those of the name in
  `evaluate.prompts`."""
  save_prompt(tmp_path / "prompt.npz", words.as_prompt(text, encoder.clip, CLASSES))
  expected = features_under(encoder, CLASSES, read_prompts([text], "prompts")[0].prompt)
  classifier = Classifier(encoder, tmp_path, CLASSES.names)
  assert_close(classifier.class_features, expected, 1e-6)


def test_sentences_of_each_class_are_held_by_no_file(encoder, tmp_path):
  (path := tmp_path / "own.json").write_text(
    json.dumps({name: ["It."] for name in CLASSES.names})
  )
  assert words.as_prompt(str(path), encoder.clip, CLASSES) is None


def test_the_start_has_the_words_of_the_best_text_that_is_a_context(encoder):
  scores = {MEAN: 0.9, "{}.": 0.8, "a {} in a video game.": 0.7, LONG: 0.6, SHORT: 0.5}
  long, short = (
    (text, len(encoder.clip.tokenizer(text)["input_ids"]) - 2)
    for text in ("a bad photo of the", "art of the")
  )
  for m, start in ((0, long), (long[1], long), (short[1], short)):
    found = words.with_words(PromptFields(m=m, init="best"), scores, encoder.clip)
    assert (found.init, found.m) == start
  with pytest.raises(
    ConfigError, match=r"prompt\.candidates: .* text with 50 tokens before {}"
  ):
    words.with_words(PromptFields(m=50, init="best"), scores, encoder.clip)


def test_a_candidate_that_is_too_long_for_the_clip_is_skipped(encoder, caplog):
  features = np.eye(len(CLASSES), encoder.clip.config.projection_dim, dtype=np.float32)
  split = SplitFeatures(CLASSES.names, np.arange(len(CLASSES)), features, None)
  endless = f"a{' very' * 80} good photo of a {{}}."
  scores = words.scores([endless, SHORT], encoder, CLASSES, split)
  assert list(scores) == [SHORT]
  assert "prompt.candidates" in caplog.text and endless in caplog.text
  with pytest.raises(ConfigError, match=r"prompt\.candidates"):
    words.scores([endless], encoder, CLASSES, split)


IMAGES, KINDS = 400, 4


def contest_of(monkeypatch, encoder, right, *, name=MEAN, uneven=False, taken="last"):
  """The choice of a run whose classifiers are right about some of 400 images.

  `right` has the images for `words`, `last`, `earlier`, and for `mixture` of the words
  with the one that is `taken` of these; no feature is computed.
  """
  labels = np.arange(IMAGES) % KINDS
  if uneven:
    labels = np.where(np.arange(IMAGES) < 340, 0, labels)
  values = {"words": 0.0, "last": 1.0, "earlier": 4.0}
  values["mixture"] = (values[taken] + values["words"]) / 2
  rows = {kind: np.full((KINDS, 2), value) for kind, value in values.items()}

  def ranks(_, class_features, labels, *, mesh):
    (kind,) = (kind for kind, own in rows.items() if (class_features == own).all())
    return np.asarray(~np.isin(np.arange(IMAGES), right[kind]), int)

  monkeypatch.setattr(contest, "ranks_of_images", ranks)
  monkeypatch.setattr(words, "unit_rows", lambda rows: rows)
  monkeypatch.setattr(words, "features", lambda *_: rows["words"])
  monkeypatch.setattr(words.opening, "open_source", lambda *_, **__: None)
  split = SplitFeatures(CLASSES.names, labels, None, None)
  monkeypatch.setattr(words, "readable_features", lambda *_: split)
  context = np.ones((2, encoder.clip.text_width), np.float32)
  run = mock.Mock(
    spec=PromptRun,
    candidates={LONG: 0.1, name: 0.2},
    config={"seed": 7},
    data=small_config().data,
    encoder=encoder,
    eval=types.SimpleNamespace(images=0, template="a photo of a {}."),
    folder=None,
    source=types.SimpleNamespace(names=CLASSES.names),
    class_features=rows.__getitem__,
    result=lambda state: state,
    prompt_of=lambda state: Prompt(context * len(state), "world"),
  )
  return words.choose(run, Checkpoint(9, "last"), Checkpoint(5, "earlier"))


def first(count):
  """The first images, evenly over the classes."""
  return np.arange(count)


@pytest.mark.parametrize(
  ("right", "chosen", "saved", "verdict"),
  [
    # One image more is chance, forty are not.
    ((200, 201, 201, 201), "words", MEAN, "level with the words"),
    ((200, 240, 240, 200), "trained", "step 9", "beat"),
    # The mixture stays unless the trained prompt is better than it.
    ((200, 240, 240, 239), "mixture", f"0.5*step 9 + 0.5*{MEAN}", "beat"),
    ((200, 201, 201, 240), "mixture", f"0.5*step 9 + 0.5*{MEAN}", "level"),
    ((200, 280, 280, 240), "trained", "step 9", "beat"),
    ((240, 200, 200, 200), "words", MEAN, "worse than the words"),
    # An earlier checkpoint replaces the last one likewise.
    ((200, 240, 242, 200), "trained", "step 9", "beat"),
    ((200, 201, 260, 200), "trained", "step 5", "beat"),
  ],
)
def test_words_stay_unless_another_is_better_beyond_chance(
  monkeypatch, encoder, right, chosen, saved, verdict
):
  named = dict(
    zip(("words", "last", "earlier", "mixture"), map(first, right), strict=True)
  )
  taken = "earlier" if saved == "step 5" else "last"
  choice = contest_of(monkeypatch, encoder, named, taken=taken)
  assert (choice.facts["chosen"], choice.facts["saved"]) == (chosen, saved)
  assert (
    choice.checkpoint.step == choice.facts["step"] == int(5 if saved == "step 5" else 9)
  )
  assert choice.prompt.config == {"seed": 7}
  if chosen == "words":
    assert choice.prompt.sentences.weight == 1
  elif chosen == "mixture":
    assert choice.prompt.sentences == (tuple(load_templates("imagenet_7")), 0.5)
  else:
    assert choice.prompt.sentences is None
  # The tables have all that the file is not, compared with the words.
  assert {*choice.rows} == {"words", "trained"} - {chosen}
  assert choice.reference == ("prompt" if chosen == "words" else "words")
  figures = choice.facts["figures"]
  assert figures["words"]["right"] == right[0]
  assert figures["words"]["macro_top1"] == pytest.approx(right[0] / IMAGES)
  for text in (verdict, "400 images of 4 classes", f"({right[0]} right)", MEAN):
    assert text in choice.facts["remark"]
  assert ("the mean of both" in choice.facts["remark"]) == (chosen == "mixture")


def test_the_mean_over_classes_decides(monkeypatch, encoder):
  """Thirty more images of the large class, six fewer of each small one: worse, not
  better."""
  right = {"words": np.r_[0:200, 340:400], "last": np.r_[0:230, 358:400]}
  right |= {"earlier": right["last"], "mixture": right["words"]}
  choice = contest_of(monkeypatch, encoder, right, uneven=True)
  figures = choice.facts["figures"]
  assert figures["trained"]["right"] > figures["words"]["right"]
  assert choice.facts["chosen"] == "words" and "worse" in choice.facts["remark"]


def test_words_that_are_the_hand_written_prompt_have_its_row(monkeypatch, encoder):
  right = {
    "words": first(200),
    "last": first(280),
    "earlier": first(280),
    "mixture": first(240),
  }
  choice = contest_of(monkeypatch, encoder, right, name="a photo of a {}.")
  assert choice.facts["chosen"] == "trained"
  assert (choice.rows, choice.reference) == ({}, "hand_written")


@pytest.mark.parametrize("n_images", [24, 400])
def test_few_images_are_said_to_tell_little(n_images):
  """The interval of one image more out of 24 is 19 points wide."""
  difference = paired_difference_over_classes(
    np.arange(n_images) < 23, np.arange(n_images) < 22, np.arange(n_images) % 4
  )
  figures = {"right": 22, "macro_top1": 0.9}
  facts = {
    "best": SHORT,
    "step": 9,
    "chosen": "words",
    "saved": SHORT,
    "validation": {"images": n_images, "classes": 4},
    "figures": {"words": figures, "trained": figures | {"difference": difference}},
  }
  remark = words._remark(facts)
  assert "level with the words" in remark
  assert ("hold out more" in remark) == (n_images == 24)


def test_where_no_file_holds_the_best_words_another_stands_for_them(
  monkeypatch, encoder, tmp_path
):
  (path := tmp_path / "own.json").write_text(
    json.dumps({name: ["It."] for name in CLASSES.names})
  )
  right = dict.fromkeys(("words", "last", "earlier", "mixture"), first(200))
  choice = contest_of(monkeypatch, encoder, right, name=str(path))
  assert (choice.facts["best"], choice.facts["saved"]) == (str(path), LONG)
  assert (
    f"no file holds {str(path)!r}: evaluate.prompts takes it" in choice.facts["remark"]
  )


@pytest.mark.parametrize(
  ("scale", "weight"), [(17.0, 8.0), (49.0, 8.0), (50.0, 0.0), (100.0, 0.0)]
)
def test_the_logit_scale_decides_the_weight_of_consistency(caplog, scale, weight):
  caplog.set_level(logging.INFO)
  contrast = small_config(consistency_squared=-1.0, anchors="{}.").contrast
  assert (
    words.with_automatic_weight(contrast, scale).of(Consistency).consistency_squared
    == weight
  )
  assert (
    f"{scale:.1f}" in caplog.text and f"consistency_squared={weight:g}" in caplog.text
  )
  given = contrast.having(Consistency(consistency_squared=3.0))
  assert words.with_automatic_weight(given, scale) is given


@pytest.mark.parametrize("scale", [17, 100])
def test_a_run_is_prepared_with_that_weight(tmp_path, one_layer, scale):
  clip = shutil.copytree(one_layer, tmp_path / "clip")
  with_logit_scale(clip, scale)
  changes = {"clip.model": str(clip), "consistency_squared": -1.0, "anchors": "{}."}
  run = setup.prepare(small_config(**changes), RunFolder(tmp_path / "run"))
  assert run.contrast.of(Consistency).weights == (
    {"squared": 8.0} if scale < 50 else {}
  )
  assert (run.frozen.anchors is None) == (scale > 50)


def test_a_run_that_can_not_beat_its_words_says_so(
  tmp_path, one_layer, encoder, caplog, monkeypatch
):
  """It learns nothing, so that step 0 is every step; a restart scores no words
  again."""
  caplog.set_level(logging.INFO)
  changes = {"optim.lr": 0.0, "consistency_squared": 8.0, "anchors": "best", "steps": 4}
  names = opening.open_source(small_config().data, "train").names
  (sentences := tmp_path / "own.json").write_text(
    json.dumps({name: ["It."] for name in names})
  )
  changes |= {"prompt.candidates": f"{LONG};hand_written;{SHORT};{{}}.;{sentences}"}
  config = small_config(**{"clip.model": one_layer} | BEST | changes)
  results = run_job(config, tmp_path / "run")
  found = results["words"]
  # Scored on `eval.images` validation images, at least one a class.
  assert any(
    "validation: mean over" in line and "300 images" in line for line in caplog.messages
  )
  scores = json.loads((tmp_path / "run/candidates.json").read_text())
  assert list(found["candidates"]) == [
    LONG,
    "a photo of a {}.",
    SHORT,
    "{}.",
    str(sentences),
  ]
  assert scores.items() >= found["candidates"].items()
  assert found["chosen"] == "words"
  assert results["evaluated_step"] == 0
  # What the run leaves is the best words, and the start is beside it.
  held = {
    name: score for name, score in found["candidates"].items() if name != str(sentences)
  }
  assert found["saved"] == max(held, key=held.get)
  expected = words.as_prompt(found["saved"], encoder.clip, ClassList(names))
  left, trained = (
    load_prompt(tmp_path / "run"),
    load_prompt(tmp_path / "run/prompt_trained.npz"),
  )
  np.testing.assert_array_equal(left.context, expected.context)
  assert left.sentences == expected.sentences
  single = {
    name: score for name, score in found["candidates"].items() if " {}." in name
  }
  start = words.as_prompt(max(single, key=single.get), encoder.clip, ClassList(names))
  np.testing.assert_array_equal(trained.context, start.context)
  assert "level with the words" in found["remark"] or "worse" in found["remark"]
  assert found["remark"] in caplog.messages
  report = (tmp_path / "run/report.html").read_text()
  # The table says which row is a sentence, and the trained prompt has a row of its own.
  for label in (found["labels"]["prompt"], found["labels"]["trained"]):
    assert html.escape(label) in report
  for split in results["eval"].values():
    assert {*split} >= {"prompt", "trained", "hand_written", "class_name"}
    assert "difference" in split["trained"]
  # The term is 0 where the anchors are the start itself.
  terms = RunFolder(tmp_path / "run").scalars()["consistency"][1]
  assert (max(terms) < 1e-10) == (max(single, key=single.get) == found["best"])
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
  monkeypatch.setattr(opening, "has_validation", lambda data: False)
  with pytest.raises(
    ConfigError, match=r"prompt\.init: got 'best', .*no validation images"
  ):
    run_job(small_config(**BEST), tmp_path / "run")
