"""The rows of a benchmark as a table and as a plot."""

import contextlib
import importlib
import pathlib
from typing import Any

import numpy as np

_HEADER = (
  f"{'implementation':14} {'K':>6} {'N':>8} {'tokens':>8} {'seconds':>9} {'ms / class':>10}"
  f" {'of matmul rate':>14} {'peak MiB':>9} {'process MiB':>11} {'time / ours':>11}"
  f" {'peak / ours':>11}"
)


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as text, with how many times `shared` is faster and smaller than each."""
  ours = {row["k"]: row for row in rows if row["implementation"] == "shared"}
  lines = [_HEADER]
  for row in rows:
    mine = ours.get(row["k"]) if row["implementation"] != "train_step" else None
    slower = larger = "-"
    if mine:
      slower = f"{row['seconds'] / mine['seconds']:.1f}"
      if row["peak_mib"] and mine["peak_mib"]:
        larger = f"{row['peak_mib'] / mine['peak_mib']:.1f}"
    peak, process = (
      "-" if row[name] is None else f"{row[name]:.0f}" for name in ("peak_mib", "process_peak_mib")
    )
    lines.append(
      f"{row['implementation']:14} {row['k']:>6} {row['n_classes']:>8} {row['tokens']:>8}"
      f" {row['seconds']:>9.3f} {1000 * row['seconds'] / row['k']:>10.2f}"
      f" {row['share_of_matmul_rate']:>14.1%} {peak:>9} {process:>11} {slower:>11} {larger:>11}"
    )
  rates = np.median([row["matmul_gflops"] for row in rows])
  return "\n".join([*lines, f"large matrix product: {rates:.0f} GFLOP/s"])


def plot(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Seconds and peak temporaries against K; left out where matplotlib is missing."""
  rows = [row for row in rows if row["implementation"] != "train_step"]
  with contextlib.suppress(ImportError):
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(9, 4), layout="constrained")
    names = dict.fromkeys(row["implementation"] for row in rows)
    for axes, field, label in zip(
      figure.subplots(1, 2),
      ("seconds", "peak_mib"),
      ("seconds a step", "peak temporaries, MiB"),
      strict=True,
    ):
      for name, marker in zip(names, "osD", strict=False):
        mine = [
          (row["k"], row[field])
          for row in rows
          # Torch has its rows in parts: its peak is not that of K rows.
          if row["implementation"] == name
          and row[field]
          and (field == "seconds" or name != "torch_77")
        ]
        if mine:
          axes.loglog(*zip(*sorted(mine), strict=True), marker=marker, label=name)
      axes.set(xlabel="K, classes a step", ylabel=label)
      ks = sorted({row["k"] for row in rows})
      axes.set_xticks(ks, [f"{k:,}" for k in ks])
      axes.minorticks_off()
      axes.grid(color="0.92", which="both")
      axes.spines[["top", "right"]].set_visible(False)
      axes.legend(frameon=False)
    figure.suptitle("Text tower, forward and backward to the context")
    figure.savefig(path, dpi=150)
