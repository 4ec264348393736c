"""Makes the tables in `pomp_jax/data/class_names`, and TFDS's labels, from published
packages.

Run by hand when a list is added or a package's lists have changed. Only text files of
the packages are read and none of their code is run, so their own requirements are not
needed:

    pip install --no-deps timm==1.0.31 open_clip_torch==3.3.0 tensorflow-datasets==4.9.10 \\
      clip-benchmark==1.6.2
    apt-get install wordnet-base        # Debian's is WordNet 3.0
    python -m docs.generators.write_class_names

README.md gives the package of each file. `fgvc_aircraft.txt` and `templates/ucf101.txt`
are in none of them and are not rewritten.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import importlib.metadata
import json
import pathlib
import re
from typing import NamedTuple

from pomp_jax.data import class_lists

# Words of a gloss in a name: enough to differ, and no longer than other names.
_GLOSS_WORDS = 8
# Words that a shortened gloss must not end with.
_UNFINISHED = frozenset(
  ["a", "an", "and", "at", "for", "from", "in", "not", "of", "on", "or"]
  + ["than", "that", "the", "to", "used", "with"]
)
_WORDNET = "/usr/share/wordnet/data.noun"
# TFDS's label names of nine of the ten data sets: a file of lines, or a constant in a
# module.
_TFDS = {
  "caltech101": "image_classification/caltech101_labels.txt",
  "oxford_pets": (
    "datasets/oxford_iiit_pet/oxford_iiit_pet_dataset_builder.py",
    "_LABEL_CLASSES",
  ),
  "stanford_cars": ("image_classification/cars196.py", "_NAMES"),
  "flowers102": (
    "datasets/oxford_flowers102/oxford_flowers102_dataset_builder.py",
    "_NAMES",
  ),
  "food101": "image_classification/food-101_classes.txt",
  "sun397": "image_classification/sun397_labels.txt",
  "dtd": "image_classification/dtd_key_attributes.txt",
  "eurosat": ("image_classification/eurosat.py", "_LABELS"),
  "ucf101": "video/ucf101_labels.txt",
}
# Class list -> clip-benchmark's name of its templates.
_ENSEMBLES = {
  "oxford_pets": "pets",
  "stanford_cars": "cars",
  "flowers102": "flowers",
} | {
  name: name
  for name in ("caltech101", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat")
}
_CALTECH101 = {"background_google": "", "faces_easy": "", "faces": "face"} | {
  f"{name}s": name for name in ("leopard", "motorbike", "airplane")
}
_EUROSAT = {
  "AnnualCrop": "Annual Crop Land",
  "HerbaceousVegetation": "Herbaceous Vegetation Land",
  "Highway": "Highway or Road",
  "Industrial": "Industrial Buildings",
  "Pasture": "Pasture Land",
  "PermanentCrop": "Permanent Crop Land",
  "Residential": "Residential Buildings",
  "SeaLake": "Sea or Lake",
}
# Folders of Caltech101 that begin with a capital, and so are first in CoOp's order.
_CALTECH101_CAPITALS = ("faces", "leopards", "motorbikes")


class Noun(NamedTuple):
  """Synset of WordNet."""

  lemmas: tuple[str, ...]  # its words, the most usual first
  parents: tuple[str, ...]  # synsets that it is a kind or an instance of
  groups: tuple[str, ...]  # synsets that it is a member of, such as a plant's genus
  gloss: str  # its shortened definition


def read_nouns(path: str) -> dict[str, Noun]:
  """Reads WordNet's `data.noun` (format: its manual page wndb)."""
  nouns = {}
  for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
    if line.startswith("  "):  # the licence
      continue
    entry, gloss = line.split(" | ", 1)
    fields = entry.split()
    n_words = int(fields[3], 16)
    words = fields[4 : 4 + 2 * n_words : 2]
    pointers = fields[5 + 2 * n_words :]
    related = list(zip(pointers[::4], pointers[1::4], strict=True))
    nouns[f"n{fields[0]}"] = Noun(
      tuple(word.replace("_", " ") for word in words),
      tuple(f"n{offset}" for symbol, offset in related if symbol in ("@", "@i")),
      tuple(f"n{offset}" for symbol, offset in related if symbol == "#m"),
      _shortened(gloss),
    )
  return nouns


def _shortened(gloss: str) -> str:
  """Drops a leading bracket, and all after a comma, semicolon, bracket or the eighth
  word."""
  gloss = re.sub(r"^\([^)]*\)", "", gloss.strip())
  words = re.split("[,;(]", gloss)[0].split()
  if words and words[0] in ("a", "an", "the"):
    del words[0]
  words = words[:_GLOSS_WORDS]
  while words and words[-1] in _UNFINISHED:
    words.pop()
  return " ".join(words)


