"""Measurements of speed and memory: text towers, whole steps, parts of a training.

The job `benchmark` and the field `config.dry_run` run them, also for devices that are
not here. Start with `benchmark` for the towers, and with `dry_run` for the forecast of a
training.
"""
