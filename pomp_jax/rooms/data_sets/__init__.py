"""Published data sets: their images in the layouts of CoOp and TFDS.

Trainings and evaluations open one by the name of `config.data` or of `eval.sets`; the
job `prepare` converts archives. Start with `named_sets`, then `coop` or `tfds`.
"""
