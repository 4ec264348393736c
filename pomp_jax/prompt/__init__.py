"""POMP itself: a soft prompt, sampled negatives, a local contrast, one training step.

Pure functions over arrays, without files or configs; `train.setup` builds a step of them
and `encoder` computes class features with them. Start with `step.py`, then `loss.py`.
"""
