"""The plot of many methods side by side: a panel a split, a line a method."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from pomp_jax.analysis.drawing import panels, plain, save, short, style


def method_dots(
  path: str | os.PathLike, top1: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Top-1 of each method on each split: the mean with one standard deviation over the seeds.

  Of a method with one run, the 95% interval over the images stands for it, in dots.

  Args:
    path: the PNG file.
    top1: `top1[method][split]` has `mean`, `std`, `values`, one a seed, `interval`, all fractions,
      and `images`; a method may lack splits.
  """
  methods = list(top1)
  splits = list(dict.fromkeys(split for found in top1.values() for split in found))
  title = (
    "Top-1 accuracy (%)\nbars: standard deviation over the seeds; dotted: of one run, 95% interval"
  )
  figure, axes_of = panels(len(splits), 3.3, 1.0 + 0.24 * len(methods), title)
  for axes, split in zip(axes_of, splits, strict=True):
    for number, method in enumerate(methods):
      if split in top1[method]:
        found = top1[method][split]
        mean, low, high = (100 * value for value in (found["mean"], *found["interval"]))
        several = len(found["values"]) > 1
        reach = 100 * found["std"] if several else [[mean - low], [high - mean]]
        drawn = axes.errorbar(
          mean, number, xerr=reach, capsize=3, markersize=6, lw=1.4, **style(number)
        )
        if not several:
          drawn.lines[2][0].set_linestyle(":")
        axes.annotate(
          f"{mean:.1f}", (mean, number), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_yticks(np.arange(len(methods)), [])
    axes.set_ylim(len(methods) - 0.4, -0.8)
    axes.margins(x=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    images = next(found[split]["images"] for found in top1.values() if split in found)
    plain(axes, f"{split}, n = {images:,}")
  axes_of[0].set_yticklabels([short(method.replace("_", " ")) for method in methods])
  save(path, figure)
