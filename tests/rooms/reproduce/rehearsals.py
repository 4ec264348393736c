"""Finished trainings of the rehearsal's recipe, and faults that are planted in a
rehearsal.

A fault changes files, fields or code; the run is the job's own.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import pathlib
import shutil
from typing import Any, NamedTuple

from flax import serialization
import numpy as np
import pytest

from pomp_jax import world
from pomp_jax.config import defaults, validate
from pomp_jax.data.images import Resize
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.registry import load_job
from pomp_jax.rooms.reproduce import measure
from pomp_jax.rooms.reproduce.digests import packaged_record
from pomp_jax.rooms.reproduce.reproduce import NotReproducedError
from pomp_jax.rooms.reproduce.rows import CONTROLS, INPUTS, PUBLISHED, RETRAINED
from pomp_jax.rooms.reproduce.tables import WORLD_RECIPE
from tests.support.clips import words_as_prompt, write_random_clip


def rehearse(workdir: pathlib.Path, **fields: Any) -> dict[str, Any]:
  """Runs the rehearsal; returns the contents of its reproduction.json."""
  changes = {name.replace("__", "."): value for name, value in fields.items()}
  config = defaults("reproduce").replace(changes)
  validate(config)
  job = load_job("reproduce")
  job.check(config, str(workdir))
  try:
    job.run(config, str(workdir))
  except NotReproducedError as error:
    content = json.loads((workdir / "reproduction.json").read_text())
    assert str(error) == content["verdict"]
    assert content["verdict"].startswith("NOT REPRODUCED: ")
    return content
  content = json.loads((workdir / "reproduction.json").read_text())
  assert content["verdict"].startswith("REPRODUCED")
  return content


def write_trainings(
  folder: pathlib.Path, seeds: Sequence[int], **changes: Any
) -> list[pathlib.Path]:
  """Trains seeds of the recipe as lanes of one program, and writes each as `pretrain`
  leaves it: config.json, prompt.npz, results.json."""
  named = {name.replace("__", "."): value for name, value in changes.items()}
  grid = "seed=" + "|".join(map(str, seeds))
  config = defaults("ablate").replace({"ablate.grid": grid, **WORLD_RECIPE, **named})
  job = load_job("ablate")
  job.check(config, str(folder / "lanes"))
  job.run(config, str(folder / "lanes"))
  runs = []
  for path in sorted((folder / "lanes" / "cells").glob("*.npz")):
    prompt = load_prompt(path)
    run = RunFolder(folder / f"seed_{prompt.config['seed']}")
    run.create({**prompt.config, "job": "pretrain"})
    save_prompt(run.prompt, prompt)
    run.write_results({"job": "pretrain", "method": "pomp"})
    runs.append(pathlib.Path(str(run.path)))
  return runs


class Rehearsal(NamedTuple):
  """What a fault may change; all of it is a copy of the test's own."""

  folder: pathlib.Path
  data: pathlib.Path
  clip: pathlib.Path
  fields: dict[str, Any]  # of the run, changed in place
  monkeypatch: pytest.MonkeyPatch
  # Trains seeds 0, 1, 2 with other fields.
  trainings: Callable[..., list[pathlib.Path]]


class Fault(NamedTuple):
  """A mistake and the words that name it."""

  name: str
  plant: Callable[[Rehearsal], None]
  stage: str
  kind: str
  words: str  # a part of the sentence
  # Kinds that the patterns of the controls alone may suggest; empty: they see nothing.
  by_pattern: tuple[str, ...] = ()


def _edit(of: Rehearsal, name: str, change: Callable[[dict[str, Any]], None]) -> None:
  path = of.data / name / "split.json"
  content = json.loads(path.read_text())
  change(content)
  path.unlink()
  path.write_text(json.dumps(content))


def _names(rows: Sequence[Sequence[Any]]) -> dict[int, str]:
  return {label: name for _, label, name in rows}


def drop_class(of: Rehearsal) -> None:
  def change(content):
    for part in ("train", "test"):
      content[part] = [
        [file, label - (label > 7), name]
        for file, label, name in content[part]
        if label != 7
      ]

  _edit(of, "novel", change)


def _relabel(
  of: Rehearsal, name: str, label_of: Callable[[int, int, str], int]
) -> None:
  """Gives test images of a set other labels: (old label, number of classes, file)."""

  def change(content):
    names = _names(content["train"])
    rows = []
    for file, label, _ in content["test"]:
      new = label_of(label, len(names), file)
      rows.append([file, new, names[new]])
    content["test"] = rows

  _edit(of, name, change)


