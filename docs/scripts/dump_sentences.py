"""Writes sentences about classes as a folder of features, to learn a prompt without
images.

  python -m docs.scripts.dump_sentences --sentences cupl.json --out FEATURES
  pomp --config=protext:root=FEATURES --workdir=runs/protext

The JSON has a list of sentences for each class name, as CuPL's. Classes are those of
the folder if it has features of images already (docs/scripts/dump_open_clip.py), of
--names, or else of the JSON. The sentences become the training rows of the folder
(docs/reference/formats.md), with a sentence in the place of an image. Sentences longer
than the CLIP's positions are cut.
"""

import argparse
import itertools
import json
import pathlib
import sys

from docs.scripts.dump_open_clip import open_header, write_header, write_split
from pomp_jax.config.fields import Clip
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.errors import InputError
from pomp_jax.evaluate.opening import open_encoder
from pomp_jax.rooms.mixtures.descriptions import read_descriptions


def main(arguments=None) -> None:
  """Encodes every sentence, and writes the split `train`."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--sentences", required=True, help="JSON: class name -> list of sentences"
  )
  parser.add_argument("--out", required=True)
  parser.add_argument(
    "--clip", default="openai/clip-vit-base-patch16", help="config.clip.model"
  )
  parser.add_argument(
    "--names", help="class list or file of names; else the JSON's names"
  )
  parser.add_argument("--dtype", default="float32", choices=("float16", "float32"))
  flags = parser.parse_args(arguments)
  out = pathlib.Path(flags.out)
  try:
    described = read_descriptions(flags.sentences)
    if (out / "features.json").exists():
      before = json.loads((out / "features.json").read_text())
      names = before["names"]
      if "train" in before["splits"]:
        sys.exit(
          f"{out}: has training rows already, expected another folder, or test rows alone"
        )
    elif flags.names:
      names = list(load_class_list(flags.names).names)
    else:
      names = list(json.loads(pathlib.Path(flags.sentences).read_text()))
    sentences = described.of(names, flags.sentences)
    encoder = open_encoder(Clip(model=flags.clip, image_tower=False))
    texts = list(itertools.chain(*sentences))
    features = encoder.class_features(texts, "{}", unit=False, cut=True)
  except InputError as error:
    sys.exit(str(error))
  header = {
    "format_version": 1,
    "clip_model": encoder.clip.name,
    "width": features.shape[1],
  }
  header = open_header(out, header | {"names": names, "splits": {}})
  labels = [label for label, own in enumerate(sentences) for _ in own]
  # Lines have to differ, and sentences may not.
  keys = [f"{i} {' '.join(text.split())}" for i, text in enumerate(texts)]
  digest = write_split(
    out, "train", labels, keys, [features], features.shape[1], flags.dtype
  )
  header["splits"]["train"] = digest
  write_header(out, header)


if __name__ == "__main__":
  main()
