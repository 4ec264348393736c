"""Texts for class vectors: a file of sentences about each class, and WaffleCLIP's
random words.

A prompt's name stands for either; `prompts` reads the name. Shapes: N classes, S
sentences, E embedding.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import re
from typing import Any, NamedTuple

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

# Optional in the name: a seed, and a JSON file with `words`, a list, and `characters`.
_WAFFLE = re.compile(r"waffle(?::(\d{1,9})(?::(.+))?)?")
_PAIRS = 15  # texts with words, and as many with characters
# Words between a class name and a random text, by the beginning of the random text. The
# default is "which has".
_CONTINUED = {"a": "which is", "used": "which is"}
_CONTINUED |= dict.fromkeys(("has", "often", "typically", "may", "can"), "which")


class Descriptions(OtherPrompt):
  """Sentences about classes; `sentences` has them by class name in lower case."""

  of_one_list = True

  def __init__(self, path: str, sentences: Mapping[str, Sequence[str]]):
    self._path = path
    self._sentences = sentences

  def features(self, encoder: Encoder, classes: ClassList) -> Float[np.ndarray, "N E"]:
    """Mean unit features of the sentences, normalised.

    Long sentences are cut, as in CuPL's code.
    """
    sentences = self.of(classes.names, self._path)
    starts = np.cumsum([0, *map(len, sentences[:-1])])
    flat = list(itertools.chain.from_iterable(sentences))
    features_SxE = encoder.class_features(flat, "{}", cut=True)
    sums_NxE = np.add.reduceat(features_SxE, starts, axis=0)
    return sums_NxE / np.linalg.norm(sums_NxE, axis=-1, keepdims=True)

  def check(
    self,
    label: str,
    synonyms: Sequence[Sequence[str]],
    clip_config: ClipConfig,
    clip_model: str,
  ) -> None:
    """Checks that all names have sentences, which fit any CLIP.

    Args:
      label: name of the prompt, for messages.
      synonyms: names of each class.
      clip_config: architecture of the CLIP.
      clip_model: name of the CLIP.

    Raises:
      PromptFileError: names have no sentences; the message lists these names.
    """
    self.of([name for names in synonyms for name in names], label)

  def describe(self, classes: ClassList) -> list[str]:
    return [repr(self._sentences)]

  def of(self, names: Sequence[str], where: str) -> list[Sequence[str]]:
    """The sentences of each name; PromptFileError if a name has none."""
    sentences = [self._sentences.get(_key(name), ()) for name in names]
    missing = [name for name, texts in zip(names, sentences, strict=True) if not texts]
    if missing:
      problem = f"{len(missing)} of {len(names)} classes have no sentences"
      raise PromptFileError(
        f"{where}: {problem}: {printable(', '.join(missing), 1000)}"
      )
    return sentences


def _key(name: str) -> str:
  return normalized_name(name).casefold()  # CLIP's tokenizer ignores case


def read_descriptions(path: str) -> Descriptions:
  """Reads the JSON of CuPL (Pratt et al., 2023): lists of sentences by class name.

  Raises:
    PromptFileError: the file is no such JSON.
  """
  content = read_user_json(path, PromptFileError)
  if not isinstance(content, dict):
    accepted = 'sentences by class name, {"cat": ["It purrs."]}'
    refuse(path, "the file", "no JSON object", accepted)
  sentences: dict[str, list[str]] = {}
  for name, texts in content.items():
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      refuse(path, quoted(name), "no list of texts", "a list of sentences")
    if texts:
      words = [normalized_name(text) for text in texts]
      check_names(words, f"{path}, {quoted(name)}", distinct=False)
    # Names that differ only in case are one class.
    sentences.setdefault(_key(name), []).extend(texts)
  return Descriptions(path, sentences)


class Waffle(OtherPrompt):
  """WaffleCLIP's random words and characters after the class name, see
  `waffle_texts`."""

  def __init__(self, name: str):
    """Reads the seed and the file of words from a name, see `is_waffle`."""
    match = _WAFFLE.fullmatch(name)
    seed = None
    file = None
    if match is not None:
      seed, file = match.groups()
    self._seed = int(seed or 0)
    self._words, self._characters = _words(file)

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


class _WaffleSizes(NamedTuple):
  """Sizes of WaffleCLIP's texts."""

  words: int  # number of words in a text of words
  letters_of_word: int  # longer words are cut to this length
  runs: int  # number of runs of characters in a text of characters
  letters_of_run: int


