"""Runs of jobs that record the arguments of expensive calls instead of computing.

A `Run` leaves records in `calls.seen`: an argument of the last call of a function by
`function.argument`, a list of that argument of all calls by `function.argument*`, and
what the run adds.
"""

from collections.abc import Callable
import inspect
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest

from pomp_jax.config import Config, load_job
from pomp_jax.config.group import Group
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.split_features import SplitFeatures


class Recorded(BaseException):
  """Ends a run at the call that it was to reach; no job handles it."""


class Calls:
  """Functions that record their arguments; `seen` as the module says."""

  def __init__(self, patch: pytest.MonkeyPatch, encoder: Encoder):
    self.patch = patch
    self.encoder = encoder
    self.width = encoder.clip.config.projection_dim
    self.seen: dict[str, Any] = {}

  def note(
    self, owner: Any, name: str, instead: Callable[..., Any] | type | None = None
  ) -> None:
    """Records the calls of a function.

    Args:
      owner: module or class whose attribute is the function.
      name: name of the function.
      instead: what answers the calls; the function itself if None. `Recorded` ends the
        run.
    """
    function = getattr(owner, name)
    signature = inspect.signature(function)

    def call(*args, **kwargs):
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      for argument, value in bound.arguments.items():
        self._record(f"{name}.{argument}", value)
      if instead is Recorded:
        raise Recorded(name)
      return (instead or function)(*args, **kwargs)

    self.patch.setattr(owner, name, call)

  def _record(self, record: str, value: Any) -> None:
    if isinstance(value, os.PathLike):
      value = str(value)
    self.seen[record] = value
    self.seen.setdefault(f"{record}*", []).append(value)
    if isinstance(value, Group):
      for field, field_value in value.flat().items():
        self.seen[f"{record}.{field}"] = field_value

  def skip(self, owner: Any, *names: str) -> None:
    """Replaces functions by one that does nothing."""
    for name in names:
      self.patch.setattr(owner, name, lambda *args, **kwargs: None)

  def open_encoder(self) -> None:
    """Gives the jobs a CLIP that is open and whose features are ones."""
    self.note_encoder()

    def ones(rows):
      return np.ones((len(rows), self.width), np.float32)

    def image_features(encoder, images, unit=True):
      return ones(images)

    def class_features(encoder, names, *args, **kwargs):
      return ones(names)

    def features_of_classes(encoder, params, frozen, *args, **kwargs):
      return ones(frozen.tokens.lengths)

    self.patch.setattr(Encoder, "image_features", image_features)
    self.note(Encoder, "class_features", class_features)
    self.patch.setattr(Encoder, "features_of_classes", features_of_classes)

  def note_encoder(self, instead: type | None = None) -> None:
    """Records how a job opens its CLIP."""

    def open_encoder(settings, class_size=1, feature_store="", devices=None):
      return self.encoder

    # The session's fixture has replaced the function by one with other arguments.
    self.patch.setattr(opening, "open_encoder", open_encoder)
    self.note(opening, "open_encoder", instead)

  def note_split(self, owner: Any, name: str) -> None:
    """Records a function that encodes a split, and returns features of ones."""
    signature = inspect.signature(getattr(owner, name))

    def features(*args, **kwargs):
      source = signature.bind(*args, **kwargs).arguments["source"]
      rows = np.arange(len(source))
      ones = np.ones((len(rows), self.width), np.float32)
      return SplitFeatures(tuple(source.names), source.labels, ones, rows)

    self.note(owner, name, features)


Run = Callable[[Calls, Config, pathlib.Path], None]

# Value of a field, the record that it changes, and what the record becomes: the value
# itself if not said. Or value and all records that it changes. ROOT stands for the
# folder of the `write_files`, REGIONS for that of the region set.
Row = tuple[Any, str] | tuple[Any, str, Any] | tuple[Any, dict[str, Any]]


class Case(NamedTuple):
  """A run, once as usual and once with other values of the fields of its rows."""

  run: Run
  # Fields that both have.
  fields: dict[str, Any]
  rows: dict[str, Row]


def check_and_run(config: Config, folder: pathlib.Path) -> Any:
  """Runs a job as the command line does, without the checks across fields."""
  job = load_job(config.job)
  job.check(config, str(folder))
  return job.run(config, str(folder))


def open_clip_alone(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """Any job, up to its CLIP."""
  calls.note_encoder(Recorded)
  load_job(config.job).run(config, str(folder))


def clip_case(job: str, fields: dict[str, Any]) -> Case:
  """The case of how a job opens its CLIP.

  Args:
    job: name of the job.
    fields: what the job needs to get as far as its CLIP.
  """
  return Case(
    run=open_clip_alone,
    fields={"job": job} | fields,
    rows={
      "clip.model": ("REGIONS/clip", "open_encoder.settings.model"),
      "clip.activation": ("gelu", "open_encoder.settings.activation"),
      "clip.text_tower": ("reference", "open_encoder.settings.text_tower"),
      "clip.dtype": ("bfloat16", "open_encoder.settings.dtype"),
      "clip.image_chunk": (3, "open_encoder.settings.image_chunk"),
      "mesh.class_size": (2, "open_encoder.class_size"),
      "data.feature_store": ("ROOT/store", "open_encoder.feature_store"),
    },
  )
