"""Sampling of negatives: which classes a step contrasts with, and their weights.

`learner.Learner.draw` asks `samplers.draw_negatives`, and a step completes the draw by
`samplers.complete_negatives`. Start with `samplers.py`; `draws.py` has the probability.
"""
