"""A classifier that other programs load: class vectors, labels, and the image tower.

`classifier.safetensors` has the tensor `embeddings` [N,E] of unit rows, and all that a
reader needs as metadata. `labels.txt` in the same folder has one name per line. With
`classifier.image_tower` the folder also gets `preprocessing.json`, and
`image_tower.stablehlo` or `image_tower.onnx`, which maps uint8 pixels to unit features.
docs/how-to/certainty.md opens these files in a few lines without this package.

Shapes: B images, N classes, E embedding, S side of an image.
"""

from collections.abc import Callable, Sequence
import hashlib
import importlib.util
import json
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import safetensors
import safetensors.numpy

from pomp_jax.clip.vision import image_tower
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Clip, Export
from pomp_jax.data.class_lists import ClassList, check_names, load_class_list
from pomp_jax.data.folder import find_images
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.calibrated import scale_of
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.classifier import open_prompt, pictures_upright
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import (
  AnyPrompt,
  NamedPrompt,
  check_prompt,
  describe,
)
from pomp_jax.files.atomic import replacing, write_file
from pomp_jax.files.paths import Path, local_copy
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import recorded_classes
from pomp_jax.files.run_folder import RunFolder, write_json
from pomp_jax.files.terminal import one_line, printable
from pomp_jax.prompt.loss import normalize
from pomp_jax.rooms.certainty.changed_answers import Answers, changed_answers
from pomp_jax.rooms.certainty.fields import ClassifierFile
from pomp_jax.rooms.certainty.near_names import near_pairs

FORMAT = "pomp_jax.classifier 1"
# Platforms of the exported tower: one file runs on each of them.
PLATFORMS = ("cpu", "cuda", "tpu")
LABELS = "labels.txt"
PREPROCESSING = "preprocessing.json"
# Kind of tower -> library that writes it. The kind is also the name of the pip extra.
_LIBRARIES = {"stablehlo": "flatbuffers", "onnx": "jax2onnx"}
_NEAR = 0.98  # cosine from which a new name nearly equals an earlier name
_MOST_PAIRS = 20  # most near pairs, or changed answers, that are listed


class ClassifierFileError(InputError, ValueError):
  """A classifier's file can't be used; the message is one line."""


class Stored(NamedTuple):
  """Content of a classifier's file."""

  names: tuple[str, ...]
  rows: Float[np.ndarray, "N E"]  # unit class features
  metadata: dict[str, str]


def check(export: Export, clip: Clip) -> None:
  """Checks names, prompt, and the classifier to extend; needs no weights."""
  settings = export.of(ClassifierFile)
  prompt = open_prompt(export.prompt, "export.prompt")
  names = load_class_list(export.names or recorded_classes(export.prompt)).names
  check_names(names, export.names)
  config = opening.clip_config(clip.model, clip.image_tower)
  named = NamedPrompt(export.prompt, prompt)
  check_prompt(named, [(name,) for name in names], config, clip.model)
  if settings.image_tower != "none":
    where = "True where the image tower is exported"
    require(clip.image_tower, "clip.image_tower", clip.image_tower, where)
    check_libraries(settings.image_tower)
  if settings.extend:
    earlier = read_classifier(settings.extend)
    again = sorted(set(names) & set(earlier.names))
    expected = "names that the earlier classifier does not have"
    require(not again, "export.names", again[:3], expected)
  if settings.images:
    require(clip.image_tower, "clip.image_tower", clip.image_tower, "True for pictures")
    find_images(settings.images)  # raises SourceError if there is no picture


