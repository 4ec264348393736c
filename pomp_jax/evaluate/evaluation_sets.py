"""Data sets of an evaluation: a suite's, named ones, a user's own, or that of
`config.data`."""

from collections.abc import Callable, Mapping, Sequence
import functools
import logging
import os
from typing import NamedTuple

from pomp_jax import hosts
from pomp_jax.config import SOURCES
from pomp_jax.config.fields import Data, Eval, Evaluate
from pomp_jax.data.class_lists import ClassList, VocabularyError, repeats
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import even_sample
from pomp_jax.evaluate import opening
from pomp_jax.hooks import NAMED_SETS
from pomp_jax.report.evaluation_report import OWN

log = logging.getLogger(__name__)

_PARTS = ("base", "new", "novel")
# Errors of sets that can't be opened; an invalid config raises ConfigError.
_MISSING = (SourceError, VocabularyError)


# Opens a split of the images of `config.data`, which the second argument names.
OfSplit = Callable[[str, str], LabelledSet]


class EvaluationSet(NamedTuple):
  """A data set, or a part of its classes, to evaluate."""

  name: str  # such as "dtd", or "dtd/base" for a part of its classes
  group: str  # table of the set, see `evaluation_report.group_of`
  column: str  # heading in that table
  part: str  # all, or the part of the classes: base, new (CoOp's half) or novel
  open: Callable[[], LabelledSet]  # opens the class list and the images; reads none
  reader: str = ""  # one of `config.READERS`; "" for the embedded world
  # classes of its packaged list, of which it may hold some; 0: those of the set
  n_listed: int = 0


def evaluation_sets(
  settings: Evaluate, data: Data, evaluation: Eval
) -> list[EvaluationSet]:
  """Data sets of `config.evaluate`, unopened.

  ConfigError for an unknown set, or no folder for it; SourceError for an unusable file
  of sets.
  """
  n_images = settings.images or evaluation.images
  of_split = functools.partial(_open_split, data, evaluation.template, n_images)
  sets = []
  if NAMED_SETS:
    sets = NAMED_SETS.open().evaluation_sets(settings, data.source, of_split)
  sets = sets or _of_data(data, of_split)
  for index in repeats(file_name(item.name) for item in sets):
    raise SourceError(f"config.evaluate: two sets are named {sets[index].name!r}")

  def opened(item: EvaluationSet) -> LabelledSet:
    labelled = item.open()
    source = labelled.source
    if not isinstance(source, StoredImages):
      return labelled
    if settings.images:
      source = source.subset(even_sample(source.labels, source.keys, settings.images))
    return labelled._replace(source=source.replace(upright=data.upright))

  return [item._replace(open=functools.partial(opened, item)) for item in sets]


def open_each(
  items: Sequence[EvaluationSet], skip_missing: bool
) -> tuple[dict[str, LabelledSet], dict[str, str]]:
  """Opens every set, so that all missing ones are listed before anything is computed.

  Returns the sets by name, and the reason for each missing one if `skip_missing` and
  any set is left. Otherwise raises the reason, or of several the names, after a log
  line for each.
  """
  opened, missing = {}, {}
  for item in items:
    try:
      opened[item.name] = item.open()
    except _MISSING as error:
      missing[item.name] = error
  if len(missing) == 1 and not skip_missing:
    raise missing.popitem()[1]
  if missing and not (skip_missing and opened):
    _log_missing(missing)
    hint = "; evaluate.skip_missing=true evaluates the others" if opened else ""
    failed = f"{len(missing)} of {len(items)} sets can't be opened"
    raise SourceError(f"{failed}: {', '.join(missing)}{hint}")
  return opened, {name: str(error) for name, error in missing.items()}


def open_everywhere(
  items: Sequence[EvaluationSet], skip_missing: bool
) -> tuple[dict[str, LabelledSet], dict[str, str]]:
  """Applies `open_each` in every process; all skip, and log, the sets that the first
  one misses.

  SourceError also if this process misses a set that the first one has.
  """
  opened, missing = open_each(items, skip_missing)
  of_first = hosts.from_first(missing, "which sets are missing")
  _log_missing(of_first)
  for name, reason in missing.items():
    if name not in of_first:
      raise SourceError(f"{reason} (on the first host it is there)")
  return {name: opened[name] for name in opened if name not in of_first}, of_first


def _log_missing(reasons: Mapping[str, object]) -> None:
  for name, reason in reasons.items():
    log.warning("missing: %s: %s", name, reason)


def file_name(name: str) -> str:
  """File name of a set, without suffix."""
  return name.replace("/", "-")


def _of_data(data: Data, of_split: OfSplit) -> list[EvaluationSet]:
  """Splits on which a training with this config evaluates its prompt."""
  splits = opening.evaluation_splits(data)
  if not SOURCES[data.source].stored:
    return [
      EvaluationSet(
        name, data.source, name, "all", functools.partial(of_split, name, "test")
      )
      for name in splits
    ]
  # A folder is named by the last part of its path. Names of tfds may end with a
  # version.
  name = data.dataset or os.path.basename(os.path.abspath(data.root)) or data.source
  name, sets = name.replace("/", "-"), []
  for split in splits:
    # "test", "base", or "validation/base": images, and part of the classes.
    images, _, part = split.rpartition("/")
    images, part = (images or "test", part) if part in _PARTS else (split, "all")
    opened = functools.partial(of_split, split, images)
    sets.append(EvaluationSet(f"{name}/{split}", OWN, name, part, opened, data.source))
  return sets


def _open_split(
  data: Data, template: str, n_images: int, split: str, images: str
) -> LabelledSet:
  """Opens a split of `config.data`, stored images whole; `images` are those that it
  is made of."""
  stored = SOURCES[data.source].stored
  source = opening.open_source(data, split, n_images=0 if stored else n_images)
  return LabelledSet(
    source, ClassList(tuple(source.names), None, template, (template,)), images
  )
