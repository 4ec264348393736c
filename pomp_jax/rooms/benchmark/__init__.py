"""Measures speed and memory of text towers, of whole steps, and of parts of a training.

The job `benchmark` and the fields `dry_run` and `profile_steps` use this package,
through `registry.py` and `hooks.py`. Start with `benchmark.py` for what runs on this
machine, and with `dry_run.py` for what a training will cost, here or on a machine that
is absent.
"""
