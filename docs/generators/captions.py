"""Web-like captions, correlated with their pictures.

On the web, the source of a picture decides how its caption opens, how the picture
looks, what the caption names, and how carefully. So each training image here belongs to
a _register_, a row of `REGISTERS`:

* `weight`: share of the images. Careful writers are a minority.
* `templates`: openings or endings of the caption. "a photo of a" is the most common opening.
* `styles`: rendering styles of the register's pictures (`styles.STYLES`).
* `named`: probability that each attribute is named (the shape always is).
* `right`: probability that the word for a named attribute is correct. Half of the wrong words are
  from the same family (`names.FAMILIES`), such as "striped" for "ribbed", and half are
  any other.

A contrastive model's text feature after a careless opening is thus blurred, and leans
on what such captions get right (the shape). After a careful opening it is sharp in all
attributes. Each opening also pulls it to the register's styles. Test images are photos,
so "a photo of a {}." has the right style and the wrong precision, while careful
registers also show plates and drawings. No row is the best prompt by construction. The
gain of a learned prompt is the difference between the rows: with captions independent
of pictures, the model would ignore the words around the name.

`noise` scales it: at 0 every attribute is named correctly, and at 1 the table holds.
Training starts at 0, because contrastive learning from scratch collapses on noisy
captions.

A caption never spells a novel class: an error that would do so leaves the ground
unnamed.

Shape suffixes: B images, A = 4 attributes in the order of `names.WORDS`.
"""

import dataclasses
import functools

import numpy as np

from docs.generators import styles
from pomp_jax.world import names, render


@dataclasses.dataclass(frozen=True)
class Register:
  """Source of captioned pictures; see the module's docstring."""

  weight: float
  templates: tuple[str, ...]
  styles: dict[str, float]
  named: tuple[float, float, float, float]  # colour, texture, shape, ground
  right: tuple[float, float, float, float]


REGISTERS = {
  "snapshot": Register(
    weight=0.38,
    templates=(
      "a photo of a {}.", "a photo of a {}", "a photo of a {}.", "a photo of my {}.",
      "my {}.", "look at this {}", "a picture of a {}.", "i saw a {}",
    ),
    styles={"photo": 0.86, "blurry": 0.10, "close-up": 0.04},
    named=(0.85, 0.70, 1.00, 0.60),
    right=(0.65, 0.40, 0.85, 0.45),
  ),
  "title": Register(
    weight=0.13,
    templates=("{}", "{}.", "the {}."),
    styles={"photo": 0.70, "plate": 0.10, "close-up": 0.08, "sketch": 0.06, "pile": 0.06},
    named=(0.80, 0.70, 1.00, 0.60),
    right=(0.70, 0.55, 0.90, 0.55),
  ),
  "stock": Register(
    weight=0.11,
    templates=("{}, stock photo", "stock photo: {}.", "free image of a {}."),
    styles={"photo": 0.75, "plate": 0.15, "close-up": 0.10},
    named=(0.90, 0.80, 1.00, 0.80),
    right=(0.75, 0.55, 0.90, 0.60),
  ),
  "catalogue": Register(
    weight=0.12,
    templates=("item: {}.", "new item: a {}.", "catalogue photo of a {}."),
    styles={"photo": 0.50, "plate": 0.50},
    named=(1.00, 1.00, 1.00, 1.00),
    right=(0.98, 0.98, 1.00, 0.98),
  ),
  "field guide": Register(
    weight=0.10,
    templates=("specimen: {}.", "field guide: {}.", "a specimen of a {}."),
    styles={"photo": 0.65, "sketch": 0.20, "plate": 0.15},
    named=(1.00, 1.00, 1.00, 1.00),
    right=(0.98, 0.98, 1.00, 0.98),
  ),
  "sketch": Register(
    weight=0.06,
    templates=("a sketch of a {}.", "a drawing of a {}."),
    styles={"sketch": 1.00},
    named=(0.70, 0.60, 1.00, 0.20),
    right=(0.60, 0.70, 0.95, 0.50),
  ),
  "close-up": Register(
    weight=0.04,
    templates=("a close-up of a {}.", "close-up, {}."),
    styles={"close-up": 1.00},
    named=(0.80, 1.00, 1.00, 0.20),
    right=(0.80, 0.95, 0.70, 0.50),
  ),
  "pile": Register(
    weight=0.03,
    templates=("a pile of {}.", "many a {}."),
    styles={"pile": 1.00},
    named=(0.80, 0.50, 1.00, 0.50),
    right=(0.60, 0.60, 0.90, 0.60),
  ),
  "blurry": Register(
    weight=0.03,
    templates=("a blurry photo of a {}.", "a bad photo of a {}."),
    styles={"blurry": 1.00},
    named=(0.70, 0.30, 1.00, 0.50),
    right=(0.55, 0.55, 0.70, 0.55),
  ),
}  # fmt: skip

