"""Costs of the parts of a training on these devices: seconds, bytes and rates.

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
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.prompt_file import save_prompt
from pomp_jax.files.terminal import steps_of, waiting
from pomp_jax.prompt.mesh import CLASS, DATA, replicate
from pomp_jax.prompt.step import TrainState, repeated
from pomp_jax.train import batches, setup
from pomp_jax.train.resume import blank_state, gather_bank, place_bank

# A part is measured in whole if a warmup and two measurements take at most this many
# seconds.
_PART_SECONDS = 20.0
# A measurement that takes as long is scaled as it is: the clock is fine enough for it.
_ENOUGH_SECONDS = 0.05
# A computation of at most this is run in whole at once: a slow core takes two seconds
# for it.
_FEW_FLOPS = 2e10
_STEPS = 4  # timed steps, after one for warmup
_BATCHES = 4  # least number of timed batches, after twice as many for warmup
# Measure at least this many images per device, images read by a process, classes per
# device of a step and of class features, which fill the encoder's smallest program.
_IMAGES, _READ, _CLASSES, _FEATURES = 4, 16, 64, 128
_TEST_IMAGES = 512


class Cost(NamedTuple):
  """The time of a part, scaled if not all rows were measured."""

  seconds: float  # of all rows
  measured: int  # number of rows that were measured
  total: int  # number of all rows


def measure(run: setup.PromptRun) -> dict[str, Any]:
  """Measures every part of a run on available data, and writes to its folder.

  Returns figures by name: a `Cost` of each part, and numbers.
  """
  figures: dict[str, Any] = {"devices": len(hosts.devices()), "steps": run.total_steps}
  state = noise_state(run)
  for part in steps_of(
    [reading, _step, _all_classes, _test_images, _saving], "dry run", "parts"
  ):
    figures |= part(run, state)
  return figures | {"process_peak_mib": hosts.peak_mib()}


def noise_state(run: setup.PromptRun) -> TrainState:
  """Returns a first state; a bank is noise, which costs a step as much as features."""
  state = blank_state(run)
  if state.bank is None:
    return state
  bank_NxE = np.random.default_rng(0).standard_normal(state.bank.shape, np.float32)
  bank_NxE /= np.linalg.norm(bank_NxE, axis=-1, keepdims=True)
  return place_bank(run, state.replace(bank=bank_NxE))


def reading(run: setup.PromptRun, state: TrainState | None = None) -> dict[str, Any]:
  """Reads a smaller batch of this process; views are read one by one."""
  _, count = batches.own_shard(run.encoder.mesh)
  n_images = run.loop.batch_size // run.data.views
  smaller = min(n_images, _READ * count)
  views = smaller * run.data.views
  # Take the readers of whole batches: each holds some that are ready.
  threads, workers = readers = run.readers
  loop = dataclasses.replace(run.loop, batch_size=views)
  data = dataclasses.replace(run.data, threads=threads, workers=workers)
  loader = dataclasses.replace(run, loop=loop, data=data).open_batches()
  n_timed = max(_BATCHES, 4 * readers.threads * max(1, readers.workers))
  seconds = float(np.mean(_seconds(lambda: next(loader), n_timed, warmup=2 * n_timed)))
  loader.close()
  return {"read": Cost(seconds * n_images / smaller, views, run.loop.batch_size)}


def _step(run: setup.PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures the whole step, or a part of its images and a part of its classes if it
  is long."""
  batch = batch_shapes(run)
  with waiting("compiling the training step"):
    start = time.monotonic()
    program = run.build_step().lower(state, run.frozen, batch).compile()
    found: dict[str, Any] = {"compile_seconds": time.monotonic() - start}
  if memory := program.memory_analysis():
    found["device_arguments_mib"] = memory.argument_size_in_bytes / 2**20
    found["device_temporaries_mib"] = memory.temp_size_in_bytes / 2**20
  if not _is_short(run):
    online = run.data.features == "online"
    images = _image_cost(run) if online else Cost(0.0, 1, 1)
    classes = _class_cost(run)
    seconds = images.seconds + classes.seconds
    if (1 + _STEPS) * seconds > _PART_SECONDS:
      return found | {
        "step_seconds": seconds,
        "step_images": images,
        "step_classes": classes,
      }
  # Only now: a batch that is too large for the devices may be too long to run.
  step = repeated(program, noise_state(run), run.frozen, ones(batch))
  return found | {"step_seconds": float(np.median(_seconds(step, _STEPS, warmup=1)))}