def _waffle_sizes(classes: Sequence[str]) -> _WaffleSizes:
  """Sizes from means over the class names, rounded as in WaffleCLIP's code."""
  n_words = []
  longest = []
  mean_lengths = []
  for name in classes:
    lengths = [len(word) for word in normalized_name(name).split(" ")]
    n_words.append(len(lengths))
    longest.append(max(lengths))
    mean_lengths.append(np.mean(lengths))
  n_spaces = [n - 1 for n in n_words]
  n_runs = round(np.mean(n_spaces)) + 1
  # The number of letters of all runs is raised to a multiple of the number of runs. A
  # number that is a multiple already is raised by one letter for each run.
  n_letters = int(np.ceil(np.mean(longest)))
  letters_of_run = (n_letters + n_runs - n_letters % n_runs) // n_runs
  return _WaffleSizes(
    words=max(round(np.mean(n_words)), 1),
    letters_of_word=round(np.mean(mean_lengths)),
    runs=n_runs,
    letters_of_run=letters_of_run,
  )


@functools.cache
def waffle_texts(
  seed: int,
  words: tuple[str, ...],
  characters: tuple[str, ...],
  classes: tuple[str, ...],
) -> tuple[str, ...]:
  """Draws WaffleCLIP's texts (Roth et al., 2023), the same for all classes.

  Follows the mode `waffle` of `load_gpt_descriptions` in WaffleCLIP's code. Texts have
  random words or random characters. The number and the length of words are means over
  the class names.

  Args:
    seed: random seed; the number of the repetition in WaffleCLIP's code.
    words: words to draw from.
    characters: characters to draw from.
    classes: names of the classes.

  Returns:
    2 * _PAIRS texts with a {} for the name, of words and of characters in turn.
  """
  sizes = _waffle_sizes(classes)
  short_words = [word[: sizes.letters_of_word] for word in words]
  rng = np.random.RandomState(seed)

  def draw(items: Sequence[str]) -> str:
    # The same draw as that of `rng.choice` without replacement, which checks more.
    return items[rng.permutation(len(items))[0]]

  # Draw texts for each class, then use the texts of one random class for all.
  texts = []
  for _ in range(len(classes) * _PAIRS):
    drawn_words = [draw(short_words) for _ in range(sizes.words)]
    texts.append(" ".join(drawn_words))
    runs = []
    for _ in range(sizes.runs):
      letters = [draw(characters) for _ in range(sizes.letters_of_run)]
      runs.append("".join(letters))
    texts.append(", ".join(runs))
  n_texts = 2 * _PAIRS
  first = n_texts * rng.choice(len(classes))
  texts_of_class = texts[first : first + n_texts]
  return tuple(f"A photo of a {{}}, {_verb(text)} {text}." for text in texts_of_class)


def _verb(text: str) -> str:
  """Words between a class name and a random text, by the beginning of the text."""
  for start, verb in _CONTINUED.items():
    if text.startswith(start):
      return verb
  return "which has"


def _words(path: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Words and characters to draw from, of a JSON file or of ImageNet-1K's names."""
  if path is None:
    names = load_class_list("imagenet1k").names
    words = sorted(set(" ".join(names).split()))
    characters = sorted(set("".join(words)))
    return tuple(words), tuple(characters)
  content = read_user_json(path, PromptFileError)
  if not isinstance(content, dict):
    content = {}
  for field in ("words", "characters"):
    if not _are_texts(content.get(field)):
      accepted = 'JSON as {"words": ["oak"], "characters": "ako"}'
      refuse(path, field, "no list of texts", accepted)
  return tuple(content["words"]), tuple(content["characters"])


def _are_texts(texts: Any) -> bool:
  """Whether a JSON value has texts to draw, without { and }: {} stands for the name."""
  if not isinstance(texts, list | str) or not texts:
    return False
  if not all(isinstance(text, str) for text in texts):
    return False
  joined = "".join(texts)
  return "{" not in joined and "}" not in joined