def compute(
  export: Export, encoder: Encoder
) -> tuple[dict[str, Any], Callable[[Path], None]]:
  """Computes the class vectors.

  Returns:
    Facts for `results.json`, and a function that takes the path of the classifier and
    writes all files.
  """
  settings = export.of(ClassifierFile)
  prompt = open_prompt(export.prompt)
  source = export.names or recorded_classes(export.prompt)
  classes = load_class_list(source)
  rows_NxE = unit_features(encoder, classes, prompt)
  names = classes.names
  facts: dict[str, Any] = {"clip_model": encoder.clip.name, "names": source}
  # An empty class list: the digest identifies the prompt, whatever the names.
  digest = fingerprint(describe(prompt, ClassList(())))
  if settings.extend:
    earlier = read_classifier(settings.extend)
    check_extends(settings.extend, earlier.metadata, encoder.clip_digest, digest)
    near = near_pairs(
      rows_NxE, names, earlier.rows, earlier.names, bound=_NEAR, most=_MOST_PAIRS
    )
    facts["added"] = len(names)
    facts["near"] = [pair._asdict() for pair in near.pairs]
    facts["near_pairs"] = near.n_pairs
    for pair in near.pairs:
      print(f"near: {pair.cosine:.4f}  {pair.first}  |  {pair.second}")
    if settings.images:
      answers = changed_answers(
        encoder,
        settings.images,
        earlier.rows,
        rows_NxE,
        upright=pictures_upright(export.prompt, prompt),
      )
      facts["answers"] = _changes(answers, earlier.names, names)
    rows_NxE = np.concatenate([earlier.rows, rows_NxE])
    names = (*earlier.names, *names)
  scale = scale_of(encoder, prompt, names, where=export.prompt)
  metadata = {
    "format": FORMAT,
    "labels": json.dumps(names, ensure_ascii=False),
    # Factor on the cosines, temperature included. DL Streamer's reader takes it alone.
    "logit_scale": repr(scale.logit_scale),
    "clip_logit_scale": repr(encoder.clip.logit_scale),
    "normalised": "true",
    # Metadata is UTF-8, and the name may be a path with bytes that are not UTF-8.
    "clip_model": encoder.clip.name.encode(errors="replace").decode(),
    "clip_digest": encoder.clip_digest,
    "prompt_digest": digest,
    "upright": json.dumps(pictures_upright(export.prompt, prompt)),
    "probabilities": scale.note,
    "digest": _digest(rows_NxE),
  }
  if scale.calibration is not None:
    metadata["temperature"] = repr(scale.calibration.temperature)
    metadata["calibration"] = scale.calibration.to_json()
    if scale.calibration.floor is not None:
      metadata["floor"] = repr(scale.calibration.floor)
  facts |= {"shape": rows_NxE.shape, "probabilities": scale.note}
  kind = settings.image_tower
  tower = None if kind == "none" else tower_bytes(encoder, kind)

  def write(path: Path) -> None:
    folder = path.parent
    tensors = {"embeddings": np.ascontiguousarray(rows_NxE, np.float32)}
    content = safetensors.numpy.save(tensors, metadata)
    with replacing(path) as file:
      file.write(content)
    lines = [f"{name}\n" for name in names]
    write_file(folder / LABELS, "".join(lines))
    # All names, including the names of the earlier classifier.
    RunFolder(folder).write_classes(names)
    if tower is not None:
      write_file(folder / f"image_tower.{kind}", tower)
      write_json(folder / PREPROCESSING, preprocessing(encoder), checksum=False)

  return facts, write


def _changes(
  answers: Answers, earlier: Sequence[str], added: Sequence[str]
) -> dict[str, Any]:
  """Returns the changed answers for `results.json`, and prints the largest changes."""
  changes = []
  for change in answers.changes:
    before = earlier[change.before]
    after = added[change.after]
    changes.append(change._asdict() | {"before": before, "after": after})
  print(f"answers that change: {len(changes):,} of {answers.n_images:,} pictures")
  for one in changes[:_MOST_PAIRS]:  # sorted by the gain
    gain = f"{one['cosine_before']:.4f} > {one['cosine_after']:.4f}"
    line = f"{one['file']}: {one['before']} > {one['after']}  ({gain})"
    print(printable(line, len(line)))
  return {
    "images": answers.n_images,
    "unreadable": answers.n_unreadable,
    "changed": len(changes),
    "changes": changes,
  }


def check_libraries(tower: str) -> None:
  """Raises ClassifierFileError if the library that writes this kind of tower is
  missing."""
  library = _LIBRARIES[tower]
  if importlib.util.find_spec(library) is None:
    raise ClassifierFileError(
      f"classifier.image_tower={tower} needs {library}: pip install 'pomp-jax[{tower}]'"
    )


def unit_features(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt
) -> Float[np.ndarray, "N E"]:
  """Computes unit class features under a prompt.

  Args:
    encoder: the CLIP.
    classes: the N class names.
    prompt: learned prompt, or hand-written texts.

  Raises:
    EvaluationError: features are not finite.
  """
  rows_NxE = features_under(encoder, classes, prompt)
  check_finite(rows_NxE, "classes")
  return rows_NxE


