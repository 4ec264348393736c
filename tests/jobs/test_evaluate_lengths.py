"""Texts of an evaluation that are too long for the text tower: found by `check`, in every set."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.clip import TokenizeError, load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import evaluate
from pomp_jax.evaluate.evaluation_sets import evaluation_sets
from pomp_jax.evaluate.named_prompts import features_under, read_prompts
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.analysis import analyse
from tests.support.small_run import settings

WORLD = load_clip("world")
LONGEST = "the last name"


def n_tokens(template):
  """With the longest name, EOT included."""
  return len(WORLD.tokenizer(template.format(LONGEST))["input_ids"]) - 1


@pytest.mark.parametrize("kind", ["template", "ensemble", "prompt"])
def test_the_last_set_is_checked_before_anything_is_written(tmp_path, kind):
  """Two sets of two classes, of which the last name and the set's own template are the longest."""
  for folder in ("short/star", "short/ring", "long/star", f"long/{LONGEST}"):
    (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / folder / "0.png")

  def config_with(excess):
    """Of a text of as many tokens as the tower takes, and some more."""
    n_words = WORLD.positions - 1 + excess - n_tokens("{}")
    template, prompt = "red " * n_words + "{}", kind
    assert n_tokens(template) == WORLD.positions - 1 + excess
    if kind == "prompt":
      prompt = str(tmp_path / f"{excess}.npz")
      n_vectors = WORLD.positions - 1 + excess - n_tokens("{}.")
      save_prompt(prompt, Prompt(np.zeros((n_vectors, WORLD.text_width), np.float32), "world"))
    own = [{"name": name, "root": str(tmp_path / name)} for name in ("short", "long")]
    if kind == "ensemble":
      own[1]["templates"] = ["a {}.", template]
    prompts = (template if kind == "template" else prompt,)
    config = settings(**{"job": "evaluate", "clip.model": "world", "clip.chunk": 16})
    fields = {"evaluate.own_sets": tuple(own), "evaluate.prompts": prompts}
    return config.replace(fields | {"analyse.prompts": prompts})

  fits, too_long = config_with(0), config_with(1)
  evaluate.check(fits, str(tmp_path / "run"))
  # What `check` takes, the text tower takes.
  [named] = read_prompts(fits.evaluate.prompts, "evaluate.prompts")
  for item in evaluation_sets(fits, WORLD.image_size):
    features_under(Encoder(WORLD, chunk=16), item.open().classes, named.prompt)
  for job in (evaluate, analyse):
    with pytest.raises(TokenizeError, match=r"^[^\n]*set long: .* tokens with EOT") as error:
      job.check(too_long, str(tmp_path / "run"))
    assert error.value.status == 2 and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()