def _ancestors(synset: str, nouns: Mapping[str, Noun]) -> dict[str, None]:
  """All synsets above one, nearest first."""
  found: dict[str, None] = {}
  level = [synset]
  while level := [parent for child in level for parent in nouns[child].parents]:
    found |= dict.fromkeys(level)
  return found


def distinct_names(ids: Sequence[str], nouns: Mapping[str, Noun]) -> list[str]:
  """Gives each class its first lemma, and as many more words as make the name distinct.

  Classes that share a first lemma, upper or lower case, add words one at a time while
  the name is shared: their other lemmas, then the first lemmas of their ancestors,
  nearest first, without the words that all of these classes have. An example is "crane,
  wading bird" and "crane, lifting device". Classes with the same words (two kinds of
  brake) add the groups that they are members of, and then their gloss.
  """
  sharing: dict[str, list[str]] = {}
  for synset in ids:
    sharing.setdefault(nouns[synset].lemmas[0].casefold(), []).append(synset)
  words = {}
  for members in sharing.values():
    words |= _more_words(members, nouns) if len(members) > 1 else {members[0]: []}
  used = {synset: min(1, len(words[synset])) for synset in ids}
  while True:
    names = {
      synset: ", ".join([nouns[synset].lemmas[0], *words[synset][: used[synset]]])
      for synset in ids
    }
    count = Counter(name.casefold() for name in names.values())
    shared = [synset for synset in ids if count[names[synset].casefold()] > 1]
    if not shared:
      return [names[synset] for synset in ids]
    growing = [synset for synset in shared if used[synset] < len(words[synset])]
    if not growing:
      raise ValueError(
        f"{shared[0]}: no words distinguish {names[shared[0]]!r} from others"
      )
    for synset in growing:
      used[synset] += 1


def _more_words(
  members: Sequence[str], nouns: Mapping[str, Noun]
) -> dict[str, list[str]]:
  """Words of each class that not all members, which share a first lemma, have."""
  words: dict[str, dict[str, str]] = {}
  for synset in members:
    above = [nouns[parent].lemmas[0] for parent in _ancestors(synset, nouns)]
    folded: dict[str, str] = {}
    for word in [*nouns[synset].lemmas, *above]:
      folded.setdefault(word.casefold(), word)
    words[synset] = folded
  count = Counter(word for own in words.values() for word in own)
  same = Counter(tuple(own) for own in words.values())
  return {
    synset: [word for folded, word in own.items() if count[folded] < len(members)]
    if same[tuple(own)] == 1
    else [
      *(nouns[group].lemmas[0] for group in nouns[synset].groups),
      nouns[synset].gloss,
    ]
    for synset, own in words.items()
  }


# CoOp's name of TFDS's label; empty if CoOp drops the class.
_COOP_NAMES: dict[str, Callable[[str], str]] = {
  "caltech101": lambda label: _CALTECH101.get(label, label),
  "oxford_pets": str.lower,
  # The year, last, moves to the front.
  "stanford_cars": lambda label: " ".join(
    [label.split(" ")[-1], *label.split(" ")[:-1]]
  ),
  "flowers102": lambda label: label.rstrip("?"),
  # /a/apse/indoor
  "sun397": lambda label: " ".join(reversed(label.split("/")[2:])),
  "eurosat": lambda label: _EUROSAT.get(label, label),
  "ucf101": lambda label: "_".join(re.findall("[A-Z][^A-Z]*", label)),
}


def _package_text(package: str, file: str) -> str:
  path = importlib.metadata.distribution(package).locate_file(file)
  return pathlib.Path(str(path)).read_text(encoding="utf-8")


def _constant(source: str, name: str) -> ast.expr:
  for node in ast.parse(source).body:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
      return node.value
  raise ValueError(f"no constant {name}")


def _template(function: ast.expr) -> str:
  """`lambda c: f"a photo of a {c}."` as "a photo of a {}."."""
  parts = function.body.values  # type: ignore[attr-defined]
  return "".join(
    part.value if isinstance(part, ast.Constant) else "{}" for part in parts
  )


def tfds_labels(dataset: str) -> list[str]:
  """TFDS's label names, in its order."""
  where = _TFDS[dataset]
  if isinstance(where, str):
    text = _package_text("tensorflow-datasets", f"tensorflow_datasets/{where}")
    return [line for line in text.splitlines() if line.strip()]
  text = _package_text("tensorflow-datasets", f"tensorflow_datasets/{where[0]}")
  return list(ast.literal_eval(_constant(text, where[1])))


