"""Sampling of negatives: which classes a step contrasts with, and their importance
weights."""
