"""Prompts by their names: keys of their features, texts that fit the tower, what
files record."""

import dataclasses

import numpy as np
import pytest

from pomp_jax.clip.tokens import TokenizeError
from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.evaluate import named_prompts
from pomp_jax.evaluate.named_prompts import (
  check_lengths,
  describe,
  of_one_list,
  read_prompts,
)
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import (
  ClassFeatures,
  Prompt,
  Sentences,
  recorded_upright,
  save_prompt,
)
from pomp_jax.files.run_folder import write_json

CLASSES = load_class_list("eurosat")
CONTEXT = np.zeros((2, 4), np.float32)


def key_of(prompt):
  return fingerprint(describe(prompt, CLASSES))


def test_each_part_of_a_prompt_is_in_the_key_of_its_features():
  prompts = [
    Prompt(CONTEXT, "clip"),
    Prompt(CONTEXT, "clip", "middle"),
    Prompt(CONTEXT + 1, "clip"),
    Prompt(CONTEXT, "clip", sentences=Sentences(("a {}.",), 0.5)),
    Prompt(CONTEXT, "clip", sentences=Sentences(("a {}.",), 0.25)),
    Prompt(CONTEXT, "clip", sentences=Sentences(("the {}.",), 0.5)),
    Prompt(CONTEXT, "clip", sentences=Sentences(("a {}.", "the {}."), 0.5)),
    *(
      "a {}.",
      "the {}.",
      "hand_written",
      "ensemble",
      "ensemble:imagenet",
      "outputs:imagenet",
    ),
  ]
  assert len({key_of(prompt) for prompt in prompts}) == len(prompts)
  # What its features do not depend on is not.
  assert key_of(Prompt(CONTEXT, "other", config={"seed": 1})) == key_of(prompts[0])
  assert key_of("hand_written") == key_of(CLASSES.template)


@pytest.mark.parametrize("names", [[], ["{}.", "{}."], ["a"], ["{} and {}"]])
def test_no_prompt_two_of_one_name_and_no_text_are_refused(names):
  with pytest.raises(
    ConfigError, match=r"evaluate\.prompts: got .*, expected one or more of"
  ):
    read_prompts(names, "evaluate.prompts")


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
  ("results", "found"),
  [
    (None, "expected one or more of"),
    ({"job": "evaluate"}, "expected one or more of"),
    (
      {"method": "linear_probe"},
      "expected a run that learns by steps; linear_probe tells",
    ),
  ],
)
def test_a_folder_that_has_learned_no_prompt(
  tmp_path, monkeypatch, results, found, reads
):
  """Of no run, of another job, and of a method without steps; with and without the
  room."""
  if results is not None:
    write_json(tmp_path / "results.json", results)
  if not reads:
    monkeypatch.setattr(named_prompts, "FINISHED_RUN", None)
    found = "expected one or more of"
  with pytest.raises(ConfigError, match=rf"^config\.evaluate\.prompts: got .*{found}"):
    read_prompts([str(tmp_path)], "evaluate.prompts")


def test_a_prompt_belongs_to_one_list_if_it_has_a_row_for_each_class():
  for prompt in ("a {}.", "ensemble", Prompt(CONTEXT, "clip")):
    assert not of_one_list(prompt)
  for prompt in (Prompt(CONTEXT[None], "clip"), ClassFeatures(CONTEXT)):
    assert of_one_list(prompt)


@pytest.mark.parametrize(
  ("prompt", "n_own"),
  # SOS and EOT are two of 77 positions; the period, the words and the vectors take the
  # others.
  [
    ("{}", 75),
    ("a {}.", 73),
    (Prompt(np.zeros((10, 4), np.float32), "clip"), 64),
    (Prompt(CONTEXT[:0], "clip", sentences=Sentences(("{}.", "a {}."), 1.0)), 73),
  ],
)
def test_the_longest_name_that_fits_a_prompt(clip_and_torch, prompt, n_own):
  clip, _ = clip_and_torch

  def check(n_words):
    names = ("cat", " ".join(["cat"] * n_words))
    classes = dataclasses.replace(CLASSES, names=names)
    check_lengths(
      prompt, classes, clip.tokenizer, clip.config.text_config, "the prompt"
    )

  check(n_own)
  with pytest.raises(TokenizeError, match="^the prompt: "):
    check(n_own + 1)


def test_of_a_mixture_the_first_known_turn_counts(tmp_path):
  """The first file does not record one, and comes first all the same."""
  for name, data in (
    ("old", {}),
    ("turned", {"upright": True}),
    ("plain", {"upright": False}),
  ):
    config = {"data": {"source": "folder"} | data} if data else {}
    save_prompt(tmp_path / f"{name}.npz", Prompt(CONTEXT, "clip", config=config))
  old, turned, plain = (tmp_path / f"{name}.npz" for name in ("old", "turned", "plain"))
  assert recorded_upright(str(old)) is None
  for first, second, expected in (
    (old, turned, True),
    (old, plain, False),
    (turned, plain, True),
  ):
    assert recorded_upright(f"0.5*{first} + 0.5*{second}") is expected
