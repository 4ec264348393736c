"""Makes the tables in `pomp_jax/data/class_names` from published packages.

Run by hand, when a list is to be added or a package's lists have changed. Only text files of the
packages are read and none of their code is run, so their own requirements are not needed:

    pip install --no-deps timm==1.0.31 open_clip_torch==3.3.0 tensorflow-datasets==4.9.10 \\
      clip-benchmark==1.6.2
    apt-get install wordnet-base        # Debian's is WordNet 3.0
    python -m pomp_jax.data.prepare.class_names

README.md says which file comes from which package. `fgvc_aircraft.txt` and
`templates/ucf101.txt` are in none of them and stay as they are.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import importlib.metadata
import json
import pathlib
import re
from typing import NamedTuple

from pomp_jax.data.class_lists import load_synsets

# Words of a gloss that a name may take: enough to differ, and no longer than other names.
_GLOSS_WORDS = 8
# Words that it does not end with.
_UNFINISHED = frozenset(
  ("a", "an", "and", "at", "for", "from", "in", "not", "of", "on", "or", "than", "that")
  + ("the", "to", "used", "with")
)
_WORDNET = "/usr/share/wordnet/data.noun"
# Of the ten, what TFDS has: its label names, as a file of lines or as a constant in a module.
_TFDS = {
  "caltech101": "image_classification/caltech101_labels.txt",
  "oxford_pets": ("datasets/oxford_iiit_pet/oxford_iiit_pet_dataset_builder.py", "_LABEL_CLASSES"),
  "stanford_cars": ("image_classification/cars196.py", "_NAMES"),
  "flowers102": ("datasets/oxford_flowers102/oxford_flowers102_dataset_builder.py", "_NAMES"),
  "food101": "image_classification/food-101_classes.txt",
  "sun397": "image_classification/sun397_labels.txt",
  "dtd": "image_classification/dtd_key_attributes.txt",
  "eurosat": ("image_classification/eurosat.py", "_LABELS"),
  "ucf101": "video/ucf101_labels.txt",
}
# Ours -> clip-benchmark's.
_ENSEMBLES = {
  "caltech101": "caltech101",
  "oxford_pets": "pets",
  "stanford_cars": "cars",
  "flowers102": "flowers",
  "food101": "food101",
  "fgvc_aircraft": "fgvc_aircraft",
  "sun397": "sun397",
  "dtd": "dtd",
  "eurosat": "eurosat",
}
_CALTECH101 = {
  "background_google": "",
  "faces_easy": "",
  "faces": "face",
  "leopards": "leopard",
  "motorbikes": "motorbike",
  "airplanes": "airplane",
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
# Folders of Caltech101 that begin with a capital, and so come first in CoOp's order.
_CALTECH101_CAPITALS = ("faces", "leopards", "motorbikes")


class Noun(NamedTuple):
  """A synset of WordNet.

  Attributes:
    lemmas: its words, the most usual first.
    parents: the synsets that it is a kind or an instance of.
    groups: the synsets that it is a member of, as a plant is of its genus.
    gloss: what it is, shortened.
  """

  lemmas: tuple[str, ...]
  parents: tuple[str, ...]
  groups: tuple[str, ...]
  gloss: str


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
  """Up to the first comma, semicolon or bracket, and 8 words; without what opens in brackets."""
  gloss = re.sub(r"^\([^)]*\)", "", gloss.strip())
  words = re.split("[,;(]", gloss)[0].split()
  if words and words[0] in ("a", "an", "the"):
    del words[0]
  words = words[:_GLOSS_WORDS]
  while words and words[-1] in _UNFINISHED:
    words.pop()
  return " ".join(words)


def with_ancestors(ids: Iterable[str], nouns: Mapping[str, Noun]) -> list[str]:
  """The synsets and all that they are kinds of, sorted."""
  found: set[str] = set()
  ahead = list(ids)
  while ahead:
    synset = ahead.pop()
    if synset not in found:
      found.add(synset)
      ahead.extend(nouns[synset].parents)
  return sorted(found)


def distinct_names(ids: Sequence[str], nouns: Mapping[str, Noun]) -> list[str]:
  """A name a class: its first lemma, and as many more words as tell it from the others.

  Where classes share a first lemma, in whatever case, each takes further words, one at a time while
  its name is still shared: its other lemmas, then the first lemmas of what it is a kind of, nearest
  first, in both cases without the words that all of them have: "crane, wading bird" and "crane,
  lifting device". Where two have all words in common (two kinds of brake), the groups that each is
  a member of and then its gloss are taken instead.
  """
  alike: dict[str, list[str]] = {}
  for synset in ids:
    alike.setdefault(nouns[synset].lemmas[0].casefold(), []).append(synset)
  words = {}
  for members in alike.values():
    words.update({members[0]: []} if len(members) == 1 else _telling_words(members, nouns))
  used = {synset: min(1, len(words[synset])) for synset in ids}
  while True:
    names = {
      synset: ", ".join([nouns[synset].lemmas[0], *words[synset][: used[synset]]]) for synset in ids
    }
    shared_by = Counter(name.casefold() for name in names.values())
    shared = [synset for synset in ids if shared_by[names[synset].casefold()] > 1]
    if not shared:
      return [names[synset] for synset in ids]
    growing = [synset for synset in shared if used[synset] < len(words[synset])]
    if not growing:
      raise ValueError(f"{shared[0]}: no words tell {names[shared[0]]!r} from others")
    for synset in growing:
      used[synset] += 1


def _telling_words(members: Sequence[str], nouns: Mapping[str, Noun]) -> dict[str, list[str]]:
  """Of classes with one first lemma, the words of each that not all of them have."""
  words = {synset: _words(synset, nouns) for synset in members}
  count = Counter(word for own in words.values() for word in own)
  telling = {
    synset: [word for folded, word in own.items() if count[folded] < len(members)]
    for synset, own in words.items()
  }
  same = Counter(tuple(own) for own in words.values())
  for synset, own in words.items():
    if same[tuple(own)] > 1:
      groups = [nouns[group].lemmas[0] for group in nouns[synset].groups]
      telling[synset] = [*groups, nouns[synset].gloss]
  return telling


def _words(synset: str, nouns: Mapping[str, Noun]) -> dict[str, str]:
  """A synset's lemmas and the first lemmas of its ancestors, nearest first, keyed without case."""
  words = list(nouns[synset].lemmas)
  level = list(nouns[synset].parents)
  while level:
    words.extend(nouns[parent].lemmas[0] for parent in level)
    level = [parent for child in level for parent in nouns[child].parents]
  first: dict[str, str] = {}
  for word in words:
    first.setdefault(word.casefold(), word)
  return first


