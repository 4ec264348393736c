"""A mixture with a prompt whose training turned its pictures by another rule."""

import numpy as np
import pytest

from pomp_jax.evaluate.named_prompts import NamedPrompt, turned_otherwise, warn_of_turns
from pomp_jax.rooms.mixtures.prompts import Mixture
from tests.evaluate.test_classifier import recorded


@pytest.mark.parametrize(
  ("recorded_rule", "rule", "n_lines"),
  [(True, False, 1), (False, True, 1), (True, True, 0)],
)
def test_another_rule_than_that_of_a_part_is_one_line(
  caplog, recorded_rule, rule, n_lines
):
  prompt = recorded(np.zeros((2, 8), np.float32), upright=recorded_rule)
  text = NamedPrompt("texts", "a {}")
  mixed = NamedPrompt("mixed", Mixture([NamedPrompt("own", prompt), text], [0.5, 0.5]))
  warn_of_turns([mixed, text], rule, f"{caplog.handler} mixed {rule} {recorded_rule}")
  assert turned_otherwise([mixed, text], rule) == ["mixed"] * n_lines
  assert ["mixed" in line for line in caplog.messages] == [True] * n_lines
