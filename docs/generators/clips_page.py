"""Writes docs/reference/clips.md: open_clip's table of zero-shot results, and which of
its rows are read.

  python -m docs.generators.clips_page > docs/reference/clips.md

`open_clip_results.csv` has columns of docs/openclip_results.csv of
https://github.com/mlfoundations/open_clip (commit 89fb801, MIT licence), in its order,
which is that of the mean over 38 data sets.
"""

import csv
import itertools
import pathlib
import re

from pomp_jax.clip.image_towers import family_of
from pomp_jax.clip.open_clip import PREFIX, model_settings, named_clip, tables, unread

_HERE = pathlib.Path(__file__).parent
_TEXT = """# CLIPs by open_clip's names

`clip.model={prefix}MODEL/TAG` reads a CLIP by open_clip's name, from the hub, or from a folder or
file of yours behind a second colon: `{prefix}ViT-H-14-378-quickgelu/dfn5b:PATH`. Architecture,
activation, tokenizer, resizing and channel statistics are those of open_clip's tables
(`clip/open_clip.json`). A packed text tower computes a class's own 4 to 6 tokens; a full one, which
is bidirectional (SigLIP, CLIPA), all of its 64 or 32 positions: the context stands in front of the
name, and padding follows it as in their training. CLIPA's last position, where its feature is read,
is padding in any text, so that 30 tokens are left to the words. PE-Core has 32 or 72 positions,
which limit M and the name. Of the long tables of MetaCLIP 2 and SigLIP 2 (901,629 and 256,000
embeddings) only the rows that the names use are read. VPT, MaPLe, IVLP and dense features need a
ViT of OpenAI's kind. Images are resized as the table says, to a square or with a centre crop,
bilinear or bicubic: RGB and grey files to open_clip's pixels. Files with a palette, 1 bit,
transparency or CMYK become RGB before they are resized, and after it in open_clip, whose pixels
differ ([image files](../how-to/data.md#image-files)). A CLIP with another image tower gives its
text tower (`clip.image_tower=False`), beside
[features of a file](../how-to/data.md#features-without-images).

Read beside the rows of [the table](#the-table) are {more}.

**Not read**, and refused before anything is downloaded, are of all that open_clip names:

{others}

**Activation.** Some tags are of weights that QuickGELU trained, where the model of that name has
GELU. open_clip keeps GELU then, and warns; here the tag's QuickGELU wins, so that the features are
those of the training. With `clip.activation=gelu` they are open_clip's. These tags are {quick}.

A step of the text tower, forward and backward to the context, K = 128 names of ImageNet-21K,
M = 16, random weights, beside open_clip's over all positions, in turn on 2 shared cores, float32:

| | positions | ours | open_clip | | temporaries | open_clip's |
| --- | --- | --- | --- | --- | --- | --- |
| EVA02-B-16, packed | 77 | 0.43 s | 11.1 s | 26x | 224 MiB | 2,795 MiB |
| MetaCLIP 2's ViT-H-14, packed | 77 | 2.1 s | 71.0 s | 34x | 899 MiB | 3,751 MiB |
| PE-Core-B-16, packed | 32 | 5.2 s | 84.6 s | 16x | 899 MiB | 4,434 MiB |
| ViT-B-16-SigLIP, full | 64 | 18.6 s | 36.3 s | 1.9x | 6,941 MiB | 3,474 MiB |
| ViT-L-14-CLIPA, full | 32 | 11.9 s | 22.9 s | 1.9x | 3,256 MiB | 1,739 MiB |

```bash
for model in eva02_b_16 pe_core_b_16 siglip_b_16 clipa_l_14; do
  python -m docs.studies.torch_tower --model=$model --k=128 --repeats=2
done
# open_clip's in parts of 32 names
python -m docs.studies.torch_tower --model=metaclip2_h_14 --k=128 --repeats=2 --rows_at_a_time=32
```

The full towers keep more for the backward pass than torch does; `clip.memory_gib` bounds it, by
computing classes in chunks.

## A context before a SigLIP's name

In a bidirectional tower the context reads the name, as the name reads it, so it is not one prefix
of all classes. What learning it means there is measured without SigLIP's weights, on a tower like
theirs: of the embedded world's size, trained with the sigmoid loss on its captions (canonical text,
20 positions, the last of which is the feature). Prompts are learned on 21,841 classes, K = 128, 150
steps of 128; top-1 (%) of 4,096 images a split, mean of three seeds, whose standard deviation is at
most 0.6. The short training ends at a logit scale of 17; about 100 is that of the released SigLIPs,
and ranks sentences equally:

| base / novel / shifted | scale 17 | scale 100 |
| --- | --- | --- |
| "a photo of a {{}}." | 29.2 / 58.5 / 4.9 | 29.2 / 58.5 / 4.9 |
| "a specimen of a {{}}." | 28.8 / 57.7 / 4.7 | 28.8 / 57.7 / 4.7 |
| "{{}}." | 27.2 / 55.5 / 5.0 | 27.2 / 55.5 / 5.0 |
| in front of the name, random start | 24.4 / 55.4 / 4.7 | 26.2 / 56.3 / 4.8 |
| in front of the name, from "a photo of a" | 25.2 / 56.2 / 4.9 | 27.0 / 57.0 / 5.1 |
| the same, sigmoid loss | 29.4 / 58.2 / 5.4 | 27.2 / 56.2 / 5.0 |
| the same, consistency 1 | 27.4 / 57.3 / 5.0 | 29.9 / 59.3 / 5.4 |
| the same, consistency 8 | 30.2 / 59.5 / 5.3 | 30.2 / 58.9 / 5.2 |
| behind the name, random start | 25.3 / 55.7 / 5.1 | 26.7 / 56.1 / 5.2 |

```bash
python -m docs.studies.siglip_context runs/siglip   # 25 minutes on 2 busy cores
```

Cross-entropy alone ends below the sentence that it starts from; held near the words, the prompt is
above it. In front of the name or behind it makes no difference. The sigmoid loss needs the bias of
its number of classes: the CLIP's b less log(N / batch), here -15 for -10. With the CLIP's own b,
the prompt is destroyed (13.3 / 35.5 / 2.5).

## The table

The rows are open_clip's table of zero-shot results, in its order (the mean over 38 data sets), with
the top-1 on ImageNet. Written by `python -m docs.generators.clips_page > docs/reference/clips.md`.
**Read are {counts}.**

| | model/tag | top-1 | text tower and image tower, or the reason |
| --- | --- | --- | --- |
{rows}
"""