def curated_names(ids: Sequence[str], names: Sequence[str], nouns: Mapping[str, Noun]) -> list[str]:
  """CLIP's names of ImageNet-1K; of a pair with one name, each takes its first lemma."""
  count = Counter(names)
  return [
    nouns[synset].lemmas[0] if count[name] > 1 else name
    for synset, name in zip(ids, names, strict=True)
  ]


def coop_name(dataset: str, label: str) -> str:
  """What CoOp calls TFDS's label; empty where it leaves the class out."""
  if dataset == "caltech101":
    return _CALTECH101.get(label, label)
  if dataset == "oxford_pets":
    return label.lower()
  if dataset == "stanford_cars":  # the year, last, moves to the front
    return " ".join([label.split(" ")[-1], *label.split(" ")[:-1]])
  if dataset == "flowers102":
    return label.rstrip("?")
  if dataset == "sun397":  # /a/apse/indoor
    return " ".join(reversed(label.split("/")[2:]))
  if dataset == "eurosat":
    return _EUROSAT.get(label, label)
  if dataset == "ucf101":
    return "_".join(re.findall("[A-Z][^A-Z]*", label))
  return label


def coop_order(dataset: str, labels: Sequence[str]) -> list[str]:
  """TFDS's labels in the order in which CoOp numbers the classes."""
  if dataset == "caltech101":
    return sorted(labels, key=lambda label: (label not in _CALTECH101_CAPITALS, label))
  if dataset == "food101":  # cheese_plate, cheesecake: sorted by the folders' names
    return sorted(labels)
  return list(labels)


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
  return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)


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
  """ImageNet's lists, and the tree above all of their synsets; file name -> content."""
  open_clip = _package_text("open_clip_torch", "open_clip/zero_shot_metadata.py")
  ids_21k = load_synsets().ids
  ids_1k = _timm_synsets("imagenet")
  curated = ast.literal_eval(_constant(open_clip, "IMAGENET_CLASSNAMES"))
  files = {
    "imagenet21k.tsv": _table(
      "synset name", zip(ids_21k, distinct_names(ids_21k, nouns), strict=True)
    ),
    "imagenet21k_p.txt": _lines(_timm_synsets("imagenet21k_miil")),
    "imagenet21k_p_w21.txt": _lines(_timm_synsets("imagenet21k_miil_w21")),
    "imagenet1k.tsv": _table(
      "synset name", zip(ids_1k, curated_names(ids_1k, curated, nouns), strict=True)
    ),
    "imagenet_a.txt": _lines(_timm_synsets("imagenet_a")),
    "imagenet_r.txt": _lines(_timm_synsets("imagenet_r")),
  }
  for name, constant in (
    ("imagenet", "OPENAI_IMAGENET_TEMPLATES"),
    ("imagenet_7", "SIMPLE_IMAGENET_TEMPLATES"),
  ):
    templates = _constant(open_clip, constant).elts  # type: ignore[attr-defined]
    files[f"templates/{name}.txt"] = _lines(_template(function) for function in templates)
  nodes = with_ancestors([*ids_21k, *ids_1k], nouns)
  files["wordnet_hypernyms.tsv"] = _table(
    "synset lemma parents",
    ((node, nouns[node].lemmas[0], " ".join(nouns[node].parents)) for node in nodes),
  )
  return files


def make_downstream() -> dict[str, str]:
  """Names, TFDS's labels and CLIP's templates of the ten; file name -> content."""
  files = {}
  for dataset in _TFDS:
    labels = tfds_labels(dataset)
    names = [coop_name(dataset, label) for label in coop_order(dataset, labels)]
    files[f"{dataset}.txt"] = _lines(name for name in names if name)
    files[f"tfds_labels/{dataset}.tsv"] = _table(
      "label name", ((label, coop_name(dataset, label)) for label in labels)
    )
  file = "clip_benchmark/datasets/en_zeroshot_classification_templates.json"
  templates = json.loads(_package_text("clip-benchmark", file))
  for ours, theirs in _ENSEMBLES.items():
    files[f"templates/{ours}.txt"] = _lines(text.replace("{c}", "{}") for text in templates[theirs])
  return files


def main() -> None:
  """Writes all files."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--wordnet", default=_WORDNET, help="WordNet 3.0's data.noun")
  arguments = parser.parse_args()
  data = pathlib.Path(__file__).parent.parent / "class_names"
  for path, content in (make_imagenet(read_nouns(arguments.wordnet)) | make_downstream()).items():
    (data / path).write_text(content, encoding="utf-8", newline="\n")
    print(f"{path}: {content.count(chr(10))} lines")


if __name__ == "__main__":
  main()
