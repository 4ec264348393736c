"""The frozen CLIP: reading checkpoints of several projects, and CLIP's two towers.

`encoder` puts a `load.Clip` on the devices, and a training step calls the text tower.
To learn how files are read, start with `load.py`. For the computation, start with
`text.py` and continue with `packed.py`.
"""
