"""MaskFormer: a network that finds the regions of an image, with a CLIP embedding each.

`proposals` runs it and the job `train_masks` trains it. Start with `model`.
"""
