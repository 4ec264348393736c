"""Measures what the parts of a training cost on these devices: seconds and bytes.

A long part is measured on a few of its rows (images, classes), and its time is scaled
to all of them, because the towers' time is proportional to their rows. The step is
always compiled in whole, for its memory.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
import timeit
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.packed import MemoryPlan
from pomp_jax.data.source import StoredImages
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.encoder import CHUNK
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.prompt_file import save_prompt
from pomp_jax.files.terminal import steps_of, waiting
from pomp_jax.prompt.mesh import CLASS, DATA, replicate
from pomp_jax.prompt.step import TrainState, repeated
from pomp_jax.train import batches
from pomp_jax.train.resume import blank_state, gather_bank, place_bank
from pomp_jax.train.training import PromptRun

# A part is measured on all of its rows if a warmup and two measurements take at most
# this many seconds.
_PART_SECONDS = 20.0
# A measurement of at least this many seconds is scaled to all rows: the clock is
# precise enough for it.
_ENOUGH_SECONDS = 0.05
# A computation of at most this many FLOP runs on all rows at once: a slow core takes
# two seconds for it.
_FEW_FLOPS = 2e10
_STEPS = 4  # timed steps, after one for warmup
_BATCHES = 4  # least number of timed batches, after twice as many for warmup
# The least numbers of rows that are measured.
_IMAGES = 4  # images per device
_READ = 16  # images that a process reads
_CLASSES = 64  # classes of a step, per device
_FEATURES = 128  # class features per device; they fill the encoder's smallest program
_TEST_IMAGES = 512


class Cost(NamedTuple):
  """The time of a part, scaled if not all rows were measured."""

  seconds: float  # of all rows
  measured: int  # number of rows that were measured
  total: int  # number of all rows


def measure(run: PromptRun) -> dict[str, Any]:
  """Measures every part of a run on available data, and writes to its folder.

  Returns figures by name: a `Cost` of each part, and numbers.
  """
  figures: dict[str, Any] = {
    "devices": len(hosts.devices()),
    "steps": run.total_steps,
  }
  state = noise_state(run)
  parts = [reading, _step, _all_classes, _test_images, _saving]
  for part in steps_of(parts, "dry run", "parts"):
    figures |= part(run, state)
  figures["process_peak_mib"] = hosts.peak_mib()
  return figures


def noise_state(run: PromptRun) -> TrainState:
  """Returns a first state; its bank is noise, at the cost of features to a step."""
  state = blank_state(run)
  if state.bank is None:
    return state
  bank_NxE = np.random.default_rng(0).standard_normal(state.bank.shape, np.float32)
  bank_NxE /= np.linalg.norm(bank_NxE, axis=-1, keepdims=True)
  return place_bank(run, state.replace(bank=bank_NxE))


def reading(run: PromptRun, state: TrainState | None = None) -> dict[str, Any]:
  """Measures how long this process takes to read the images of a step.

  Some of the images are read, and the time is scaled to all images. Each view of an
  image costs as much as an image, because views are read one by one.

  Args:
    run: prepared training.
    state: ignored; the other parts of a dry run take the state of the training.

  Returns:
    {"read": cost of reading a step's images}.
  """
  _, n_shards = batches.own_shard(run.encoder.mesh)
  n_images = run.loop.batch_size // run.data.views
  n_measured = min(n_images, _READ * n_shards)
  n_views = n_measured * run.data.views

  # Set the numbers of readers: a small batch would choose fewer than the run has.
  readers = run.readers
  loop = dataclasses.replace(run.loop, batch_size=n_views)
  data = dataclasses.replace(run.data, threads=readers.threads, workers=readers.workers)
  small_run = dataclasses.replace(run, loop=loop, data=data)

  # Each reader prefetches some batches: time more batches than readers can hold.
  n_readers = readers.threads * max(1, readers.workers)
  n_timed = max(_BATCHES, 4 * n_readers)
  loader = small_run.open_batches()
  times = _seconds(lambda: next(loader), n_timed, warmup=2 * n_timed)
  loader.close()

  seconds_of_all = float(np.mean(times)) * n_images / n_measured
  cost = Cost(seconds_of_all, measured=n_views, total=run.loop.batch_size)
  return {"read": cost}


def _step(run: PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures the step, or some of its images and some of its classes if it is long."""
  batch = batch_shapes(run)
  with waiting("compiling the training step"):
    start = time.monotonic()
    program = run.build_step().lower(state, run.frozen, batch).compile()
    figures: dict[str, Any] = {"compile_seconds": time.monotonic() - start}
  if memory := program.memory_analysis():
    figures["device_arguments_mib"] = memory.argument_size_in_bytes / 2**20
    figures["device_temporaries_mib"] = memory.temp_size_in_bytes / 2**20
  if not _is_short(run):
    images = Cost(0.0, measured=1, total=1)
    if run.data.features == "online":
      images = _image_cost(run)
    classes = _class_cost(run)
    seconds = images.seconds + classes.seconds
    if (1 + _STEPS) * seconds > _PART_SECONDS:
      figures["step_seconds"] = seconds
      figures["step_images"] = images
      figures["step_classes"] = classes
      return figures
  # Place the batch only now: one that is too large for the devices is also too long to
  # run, and was measured by its parts above.
  step = repeated(program, noise_state(run), run.frozen, ones(batch))
  times = _seconds(step, _STEPS, warmup=1)
  figures["step_seconds"] = float(np.median(times))
  return figures


def _is_short(run: PromptRun) -> bool:
  """Whether a step has so few FLOP that it can run without timing its parts first."""
  n_tokens = run.n_prefix + run.token_budget
  flops = 3 * text_flops(run, n_tokens)  # forward and backward
  if run.data.features == "online":
    # 14 x 14 pixels are the smallest usual patch.
    n_patches = run.encoder.clip.image_size**2 / 14**2
    size = sum(leaf.size for leaf in jax.tree.leaves(run.encoder.vision_params))
    flops += 2 * size * n_patches * run.loop.batch_size
  return flops <= _FEW_FLOPS


def text_flops(run: PromptRun, n_tokens: float | int) -> float:
  """Counts the FLOP of the text tower's dense layers, forward."""
  layers = jax.tree.leaves(run.frozen.text["text_model"]["encoder"])
  return 2.0 * sum(leaf.size for leaf in layers) * n_tokens


def _image_cost(run: PromptRun) -> Cost:
  """Measures the image tower on the images of a step."""
  encoder = run.encoder
  size = encoder.clip.image_size
  rows = NamedSharding(encoder.mesh, P((DATA, CLASS)))

  def encoding_of(n_images: int) -> Callable[[], Any]:
    # Round up to a multiple of the devices. The values of the pixels do not matter.
    padded = -(-n_images // encoder.mesh.size) * encoder.mesh.size
    pixels = jnp.zeros((padded, size, size, 3), np.uint8, device=rows)
    return lambda: encoder.features_of_images(pixels).block_until_ready()

  return _cost(encoding_of, run.loop.batch_size, _IMAGES * encoder.mesh.size)


def _class_cost(run: PromptRun) -> Cost:
  """Measures a step on random features: draw, text tower, loss, gradient, update."""
  n_rows_of_step = run.group_size + run.k

  def part_of_step(n_rows: int) -> Callable[[], None]:
    smaller = _with_fewer_classes(run, n_rows)
    state = noise_state(smaller)
    batch = batch_shapes(smaller)
    with waiting("compiling a part of the step"):
      program = smaller.build_step().lower(state, run.frozen, batch).compile()
    return repeated(program, state, run.frozen, ones(batch))

  least = _CLASSES * run.encoder.mesh.shape[CLASS]
  cost = _cost(part_of_step, n_rows_of_step, least)
  if cost.measured == cost.total:
    return cost
  # Scale by tokens, not by rows: the token budget of a few rows has more slack.
  measured = _with_fewer_classes(run, cost.measured)
  n_tokens = run.n_prefix + run.token_budget
  n_measured_tokens = measured.n_prefix + measured.token_budget
  # `cost.seconds` is already scaled by rows: undo that first.
  measured_seconds = cost.seconds * cost.measured / cost.total
  return cost._replace(seconds=measured_seconds * (n_tokens / n_measured_tokens))


def _with_fewer_classes(run: PromptRun, n_rows: int) -> PromptRun:
  """A run whose step has `n_rows`, images and classes in the proportions of `run`.

  The step reads stored image features, so that its time is the text tower's.
  """
  share = min(1.0, n_rows / (run.group_size + run.k))
  n_chunks = run.step_memory.n_chunks
  contrast = run.contrast
  if share < 1:
    n_chunks = min(n_chunks, 2)
    k = max(2, round(run.k * share))
    contrast = dataclasses.replace(contrast, negatives="sampled", k=k)
  batch_size = run.n_groups * max(1, round(run.group_size * share))
  return dataclasses.replace(
    run,
    data=dataclasses.replace(run.data, features="stored"),
    loop=dataclasses.replace(run.loop, batch_size=batch_size),
    contrast=contrast,
    # Rematerialise as the whole step does, although a part would fit without.
    plan=MemoryPlan(n_chunks, run.step_memory.remat),
  )


def batch_shapes(run: PromptRun) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch, its rows split over the data axis."""
  clip = run.encoder.clip
  n_images = run.loop.batch_size
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  shape_of = functools.partial(jax.ShapeDtypeStruct, sharding=rows)
  if run.data.features == "online":
    image = shape_of((n_images, clip.image_size, clip.image_size, 3), np.uint8)
  else:
    image = shape_of((n_images, clip.config.projection_dim), np.float32)
  return {"image": image, "label": shape_of((n_images,), np.int32)}


def ones(batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """Places a batch of ones on the devices. A step takes as long for any values."""
  return {
    name: jnp.ones_like(leaf, device=leaf.sharding) for name, leaf in batch.items()
  }


def _all_classes(run: PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures the features of all classes under the prompt, without gradient."""
  encoder = run.encoder
  position = run.module.position
  n_classes = len(run.source.names)
  tokens = jax.tree.map(np.asarray, run.frozen.tokens)

  def features_of(n: int) -> Callable[[], Any]:
    classes = spread_evenly(n, n_classes)
    some_tokens = jax.tree.map(lambda rows: rows[classes], tokens)
    frozen = run.frozen._replace(tokens=replicate(some_tokens, encoder.mesh))
    return lambda: encoder.features_of_classes(state.params, frozen, position)

  least = _FEATURES * encoder.mesh.size
  chunk = min(n_classes, CHUNK)
  if text_flops(run, chunk * tokens.ids.shape[1]) <= _FEW_FLOPS:
    # Take a full chunk of a small tower: fewer rows would compile another program.
    least = chunk
  return {"class_features": _cost(features_of, n_classes, least)}


def _test_images(run: PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures reading and encoding of test images, as in an evaluation."""
  data = run.data
  encoder = run.encoder
  split = opening.evaluation_splits(data)[0]

  def features_of(n: int) -> Callable[[], Any]:
    images = opening.open_source(data, split, n_images=n)
    return lambda: split_features(
      encoder, images, threads=data.threads, max_corrupt=data.max_corrupt
    )

  total = len(opening.open_source(data, split, n_images=_TEST_IMAGES))
  return {"test_images": _cost(features_of, total, _IMAGES * encoder.mesh.size)}


def _saving(run: PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures saving a checkpoint, and the bytes of a checkpoint and of the prompt."""
  with Checkpoints(run.folder.checkpoints, 1) as checkpoints:

    def save() -> None:
      meta = {"config": run.config}
      checkpoints.save(1, gather_bank(run, state), meta, metric=0.5)

    [seconds] = _seconds(save, 1, warmup=0)
  save_prompt(run.folder.prompt, run.prompt_of(state))
  # A checkpoint is a folder of files.
  n_bytes = 0
  for file in run.folder.checkpoints.rglob("*"):
    if file.is_file():
      n_bytes += file.stat().st_size
  return {
    "checkpoint_seconds": seconds,
    "checkpoint_bytes": n_bytes,
    "prompt_bytes": run.folder.prompt.stat().st_size,
  }


def disk(run: PromptRun) -> dict[str, int]:
  """Estimates the bytes of a run's parts on a disk, by name.

  A checkpoint is written to the run's folder to measure it. `images` is the number of
  training images times the mean size of a few; records hold images unchanged.
  `stored_features` is 0 if features are not stored, or if each epoch has other views.
  `checkpoints` are all that a run keeps, and the prompt.
  """
  image_bytes = 0.0
  if isinstance(run.source, StoredImages):
    some = range(min(_IMAGES, len(run.source)))
    image_bytes = float(np.mean([len(run.source.encoded(index)) for index in some]))
  n_views = 0
  if run.data.features == "stored":
    n_views = stored_views(run)
  # A stored view is a feature and a number, four bytes each.
  view_bytes = 4 * (run.encoder.clip.config.projection_dim + 1)
  figures = _saving(run, noise_state(run))
  # Besides `keep` checkpoints a run has the best one and the one being written.
  n_checkpoints = run.checkpoint.keep + 2
  checkpoints = n_checkpoints * figures["checkpoint_bytes"]
  return {
    "images": round(len(run.source) * image_bytes),
    "stored_features": n_views * view_bytes,
    "checkpoints": checkpoints + figures["prompt_bytes"],
  }


def stored_views(run: PromptRun) -> int:
  """Counts the views whose features `data.features=stored` stores before the first step."""
  augmentation = batches.augmentation(run.data)
  if augmentation.kind != "none" and not augmentation.view_epochs:
    return 0  # each epoch has other views, so none are stored
  return len(run.source) * augmentation.n_epochs * augmentation.n_views


def _cost(
  computation_of: Callable[[int], Callable[[], Any]], total: int, least: int
) -> Cost:
  """Measures the time of all rows, or scales the time of some if all take too long.

  Args:
    computation_of: maps a number of rows to their computation, whose first call may
      compile.
    total: number of all rows.
    least: number of rows to measure at first.
  """
  n = least
  if 8 * least >= total:
    n = total  # all rows at once take hardly longer than a second compilation
  while True:
    # Take the faster of two: other load makes a machine slower, never faster.
    seconds = min(_seconds(computation_of(n), 2, warmup=1))
    # All processes measure the same number of rows.
    seconds = hosts.from_first(seconds, "the time of a part")
    rows_per_second = n / max(seconds, 1e-9)

    # A measurement runs three times: the warmup, and two that are timed.
    affordable = int(rows_per_second * _PART_SECONDS / 3)
    is_exact_enough = seconds >= _ENOUGH_SECONDS
    # Stop if the next size, at least eight times as many rows, would take too long.
    is_last = affordable < min(total, 8 * n)
    if n == total or is_exact_enough or is_last:
      return Cost(seconds * total / n, n, total)
    enough = max(8 * n, int(rows_per_second * _ENOUGH_SECONDS))
    n = min(total, affordable, enough)


def _seconds(call: Callable[[], Any], times: int, warmup: int) -> list[float]:
  """Seconds of each of `times` calls, after `warmup` calls that are not timed."""
  for _ in range(warmup):
    call()
  return timeit.repeat(call, number=1, repeat=times)
