"""Trains a grid of trainings in one run, many of them as lanes of one program.

The job `ablate` is its only entrance: `ablate.py` runs it, and is where to start
reading. `grid.py` makes the cells, `vmapped_training.py` trains them, and
`ablation_report.py` compares them.
"""
