"""Sampling of negatives: which classes a step contrasts with, and their weights.

`learner.Learner.draw` calls `samplers.draw_negatives`, and a step completes the draw
with `samplers.complete_negatives`. A draw may hold an image's own class, which
`kept_with_margin` in prompt/loss.py drops from the image's negatives.

Start with `samplers.py`; `without_replacement.py` has the draws and their
probabilities.
"""
