"""Data sets of an evaluation: those of a suite, named sets, a user's own, or the data
of `config.data`."""

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
# Errors of a set that can't be opened. An invalid config raises ConfigError instead.
_MISSING = (SourceError, VocabularyError)


# Opens a split of `config.data`. Arguments: the split, such as "base", and the split
# that its images are from, such as "test".
OfSplit = Callable[[str, str], LabelledSet]


class EvaluationSet(NamedTuple):
  """A data set, or a part of its classes, to evaluate."""

  name: str  # such as "dtd", or "dtd/base" for a part of its classes
  group: str  # table of the set, see `evaluation_report.group_of`
  column: str  # heading in that table
  part: str  # all, or the part of the classes: base, new (CoOp's half) or novel
  open: Callable[[], LabelledSet]  # opens class list and images; reads no image
  reader: str = ""  # one of `config.READERS`; "" for the embedded world
  # number of classes in the set's packaged list, some of which the set may lack; 0: the
  # number of the set's own classes
  n_listed: int = 0


def sets_to_evaluate(
  settings: Evaluate, data: Data, evaluation: Eval
) -> list[EvaluationSet]:
  """Returns the data sets of `config.evaluate`, unopened.

  Args:
    settings: `config.evaluate`, which names the sets or a folder of them.
    data: `config.data`, whose splits are the sets if `settings` names none.
    evaluation: `config.eval`, with the template of classes and the number of images.

  Raises:
    ConfigError: a set is unknown, or its folder is not given.
    SourceError: the file of sets is unusable, or two sets have the same name.
  """
  n_images = settings.images or evaluation.images
  of_split = functools.partial(_open_split, data, evaluation.template, n_images)
  sets = []
  if NAMED_SETS:
    sets = NAMED_SETS.open().sets_to_evaluate(settings, data.source, of_split)
  if not sets:
    sets = _of_data(data, of_split)
  for index in repeats(file_name(item.name) for item in sets):
    raise SourceError(f"config.evaluate: two sets are named {sets[index].name!r}")
  return [
    item._replace(
      open=functools.partial(_open_sample, item, settings.images, data.upright)
    )
    for item in sets
  ]


def _open_sample(item: EvaluationSet, n_images: int, upright: bool) -> LabelledSet:
  """Opens a set with `n_images` of its stored images (0 for all).

  `upright` is whether stored images are turned as their EXIF orientation says.
  """
  labelled = item.open()
  source = labelled.source
  if not isinstance(source, StoredImages):
    return labelled
  if n_images:
    source = source.subset(even_sample(source.labels, source.keys, n_images))
  return labelled._replace(source=source.replace(upright=upright))


def open_each(
  items: Sequence[EvaluationSet], skip_missing: bool
) -> tuple[dict[str, LabelledSet], dict[str, str]]:
  """Opens every set, so that all missing ones are listed before anything is computed.

  Returns:
    The sets by name, and the reason for each missing set.

  Raises:
    SourceError: sets are missing without `skip_missing`, or all sets are missing. The
      reasons are logged, and the message has the names. If a single set is missing
      without `skip_missing`, its own error is raised, which may be a VocabularyError.
  """
  opened = {}
  errors = {}
  for item in items:
    try:
      opened[item.name] = item.open()
    except _MISSING as error:
      errors[item.name] = error
  if len(errors) == 1 and not skip_missing:
    raise errors.popitem()[1]
  if errors and not (skip_missing and opened):
    _log_missing(errors)
    hint = ""
    if opened:
      hint = "; evaluate.skip_missing=true evaluates the others"
    problem = f"{len(errors)} of {len(items)} sets can't be opened"
    raise SourceError(f"{problem}: {', '.join(errors)}{hint}")
  reasons = {name: str(error) for name, error in errors.items()}
  return opened, reasons


def open_everywhere(
  items: Sequence[EvaluationSet], skip_missing: bool
) -> tuple[dict[str, LabelledSet], dict[str, str]]:
  """Applies `open_each` in every process, and skips the sets that process 0 misses.

  All processes call it together. The skipped sets are logged.

  Args:
    items: sets to open.
    skip_missing: whether a set without files is skipped.

  Returns:
    The sets by name, and the reason for each skipped set.

  Raises:
    SourceError: a set can't be opened, or this process misses a set that process 0 has.
  """
  opened, missing = open_each(items, skip_missing)
  skipped = hosts.from_first(missing, "which sets are missing")
  _log_missing(skipped)
  for name, reason in missing.items():
    if name not in skipped:
      raise SourceError(f"{reason} (on the first host it is there)")
  sets = {}
  for name, labelled in opened.items():
    if name not in skipped:
      sets[name] = labelled
  return sets, skipped


def _log_missing(reasons: Mapping[str, object]) -> None:
  for name, reason in reasons.items():
    log.warning("missing: %s: %s", name, reason)


def file_name(name: str) -> str:
  """File name of a set, without suffix."""
  return name.replace("/", "-")


def _of_data(data: Data, of_split: OfSplit) -> list[EvaluationSet]:
  """Sets of `config.data`: the splits on which a training evaluates its prompt."""
  splits = opening.evaluation_splits(data)
  sets = []
  if not SOURCES[data.source].stored:
    for split in splits:
      opened = functools.partial(of_split, split, "test")
      sets.append(EvaluationSet(split, data.source, split, "all", opened))
    return sets
  # A data set without a name is called by the last part of its folder's path. A name of
  # tfds may hold a "/" before its version.
  name = data.dataset or os.path.basename(os.path.abspath(data.root)) or data.source
  name = name.replace("/", "-")
  for split in splits:
    images = split
    part = "all"
    # "validation/base": base classes of the validation images. "base" alone stands for
    # base classes of the test images.
    before, _, last = split.rpartition("/")
    if last in _PARTS:
      images = before or "test"
      part = last
    opened = functools.partial(of_split, split, images)
    sets.append(EvaluationSet(f"{name}/{split}", OWN, name, part, opened, data.source))
  return sets


def _open_split(
  data: Data, template: str, n_images: int, split: str, images: str
) -> LabelledSet:
  """Opens a split of `config.data`; `images` names the split that its images are from.

  `n_images` limits generated images only.
  """
  if SOURCES[data.source].stored:
    # `_open_sample` draws the sample of stored images.
    n_images = 0
  source = opening.open_source(data, split, n_images=n_images)
  classes = ClassList(tuple(source.names), None, template, (template,))
  return LabelledSet(source, classes, images)
