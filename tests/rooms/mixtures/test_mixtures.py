"""Mixtures of class vectors, sentences about classes, WaffleCLIP: against NumPy and
HuggingFace."""

import dataclasses
import json
import logging

import numpy as np
from PIL import Image
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score
import torch

from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import ClassList, VocabularyError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.classifier import Classifier, open_prompt
from pomp_jax.evaluate.named_prompts import describe, of_one_list, read_prompts
from pomp_jax.evaluate.sets_to_evaluate import sets_to_evaluate
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.prompt_file import PromptFileError, save_prompt
from pomp_jax.rooms.mixtures import weights
from pomp_jax.rooms.mixtures.prompts import Mixture
from pomp_jax.rooms.mixtures.weights import Weights, grid
from tests.support.clips import pooled, words_as_prompt
from tests.support.oracles import unit
from tests.support.small_run import run_job, small_config

FIELD = "evaluate.prompts"
CLASSES = ClassList(
  ("cat", "grey_wolf", "Sea star"), template="a {}.", ensemble=("a {}", "one {}")
)
NAMES = ("cat", "grey wolf", "Sea star")


@pytest.fixture
def spoken(clip_and_torch):
  """Function: unit features of texts by HuggingFace, cut as its tokenizer cuts them."""
  clip, model = clip_and_torch

  def features(texts):
    given = {
      "return_tensors": "pt",
      "padding": True,
      "truncation": True,
      "max_length": 77,
    }
    with torch.no_grad():
      return unit(
        pooled(model.get_text_features(**clip.tokenizer(list(texts), **given))).numpy()
      )

  return features


@pytest.fixture
def folder(tmp_path, monkeypatch, clip_and_torch):
  """The working directory, with the run of a prompt whose context is words."""
  (tmp_path / "runs" / "x").mkdir(parents=True)
  save_prompt(
    tmp_path / "runs" / "x" / "prompt.npz", words_as_prompt(clip_and_torch[0], "the")
  )
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write(path, content):
  path.write_text(json.dumps(content))
  return str(path)


def under(encoder, name):
  (named,) = read_prompts([name], FIELD)
  return features_under(encoder, CLASSES, named.prompt)


def test_a_mixture_is_the_weighted_sum_with_unit_rows(folder, encoder, spoken):
  the, a, one = (
    spoken(text.format(name) for name in NAMES)
    for text in ("the {}.", "a {}", "one {}")
  )
  ensemble = unit(a + one)
  for name, expected in {
    "0.5*runs/x + 0.5*ensemble": the + ensemble,
    "3 * runs/x + 1*one {}": 3 * the + one,
    "1*runs/x + 2*ensemble + .5*a {}": the + 2 * ensemble + 0.5 * a,
  }.items():
    np.testing.assert_allclose(under(encoder, name), unit(expected), atol=1e-5)
  (named,) = read_prompts(["3*runs/x + 1*a {}"], FIELD)
  assert named.label == "3*runs/x + 1*a {}" and named.prompt.weights == (0.75, 0.25)
  classified = Classifier(encoder, "3*runs/x + 1*one {}", NAMES).class_features
  np.testing.assert_allclose(classified, unit(3 * the + one), atol=1e-5)


def test_the_key_of_a_mixture_has_all_that_its_features_depend_on():
  """`describe` is part of the keys under which results are found again."""
  names = [
    "0.5*a {} + 0.5*the {}",
    "0.25*a {} + 0.75*the {}",
    "0.75*a {} + 0.25*the {}",
  ]
  names += [
    "0.25*the {} + 0.75*a {}",
    "0.25*a {} + 0.75*one {}",
    "0.25*ensemble + 0.75*the {}",
  ]
  names += ["0.25*a {} + 0.5*the {} + 0.25*the {}"]
  prompts = [named.prompt for named in read_prompts(names, FIELD)]
  keys = [tuple(describe(prompt, CLASSES)) for prompt in prompts]
  assert len(set(keys)) == len(names)
  # What is no part of the features is no part of the key.
  (same,) = read_prompts(["1*a {} + 3*the {}"], FIELD)
  assert tuple(describe(same.prompt, CLASSES)) == keys[1]
  others = dataclasses.replace(CLASSES, ensemble=("a {}",))
  assert tuple(describe(prompts[5], others)) != keys[5]
  # The same texts in the same order, of other parts.
  first, second = read_prompts(["1*ensemble + 1*the {}", "1*a {} + 1*ensemble"], FIELD)
  others = dataclasses.replace(CLASSES, ensemble=("one {}", "the {}"))
  assert describe(first.prompt, CLASSES) != describe(second.prompt, others)


