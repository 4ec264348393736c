"""Regions of images (boxes, masks, embeddings) and their scores under a class
matrix."""