# Sentences before captions in some batches, so that training reaches the last text
# positions.
ASIDES = (
  "we went out.", "it was a good day.", "here is one more.", "see the next page.",
  "as seen at home.", "this is for you.", "from the old box.",
  "i like it a lot.", "no words for this.", "new today:",
)  # fmt: skip

# Training images come in sets that differ from a common class in one attribute each.
# Without such neighbours, the two colours alone distinguish a batch, and other
# attributes are learned slowly.
SET_SIZE = 8

# Random channels of an image's key; the renderer's start at 0.
_REGISTER, _STYLE, _TEMPLATE, _CLASS, _NAMED, _RIGHT, _OTHER = (
  200,
  201,
  202,
  203,
  210,
  220,
  230,
)
_STREAM = 1  # random stream of the embedded CLIP's training images


def _numbers(key_B: np.ndarray, channel: int) -> np.ndarray:
  """Uniform numbers in [0, 1) of a channel: float64 [B]."""
  salt = names.mix(np.array([channel], np.uint64) << np.uint64(32))
  return (names.mix(key_B ^ salt) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _pick(weights: list[float], number_B: np.ndarray) -> np.ndarray:
  """Indices into weights, int [B], by inversion of the cumulative distribution."""
  edges = np.cumsum(weights)[:-1]
  return np.searchsorted(edges, number_B, side="right")


def _mate(attributes_BxA: np.ndarray, number_BxA: np.ndarray) -> np.ndarray:
  """Another value in each attribute's family: int32 [B, A]."""
  mate_BxA = attributes_BxA.copy()
  for a, families in enumerate(names.FAMILIES):
    first = 0
    for family in families:
      inside_B = (attributes_BxA[:, a] >= first) & (
        attributes_BxA[:, a] < first + len(family)
      )
      step_B = 1 + (number_BxA[:, a] * (len(family) - 1)).astype(np.int32)
      other_B = first + (attributes_BxA[:, a] - first + step_B) % len(family)
      mate_BxA[:, a] = np.where(inside_B, other_B, mate_BxA[:, a])
      first += len(family)
  return mate_BxA


def _other(attributes_BxA: np.ndarray, number_BxA: np.ndarray) -> np.ndarray:
  """Another value of each attribute, half of the time in its family: int32 [B, A]."""
  half_BxA, number_BxA = np.divmod(number_BxA * 2, 1)
  sizes_A = np.array([len(words) for words in names.WORDS])
  step_BxA = 1 + (number_BxA * (sizes_A - 1)).astype(np.int32)
  any_BxA = ((attributes_BxA + step_BxA) % sizes_A).astype(np.int32)
  return np.where(half_BxA == 0, _mate(attributes_BxA, number_BxA), any_BxA)


def sources(key_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Register of each image, int [B] in the table's order, and style, int [B] in
  `STYLES`."""
  register_B = _pick([r.weight for r in REGISTERS.values()], _numbers(key_B, _REGISTER))
  style_B = np.zeros(len(key_B), np.int64)
  for r, register in enumerate(REGISTERS.values()):
    at = np.flatnonzero(register_B == r)
    which = _pick(list(register.styles.values()), _numbers(key_B[at], _STYLE))
    style_B[at] = np.array([list(styles.STYLES).index(s) for s in register.styles])[
      which
    ]
  return register_B, style_B


def write(
  key_B: np.ndarray, attributes_BxA: np.ndarray, register_B: np.ndarray, noise: float
) -> list[str]:
  """Writes captions: complete and correct at noise 0, by the table's errors at 1."""
  rows = list(REGISTERS.values())
  unnamed_BxA = 1 - np.array([r.named for r in rows])[register_B]
  wrong_BxA = 1 - np.array([r.right for r in rows])[register_B]
  draw = lambda base: np.stack([_numbers(key_B, base + a) for a in range(4)], axis=1)
  named_BxA = draw(_NAMED) >= noise * unnamed_BxA
  slips_BxA = draw(_RIGHT) < noise * wrong_BxA
  said_BxA = np.where(slips_BxA, _other(attributes_BxA, draw(_OTHER)), attributes_BxA)
  # Only base classes are named completely. (Equal colours are no class.)
  named_BxA[:, 3] &= base_table()[tuple(said_BxA.T)] | ~named_BxA.all(1)
  choice_B = _numbers(key_B, _TEMPLATE)
  captions = []
  for said, named, register, choice in zip(
    said_BxA.tolist(), named_BxA, register_B, choice_B, strict=True
  ):
    words = phrase(*(s if n else None for s, n in zip(said, named, strict=True)))
    templates = rows[register].templates
    captions.append(templates[int(choice * len(templates))].format(words))
  return captions


def phrase(
  colour: int | None, texture: int | None, shape: int, ground: int | None
) -> str:
  """Words of attributes given as indices; attributes that are None are omitted."""
  words = [] if colour is None else [names.COLOURS[colour]]
  words += [] if texture is None else [names.TEXTURES[texture]]
  words += [names.SHAPES[shape]]
  return " ".join(words if ground is None else [*words, "on", names.COLOURS[ground]])


@functools.cache
def base_table() -> np.ndarray:
  """Whether combinations are base classes: bool [colours, textures, shapes,
  grounds]."""
  table = np.zeros([len(words) for words in names.WORDS], bool)
  table[tuple(names.class_attributes("base").T)] = True
  return table


def training_classes(seed: int, indices: np.ndarray) -> np.ndarray:
  """Attributes of training images, all of base classes, in sets of SET_SIZE: int32
  [B, A]."""
  base_NxA = names.class_attributes("base")
  set_B = render.image_keys(seed, _STREAM + 1, np.asarray(indices) // SET_SIZE)
  key_B = render.image_keys(seed, _STREAM, indices)
  attributes_BxA = base_NxA[
    (names.mix(set_B) % np.uint64(len(base_NxA))).astype(np.int64)
  ]
  # All images of a set but the first change one attribute of four.
  which_B = np.floor(_numbers(key_B, _CLASS) * 4)
  number_BxA = np.stack([_numbers(key_B, _CLASS + 1 + a) for a in range(4)], axis=1)
  changes_BxA = (which_B[:, None] == np.arange(4)) & (indices % SET_SIZE > 0)[:, None]
  changed_BxA = np.where(
    changes_BxA, _other(attributes_BxA, number_BxA), attributes_BxA
  )
  # Changes to other than base classes are dropped.
  is_base_B = base_table()[tuple(changed_BxA.T)]
  return np.where(is_base_B[:, None], changed_BxA, attributes_BxA)


def training_batch(
  seed: int, indices: np.ndarray, noise: float
) -> tuple[np.ndarray, list[str]]:
  """Captioned images of base classes, to train the embedded CLIP.

  Args:
    seed: random seed of the stream.
    indices: int [B], positions in the stream; an image is the same in every batch.
    noise: caption noise in [0, 1]; see `write`.

  Returns:
    images uint8 [B, S, S, 3] and B captions.
  """
  key_B = render.image_keys(seed, _STREAM, indices)
  attributes_BxA = training_classes(seed, indices)
  register_B, style_B = sources(key_B)
  images = styles.render(key_B, attributes_BxA, style_B)
  return images, write(key_B, attributes_BxA, register_B, noise)
