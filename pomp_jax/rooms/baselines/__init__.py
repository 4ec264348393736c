"""Methods that POMP is compared with, each on the same step, loop or features.

The job pretrain opens one by its name in `registry.METHODS`; the jobs `baselines` and
`repeat` run several. Start with `cocoop`, the smallest learner, or `linear_probe`, a
classifier on features. CoOp (Zhou et al., 2022) has no file here: it is POMP's own
learner with `negatives='all'`.
"""
