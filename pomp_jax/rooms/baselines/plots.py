"""A plot of methods side by side."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted, with_counts
from pomp_jax.rooms.baselines.reports import method_labels


def method_dots(
  path: str | os.PathLike, top1: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots top-1 of each method, a panel a split: mean and standard deviation over the seeds.

  A method with one run has the 95% interval over the images instead, dotted. `top1[method][split]`
  has `mean`, `std`, `values` (one a seed) and `interval`, fractions, `images` and perhaps
  `classes`; a method may lack splits.
  """
  methods = list(top1)
  splits = list(dict.fromkeys(split for found in top1.values() for split in found))
  seeds = max(len(found["values"]) for of in top1.values() for found in of.values())
  title = (
    f"Top-1 accuracy (%), {counted(seeds, 'seed')}\n"
    "bars: standard deviation over the seeds; dotted: 95% interval of one run"
  )
  figure, axes_of = drawing.panels(len(splits), 3.3, 1.0 + 0.24 * len(methods), title)
  for axes, split in zip(axes_of, splits, strict=True):
    own = {number: top1[name][split] for number, name in enumerate(methods) if split in top1[name]}
    for number, found in own.items():
      mean, low, high = (100 * value for value in (found["mean"], *found["interval"]))
      several = len(found["values"]) > 1
      reach = 100 * found["std"] if several else [[mean - low], [high - mean]]
      drawn = drawing.error_bars(axes, mean, number, number, xerr=reach, markersize=6)
      if not several:
        drawn.lines[2][0].set_linestyle(":")
      place: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
      axes.annotate(f"{mean:.1f}", (mean, number), (0, 5), fontsize=7, **place)
    axes.set_yticks(np.arange(len(methods)), [])
    axes.set_ylim(len(methods) - 0.4, -0.8)
    axes.margins(x=0.12)
    one = next(iter(own.values()))
    heading = with_counts(drawing.name(split, 22), one["images"], one.get("classes"))
    drawing.label_panel(axes, heading, grid="both")
  axes_of[0].set_yticklabels(drawing.names(method_labels(methods)))
  drawing.save(path, figure)