def shift_labels(of: Rehearsal) -> None:
  _relabel(of, "known", lambda label, n, file: (label + 1) % n)


def swap_classes(of: Rehearsal) -> None:
  _relabel(of, "known", lambda label, n, file: {3: 90, 90: 3}.get(label, label))


def random_labels(of: Rehearsal) -> None:
  rng = np.random.default_rng(0)
  draws = iter(rng.uniform(size=10_000))
  other = iter(rng.integers(0, 500, 10_000))
  _relabel(
    of,
    "novel",
    lambda label, n, file: int(next(other)) if next(draws) < 0.02 else label,
  )


def lose_images(of: Rehearsal) -> None:
  def change(content):
    content["test"] = [row for i, row in enumerate(content["test"]) if i % 20]

  _edit(of, "known", change)


def other_images(of: Rehearsal) -> None:
  shutil.rmtree(of.data / "known" / "images")
  shutil.copytree(of.data / "other_known" / "images", of.data / "known" / "images")


def leak(of: Rehearsal) -> None:
  def change(content):
    training = {label: row for row in content["train"] for label in [row[1]]}
    kept, replaced = [], 0
    for row in content["test"]:
      if replaced < 100 and row[1] in training:
        kept.append(training.pop(row[1]))
        replaced += 1
      else:
        kept.append(row)
    content["test"] = kept

  _edit(of, "known", change)


def _resize(of: Rehearsal, resize: Resize) -> None:
  of.monkeypatch.setattr(Encoder, "resize", property(lambda self: resize))


def bilinear(of: Rehearsal) -> None:
  _resize(of, Resize(squash=False, bilinear=True))


def squashed(of: Rehearsal) -> None:
  _resize(of, Resize(squash=True, bilinear=False))


def not_normalised(of: Rehearsal) -> None:
  path = of.clip / "preprocessor_config.json"
  content = json.loads(path.read_text())
  content |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
  path.write_text(json.dumps(content))
  of.fields["clip.model"] = str(of.clip)


def _weights(of: Rehearsal, change: Callable[[dict[str, Any]], None]) -> None:
  path = of.clip / "flax_model.msgpack"
  params = serialization.msgpack_restore(path.read_bytes())
  change(params)
  path.write_bytes(serialization.msgpack_serialize(params))
  of.fields["clip.model"] = str(of.clip)


def other_clip(of: Rehearsal) -> None:
  rng = np.random.default_rng(0)

  def moved(tree):
    for key, value in tree.items():
      if isinstance(value, dict):
        moved(value)
      elif value.ndim:
        noise = rng.normal(size=value.shape) * value.std() * 0.3
        tree[key] = (value + noise + 1e-4).astype(value.dtype)

  _weights(of, moved)


def zeroed_layer(of: Rehearsal) -> None:
  def change(params):
    layer = params["text_model"]["encoder"]["layers"]["1"]
    for part in layer.values():
      _zero(part)

  _weights(of, change)


def _zero(tree: dict[str, Any]) -> None:
  for key, value in tree.items():
    if isinstance(value, dict):
      _zero(value)
    else:
      tree[key] = np.zeros_like(value)


def scale_one(of: Rehearsal) -> None:
  def change(params):
    params["logit_scale"] = np.array(math.log(1.0), np.float32)

  _weights(of, change)


def _rename(of: Rehearsal, new: Callable[[str], str]) -> None:
  for name in ("known", "other_known", "novel", "shifted"):

    def change(content):
      for part in ("train", "test"):
        content[part] = [
          [file, label, new(text)] for file, label, text in content[part]
        ]

    _edit(of, name, change)


def underscores(of: Rehearsal) -> None:
  """In the split files, and code that forgets to replace them."""
  _rename(of, lambda text: text.replace(" ", "_"))
  of.monkeypatch.setattr("pomp_jax.encoder.normalized_names", list)


def articles(of: Rehearsal) -> None:
  _rename(of, lambda text: f"a {text}")


def wrong_template(of: Rehearsal) -> None:
  def change(content):
    content["templates"][0] = "itap of a {}."

  _edit(of, "shifted", change)


def averaged_early(of: Rehearsal) -> None:
  """The mean of the text tower's outputs, not of unit features."""

  def features(encoder, classes, prompt):
    if prompt != "ensemble":
      return measured(encoder, classes, prompt)
    total = sum(
      encoder.class_features(classes.names, text, unit=False)
      for text in classes.ensemble
    )
    return total / np.linalg.norm(total, axis=-1, keepdims=True)

  measured = measure.classifier_under
  of.monkeypatch.setattr(measure, "classifier_under", features)


