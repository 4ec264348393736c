"""Measurements of speed and memory: text towers, whole steps, the parts of a
training."""
