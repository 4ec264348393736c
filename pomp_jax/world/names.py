"""The classes of the world: names that are compositions of four attributes.

A class is `<colour> <texture> <shape> on <ground>`, for example "teal striped crescent moon on sky
blue": the object's colour, the pattern on it, its outline, and the colour of what lies behind. The
two colours of a class always differ, so there are 12 x 12 x 17 x 11 = 26,928 classes. They fall
into two groups, for ever and on every machine:

* base: 21,841 classes, as many as ImageNet-21K's fall-2011 release. Prompts are learned on these.
* novel: the other 5,087. No caption of the tiny CLIP and no training image of a prompt ever shows
  or spells such a combination; each of their words occurs in base.

The split is the order of a 64-bit mix of the combination's number (SplitMix64's finaliser), which,
unlike a library's shuffle, cannot change with a version.

Attributes come in _families_: values that a careless writer takes for one another ("striped" and
"ribbed"). `captions` says who is careless, and how often.

Shape suffixes: N classes; A = 4 attributes, in the order of `ATTRIBUTES`.
"""

import functools

import numpy as np

ATTRIBUTES = ("colour", "texture", "shape", "ground")

# Each inner tuple is a family.
_COLOUR_FAMILIES = (
  ("red", "maroon"),
  ("orange", "yellow"),
  ("green", "olive"),
  ("teal", "sky blue"),
  ("navy", "purple"),
  ("gray", "white"),
)
_TEXTURE_FAMILIES = (
  ("plain", "shaded"),
  ("striped", "ribbed"),
  ("dotted", "spotted"),
  ("checkered", "plaid"),
  ("ringed", "swirled"),
  ("wavy", "zigzag"),
)
_SHAPE_FAMILIES = (
  ("disc", "hexagon"),
  ("ring", "crescent moon"),
  ("square", "house", "bell"),
  ("star", "flower"),
  ("cross", "lightning bolt"),
  ("heart", "leaf"),
  ("triangle", "arrow"),
  ("fish", "mushroom"),
)

COLOURS = sum(_COLOUR_FAMILIES, ())
TEXTURES = sum(_TEXTURE_FAMILIES, ())
SHAPES = sum(_SHAPE_FAMILIES, ())
WORDS = (COLOURS, TEXTURES, SHAPES, COLOURS)  # the words of each attribute, in ATTRIBUTES' order
FAMILIES = (_COLOUR_FAMILIES, _TEXTURE_FAMILIES, _SHAPE_FAMILIES, _COLOUR_FAMILIES)

N_BASE = 21_841
GROUPS = ("base", "novel", "all")

_SPLIT_SEED = np.uint64(0x504F4D50)  # "POMP"


def mix(values: np.ndarray) -> np.ndarray:
  """SplitMix64's finaliser, elementwise: uint64 to uint64, any shape. Spreads neighbours."""
  z = values + np.uint64(0x9E3779B97F4A7C15)
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


def phrase(colour: int | None, texture: int | None, shape: int, ground: int | None) -> str:
  """The words of a thing, its attributes given as indices; one that is None goes unnamed."""
  words = [] if colour is None else [COLOURS[colour]]
  if texture is not None:
    words.append(TEXTURES[texture])
  words.append(SHAPES[shape])
  if ground is not None:
    words += ["on", COLOURS[ground]]
  return " ".join(words)


@functools.cache
def _split() -> tuple[np.ndarray, np.ndarray]:
  grid = np.indices((len(COLOURS), len(TEXTURES), len(SHAPES), len(COLOURS))).reshape(4, -1).T
  attributes_NxA = grid[grid[:, 0] != grid[:, 3]].astype(np.int32)
  number_N = np.arange(len(attributes_NxA), dtype=np.uint64)
  order_N = np.argsort(mix(number_N ^ mix(_SPLIT_SEED[None])), kind="stable")
  # Sorted within the group, so that a class list reads in order.
  return attributes_NxA[np.sort(order_N[:N_BASE])], attributes_NxA[np.sort(order_N[N_BASE:])]


def class_attributes(group: str) -> np.ndarray:
  """Attribute indices of a group's classes.

  Args:
    group: "base", "novel", or "all" (base, then novel).

  Returns:
    int32 [N, A], indices into `WORDS`, in the order of `class_names(group)`.

  Raises:
    ValueError: no such group.
  """
  base_NxA, novel_NxA = _split()
  if group == "base":
    return base_NxA.copy()
  if group == "novel":
    return novel_NxA.copy()
  if group == "all":
    return np.concatenate([base_NxA, novel_NxA])
  raise ValueError(f"unknown group of classes {group!r}: it takes one of {', '.join(GROUPS)}")


@functools.cache
def class_names(group: str) -> tuple[str, ...]:
  """Names of a group's classes: "base", "novel", or "all" (base, then novel). ValueError: none."""
  return tuple(phrase(*attributes) for attributes in class_attributes(group).tolist())


@functools.cache
def base_table() -> np.ndarray:
  """bool [colours, textures, shapes, grounds]: which combinations are base classes."""
  table = np.zeros([len(words) for words in WORDS], bool)
  table[tuple(class_attributes("base").T)] = True
  return table
