"""POMP itself: a soft prompt, sampled negatives, a local contrast, one training step.

Pure functions over arrays, without files or configs. `train.training` builds a step
from these functions, and `encoder` computes class features with them. Start with
`step.py`, then `loss.py`.
"""
