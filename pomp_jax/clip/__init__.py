"""The frozen backbone: load a CLIP, tokenize, and turn prompts and images into
features."""
