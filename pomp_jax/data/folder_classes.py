"""Which classes the names of folders or labels mean: words, or WordNet ids."""

from collections.abc import Sequence

from pomp_jax.data.class_lists import (
  SYNSET,
  ClassList,
  load_class_list,
  normalized_name,
)
from pomp_jax.data.source import SourceError


def match_classes(
  found: Sequence[str], classes: ClassList, where: str, *, all_classes: bool = True
) -> dict[str, int]:
  """Maps each name that matches a class of the list to the index of that class.

  Names match by WordNet id or as words: underscores match spaces.

  Args:
    found: names of folders or labels.
    classes: class list.
    where: file or folder of the names, for messages.
    all_classes: whether every class needs a matching name.

  Raises:
    SourceError: a class is matched twice or missing, or nothing matches.
  """
  # Later entries win: a WordNet id over an exact name, an exact name over words.
  index_of = {normalized_name(name): index for index, name in enumerate(classes.names)}
  index_of |= {name: index for index, name in enumerate(classes.names)}
  index_of |= {synset: index for index, synset in enumerate(classes.synsets or ())}
  name_of: dict[int, str] = {}
  for name in found:
    index = index_of.get(name, index_of.get(normalized_name(name)))
    if index is None:
      continue
    if index in name_of:
      raise SourceError(f"{where}: {name_of[index]!r} and {name!r} are the same class")
    name_of[index] = name
  missing = [name for index, name in enumerate(classes.names) if index not in name_of]
  if missing and (all_classes or not name_of):
    lacks = (
      f"{len(missing)} of the list's {len(classes)} classes are missing,"
      f" such as {missing[0]!r}"
    )
    raise SourceError(f"{where}: {lacks} (found {len(found)}, such as {found[0]!r})")
  return {name: index for index, name in name_of.items()}


def classes_of(found: Sequence[str], where: str) -> ClassList:
  """Classes named after folders or labels.

  If all of `found` are WordNet ids, the classes get ImageNet-21K's names.
  """
  if not all(map(SYNSET.fullmatch, found)):
    return ClassList(tuple(found))
  every = load_class_list("imagenet21k")
  name_of = dict(zip(every.synsets or (), every.names, strict=True))
  for synset in found:
    if synset not in name_of:
      raise SourceError(f"{where}: {synset} is no class of ImageNet-21K")
  return ClassList(tuple(name_of[synset] for synset in found), tuple(found))
