"""The method: a soft prompt, local contrast with local correction, and the training step.

Pure functions over arrays and a Flax module, without files.
"""
