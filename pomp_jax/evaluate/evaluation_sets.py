"""Data sets of an evaluation: a suite's, named ones, a user's own, or that of `config.data`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import logging
import os

import numpy as np

from pomp_jax import hosts
from pomp_jax.config import READERS, SOURCES, ConfigError, Settings, near_match
from pomp_jax.config.fields import Evaluate
from pomp_jax.data.class_lists import ClassList, VocabularyError, load_class_list, repeats
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import even_sample, half_of_classes
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.own_sets import open_own_set, parse_sets, read_sets_file
from pomp_jax.files.paths import is_dir
from pomp_jax.registry import GROUP_OF, NO_SUITE, OWN, SUITES

log = logging.getLogger(__name__)

_PARTS = ("base", "new", "novel")
# Errors of sets that can't be opened; an invalid config raises ConfigError.
_MISSING = (SourceError, VocabularyError)


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """A data set, or a part of its classes, to evaluate."""

  name: str  # such as "dtd", or "dtd/base" for a part of its classes
  group: str  # table of the set, one of `registry.GROUPS`
  column: str  # heading in that table
  part: str  # all, or the part of the classes: base, new (CoOp's half) or novel
  config: Settings
  whole: Callable[[], LabelledSet]  # opens all images of the part
  reader: str = ""  # one of `config.READERS`; "" for the embedded world
  n_listed: int = 0  # classes of its packaged list, of which it may hold some; 0: those of the set

  def open(self) -> LabelledSet:
    """Opens the class list and up to `evaluate.images` images by `data.upright`; reads none."""
    labelled, n_images = self.whole(), self.config.evaluate.images
    source = labelled.source
    if not isinstance(source, StoredImages):
      return labelled
    if n_images:
      source = source.subset(even_sample(source.labels, source.keys, n_images))
    return labelled._replace(source=source.turned(self.config.data.upright))

  def count_classes(self, labelled: LabelledSet, sampled: bool) -> dict[str, int | None]:
    """Counts the listed classes, and those without an image; None if the images are a sample."""
    listed = self.n_listed or len(labelled.classes)
    missing = listed - len(np.unique(labelled.source.labels)) if self.reader else None
    return {"listed_classes": listed, "missing_classes": None if sampled else missing}


def evaluation_sets(config: Settings, image_size: int) -> list[EvaluationSet]:
  """Data sets of `config.evaluate`, unopened, for images of S pixels.

  ConfigError for an unknown set, or no folder for it; SourceError for an unusable file of sets.
  """
  settings = config.evaluate
  own = read_sets_file(settings.sets_file) if settings.sets_file else []
  own += parse_sets(settings.own_sets, "config.evaluate.own_sets") if settings.own_sets else []
  sets = [item for name in _named(config) for item in _of_named(config, name, image_size)]
  for one, part in ((each, part) for each in own for part in each.parts):
    name, whole = _joined(one.name, part), functools.partial(open_own_set, one, part, image_size)
    sets.append(EvaluationSet(name, OWN, one.name, part, config, whole, one.reader))
  sets = sets or _of_data(config, image_size)
  for index in repeats(file_name(item.name) for item in sets):
    where = own[0].where if own else "config.evaluate.sets"
    raise SourceError(f"{where}: two sets are named {sets[index].name!r}")
  return sets


def open_each(
  items: Sequence[EvaluationSet], skip_missing: bool
) -> tuple[dict[str, LabelledSet], dict[str, str]]:
  """Opens every set, so that all missing ones are listed before anything is computed.

  Returns:
    The sets by name, and, if `skip_missing` and any set is left, the reason for each missing one.
    Otherwise raises the reason, or of several the names, after a log line for each.
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
  """Applies `open_each` in every process; all skip, and log, the sets that the first one misses.

  Raises:
    SourceError: as `open_each`, or this process misses a set that the first one has.
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


def _named(config: Settings) -> list[str]:
  """Named sets: those of `sets`, or else the suite's."""
  settings = config.evaluate
  suite = None if settings.suite == NO_SUITE else SUITES[settings.suite]
  known = tuple(GROUP_OF) if suite is None else (*suite.sets, *suite.more)
  found: list[str] = []
  for name in settings.sets:
    # The name of a suite means its sets, unless a set has the same name.
    is_suite = name in SUITES and name not in known and not SUITES[name].halves
    whole = SUITES[name].sets if is_suite else ()
    found += whole if whole and set(whole) <= set(known) else (name,)
  wrong = [name for name in found if name not in known] + [found[i] for i in repeats(found)]
  for name in wrong:
    takes = f"one or more different ones of {', '.join(known)}{near_match(name, known)}"
    raise ConfigError("evaluate.sets", name, takes)
  return found or list(suite.sets if suite else ())


