"""Images that one core decodes and augments per second, beside torchvision's own
transforms.

  python -m docs.studies.read_images [--seconds=20] [--folder=JPEGS] [--readers=1x0,2x0,1x2]

The same files in the same process, interleaved, each on one thread: images/s of the
recipe's crop and flip, of the whole recipe, and of CLIP's test preprocessing. Without
torchvision its column is dropped. With `--readers` instead the recipe through the
loader, by THREADSxWORKERS: threads of each process that reads, and worker processes (0:
the program's own process).
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import importlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import pathlib
import time

import numpy as np
from PIL import Image

from pomp_jax.data.folder import find_images
from pomp_jax.data.loader import Loader, Readers
from pomp_jax.data.source import StoredImages
from pomp_jax.data.views import (
  CROP_AREA,
  OPERATIONS,
  PROBABILITY,
  RATIO,
  Augmentation,
  views,
)
from pomp_jax.rooms.benchmark.synthetic_images import encode, natural_image

_SIZE = 224
_N_IMAGES = 24
# Through the loader: views of a batch and of an image, and interleaved rounds.
_READ_VIEWS, _N_VIEWS, _ROUNDS = 128, 4, 3
# By the line of the table: augmentation, and views of an image.
_CASES = {
  "test": ("none", 1),
  "crop, flip": ("crop_flip", 1),
  "recipe": ("recipe", 1),
  "recipe, 4 views": ("recipe", 4),
}


class _Held:
  """Files in memory; a `Storage`."""

  def __init__(self, encoded: Sequence[bytes]):
    self._encoded = encoded

  def read(self, row: int, key: str) -> bytes:
    return self._encoded[row]

  def where(self, row: int, key: str) -> str:
    return key


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--seconds", type=float, default=20, help="seconds of each measurement"
  )
  parser.add_argument("--folder", help="folder of JPEGs; synthetic ones by default")
  parser.add_argument("--readers", help="THREADSxWORKERS, separated by commas")
  arguments = parser.parse_args()
  if arguments.folder:
    encoded = [
      path.read_bytes() for path in find_images(arguments.folder, nested=False).values()
    ]
  else:
    encoded = [encode(natural_image(seed, 375, 500)) for seed in range(_N_IMAGES)]
  width, height = np.mean([Image.open(io.BytesIO(one)).size for one in encoded], axis=0)
  print(
    f"{len(encoded)} JPEGs, {width:.0f} x {height:.0f} pixels and"
    f" {np.mean(list(map(len, encoded))) / 1e3:.0f} kB on average, to {_SIZE} x {_SIZE}, one"
    " thread; images/s, medians"
  )
  if arguments.readers:
    _print_readers(encoded, arguments.readers.split(","), arguments.seconds)
    return
  for name, (augment, n_views) in _CASES.items():
    programs = {"ours": _ours(encoded, augment, n_views)}
    if importlib.util.find_spec("torchvision"):
      programs["torchvision"] = _torchvision(encoded, augment, n_views)
    _print_rates(name, programs, arguments.seconds)


def _print_rates(
  name: str, programs: dict[str, Callable[[], int]], seconds: float
) -> None:
  """Prints how many images each program computes per second, the median over
  interleaved rounds."""
  rates: dict[str, list[float]] = {program: [] for program in programs}
  end = time.monotonic() + seconds * len(programs)
  while time.monotonic() < end or len(rates["ours"]) < 3:
    for program, compute in programs.items():
      start = time.perf_counter()
      n_done = compute()
      rates[program].append(n_done / (time.perf_counter() - start))
  medians = {program: float(np.median(found)) for program, found in rates.items()}
  line = ", ".join(f"{program} {rate:.0f}" for program, rate in medians.items())
  if "torchvision" in medians:
    line += f", {medians['ours'] / medians['torchvision']:.2f} times"
  print(f"{name}: {line}", flush=True)


def _print_readers(
  encoded: Sequence[bytes], readers: Sequence[str], seconds: float
) -> None:
  """Prints images/s and CPU time of the recipe, 4 views an image, through the
  loader."""
  print(
    f"batches of {_READ_VIEWS // _N_VIEWS} images through the loader, {_N_VIEWS} views of each"
  )
  rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
  for name in list(readers) * _ROUNDS:
    threads, workers = map(int, name.split("x"))
    rounds[name].append(_read(encoded, threads, workers, seconds / _ROUNDS))
  for name, found in rounds.items():
    rate, busy = np.median(found, axis=0)
    print(
      f"threads x workers {name}: {rate:.0f} images/s, {rate / busy:.0f} a core-second"
    )


def _read(
  encoded: Sequence[bytes], threads: int, workers: int, seconds: float
) -> tuple[float, float]:
  """Measures images/s, and the cores that were busy with them."""
  source, recipe = _source(encoded), Augmentation("recipe", _N_VIEWS)
  loader = Loader(
    source,
    functools.partial(views, source, augmentation=recipe, size=_SIZE),
    batch_size=_READ_VIEWS,
    seed=0,
    n_views=_N_VIEWS,
    readers=Readers(threads, workers),
  )
  # Batches that are ready when the clock starts would cost nothing.
  for _ in range(4 + 2 * threads * max(1, workers)):
    next(loader)
  start, cpu, n_batches = time.monotonic(), _cpu_seconds(), 0
  while time.monotonic() < start + seconds:
    next(loader)
    n_batches += 1
  elapsed, cpu = time.monotonic() - start, _cpu_seconds() - cpu
  loader.close()
  return n_batches * (_READ_VIEWS // _N_VIEWS) / elapsed, cpu / elapsed


def _cpu_seconds() -> float:
  """CPU time of this process and its running children, s."""
  total = time.process_time()
  for child in multiprocessing.active_children():
    fields = (
      pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    )
    total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
  return total


def _source(encoded: Sequence[bytes]) -> StoredImages:
  keys = [str(number) for number in range(len(encoded))]
  return StoredImages(
    "a", np.zeros(len(encoded), int), keys, _Held(encoded), image_size=_SIZE
  )


def _ours(encoded: Sequence[bytes], augment: str, n_views: int) -> Callable[[], int]:
  source, augmentation = _source(encoded), Augmentation(augment, n_views)
  indices, epoch = np.arange(len(encoded)), itertools.count()

  def program() -> int:
    views(source, indices, np.full(len(indices), next(epoch)), augmentation, _SIZE)
    return len(indices)

  return program


def _torchvision(
  encoded: Sequence[bytes], augment: str, n_views: int
) -> Callable[[], int]:
  """Builds the usual pipeline: open, convert, transform, to a tensor.

  torchvision has no RandAugment2. Its operations are applied by torchvision's
  functions, two drawn for an image, each with the same probability.
  """
  transforms = importlib.import_module("torchvision.transforms")
  bicubic = transforms.InterpolationMode.BICUBIC
  if augment == "none":
    steps = [transforms.Resize(_SIZE, bicubic), transforms.CenterCrop(_SIZE)]
  else:
    crop = transforms.RandomResizedCrop(_SIZE, (CROP_AREA, 1.0), RATIO, bicubic)
    steps = [crop, transforms.RandomHorizontalFlip()]
  if augment == "recipe":
    chosen = [
      transforms.RandomApply([transforms.Lambda(operation)], PROBABILITY)
      for operation in _operations(
        importlib.import_module("torchvision.transforms.functional")
      )
    ]
    # The same number of operations, with replacement.
    steps += [transforms.RandomChoice(chosen), transforms.RandomChoice(chosen)]
  pipeline = transforms.Compose([*steps, transforms.PILToTensor()])

  def program() -> int:
    for content in encoded:
      for _ in range(n_views):
        pipeline(Image.open(io.BytesIO(content)).convert("RGB"))
    return len(encoded)

  return program


def _operations(functional) -> list[Callable]:
  """Lists RandAugment2's operations by torchvision's functions, with magnitudes of
  our ranges."""
  rng = np.random.default_rng(0)

  def drawn(name: str, apply: Callable) -> Callable:
    _, low, high = OPERATIONS[name]
    return lambda image: apply(image, rng.uniform(low, high))

  def affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    return functional.affine(image, 0.0, list(translate), 1.0, list(shear))

  degrees = 180 / np.pi
  shift = lambda image, m: int(m * image.width)
  return [
    functional.autocontrast,
    drawn("brightness", functional.adjust_brightness),
    drawn("color", functional.adjust_saturation),
    drawn("contrast", functional.adjust_contrast),
    functional.equalize,
    lambda image: image,
    functional.invert,
    drawn("posterize", lambda image, m: functional.posterize(image, int(m))),
    drawn("rotate", functional.rotate),
    drawn("sharpness", functional.adjust_sharpness),
    drawn("shear_x", lambda image, m: affine(image, shear=(m * degrees, 0.0))),
    drawn("shear_y", lambda image, m: affine(image, shear=(0.0, m * degrees))),
    drawn("solarize", functional.solarize),
    drawn("translate_x", lambda image, m: affine(image, (shift(image, m), 0))),
    drawn("translate_y", lambda image, m: affine(image, (0, shift(image, m)))),
  ]


if __name__ == "__main__":
  main()
