"""Reads published data sets, in the layouts of CoOp and TFDS, and a user's own sets.

`data.source` and `evaluate.source` choose an image source of this room.
`evaluate.suite` and `evaluate.sets` choose data sets. The job `prepare` writes records.
Start with `coop.py` for a layout, with `published_sets.py` for an evaluation, and with
`prepare.py` for the job.
"""