def _timm_synsets(name: str) -> list[str]:
  return _package_text("timm", f"timm/data/_info/{name}_synsets.txt").split()


def _table(header: str, rows: Iterable[Sequence[str]]) -> str:
  return "".join("\t".join(row) + "\n" for row in [header.split(), *rows])


def _lines(lines: Iterable[str]) -> str:
  return "".join(f"{line}\n" for line in lines)


def make_imagenet(nouns: Mapping[str, Noun]) -> dict[str, str]:
  """ImageNet's lists, and the is-a relations above all of their synsets; file name
  -> content."""
  open_clip = _package_text("open_clip_torch", "open_clip/zero_shot_metadata.py")
  ids_21k = class_lists.read_table(class_lists.SYNSETS)[0]
  ids_1k = _timm_synsets("imagenet")
  names_1k = ast.literal_eval(_constant(open_clip, "IMAGENET_CLASSNAMES"))
  # Two pairs of classes share a name of CLIP's. They get their first lemmas.
  names_1k = [
    nouns[synset].lemmas[0] if names_1k.count(name) > 1 else name
    for synset, name in zip(ids_1k, names_1k, strict=True)
  ]
  files = {
    "imagenet21k.tsv": _table(
      "synset name", zip(ids_21k, distinct_names(ids_21k, nouns), strict=True)
    ),
    "imagenet21k_p.txt": _lines(_timm_synsets("imagenet21k_miil")),
    "imagenet21k_p_w21.txt": _lines(_timm_synsets("imagenet21k_miil_w21")),
    "imagenet1k.tsv": _table("synset name", zip(ids_1k, names_1k, strict=True)),
    "imagenet_a.txt": _lines(_timm_synsets("imagenet_a")),
    "imagenet_r.txt": _lines(_timm_synsets("imagenet_r")),
  }
  for name, constant in (
    ("imagenet", "OPENAI_IMAGENET_TEMPLATES"),
    ("imagenet_7", "SIMPLE_IMAGENET_TEMPLATES"),
  ):
    templates = _constant(open_clip, constant).elts  # type: ignore[attr-defined]
    files[f"templates/{name}.txt"] = _lines(
      _template(function) for function in templates
    )
  # Those of PromptSRC (Khattak et al., 2023).
  of_80 = files["templates/imagenet.txt"].splitlines(keepends=True)
  files["templates/imagenet_60.txt"] = "".join(of_80[:60])
  nodes = {*ids_21k, *ids_1k}
  nodes |= {above for synset in nodes for above in _ancestors(synset, nouns)}
  files["wordnet_hypernyms.tsv"] = _table(
    "synset lemma parents",
    (
      (node, nouns[node].lemmas[0], " ".join(nouns[node].parents))
      for node in sorted(nodes)
    ),
  )
  return files


def make_downstream() -> dict[str, str]:
  """Names, TFDS's labels and CLIP's templates of the ten; file name -> content."""
  files = {}
  for dataset in _TFDS:
    labels, coop_name = tfds_labels(dataset), _COOP_NAMES.get(dataset, str)
    files[f"../../rooms/data_sets/tfds_labels/{dataset}.tsv"] = _table(
      "label name", ((label, coop_name(label)) for label in labels)
    )
    # CoOp numbers the classes of these two by their sorted folders.
    if dataset == "caltech101":
      labels.sort(key=lambda label: (label not in _CALTECH101_CAPITALS, label))
    elif dataset == "food101":
      labels.sort()
    files[f"{dataset}.txt"] = _lines(filter(None, map(coop_name, labels)))
  file = "clip_benchmark/datasets/en_zeroshot_classification_templates.json"
  templates = json.loads(_package_text("clip-benchmark", file))
  for ours, theirs in _ENSEMBLES.items():
    files[f"templates/{ours}.txt"] = _lines(
      text.replace("{c}", "{}") for text in templates[theirs]
    )
  return files


def main() -> None:
  """Writes all files."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--wordnet", default=_WORDNET, help="WordNet 3.0's data.noun")
  arguments = parser.parse_args()
  data = pathlib.Path(class_lists.__file__).parent / "class_names"
  for path, content in (
    make_imagenet(read_nouns(arguments.wordnet)) | make_downstream()
  ).items():
    (data / path).write_text(content, encoding="utf-8", newline="\n")
    print(f"{path}: {content.count(chr(10))} lines")


if __name__ == "__main__":
  main()
