"""Writes an archive of ImageNet-21K whose images are the embedded world's.

  python -m docs.studies.world_archive FOLDER [--classes=21841] [--images=21] [--workers=2]

Leaves in FOLDER:

  fall11_whole.tar  a tar for each WordNet id of ImageNet-21K, as in the fall 2011 release, with
                    JPEGs of 40 x 40 pixels of one class of the world
  names.json        the WordNet id of each class and its name in the world, for `data.names`
  names.txt         these names alone, one a line
"""

import argparse
from collections.abc import Iterator
import concurrent.futures
import functools
import io
import json
import multiprocessing
import os
import pathlib
import tarfile

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.rooms.benchmark.synthetic_images import encode
from tests.support.data_files import tar_bytes

# Classes that a worker renders at a time.
_CHUNK = 64


def write_archive(
  folder: pathlib.Path, n_classes: int, n_images: int, workers: int
) -> int:
  """Writes the three files; the classes are spread evenly over both lists.

  Returns:
    Number of images in the archive.
  """
  classes = load_class_list("imagenet21k")
  synsets = [classes.synsets[c] for c in spread_evenly(n_classes, len(classes))]
  names = _source(n_classes, n_images).names
  folder.mkdir(parents=True, exist_ok=True)
  table = [
    {"name": name, "synset": own} for name, own in zip(names, synsets, strict=True)
  ]
  (folder / "names.json").write_text(json.dumps(table))
  (folder / "names.txt").write_text("".join(f"{name}\n" for name in names))
  path = folder / "fall11_whole.tar"
  partial = path.with_suffix(".partial")
  with tarfile.open(partial, "w") as tar:
    for synset, content in _tars(synsets, n_images, workers):
      member = tarfile.TarInfo(f"{synset}.tar")
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  os.replace(partial, path)
  return n_classes * n_images


def _tars(
  synsets: list[str], n_images: int, workers: int
) -> Iterator[tuple[str, bytes]]:
  """Yields each synset with its tar, rendered in worker processes."""
  chunks = np.split(np.arange(len(synsets)), range(_CHUNK, len(synsets), _CHUNK))
  render = functools.partial(_render, synsets=synsets, n_images=n_images)
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
    for chunk, tars in zip(chunks, pool.map(render, chunks), strict=True):
      yield from zip((synsets[c] for c in chunk), tars, strict=True)


def _render(classes: np.ndarray, synsets: list[str], n_images: int) -> list[bytes]:
  source = _source(len(synsets), n_images)
  tars = []
  for c in classes.tolist():
    pictures = source.images(np.arange(c * n_images, (c + 1) * n_images))
    # All colours at full resolution: they are part of the class.
    jpegs = [
      encode(Image.fromarray(one), quality=92, subsampling=0) for one in pictures
    ]
    tars.append(
      tar_bytes({f"{synsets[c]}_{i}.JPEG": jpeg for i, jpeg in enumerate(jpegs)})
    )
  return tars


@functools.lru_cache(maxsize=1)
def _source(n_classes: int, n_images: int) -> world.WorldSource:
  return world.source("train", images_per_class=n_images, n_classes=n_classes)


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--classes", type=int, default=21_841)
  parser.add_argument("--images", type=int, default=21, help="images a class")
  parser.add_argument("--workers", type=int, default=2, help="processes that render")
  arguments = parser.parse_args()
  n_images = write_archive(
    arguments.folder, arguments.classes, arguments.images, arguments.workers
  )
  print(f"wrote {n_images} images of {arguments.classes} classes to {arguments.folder}")


if __name__ == "__main__":
  main()
