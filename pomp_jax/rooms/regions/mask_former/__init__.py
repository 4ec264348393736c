"""MaskFormer: a network that finds the regions of an image and embeds each in a
CLIP's space."""
