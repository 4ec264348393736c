"""Negatives by a hierarchy of the classes: siblings, kin, and ancestors in the loss.

`hooks` gives the relations between classes to a training whose sampler or loss needs
them. The room is one file, `relations`.
"""