def test_the_key_of_chosen_weights_has_their_images_and_classes(encoder):
  (chosen,) = prompts = read_prompts(["a {} + the {}"], FIELD, chosen=True)
  config = small_config(**{"data.n_classes": 12})
  key = lambda prompts=prompts, **changes: Weights(
    prompts, config.clip, (own := config.replace(changes)).data, own.eval
  ).key(encoder)
  found = [key(), key(**{"eval.images": 32}), key(**{"data.n_classes": 9})]
  found.append(key(**{"eval.template": "the {}."}))
  assert len(set(map(tuple, found))) == 4 and key() == found[0]
  given = read_prompts(["1*a {} + 1*the {}"], FIELD)
  assert key(given) == [] != key([chosen, *given])


@pytest.mark.parametrize(
  ("one", "other", "share"),
  [
    ("1e308", "1e308", 0.5),
    ("1e308", "1e-308", 1),
    ("5e-324", "5e-324", 0.5),
    ("0.3", "0.4", 3 / 7),
  ],
)
def test_weights_of_any_size_are_shares(folder, encoder, one, other, share):
  name = f"{one}*runs/x + {other}*a {{}}"
  (named,) = read_prompts([name], FIELD)
  assert named.prompt.weights == pytest.approx((share, 1 - share), rel=1e-15)
  expected = unit(
    share * under(encoder, "runs/x") + (1 - share) * under(encoder, "a {}")
  )
  np.testing.assert_allclose(under(encoder, name), expected, atol=1e-6)


def test_a_text_stays_a_text(folder):
  for text in ("a cat + a {}", "2*3 {}", "0.5*a {}", "a * b + {}", "x + 0.5*{}"):
    assert read_prompts([text], FIELD)[0].prompt == text
  for mixture in ("runs/x + a {}", "the {} + a {}"):
    assert isinstance(read_prompts([mixture], FIELD, chosen=True)[0].prompt, Mixture)


@pytest.mark.parametrize(
  ("name", "part"),
  [
    ("runs/x + a {}", "positive"),
    ("0.5*runs/x + a {}", "positive"),
    ("0*runs/x + 1*a {}", "positive"),
    ("nan*runs/x + 1*a {}", "positive"),
    ("0.5*runs/y + 1*a {}", "'runs/y', expected one or more of"),
    ("1*a cat + 1*a {}", "'a cat', expected"),
  ],
)
def test_a_mixture_that_can_t_be_read(folder, name, part):
  for read in (read_prompts, lambda names, field: open_prompt(names[0], field)):
    with pytest.raises(
      (ConfigError, PromptFileError), match=rf"^config\.{FIELD}: .*{part}.*$"
    ):
      read([name], FIELD)