def how(model: str, tag: str) -> tuple[bool, str]:
  """Whether a CLIP is read, and its text tower or the reason."""
  settings = named_clip(f"{PREFIX}{model}/{tag}").settings
  assert settings is not None
  if reasons := unread(settings["model_cfg"]):
    return False, " and ".join(reasons)
  found = model_settings(settings, "")
  text = found["text_cfg"]
  tower = "packed"
  if text.get("no_causal_mask"):
    tower = f"full, {text['context_length']} tokens"
  family = family_of(found["vision_cfg"], 0)
  kind = type(family).__name__.removesuffix("Config") if family else "ViT"
  if isinstance(found["vision_cfg"].get("layers"), list):
    kind = "ResNet"
  return True, f"{tower}; {kind}"


def page() -> str:
  """The page's text."""
  with (_HERE / "open_clip_results.csv").open() as file:
    table = list(csv.DictReader(file))
  found = [how(row["name"], row["pretrained"]) for row in table]
  counts = (
    ", ".join(f"{sum(read for read, _ in found[:n])} of the best {n}" for n in (20, 50))
    + f", {sum(read for read, _ in found)} of all {len(found)}"
  )
  rows = [
    f"| {i} | {row['name']}/{row['pretrained']} | {100 * float(row['ImageNet 1k']):.1f} | "
    + (text if read else f"NOT READ: {text}")
    + " |"
    for i, (row, (read, text)) in enumerate(zip(table, found, strict=True), 1)
  ]
  listed = {(row["name"], row["pretrained"]) for row in table}
  more = [
    (model, tag)
    for model, facts in tables().items()
    for tag in facts["tags"]
    if (model, tag) not in listed and how(model, tag)[0]
  ]
  return _TEXT.format(
    prefix=PREFIX,
    counts=counts,
    rows="\n".join(rows),
    more=_names(more),
    others=_unread(),
    quick=_names(_of_quick_gelu()),
  )


def _names(clips: list[tuple[str, str]]) -> str:
  """Pairs of model and tag in words, the tags of a model together."""
  families = itertools.groupby(sorted(clips), key=lambda one: one[0])
  names = [f"{model}/{'|'.join(tag for _, tag in tags)}" for model, tags in families]
  return ", ".join(f"`{name}`" for name in names)


def _unread() -> str:
  """A list of the models that are not read, those of one reason together."""
  models: dict[str, list[str]] = {}
  for model, facts in tables().items():
    if reasons := unread(facts["model_cfg"]):
      why = " and ".join(reasons)
      if not unread(facts["model_cfg"], image_tower=False):
        why += " (its text tower alone is read, with `clip.image_tower=False`)"
      # The sizes of ViTamin and FastViT together.
      why = re.sub(r"timm's (vitamin|fastvit)\w*", r"timm's \1", why)
      models.setdefault(why, []).append(model)
  lines = [
    f"- {', '.join(f'`{name}`' for name in names)}: {why}"
    for why, names in models.items()
  ]
  return "\n".join(lines)


def _of_quick_gelu() -> list[tuple[str, str]]:
  """Tags of weights of QuickGELU whose model has GELU."""
  return [
    (model, tag)
    for model, facts in tables().items()
    for tag, of_tag in facts["tags"].items()
    if of_tag.get("quick_gelu") and not facts["model_cfg"].get("quick_gelu")
  ]


if __name__ == "__main__":
  print(page(), end="")