def _of_named(config: Settings, name: str, image_size: int) -> list[EvaluationSet]:
  settings = config.evaluate
  halves = settings.suite != NO_SUITE and SUITES[settings.suite].halves
  group = settings.suite if halves else GROUP_OF[name]
  if group in SOURCES:  # the sets of an image source, which has no files
    if config.data.source != group:
      field, got = ("suite", group) if settings.suite == group else ("sets", name)
      takes = (
        f"a set of its own where data.source={config.data.source!r}: evaluate.suite={NO_SUITE!r}"
        " without sets evaluates what config.data names, evaluate.sets_file any sets"
      )
      raise ConfigError(f"evaluate.{field}", got, takes)
    whole = functools.partial(_of_config, config, group, name, "test", image_size)
    return [EvaluationSet(name, group, name, "all", config, whole)]
  if not settings.root or not is_dir(settings.root):
    raise ConfigError("evaluate.root", settings.root, "a folder that exists, with the data sets")
  if expected := SOURCES[settings.source].expected_dataset(name):
    others = " or ".join(reader for reader in READERS if reader != settings.source)
    takes = f"{others} for {name}; {settings.source} has {expected}"
    raise ConfigError("evaluate.source", settings.source, takes)
  n_listed, sets = 0 if halves else len(load_class_list(name)), []
  for part in ("base", "new") if halves else ("all",):
    whole = functools.partial(_stored, settings, name, part, image_size)
    of_part = _joined(name, part), group, name, part, config, whole
    sets.append(EvaluationSet(*of_part, settings.source, n_listed))
  return sets


def _joined(name: str, part: str) -> str:
  return name if part == "all" else f"{name}/{part}"


def _of_data(config: Settings, image_size: int) -> list[EvaluationSet]:
  """Splits on which a training with this config evaluates its prompt."""
  data, splits = config.data, inputs.evaluation_splits(config.data)
  if not SOURCES[data.source].stored:
    return [item for name in splits for item in _of_named(config, name, image_size)]
  # A folder is named by the last part of its path. Names of tfds may end with a version.
  name = data.dataset or os.path.basename(os.path.abspath(data.root)) or data.source
  name, sets = name.replace("/", "-"), []
  for split in splits:
    # "test", "base", or "validation/base": images, and part of the classes.
    images, _, part = split.rpartition("/")
    images, part = (images or "test", part) if part in _PARTS else (split, "all")
    whole = functools.partial(_of_config, config, name, split, images, image_size)
    sets.append(EvaluationSet(f"{name}/{split}", OWN, name, part, config, whole, data.source))
  return sets


def _of_config(
  config: Settings, name: str, split: str, images: str, image_size: int
) -> LabelledSet:
  """Opens a split of `config.data`, under the template of `config.eval`."""
  stored, template = SOURCES[config.data.source].stored, config.eval.template
  n_images = 0 if stored else config.evaluate.images or config.eval.images
  source = inputs.open_source(config.data, split, n_images=n_images)
  classes = ClassList(tuple(source.names), None, template, (template,), name)
  return LabelledSet(source.sized(image_size) if stored else source, classes, images)


def _stored(settings: Evaluate, name: str, part: str, image_size: int) -> LabelledSet:
  classes, where = load_class_list(name), f"{settings.root}: {name}"
  module = SOURCES[settings.source].load()
  source, _, split = module.open_test_set(settings.root, name, classes)
  classes = _matched(classes, source.names, where)
  labelled = LabelledSet(source.sized(image_size), classes, split)
  if part != "all":
    labelled = labelled.of_classes(half_of_classes(len(classes), part))
  if not len(labelled.source):
    raise SourceError(f"{where} has no test image of the classes asked for")
  return labelled


def _matched(classes: ClassList, names: tuple[str, ...], where: str) -> ClassList:
  """The class list under a data set's names; SourceError if the labels mean other classes."""
  if classes.synsets is None:
    if len(names) != len(classes):
      raise SourceError(f"{where}: {len(names)} classes, but its class list has {len(classes)}")
    for label, (own, listed) in enumerate(zip(names, classes.names, strict=True)):
      if own != listed:
        raise SourceError(f"{where}: label {label} is {own!r}, but {listed!r} in its class list")
  elif len(names) != len(classes):
    label_of = {name: label for label, name in enumerate(classes.names)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
      raise SourceError(f"{where}: class {unknown[0]!r} is not in its class list")
    classes = classes.subset([label_of[name] for name in names])
  # ImageNet's classes were matched by id, so the source may have other names for them.
  return dataclasses.replace(classes, names=names)
