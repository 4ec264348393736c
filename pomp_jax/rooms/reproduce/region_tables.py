"""What tables 4 to 7 and 13 are made of: folders of regions, prompts, and figures.

A table's root has a folder for each data set, with its images and labels or its
annotations, and in it a folder for each row: `regions/` of that row's network, and the
row's prompt or class vectors. Regions are those that `propose` or a detector wrote.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

from pomp_jax.rooms.reproduce.rows import CONTROLS, PUBLISHED

# Names of a file with the row's prompt, or its class vectors.
PROMPT_FILES = ("prompt.npz", "prompt.pth.tar", "prompt.safetensors", "classes.npy")
# Two publications of the same weights: the released README has Objects365 AP50 23.4
# where table 6 has 22.9, and COCO AP50 58.0 for 57.9.
MOVED_BETWEEN_PUBLICATIONS = 0.005

# Column of a table, behind the data set's name -> place of the figure in the results.
Figures = Mapping[str, tuple[str, ...]]


class Case(NamedTuple):
  """A row of a table on a data set."""

  stage: str  # one of rows.STAGES
  table: str  # number
  row: str  # the method
  prefix: str  # of the columns: the data set's name there, or the kind of a figure
  data: str  # folder of the root, and packaged config
  folder: str  # in it, of the row's regions
  figures: Figures
  text: str = ""  # a hand-written prompt; "": the file beside the regions

  @property
  def run(self) -> str:
    """Name of the job's run, which cases that differ in the text share."""
    return f"{self.data}-{self.folder}-{self.stage.split()[0].lower()}"


@dataclasses.dataclass(frozen=True)
class RegionTable:
  """A table of figures that the job `segment` or `detect` computes from regions."""

  name: str  # value of `reproduce.table`
  job: str
  cases: Sequence[Case]
  # Path below a data set's folder of what the job reads -> its field.
  inputs: Mapping[str, str]
  # What of the tables is not computed: subject -> why.
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
  """ZSSeg's row as the control, and POMP's."""
  return [
    Case(CONTROLS, table, "ZSSeg", prefix, data, f"table{table}_zsseg", figures),
    Case(PUBLISHED, table, "POMP", prefix, data, f"table{table}_pomp", figures),
  ]


def _untuned(prefix: str, data: str) -> list[Case]:
  """Rows of table 13: texts as controls, and POMP's prompt."""
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
  """Detic's row as the control, and POMP's."""
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
