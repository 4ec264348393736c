"""Negatives by a hierarchy of the classes: siblings, kin, and ancestors in the loss.

Trainings whose sampler or loss needs relations between classes ask for them through
`hooks`. The room is one file, `relations`.
"""