def _prompt(of: Rehearsal, context: np.ndarray, position: str = "end") -> None:
  path = of.folder / "prompt.npz"
  save_prompt(path, Prompt(context.astype(np.float32), "world", position))
  of.fields["reproduce.prompts"] = (str(path),)


def released() -> np.ndarray:
  """The rehearsal's released context."""
  return np.asarray(packaged_record("world")["released"]["context"], np.float32)


def other_clips_prompt(of: Rehearsal) -> None:
  from pomp_jax.clip.load import load_clip

  write_random_clip(of.folder / "random", text_width=64)
  clip = load_clip(str(of.folder / "random"))
  _prompt(of, words_as_prompt(clip, "a photo of a").context[:4])


def fewer_vectors(of: Rehearsal) -> None:
  _prompt(of, released()[:-1])


def middle(of: Rehearsal) -> None:
  _prompt(of, released(), "middle")


def bfloat16(of: Rehearsal) -> None:
  of.fields["clip.dtype"] = "bfloat16"


def _trained(**changes: Any) -> Callable[[Rehearsal], None]:
  def plant(of: Rehearsal) -> None:
    of.fields["reproduce.runs"] = tuple(map(str, of.trainings(**changes)))

  return plant


def reused_seed(of: Rehearsal) -> None:
  first, second, _ = of.trainings()
  copy = shutil.copytree(first, of.folder / "again")
  of.fields["reproduce.runs"] = (str(first), str(second), str(copy))


FAULTS = [
  Fault("one class dropped", drop_class, INPUTS, "split", "1 of 500 classes"),
  Fault(
    "labels shifted by one",
    shift_labels,
    INPUTS,
    "labels",
    "1 too high",
    by_pattern=("labels",),
  ),
  Fault(
    "two classes swapped",
    swap_classes,
    INPUTS,
    "labels",
    "swapped",
    by_pattern=("labels",),
  ),
  Fault("5% of the images missing", lose_images, INPUTS, "split", "(5.0%)"),
  Fault(
    "images of another set",
    other_images,
    INPUTS,
    "images",
    "other images",
    by_pattern=("labels",),
  ),
  Fault("training images among the test images", leak, INPUTS, "leak", "100 of 1000"),
  Fault(
    "bilinear for bicubic",
    bilinear,
    CONTROLS,
    "preprocessing",
    "other pixels",
    by_pattern=("preprocessing",),
  ),
  Fault(
    "squashed for cropped",
    squashed,
    CONTROLS,
    "preprocessing",
    "other pixels",
    by_pattern=("preprocessing",),
  ),
  Fault(
    "no normalisation",
    not_normalised,
    INPUTS,
    "preprocessing",
    "not normalised",
    by_pattern=("preprocessing", "weights"),
  ),
  Fault("another CLIP", other_clip, INPUTS, "weights", "of another CLIP"),
  Fault(
    "one layer zeroed", zeroed_layer, INPUTS, "weights", "text_model/encoder/layers/1"
  ),
  Fault("names with underscores", underscores, INPUTS, "names", "underscores"),
  Fault("names with articles", articles, INPUTS, "names", "an article"),
  Fault("the wrong template", wrong_template, INPUTS, "templates", "itap of a {}."),
  Fault(
    "averaged before normalisation", averaged_early, CONTROLS, "templates", "ensemble"
  ),
  Fault("a prompt of another CLIP", other_clips_prompt, PUBLISHED, "prompt", "CLIP"),
  Fault("M - 1 vectors", fewer_vectors, PUBLISHED, "prompt", "vectors M is 3"),
  Fault("position middle", middle, PUBLISHED, "prompt", "is middle"),
  Fault("logit scale 1", scale_one, INPUTS, "logit scale", "is 1,"),
  Fault("bfloat16 for float32", bfloat16, INPUTS, "precision", "bfloat16"),
  Fault(
    "learning rate times ten",
    _trained(optim__lr=1.0),
    RETRAINED,
    "optimizer",
    "optim.lr is 1.0",
  ),
  Fault(
    "no correction",
    _trained(correction="none"),
    RETRAINED,
    "correction",
    "correction is none",
  ),
  Fault("K = 10", _trained(k=10), RETRAINED, "sampling", "k is 10 "),
  Fault("seed reused", reused_seed, RETRAINED, "seeds", "reused"),
  Fault("2% of the labels random", random_labels, INPUTS, "labels", "random labels"),
]

# Of each fault by its name.
BY_NAME: Mapping[str, Fault] = {fault.name: fault for fault in FAULTS}
WORLD_CLIP = world.CLIP_PATH
