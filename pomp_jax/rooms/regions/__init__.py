"""Regions of images (boxes, masks, embeddings) and their scores under a class matrix.

The jobs `detect`, `segment`, `propose` and `train_masks` use this room, and so do the
tasks `detect` and `segment` of `predict`. Start with `region_scorer`, which scores
regions, or with `dense`, which scores patches instead.
"""
