"""Runs and cases of the fields of `analyse` and `gradient_bias`, see
`tests/rooms/test_each_field.py`."""

import pathlib

import numpy as np

from pomp_jax.config import Config
from pomp_jax.rooms.analysis import analyse, bias, geometry, gradient_bias
from tests.support.field_cases import EUROSAT, WORLD
from tests.support.recorded_calls import Calls, Case, check_and_run, clip_case

ANALYSED = EUROSAT | {
  "job": "analyse",
  "analyse.prompts": ("ROOT/a.npz",),
}
GRADIENTS = WORLD | {
  "job": "gradient_bias",
  "gradient_bias.k": (3,),
  "gradient_bias.images": 6,
  "gradient_bias.samplers": ("uniform",),
  "gradient_bias.corrections": ("log",),
}
# Of a prompt in front, with another tower and precision, as a part of a cache key.
GRADIENTS_KEY = "1 9 front reference bfloat16"
HARD_DRAWS = [("hard", 3), ("hard", 4)]


def analyse_prompts(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job analyse."""
  seen = calls.seen
  calls.open_encoder()
  calls.note_split(analyse, "split_features")
  calls.note(analyse, "check_prompts")
  calls.note(analyse, "open_everywhere")
  calls.note(analyse, "topk_accuracy", lambda *args, **kwargs: {"top1": 0.5})
  calls.note(geometry, "nearest_tokens")
  calls.skip(geometry, "token_spacing", "alignment_uniformity")
  calls.skip(analyse, "finish_run")
  results = check_and_run(config, folder)
  sets = results["sets"]
  seen["results"] = results
  seen["sets"] = list(sets)
  seen["prompts"] = [prompt["label"] for prompt in results["prompts"]]
  seen["images"] = [figures["images"] for figures in sets.values()]


def measure_gradients(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job gradient_bias; gradients are ones."""
  seen = calls.seen
  calls.open_encoder()
  calls.note(gradient_bias, "fingerprint")
  calls.note(gradient_bias, "SkippedImages")
  calls.note(gradient_bias, "memory_plan")
  calls.note(gradient_bias, "sampling_arrays")
  calls.note(gradient_bias, "PromptContext")

  def gradient_function(learner, settings, corrections):
    return corrections

  def draws_of(corrections, arguments, n_draws, seed):
    return np.ones((n_draws, len(corrections), 3))

  def readable_images(source, rows):
    return rows, {}

  calls.note(bias, "gradient_function", gradient_function)
  calls.note(bias, "draws_of", draws_of)
  calls.skip(bias, "gradient_bias_panels")
  calls.skip(gradient_bias, "finish_run")
  calls.patch.setattr(gradient_bias, "readable_images", readable_images)
  results = check_and_run(config, folder)
  # The first of these calls is for the exact gradient.
  contrasts = seen["gradient_function.settings*"][1:]
  seen["n_draws"] = seen["draws_of.n_draws*"][1:]
  seen["draws"] = [(contrast.sampling.name, contrast.k) for contrast in contrasts]
  seen["key"] = seen["fingerprint.parts*"][0][0]
  seen["cell"] = seen["fingerprint.parts"][1:]
  seen["logit_bias"] = contrasts[0].logit_bias
  for name, value in vars(contrasts[0].sampling).items():
    seen[f"sampling.{name}"] = value
  for name in ("images", "prompt", "n_classes"):
    seen[name] = results[name]


CASES = {
  "the CLIP of analyse": clip_case("analyse", {}),
  "the CLIP of gradient_bias": clip_case("gradient_bias", {}),
  "an analysis": Case(
    run=analyse_prompts,
    fields=ANALYSED,
    rows={
      "analyse.prompts": (
        ("ROOT/b.npz", "{}."),
        {
          "prompts": ["ROOT/b.npz", "{}."],
          "check_prompts.names": ("ROOT/b.npz", "{}."),
        },
      ),
      "analyse.top": (2, "nearest_tokens.top"),
      "evaluate.sets": (("dtd",), "sets", ["dtd"]),
      "evaluate.images": (2, "images", [2]),
      "data.upright": (True, "split_features.source.upright"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "an analysis of the sets that are there": Case(
    run=analyse_prompts,
    fields={"job": "analyse", "evaluate.sets_file": "ROOT/sets.toml"},
    rows={
      "evaluate.skip_missing": (True, "sets", ["mine"]),
    },
  ),
  "gradients": Case(
    run=measure_gradients,
    fields=GRADIENTS,
    rows={
      "gradient_bias.k": ((3, 4), "draws", HARD_DRAWS),
      "gradient_bias.samplers": (
        ("hard",),
        {"draws": HARD_DRAWS, "sampling_arrays.sampling.name": "hard"},
      ),
      "gradient_bias.corrections": (
        ("none", "sigmoid"),
        {
          "gradient_function.corrections": ("none", "sigmoid"),
          "cell": ["hard", "4 27", "none", "sigmoid"],
        },
      ),
      "gradient_bias.images": (8, "images"),
      "gradient_bias.rows": (330, "n_draws", [30, 27]),
      "logit_bias": (-9.0, "logit_bias"),
      "seed": (9, "draws_of.seed"),
      "prompt.m": (3, "PromptContext.n_vectors"),
      "prompt.position": ("front", "PromptContext.position"),
      "sampling.mix": (0.7, "sampling.mix"),
      "sampling.temperature": (0.7, "sampling.temperature"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
      "data.n_classes": (7, "n_classes"),
      "clip.memory_gib": (5.0, "memory_plan.clip.memory_gib"),
      "clip.text_tower": ("reference", "key", GRADIENTS_KEY),
      "clip.dtype": ("bfloat16", "key", GRADIENTS_KEY),
    },
  ),
  "gradients of a prompt": Case(
    run=measure_gradients,
    fields=GRADIENTS,
    rows={
      "gradient_bias.prompt": (
        "ROOT/b.npz",
        {"PromptContext.position": "front", "prompt": "ROOT/b.npz"},
      ),
    },
  ),
}
