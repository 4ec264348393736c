"""Reads published data sets, in the layouts of CoOp and TFDS, and a user's own sets.

`data.source` and `evaluate.source` choose its image sources, `evaluate.suite` and
`evaluate.sets` its sets, and the job `prepare` writes records. Start with `coop.py` for
a layout, with `named_sets.py` for an evaluation, and with `prepare.py` for the job.
"""