def test_the_weight_is_chosen_on_validation_images(tmp_path, caplog, monkeypatch):
  """By NumPy, on a grid with both ends; said in the log, in the results and in the
  report."""
  texts = "a photo of a {}.", "no {} but red"
  prompts = " + ".join(texts), "0.25*ensemble + 0.75*hand_written"
  fields = {
    "evaluate.prompts": prompts,
    "evaluate.suite": "none",
    "data.n_classes": 150,
  }
  config = small_config(job="evaluate", **fields)

  def uneven(*arguments, **keywords):
    """Five images of each of the first ten classes."""
    images = split_features(*arguments, **keywords)
    rows = np.r_[
      np.arange(len(images.labels)), np.tile(np.flatnonzero(images.labels < 10), 4)
    ]
    return images._replace(labels=images.labels[rows], features=images.features[rows])

  monkeypatch.setattr(weights, "split_features", uneven)
  with caplog.at_level(logging.INFO):
    results = run_job(config, tmp_path / "run")
  encoder = opening.open_encoder(config.clip)

  def answers(source, weight, split_features=split_features):
    own = [weight * encoder.class_features(source.names, texts[0])]
    own.append((1 - weight) * encoder.class_features(source.names, texts[1]))
    images = split_features(encoder, source)
    return images.labels, (images.features @ unit(sum(own)).T).argmax(-1)

  source = opening.open_source(config.data, "validation", n_images=config.eval.images)
  found = {
    n / 10: balanced_accuracy_score(*answers(source, n / 10, uneven)) for n in range(11)
  }
  assert len(set(grid(3))) == 15 and set(map(tuple, np.eye(3).tolist())) <= set(grid(3))
  chosen, given = results["prompts"]
  weight, best = chosen["weights"][0], max(found.values())
  assert {row[0][0]: row[1] for row in chosen["grid"]} == pytest.approx(found)
  # Of equally good weights the one nearest to the mean.
  nearest = min(abs(one - 0.5) for one, share in found.items() if share == best)
  assert found[weight] == best > min(found.values()) and abs(weight - 0.5) == nearest
  assert best != pytest.approx(
    accuracy_score(*answers(source, weight, uneven)), abs=1e-6
  )
  assert (chosen["validation_images"], chosen["validation_classes"]) == (
    len(source) + 40,
    150,
  )
  assert given["weights"] == (0.25, 0.75)
  ends = f"(its parts alone {100 * found[1.0]:.1f}%, {100 * found[0.0]:.1f}%)"
  assert ends in chosen["note"] and f"top-1 {100 * best:.1f}%" in chosen["note"]
  assert ends in caplog.text and ends in (tmp_path / "run" / "results.md").read_text()
  for item in sets_to_evaluate(config.evaluate, config.data, config.eval):
    figures = results["sets"][item.name]["prompts"][prompts[0]]
    assert figures["top1"] == pytest.approx(
      accuracy_score(*answers(item.open().source, weight))
    )
  monkeypatch.setattr(Weights, "choose", None)  # a finished run chooses nothing
  assert run_job(config, tmp_path / "run")["prompts"][0]["weights"] == list(
    chosen["weights"]
  )


def test_jobs_of_one_prompt_take_a_mixture(tmp_path):
  """Of texts, a file of sentences among them; `predict` and `export` on the world."""
  names, mixture = ("red star", "teal leaf"), "1*a {}. + 3*sentences.json"
  mixture = mixture.replace("sen", f"{tmp_path}/sen")
  write(
    tmp_path / "sentences.json", {name: [f"{name} on white", name] for name in names}
  )
  (tmp_path / "names.txt").write_text("\n".join(names))
  (tmp_path / "new").mkdir()
  rows = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(rows).save(tmp_path / "new" / "a.png")
  listed = {"names": str(tmp_path / "names.txt"), "prompt": mixture}
  own = {f"predict.{name}": value for name, value in listed.items()}
  own |= {f"export.{name}": value for name, value in listed.items()}
  own |= {"predict.images": str(tmp_path / "new"), "export.format": "detic"}
  run_job(small_config(job="export", **own), tmp_path / "features")
  results = run_job(small_config(job="predict", **own), tmp_path / "names")
  encoder = opening.open_encoder(small_config().clip)
  texts = [(f"a {name}.", f"{name} on white", name) for name in names]
  three = unit(encoder.class_features([x for own in texts for x in own], "{}")).reshape(
    2, 3, -1
  )
  expected = unit(three[:, 0] + 3 * unit(three[:, 1] + three[:, 2]))
  written = np.load(tmp_path / "features" / "class_features.npy").astype(np.float32)
  np.testing.assert_allclose(written, expected, atol=1e-3)
  logits = encoder.clip.logit_scale * encoder.image_features(rows[None])[0] @ expected.T
  [found] = results["images"].values()
  probability = {row["name"]: row["probability"] for row in found}
  assert [probability[name] for name in names] == pytest.approx(
    softmax(logits), abs=1e-4
  )


def test_no_weight_is_chosen_without_validation_images(monkeypatch):
  prompts = read_prompts(["a {} + the {}"], FIELD, chosen=True)
  config = small_config()
  given = config.data, config.eval
  Weights(prompts, config.clip, *given)
  other = dataclasses.replace(config.clip, model="openai/clip-vit-base-patch32")
  with pytest.raises(ConfigError, match="expected weights, such as"):
    Weights(prompts, other, *given)
  monkeypatch.setattr(opening, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match="expected weights, such as"):
    Weights(prompts, config.clip, *given)


