"""Calibrated answers, answers from a tree, and classifiers for other programs."""