def read_classifier(path: str) -> Stored:
  """Reads the names, the rows and the metadata of a classifier.

  Raises:
    ClassifierFileError: the file is missing, damaged, or of another format.
  """
  try:
    with safetensors.safe_open(str(local_copy(path)), framework="numpy") as file:
      metadata = dict(file.metadata() or {})
      rows_NxE = file.get_tensor("embeddings")
    names = tuple(json.loads(metadata["labels"]))
  except Exception as error:  # the library's own errors share no base
    expected = "a file that export:format=classifier wrote"
    raise ClassifierFileError(
      f"{path}: not a classifier ({one_line(error, 200)}); expected {expected}"
    ) from error
  is_whole = metadata.get("digest") == _digest(rows_NxE)
  if metadata.get("format") != FORMAT or len(names) != len(rows_NxE) or not is_whole:
    raise ClassifierFileError(
      f"{path}: damaged, or of another format than {FORMAT!r}; expected the file as"
      " export:format=classifier wrote it"
    )
  return Stored(names, rows_NxE, metadata)


def check_extends(
  path: str, metadata: dict[str, str], clip_digest: str, prompt_digest: str
) -> None:
  """Compares an earlier classifier with the CLIP and the prompt in use.

  Args:
    path: the earlier file, for messages.
    metadata: metadata of the earlier file.
    clip_digest: digest of the CLIP in use.
    prompt_digest: digest of the prompt in use.

  Raises:
    ClassifierFileError: the earlier rows were computed with another CLIP or prompt.
  """
  for key, in_use, field in (
    ("clip_digest", clip_digest, "clip.model"),
    ("prompt_digest", prompt_digest, "export.prompt"),
  ):
    if metadata.get(key) != in_use:
      raise ClassifierFileError(
        f"{path}: its rows have the {key} {metadata.get(key)}, but config.{field} has"
        f" {in_use}; expected the same"
      )


def tower_bytes(encoder: Encoder, kind: str) -> bytes:
  """Serialises the image tower: uint8 [B,S,S,3], for any B, to unit features [B,E].

  The bytes contain the weights and the channel statistics. `jax.export.deserialize`
  reads `stablehlo`, and onnxruntime reads `onnx`.

  Args:
    encoder: the CLIP.
    kind: stablehlo or onnx.

  Raises:
    ClassifierFileError: the image tower can't be exported as this kind.
  """
  tower = image_tower(encoder.clip, "float32")
  params = jax.tree.map(jnp.asarray, encoder.clip.vision_params)

  def image_features(images: jax.Array) -> jax.Array:
    return normalize(tower(params, images))

  write = _onnx if kind == "onnx" else _stablehlo
  try:
    return write(image_features, encoder.clip.image_size)
  except Exception as error:  # the exporters' errors share no base
    raise ClassifierFileError(
      f"{encoder.clip.name}: its image tower can't be written as {kind}"
      f" ({one_line(error, 200)})"
    ) from error


def _stablehlo(image_features: Callable[[jax.Array], jax.Array], size: int) -> bytes:
  (n_images,) = jax.export.symbolic_shape("b")
  shape = jax.ShapeDtypeStruct((n_images, size, size, 3), jnp.uint8)
  exported = jax.export.export(jax.jit(image_features), platforms=PLATFORMS)(shape)
  return bytes(exported.serialize())


def _onnx(image_features: Callable[[jax.Array], jax.Array], size: int) -> bytes:
  from jax2onnx import to_onnx

  shape: Any = jax.ShapeDtypeStruct(("B", size, size, 3), jnp.uint8)
  return to_onnx(image_features, inputs=[shape]).SerializeToString()


def preprocessing(encoder: Encoder) -> dict[str, Any]:
  """Describes for `preprocessing.json` how a picture becomes the tower's input."""
  resize = encoder.resize
  size = encoder.clip.image_size
  how = "to the square, whatever its sides" if resize.squash else "shorter side"
  return {
    "colours": "RGB, transparent parts over black",
    "resize": how,
    "size": size,
    "interpolation": "bilinear" if resize.bilinear else "bicubic",
    "library": "Pillow (antialiased)",
    "crop": "none" if resize.squash else f"centre, {size} x {size}",
    "input": f"uint8 [B,{size},{size},3]",
    "output": "unit features [B,E], float32",
    "mean_and_std": "applied inside",
    "platforms": list(PLATFORMS),
  }


def _digest(rows_NxE: Float[np.ndarray, "N E"]) -> str:
  return hashlib.sha256(np.ascontiguousarray(rows_NxE, "<f4").tobytes()).hexdigest()
