"""Texts for class vectors: a file of sentences about each class, and WaffleCLIP's
random words.

Both are prompts by name; `prompts` reads them. Shapes: N classes, S sentences, E
embedding.
"""

from collections.abc import Mapping, Sequence
import functools
import re

from jaxtyping import Float
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.data.class_lists import (
  ClassList,
  check_names,
  load_class_list,
  normalized_name,
)
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import OtherPrompt
from pomp_jax.files.paths import read_user_json
from pomp_jax.files.prompt_file import PromptFileError, refuse
from pomp_jax.files.terminal import printable, quoted, steps_of

# The seed, and a file, JSON with `words`, a list, and `characters`.
_WAFFLE = re.compile(r"waffle(?::(\d{1,9})(?::(.+))?)?")
_PAIRS = 15  # texts with words, and as many with characters
# How a text continues from the name to a random word that begins so; else with "which
# has".
_CONTINUED = {"a": "which is", "used": "which is"}
_CONTINUED |= dict.fromkeys(("has", "often", "typically", "may", "can"), "which")


class Descriptions(OtherPrompt):
  """Sentences about classes, `sentences` by their names in lower case."""

  of_one_list = True

  def __init__(self, path: str, sentences: Mapping[str, Sequence[str]]):
    self._path, self._sentences = path, sentences

  def features(self, encoder: Encoder, classes: ClassList) -> Float[np.ndarray, "N E"]:
    """Mean unit features of the sentences, normalised; long ones are cut, as in
    CuPL's code."""
    sentences = self.of(classes.names, self._path)
    starts = np.cumsum([0, *map(len, sentences[:-1])])
    features_SxE = encoder.class_features(
      [x for own in sentences for x in own], "{}", cut=True
    )
    sums_NxE = np.add.reduceat(features_SxE, starts, axis=0)
    return sums_NxE / np.linalg.norm(sums_NxE, axis=-1, keepdims=True)

  def check(
    self,
    label: str,
    synonyms: Sequence[Sequence[str]],
    clip_config: ClipConfig,
    clip_model: str,
  ) -> None:
    self.of([name for names in synonyms for name in names], label)

  def describe(self, classes: ClassList) -> list[str]:
    return [repr(self._sentences)]

  def of(self, names: Sequence[str], where: str) -> list[Sequence[str]]:
    """The sentences of each class; PromptFileError with the names that have none."""
    found = [self._sentences.get(_key(name), ()) for name in names]
    if missing := [name for name, own in zip(names, found, strict=True) if not own]:
      told = f"{len(missing)} of {len(names)} classes have no sentences"
      raise PromptFileError(f"{where}: {told}: {printable(', '.join(missing), 1000)}")
    return found


def _key(name: str) -> str:
  return normalized_name(name).casefold()  # CLIP's tokenizer ignores case


def read_descriptions(path: str) -> Descriptions:
  """Reads the JSON of CuPL (Pratt et al., 2023): an object of lists of sentences by
  class name."""
  content, found = read_user_json(path, PromptFileError), dict[str, list[str]]()
  if not isinstance(content, dict):
    refuse(
      path,
      "the file",
      "no JSON object",
      'sentences by class name, {"cat": ["It purrs."]}',
    )
  for name, texts in content.items():
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      refuse(path, quoted(name), "no list of texts", "a list of sentences")
    if texts:
      check_names(
        list(map(normalized_name, texts)), f"{path}, {quoted(name)}", distinct=False
      )
    found[_key(name)] = [*found.get(_key(name), ()), *texts]
  return Descriptions(path, found)


class Waffle(OtherPrompt):
  """WaffleCLIP's random words and characters behind a name: `waffle_texts` of the
  classes."""

  def __init__(self, name: str):
    """Reads the file of words that a name tells."""
    found = _WAFFLE.fullmatch(name)
    seed, file = found.groups() if found else (None, None)
    self._seed, (self._words, self._characters) = int(seed or 0), _words(file)

  def features(self, encoder: Encoder, classes: ClassList) -> Float[np.ndarray, "N E"]:
    texts = steps_of(self.describe(classes), "class features of texts", "texts")
    total_NxE = sum(
      encoder.class_features(classes.names, text, cut=True) for text in texts
    )
    return total_NxE / np.linalg.norm(total_NxE, axis=-1, keepdims=True)

  def describe(self, classes: ClassList) -> list[str]:
    return list(waffle_texts(self._seed, self._words, self._characters, classes.names))


def is_waffle(name: str) -> bool:
  """Whether a prompt's name is `waffle`, `waffle:SEED` or `waffle:SEED:FILE`."""
  return _WAFFLE.fullmatch(name) is not None


@functools.cache
def waffle_texts(
  seed: int,
  words: tuple[str, ...],
  characters: tuple[str, ...],
  classes: tuple[str, ...],
) -> tuple[str, ...]:
  """Draws WaffleCLIP's texts (Roth et al., 2023), the same for all classes, as its code
  does.

  Mode `waffle` of `load_gpt_descriptions` with the repetition `seed`: texts of random
  words and of random characters, of the mean number and length of words in the names.
  """
  rng = np.random.RandomState(seed)
  names = [normalized_name(name).split(" ") for name in classes]
  lengths = [[len(word) for word in own] for own in names]
  # Means of N numbers, rounded as there.
  n_words = max(round(np.mean([len(own) for own in names])), 1)
  n_runs = round(np.mean([len(own) - 1 for own in names])) + 1
  n_letters = int(np.ceil(np.mean([max(own) for own in lengths])))
  n_letters = (n_letters + n_runs - n_letters % n_runs) // n_runs
  n_kept = round(np.mean([np.mean(own) for own in lengths]))
  cut = [word[:n_kept] for word in words]
  # `choice` without replacement draws so too, but checks more.
  draw = lambda items: items[rng.permutation(len(items))[0]]
  drawn = []
  # All classes draw, and one of them gives its own to all.
  for _ in range(len(names) * _PAIRS):
    drawn.append(" ".join(draw(cut) for _ in range(n_words)))
    runs = ("".join(draw(characters) for _ in range(n_letters)) for _ in range(n_runs))
    drawn.append(", ".join(runs))
  first = 2 * _PAIRS * rng.choice(len(names))
  own = drawn[first : first + 2 * _PAIRS]
  verbs = [
    next(
      (verb for start, verb in _CONTINUED.items() if x.startswith(start)), "which has"
    )
    for x in own
  ]
  return tuple(
    f"A photo of a {{}}, {verb} {x}." for verb, x in zip(verbs, own, strict=True)
  )


def _words(path: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Words and characters to draw from: a file's JSON, or those of ImageNet-1K's
  names."""
  if path is None:
    words = sorted(
      {word for name in load_class_list("imagenet1k").names for word in name.split()}
    )
    return tuple(words), tuple(sorted(set("".join(words))))
  content = read_user_json(path, PromptFileError)
  content = content if isinstance(content, dict) else {}
  for field in ("words", "characters"):
    texts = content.get(field)
    is_list = isinstance(texts, list | str) and all(
      isinstance(text, str) for text in texts
    )
    if not is_list or not texts or "{" in "".join(texts) or "}" in "".join(texts):
      refuse(
        path,
        field,
        "no list of texts",
        'JSON as {"words": ["oak"], "characters": "ako"}',
      )
  return tuple(content["words"]), tuple(content["characters"])
