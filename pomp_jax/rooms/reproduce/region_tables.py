"""Definitions of tables 4 to 7 and 13: folders of regions, prompts, and figures.

A table's root has a folder for each data set, with images and labels, or annotations.
The data set's folder also has a folder for each row, with `regions/` of the row's
network, and the row's prompt or class vectors. `propose` or a detector wrote the
regions.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

from pomp_jax.rooms.reproduce.rows import CONTROLS, PUBLISHED

# Possible names of the file with a row's prompt or class vectors.
PROMPT_FILES = ("prompt.npz", "prompt.pth.tar", "prompt.safetensors", "classes.npy")
# Two publications differ on the same weights: Objects365 AP50 is 23.4 in the released
# README and 22.9 in table 6, and COCO AP50 is 58.0 and 57.9.
MOVED_BETWEEN_PUBLICATIONS = 0.005

# column of a table, without `Case.prefix` -> keys of the figure in the results
Figures = Mapping[str, tuple[str, ...]]


class Case(NamedTuple):
  """A row of a table on a data set."""

  stage: str  # one of rows.STAGES
  table: str  # number of the table
  row: str  # the method
  prefix: str  # start of the columns' names: the data set, or the kind of figure
  data: str  # name of the data set's folder in the root, and of its packaged config
  folder: str  # folder of the row in the data set's folder
  figures: Figures
  text: str = ""  # a hand-written prompt; "": the prompt file beside the regions

  @property
  def run(self) -> str:
    """Name of the job's run; cases that differ only in the text share a run."""
    return f"{self.data}-{self.folder}-{self.stage.split()[0].lower()}"


@dataclasses.dataclass(frozen=True)
class RegionTable:
  """A table of figures that the job `segment` or `detect` computes from regions."""

  name: str  # value of `reproduce.table`
  job: str
  cases: Sequence[Case]
  # path below a data set's folder -> field of the job for that path
  inputs: Mapping[str, str]
  # part of the tables that is not computed -> why
  not_computed: Mapping[str, str]
  means: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


# Images of each data set, as its packaged config says.
IMAGES = {
  "coco_stuff_156": 5_000,
  "voc_15": 1_449,
  "ade20k": 2_000,
  "lvis": 19_809,
  "coco_65": 5_000,
  "objects365": 80_000,
}
IMAGES_SOURCE = "the packaged config of the data set"

_HALVES: Figures = {
  "hIoU": ("hIoU",),
  "seen": ("base", "mIoU"),
  "unseen": ("novel", "mIoU"),
}
_PIXELS: Figures = {name: (name,) for name in ("mIoU", "fwIoU", "pACC")}
_ALL_PIXELS: Figures = {**_PIXELS, "mACC": ("mACC",)}


def _tuned(table: str, prefix: str, data: str, figures: Figures) -> list[Case]:
  """ZSSeg's row as the control, and POMP's row."""
  return [
    Case(CONTROLS, table, "ZSSeg", prefix, data, f"table{table}_zsseg", figures),
    Case(PUBLISHED, table, "POMP", prefix, data, f"table{table}_pomp", figures),
  ]


def _untuned(prefix: str, data: str) -> list[Case]:
  """Rows of table 13: hand-written texts as controls, and POMP's prompt."""
  texts = {
    "single prompt": "a sculpture of a {}.",
    "ImageNet prompts": "ensemble:imagenet",
  }
  cases = [
    Case(CONTROLS, "13", row, prefix, data, "table13", _ALL_PIXELS, text)
    for row, text in texts.items()
  ]
  return [
    *cases,
    Case(PUBLISHED, "13", "POMP prompt", prefix, data, "table13", _ALL_PIXELS),
  ]


_SOURCE = "no packaged config has ZSSeg's test on the 171 classes of COCO Stuff"
SEGMENTATION = RegionTable(
  "segmentation",
  "segment",
  cases=(
    *_tuned("4", "COCO Stuff", "coco_stuff_156", _HALVES),
    *_tuned("4", "VOC", "voc_15", _HALVES),
    *_tuned("5", "ADE20K", "ade20k", _PIXELS),
    *_tuned("5", "PASCAL Context", "pascal_context", _PIXELS),
    *_untuned("ADE20K", "ade20k"),
    *_untuned("PASCAL Context", "pascal_context"),
  ),
  inputs={"images": "segment.images", "labels": "segment.labels"},
  not_computed={
    "tables 5 and 13, COCO Stuff": _SOURCE,
    "table 13, ViLD prompts": "ViLD's list of texts is not packaged",
  },
)


def _boxes(*names: str) -> Figures:
  return {name: ("box", name) for name in names}


_AREAS = _boxes("AP", "AP50", "AP75", "APs", "APm", "APl")
_FREQUENCIES = ("APr", "APc", "APf", "AP")
_MASKS: Figures = {name: ("mask", name) for name in _FREQUENCIES}


def _detected(table: str, prefix: str, data: str, figures: Figures) -> list[Case]:
  """Detic's row as the control, and POMP's row."""
  return [
    Case(CONTROLS, table, "Detic", prefix, data, f"table{table}_detic", figures),
    Case(PUBLISHED, table, "POMP", prefix, data, f"table{table}_pomp", figures),
  ]


DETECTION = RegionTable(
  "detection",
  "detect",
  cases=(
    *_detected("6", "LVIS", "lvis", _AREAS),
    *_detected("6", "COCO", "coco_65", _AREAS),
    *_detected("6", "Objects365", "objects365", _AREAS),
    *_detected("7", "boxes", "lvis", _boxes(*_FREQUENCIES)),
    *_detected("7", "masks", "lvis", _MASKS),
  ),
  inputs={"annotations.json": "detect.annotations"},
  not_computed={},
)

REGION_TABLES = {table.name: table for table in (SEGMENTATION, DETECTION)}
