"""The frozen CLIP: reading checkpoints of several projects, and its two towers.

`encoder` puts a `load.Clip` on the devices, and a training step calls its text tower.
Start with `load.py` for files, with `text.py` and then `packed.py` for computation.
"""
