"""Texts of an evaluation that are too long for the text tower: found by `check`, in every set."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.clip import TokenizeError, load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.inference.named_prompts import features_under, read_prompts
from pomp_jax.inputs.evaluation_sets import evaluation_sets
from pomp_jax.jobs import analyse, evaluate
from tests.support.small_run import settings

WORLD = load_clip("world")
WORD = "red"
LONGEST = "the last name"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  """Two sets of two classes; the last name of the second has three words."""
  root = tmp_path_factory.mktemp("sets")
  for folder in ("short/star", "short/ring", "long/star", f"long/{LONGEST}"):
    (root / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / folder / "0.png")
  return root


@pytest.fixture(scope="module")
def encoder():
  return Encoder(WORLD, chunk=8)


def config_for(sets, prompts, templates=(), **changes):
  """The template is the second set's alone."""
  own = (
    {"name": "short", "root": str(sets / "short")},
    {"name": "long", "root": str(sets / "long"), **({"templates": templates} if templates else {})},
  )
  config = settings(**{"job": "evaluate", "clip.model": "world", "clip.chunk": 16, **changes})
  return config.replace({"evaluate.own_sets": own, "evaluate.prompts": prompts})


def with_tokens(n):
  """A template that with the longest name has n tokens, EOT included."""
  words = 1
  while _tokens(template := f"{WORD} " * words + "{}") < n:
    words += 1
  assert _tokens(template) == n
  return template


def _tokens(template):
  return len(WORLD.tokenizer(template.format(LONGEST))["input_ids"]) - 1


def prompt_of(tmp_path, n_vectors):
  file = tmp_path / f"{n_vectors}.npz"
  save_prompt(file, Prompt(np.zeros((n_vectors, WORLD.text_width), np.float32), "world"))
  return str(file)


@pytest.mark.parametrize("kind", ["template", "hand_written", "ensemble", "prompt"])
def test_the_last_set_is_checked_before_anything_is_written(sets, encoder, tmp_path, kind):
  n_vectors = WORLD.positions - 1 - _tokens("{}.")

  def config(excess):
    template = with_tokens(WORLD.positions - 1 + excess)
    if kind == "prompt":
      return config_for(sets, (prompt_of(tmp_path, n_vectors + excess),))
    if kind == "template":
      return config_for(sets, (template,))
    return config_for(sets, (kind,), ["a {}.", template] if kind == "ensemble" else [template])

  fits = config(0)
  evaluate.check(fits, str(tmp_path / "run"))
  # What `check` takes, the text tower takes.
  prompts = read_prompts(fits.evaluate.prompts, "evaluate.prompts")
  for item in evaluation_sets(fits, WORLD.image_size):
    features_under(encoder, item.open().classes, prompts[0].prompt)
  for job, config_of_job in (
    (evaluate, config(1)),
    (analyse, config(1).replace({"analyse.prompts": config(1).evaluate.prompts})),
  ):
    with pytest.raises(TokenizeError, match="set long: .* tokens with EOT") as error:
      job.check(config_of_job, str(tmp_path / "run"))
    assert error.value.status == 2 and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()
