"""Geometry of class features under prompts, and bias of the sampled gradient."""
