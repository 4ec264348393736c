"""The plot of many methods side by side: a panel a split, a line a method."""

from collections.abc import Mapping
import os

import numpy as np

from pomp_jax.analysis.drawing import panels, plain, save, short, style


def method_dots(
  path: str | os.PathLike, top1: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> None:
  """Top-1 of each method on each split, mean and one standard deviation.

  Args:
    path: the PNG file.
    top1: `top1[method][split]` has `mean` and `std`, fractions; a method may lack splits.
  """
  methods = list(top1)
  splits = list(dict.fromkeys(split for found in top1.values() for split in found))
  title = "Top-1 accuracy (%), mean and standard deviation over the seeds"
  figure, axes_of = panels(len(splits), 3.3, 1.0 + 0.24 * len(methods), title)
  for axes, split in zip(axes_of, splits, strict=True):
    for number, method in enumerate(methods):
      if split in top1[method]:
        mean, std = (100 * top1[method][split][figure_name] for figure_name in ("mean", "std"))
        axes.errorbar(mean, number, xerr=std, capsize=3, markersize=6, lw=1.4, **style(number))
        axes.annotate(
          f"{mean:.1f}", (mean, number), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_yticks(np.arange(len(methods)), [])
    axes.set_ylim(len(methods) - 0.4, -0.8)
    axes.margins(x=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    plain(axes, split)
  axes_of[0].set_yticklabels([short(method.replace("_", " ")) for method in methods])
  save(path, figure)
