"""A grid of trainings in one run: cells, lanes that share a program, the report."""
