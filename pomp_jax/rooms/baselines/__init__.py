"""Methods that POMP is compared with, each on the same step, loop or features.

CoOp (Zhou et al., 2022) has no file here: it is POMP's own learner with
`negatives='all'`.
"""