def test_sentences_about_classes(tmp_path, encoder, spoken):
  """As CuPL's `zeroshot_classifier_gpt`: cut, normalised, averaged, normalised."""
  long = " ".join(["very"] * 90)
  sentences = {
    "Cat": ["It purrs.", f"A {long} cat"],
    "grey wolf": ["a wolf"],
    "sea_star": list("abc"),
  }
  path = write(tmp_path / "cupl.json", sentences | {"other": ["unused"], "none": []})
  expected = unit(np.stack([spoken(texts).mean(0) for texts in sentences.values()]))
  np.testing.assert_allclose(under(encoder, path), expected, atol=1e-5)
  (named,) = read_prompts([path], FIELD)
  assert of_one_list(named.prompt)
  with pytest.raises(
    PromptFileError, match=r"^\S*cupl\.json: 2 of 3 classes have no .*: none, ox$"
  ):
    Classifier(encoder, path, ["cat", "none", "ox"])


@pytest.mark.parametrize(
  ("content", "error", "part"),
  [
    ([1], PromptFileError, "no JSON object"),
    ({"cat": "It purrs."}, PromptFileError, "'cat' is no list of texts"),
    ({"cat": ["It purrs.", 1]}, PromptFileError, "'cat' is no list of texts"),
    ({"cat": ["It purrs.", " "]}, VocabularyError, "name 2"),
  ],
)
def test_a_file_of_no_sentences(tmp_path, content, error, part):
  with pytest.raises(error, match=rf"^\S*a\.json[^\n]*{part}"):
    read_prompts([write(tmp_path / "a.json", content)], FIELD)


def published_waffle(seed, key_list, word_list, character_list):
  """Descriptions of the class that all get, one call a draw.

  github.com/ExplainableML/WaffleCLIP, waffle_tools.py, `load_gpt_descriptions`, mode
  "waffle".
  """
  rng = np.random.RandomState(seed)  # as the global generator after `seed_everything`
  word_length = int(
    np.round(np.mean([np.mean([len(y) for y in x.split(" ")]) for x in key_list]))
  )
  n_words = int(np.max([np.round(np.mean([len(x.split(" ")) for x in key_list])), 1]))
  spaces = (
    int(np.round(np.mean([np.sum(np.array(list(x)) == " ") for x in key_list]))) + 1
  )
  letters = int(
    np.ceil(np.mean([np.max([len(y) for y in x.split(" ")]) for x in key_list]))
  )
  letters += spaces - letters % spaces
  pick = lambda items: str(rng.choice(items, 1, replace=False)[0])
  of_class = {}
  for key in key_list:
    of_class[key] = []
    for _ in range(15):
      of_class[key].append(
        " ".join([pick([x[:word_length] for x in word_list]) for _ in range(n_words)])
      )
      runs = []
      for _ in range(spaces):
        runs.append("".join([pick(character_list) for _ in range(letters // spaces)]))
      of_class[key].append(", ".join(runs))
  return of_class[str(rng.choice(key_list))]


def test_waffle_draws_as_the_published_code(tmp_path, encoder, spoken):
  words = [
    "an oak",
    "used",
    "hasty",
    "typically",
    "canned",
    "mayor",
    "often",
    "bright",
    "round",
  ]
  path = write(tmp_path / "words.json", {"words": words, "characters": "abcdefu"})
  starts = {"a": "is ", "h": "", "t": "", "u": "is ", "c": "", "m": "", "o": ""}
  for seed in (0, 3):
    drawn = published_waffle(seed, NAMES, words, np.array(list("abcdefu")))
    texts = describe(read_prompts([f"waffle:{seed}:{path}"], FIELD)[0].prompt, CLASSES)
    for text, own in zip(texts, drawn, strict=True):
      assert text.startswith("A photo of a {}, which ") and text.endswith(f" {own}.")
      is_known = own.startswith(
        ("a", "has", "often", "typically", "may", "can", "used")
      )
      verb = starts[own[0]] if is_known else "has "
      assert text == f"A photo of a {{}}, which {verb}{own}."
    expected = unit(sum(spoken(text.format(name) for name in NAMES) for text in texts))
    np.testing.assert_allclose(
      under(encoder, f"waffle:{seed}:{path}"), expected, atol=1e-5
    )
  defaults = read_prompts(["waffle", "waffle:0", "waffle:1"], FIELD)
  defaults = [describe(named.prompt, CLASSES) for named in defaults]
  assert defaults[0] == defaults[1] != defaults[2] and len(set(defaults[0])) > 25
  with pytest.raises(PromptFileError, match=r"bad\.json: words is no list of texts"):
    read_prompts([f"waffle:1:{write(tmp_path / 'bad.json', {'words': ['{}']})}"], FIELD)
