"""The world's classes, such as "teal striped bell on sky blue".

A name is `<colour> <texture> <shape> on <ground>`, and the ground differs from the
colour. These are 12 x 12 x 17 x 11 = 26,928 classes, in two fixed groups. Prompts are
learned on the group base, 21,841 classes as in ImageNet-21K. The group novel is the
other 5,087 classes. No caption or training image of the embedded CLIP shows a novel
class, but each word of a novel name also occurs in base. Shapes: N classes, A = 4
attributes: colour, texture, shape and ground.
"""

import functools

import numpy as np

# Values of one family, between semicolons, are easily confused. Captions confuse them
# as often as docs/generators/captions.py says.
_COLOURS = (
  "red, maroon; orange, yellow; green, olive; teal, sky blue; navy, purple; gray, white"
)
_TEXTURES = (
  "plain, shaded; striped, ribbed; dotted, spotted; checkered, plaid; ringed, swirled;"
  " wavy, zigzag"
)
_SHAPES = (
  "disc, hexagon; ring, crescent moon; square, house, bell; star, flower; cross, lightning bolt;"
  " heart, leaf; triangle, arrow; fish, mushroom"
)
FAMILIES: tuple[tuple[tuple[str, ...], ...], ...] = tuple(
  tuple(tuple(family.split(", ")) for family in text.split("; "))
  for text in (_COLOURS, _TEXTURES, _SHAPES, _COLOURS)
)
WORDS = tuple(sum(families, ()) for families in FAMILIES)  # words of each attribute
COLOURS, TEXTURES, SHAPES, _ = WORDS

N_BASE = 21_841
GROUPS = ("base", "novel", "all")  # "all" is base followed by novel

_SPLIT_SEED = np.array([0x504F4D50], np.uint64)  # "POMP"


def mix(values: np.ndarray) -> np.ndarray:
  """Hashes uint64 to uint64, elementwise: SplitMix64's finaliser."""
  z = values + np.uint64(0x9E3779B97F4A7C15)
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


@functools.cache
def _split() -> tuple[np.ndarray, np.ndarray]:
  """Attributes of the base and of the novel classes: int32 [N, A]."""
  sides = (len(COLOURS), len(TEXTURES), len(SHAPES), len(COLOURS))
  grid = np.indices(sides).reshape(4, -1).T
  has_two_colours = grid[:, 0] != grid[:, 3]
  attributes_NxA = grid[has_two_colours].astype(np.int32)
  # Shuffle by a hash of each combination's number: a library's shuffle could change
  # with the library's version.
  number_N = np.arange(len(attributes_NxA), dtype=np.uint64)
  order_N = np.argsort(mix(number_N ^ mix(_SPLIT_SEED)), kind="stable")
  # Sort each group, so that class lists keep the order of the combinations.
  base = np.sort(order_N[:N_BASE])
  novel = np.sort(order_N[N_BASE:])
  return attributes_NxA[base], attributes_NxA[novel]


def class_attributes(group: str) -> np.ndarray:
  """Attributes of the classes in one of GROUPS: int32 [N, A], indices into `WORDS`."""
  if group == "all":
    return np.concatenate(_split())
  return _split()[GROUPS.index(group)]


@functools.cache
def class_names(group: str) -> tuple[str, ...]:
  """Names of a group's classes; see `class_attributes`."""
  return tuple(
    f"{COLOURS[colour]} {TEXTURES[texture]} {SHAPES[shape]} on {COLOURS[ground]}"
    for colour, texture, shape, ground in class_attributes(group).tolist()
  )
