"""Geometry of class features, errors on WordNet, and bias of the sampled gradient."""
