"""Ablations: a grid of trainings in one run, and what its cells differ in.

The job `ablate` runs it, one compiled program for the cells that differ in numbers
alone. Start with `ablate`, then `grid` (cells) and `vmapped_training` (lanes).
"""
