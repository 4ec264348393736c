"""Writes image features of a model of open_clip as a folder of features
(docs/reference/formats.md).

Run wherever open_clip runs (open_clip_torch, torch, NumPy, Pillow; nothing of this
project):

  python dump_open_clip.py --model ViT-L-14 --pretrained dfn2b --data PICTURES --out FEATURES

PICTURES holds train/, val/ and test/, or some of them, each with a folder a class; or
class folders alone, which are train. The same command resumes behind the last complete
split. A picture that can't be read gets features that are NaN.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
import zlib

import numpy as np
from PIL import Image

SPLITS = {
  "train": "train",
  "val": "validation",
  "validation": "validation",
  "test": "test",
}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Pictures:
  """Preprocessed pictures, and whether each could be read."""

  def __init__(self, paths, transform):
    """Reads nothing yet."""
    self.paths, self.transform = paths, transform
    self.blank = 0 * transform(Image.new("RGB", (64, 64)))

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, index):
    try:
      with Image.open(self.paths[index]) as image:
        return self.transform(image), True
    except Exception as error:  # a damaged picture fails in many ways
      print(f"\n{self.paths[index]}: can't be read ({error})", file=sys.stderr)
      return self.blank, False


def write_split(
  out: pathlib.Path, split: str, labels, keys, batches, width: int, dtype
) -> str:
  """Writes features as they come, then labels, checksums and keys; returns the
  SHA-256 of these."""
  lines = "".join(f"{key}\n" for key in keys).encode()
  if lines.count(b"\n") != len(keys):
    sys.exit(f"{split}: a file's name has a line break")
  rows = np.lib.format.open_memmap(
    out / f"{split}.npy", "w+", dtype, (len(keys), width)
  )
  checksums: list[int] = []
  for found in batches:
    with np.errstate(over="ignore"):
      part = np.asarray(found).astype(dtype)
    if np.isinf(part).any():
      sys.exit(f"{split}: features too large for {part.dtype}: use --dtype float32")
    rows[len(checksums) : len(checksums) + len(part)] = part
    checksums += [zlib.crc32(row) for row in part]
    print(f"\r{split}: {len(checksums):,} of {len(keys):,}", end="", file=sys.stderr)
  rows.flush()
  print(file=sys.stderr)
  files = [out / f"{split}_{end}" for end in ("labels.npy", "crc32.npy", "keys.txt")]
  np.save(files[0], np.array(labels, np.int32))
  np.save(files[1], np.array(checksums, np.uint32))
  files[2].write_bytes(lines)
  return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def open_header(out: pathlib.Path, header: dict) -> dict:
  """Makes the folder, and returns its `features.json` if it has one; exits if that
  is of others."""
  out.mkdir(parents=True, exist_ok=True)
  if not (out / "features.json").exists():
    return header
  before = json.loads((out / "features.json").read_text())
  before.pop("checksum", None)
  if before | {"splits": {}} != header:
    sys.exit(f"{out}: has features of another model or of other classes")
  return before


def write_header(out: pathlib.Path, header: dict) -> None:
  """Writes `features.json` in one step, so that a complete split counts from then on.

  The checksum is that of the reader's JSON files: CRC-32 of the rest with its keys in
  order.
  """
  checksum = zlib.crc32(json.dumps(header, sort_keys=True).encode())
  checked = {**header, "checksum": f"{checksum:08x}"}
  (out / "features.json.new").write_text(json.dumps(checked, indent=1))
  os.replace(out / "features.json.new", out / "features.json")


def listed(folder: pathlib.Path) -> list[str]:
  """Sorted names in a folder, without hidden ones."""
  return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def main(arguments=None) -> None:
  """Builds the model, and dumps each split that is not there yet."""
  # Here, so that other scripts can write such folders without them.
  import open_clip
  import torch

  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  for flag in ("--model", "--data", "--out"):
    parser.add_argument(flag, required=True)
  parser.add_argument(
    "--pretrained", default="", help="open_clip's tag, or a file of weights"
  )
  parser.add_argument(
    "--clip", help="config.clip.model, if not open_clip:MODEL/PRETRAINED"
  )
  parser.add_argument("--dtype", default="float16", choices=("float16", "float32"))
  parser.add_argument(
    "--precision", default="fp32", help="of the computation, by open_clip's name"
  )
  parser.add_argument(
    "--device", default="cuda" if torch.cuda.is_available() else "cpu"
  )
  parser.add_argument("--batch-size", type=int, default=256)
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  flags = parser.parse_args(arguments)
  data, out = pathlib.Path(flags.data), pathlib.Path(flags.out)
  folders = {SPLITS[x]: data / x for x in listed(data) if x in SPLITS} or {
    "train": data
  }
  names = sorted(
    {x for one in folders.values() for x in listed(one) if (one / x).is_dir()}
  )

  model, _, transform = open_clip.create_model_and_transforms(
    flags.model,
    flags.pretrained or None,
    precision=flags.precision,
    device=flags.device,
  )
  dtype = open_clip.get_input_dtype(flags.precision)

  @torch.inference_mode()
  def encode(images):
    return (
      model.eval().encode_image(images.to(flags.device, dtype)).float().cpu().numpy()
    )

  def features(paths):
    pictures = Pictures(paths, transform)
    for images, read in torch.utils.data.DataLoader(
      pictures, flags.batch_size, num_workers=flags.workers
    ):
      yield np.where(read.numpy()[:, None], encode(images), np.nan)

  named = (
    f"open_clip:{flags.model}/{flags.pretrained}" if flags.pretrained else flags.model
  )
  width = encode(Pictures([], transform).blank[None]).shape[1]
  header = {"format_version": 1, "clip_model": flags.clip or named, "width": width}
  header |= {"names": names, "splits": {}}
  header = open_header(out, header)
  for split, folder in folders.items():
    pairs = [
      (label, f"{name}/{file}")
      for label, name in enumerate(names)
      if (folder / name).is_dir()
      for file in listed(folder / name)
      if file.lower().endswith(SUFFIXES)
    ]
    if split in header["splits"] or not pairs:
      continue
    labels, keys = zip(*pairs, strict=True)
    batches = features([folder / key for key in keys])
    header["splits"][split] = write_split(
      out, split, labels, keys, batches, width, flags.dtype
    )
    write_header(out, header)


if __name__ == "__main__":
  main()