def _is_short(run: setup.PromptRun) -> bool:
  """Whether the step surely takes little time, so that no part of it has to be
  compiled first."""
  n_tokens = run.n_prefix + run.token_budget
  flops = 3 * text_flops(run, n_tokens)  # forward and backward
  if run.data.features == "online":
    n_patches = run.encoder.clip.image_size**2 / 14**2  # of the smallest usual size
    size = sum(leaf.size for leaf in jax.tree.leaves(run.encoder.vision_params))
    flops += 2 * size * n_patches * run.loop.batch_size
  return flops <= _FEW_FLOPS


def text_flops(run: setup.PromptRun, n_tokens: float | int) -> float:
  """Floating-point operations of the text tower's dense layers, forward."""
  layers = jax.tree.leaves(run.frozen.text["text_model"]["encoder"])
  return 2.0 * sum(leaf.size for leaf in layers) * n_tokens


def _image_cost(run: setup.PromptRun) -> Cost:
  """Measures the image tower on the images of a step."""
  encoder, size = run.encoder, run.encoder.clip.image_size
  rows = NamedSharding(encoder.mesh, P((DATA, CLASS)))

  def of(n_images):
    # Pad to equal shares of the devices; the pixels do not change the time.
    padded = -(-n_images // encoder.mesh.size) * encoder.mesh.size
    pixels = jnp.zeros((padded, size, size, 3), np.uint8, device=rows)
    return lambda: encoder.features_of_images(pixels).block_until_ready()

  return _cost(of, run.loop.batch_size, _IMAGES * encoder.mesh.size)


def _class_cost(run: setup.PromptRun) -> Cost:
  """Measures a step on random image features: draw, text tower, loss, gradient,
  update."""
  mesh, n_images, k = run.encoder.mesh, run.group_size, run.k
  plan = run.step_memory

  def smaller(n_rows: int) -> setup.PromptRun:
    part = min(1.0, n_rows / (n_images + k))
    n_chunks = plan.n_chunks if part == 1 else min(plan.n_chunks, 2)
    contrast = run.contrast
    if part < 1:
      contrast = dataclasses.replace(
        contrast, negatives="sampled", k=max(2, round(k * part))
      )
    data = dataclasses.replace(run.data, features="stored")
    batch_size = run.n_groups * max(1, round(n_images * part))
    loop = dataclasses.replace(run.loop, batch_size=batch_size)
    # Rematerialise as the whole step does.
    own = MemoryPlan(n_chunks, plan.remat)
    return dataclasses.replace(run, data=data, loop=loop, contrast=contrast, plan=own)

  def of(n_rows: int) -> Callable[[], None]:
    small = smaller(n_rows)
    state, batch = noise_state(small), batch_shapes(small)
    with waiting("compiling a part of the step"):
      program = small.build_step().lower(state, run.frozen, batch).compile()
    return repeated(program, state, run.frozen, ones(batch))

  cost = _cost(of, n_images + k, _CLASSES * mesh.shape[CLASS])
  if cost.measured == cost.total:
    return cost
  # Scale by tokens, not by rows: the budget of a few rows has more slack.
  tokens = [one.n_prefix + one.token_budget for one in (run, smaller(cost.measured))]
  by_tokens = tokens[0] / tokens[1]
  return cost._replace(seconds=cost.seconds * cost.measured / cost.total * by_tokens)


def batch_shapes(run: setup.PromptRun) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch, its rows split over the data axis."""
  clip, size = run.encoder.clip, run.loop.batch_size
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  shape_of = functools.partial(jax.ShapeDtypeStruct, sharding=rows)
  image = shape_of((size, clip.config.projection_dim), np.float32)
  if run.data.features == "online":
    image = shape_of((size, clip.image_size, clip.image_size, 3), np.uint8)
  return {"image": image, "label": shape_of((size,), np.int32)}


def ones(batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """A batch of ones on the devices, whose values do not change the time."""
  return {
    name: jnp.ones_like(leaf, device=leaf.sharding) for name, leaf in batch.items()
  }


def _all_classes(run: setup.PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures the features of all classes under the prompt, without gradient."""
  encoder, n_classes = run.encoder, len(run.source.names)
  frozen, tokens = run.frozen, jax.tree.map(np.asarray, run.frozen.tokens)

  def of(n):
    some = spread_evenly(n, n_classes)
    part = replicate(jax.tree.map(lambda rows: rows[some], tokens), encoder.mesh)
    of_part = frozen._replace(tokens=part)
    return lambda: encoder.features_of_classes(
      state.params, of_part, run.module.position
    )

  # A whole chunk of a small tower: another number of rows would be another program.
  chunk = min(n_classes, CHUNK)
  is_small = text_flops(run, chunk * tokens.ids.shape[1]) <= _FEW_FLOPS
  least = chunk if is_small else _FEATURES * encoder.mesh.size
  return {"class_features": _cost(of, n_classes, least)}


def _test_images(run: setup.PromptRun, state: TrainState) -> dict[str, Any]:
  """Measures reading and encoding of test images, as in an evaluation."""
  data, encoder = run.data, run.encoder
  split = inputs.evaluation_splits(data)[0]

  def of(n):
    some = inputs.open_source(data, split, n_images=n)
    return lambda: split_features(
      encoder, some, threads=data.threads, max_corrupt=data.max_corrupt
    )

  total = len(inputs.open_source(data, split, n_images=_TEST_IMAGES))
  return {"test_images": _cost(of, total, _IMAGES * encoder.mesh.size)}


def _saving(run: setup.PromptRun, state: TrainState) -> dict[str, Any]:
  with Checkpoints(run.folder.checkpoints, 1) as checkpoints:
    save = lambda: checkpoints.save(
      1, gather_bank(run, state), {"config": run.config}, metric=0.5
    )
    (seconds,) = _seconds(save, 1, warmup=0)
  save_prompt(run.folder.prompt, run.prompt_of(state))
  # A checkpoint is a folder.
  files = (file for file in run.folder.checkpoints.rglob("*") if file.is_file())
  return {
    "checkpoint_seconds": seconds,
    "checkpoint_bytes": sum(file.stat().st_size for file in files),
    "prompt_bytes": run.folder.prompt.stat().st_size,
  }


def disk(run: setup.PromptRun) -> dict[str, int]:
  """Bytes of a run's parts on a disk, by name; writes a checkpoint to the run's folder.

  `images` are the training images, of the mean size of a few; records hold them as they
  are. `stored_features` are 0 if the features of no two epochs are the same, or are not
  stored. `checkpoints` are all that a run keeps, the best and the one being written
  included, and the prompt.
  """
  some = range(min(_IMAGES, len(run.source)))
  sizes = (
    [len(run.source.encoded(index)) for index in some]
    if isinstance(run.source, StoredImages)
    else [0]
  )
  figures = _saving(run, noise_state(run))
  n_kept = run.checkpoint.keep + 2
  row_bytes = 4 * (run.encoder.clip.config.projection_dim + 1)
  n_views = stored_views(run) if run.data.features == "stored" else 0
  return {
    "images": round(len(run.source) * float(np.mean(sizes))),
    "stored_features": n_views * row_bytes,
    "checkpoints": n_kept * figures["checkpoint_bytes"] + figures["prompt_bytes"],
  }


def stored_views(run: setup.PromptRun) -> int:
  """Views whose features are computed before the first step, if they are stored."""
  shown = batches.augmentation(run.data)
  repeats = shown.kind == "none" or shown.view_epochs
  return len(run.source) * shown.n_epochs * shown.n_views if repeats else 0


def _cost(of: Callable[[int], Callable[[], Any]], total: int, least: int) -> Cost:
  """Measures the time of all rows, or scales that of some of them if all are long.

  `of` maps a number of rows, at first `least`, to their computation, whose first call
  may compile.
  """
  # Measure all rows at once where that saves a second compilation.
  n = least if 8 * least < total else total
  while True:
    # Take the faster of two: other load makes a machine slower, never faster.
    seconds = min(_seconds(of(n), 2, warmup=1))
    # All processes measure the same number of rows.
    seconds = hosts.from_first(seconds, "the time of a part")
    affordable = int(n * _PART_SECONDS / (3 * max(seconds, 1e-9)))
    if n == total or seconds >= _ENOUGH_SECONDS or affordable < min(total, 8 * n):
      return Cost(seconds * total / n, n, total)
    enough = int(n * max(8, _ENOUGH_SECONDS / max(seconds, 1e-9)))
    n = min(total, affordable, enough)


def _seconds(call: Callable[[], Any], times: int, warmup: int) -> list[float]:
  for _ in range(warmup):
    call()
  return timeit.repeat(call, number=1, repeat=times)
