"""Measurements of speed and memory: text towers, whole steps, reading images."""
